"""The small CNNs for age: built by name like timm's own, and begun from the weights that one asks for."""

import math

import pytest
import timm
import torch
from torch import nn

import model
from foldface.files import InputError
from foldface.nn import batchnorm, optim, weights
from foldface.settings import TrainConfig

NAMES = ["agecnn", "agecnn_deep"]


def begun(name, how, seed=0):
    torch.manual_seed(seed)
    net = timm.create_model(name)
    weights.initialise(net, how)
    return net


def weighted(net):
    return [part for part in net.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [128, 64, 100, 32])
def test_photos_of_any_size_come_to_raw_outputs(name, size):
    net = model.build(name, 3, False, size).eval()
    with torch.inference_mode():
        outputs = net(torch.randn(2, 3, size, size))
    assert outputs.shape == (2, 3) and outputs.isfinite().all()


@pytest.mark.parametrize(
    ("name", "widths", "linear"),
    [
        ("agecnn", [16, 32, 64, 128, 256], [1024, 256, 1]),
        ("agecnn_deep", [16, 64, 128, 256, 512, 1024], [100, 1]),
    ],
)
def test_the_layers_are_those_of_the_report(name, widths, linear):
    net = timm.create_model(name)
    assert [part.out_channels for part in weighted(net) if isinstance(part, nn.Conv2d)] == widths
    assert [part.out_features for part in weighted(net) if isinstance(part, nn.Linear)] == linear
    assert net.blocks(torch.zeros(1, 3, 128, 128)).shape[-2:] == (4, 4)  # so at 128 pixels the pool changes nothing


@pytest.mark.parametrize("name", NAMES)
def test_each_convolution_is_followed_by_batch_norm_and_a_leaky_relu_and_each_block_halves_the_photo(name):
    net = timm.create_model(name)
    for block in net.blocks:
        assert [type(part) for part in block] == [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU, nn.MaxPool2d]
    slopes = [part.negative_slope for part in net.modules() if isinstance(part, nn.LeakyReLU)]
    assert slopes == [0.2] * (5 if name == "agecnn" else 7)
    assert sum(isinstance(part, nn.ReLU) for part in net.modules()) == (2 if name == "agecnn" else 0)
    assert net.blocks(torch.zeros(1, 3, 128, 128)).shape[1:] == (256 if name == "agecnn" else 512, 4, 4)


@pytest.mark.parametrize("name", NAMES)
def test_the_classifier_is_found_by_its_name(name):
    net = timm.create_model(name, num_classes=5)
    assert net.get_submodule(net.pretrained_cfg["classifier"]) is net.get_classifier()
    assert net.get_classifier().out_features == net.num_classes == 5


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_one_task_start_another(name):
    first, second = timm.create_model(name), timm.create_model(name, num_classes=8)
    weights.load_backbone(second, first.state_dict())
    assert all(
        torch.equal(a.weight, b.weight) for a, b in zip(weighted(first)[:-1], weighted(second)[:-1], strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_layers_freeze_from_the_stem_on_and_never_the_classifier(name):
    net = timm.create_model(name)
    lowest = set(batchnorm.lowest_layers(net, 2))
    assert lowest == {part for block in net.blocks[:2] for part in block if list(part.parameters())}  # batch norm too
    most = batchnorm.lowest_layers(net, len(weighted(net)) - 1)
    assert set(weighted(net)) - set(most) == {net.get_classifier()}
    with pytest.raises(InputError, match="freeze_layers"):
        batchnorm.lowest_layers(net, len(weighted(net)))


@pytest.mark.parametrize("name", NAMES)
def test_each_layer_may_learn_slower_than_the_one_above(name):
    net = timm.create_model(name)
    groups = optim.parameter_groups(net, TrainConfig(layer_decay=0.5, lr=1.0))
    rates = {id(value): group["lr"] for group in groups for value in group["params"]}
    expected = [0.5**k for k in reversed(range(len(weighted(net))))]
    assert [rates[id(part.weight)] for part in weighted(net)] == pytest.approx(expected)


def test_dropout_acts_in_training_alone():
    net, photos = timm.create_model("agecnn", drop_rate=0.5), torch.randn(1, 3, 64, 64)
    net.get_classifier().weight.data.uniform_(1, 2)  # apart enough for a lost input to show
    assert torch.equal(net.eval()(photos), net(photos))
    assert len({net.train()(photos).item() for _ in range(8)}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_what_the_networks_have_not_is_refused(name):
    with pytest.raises(InputError, match="drop_path"):
        model.build(name, 1, False, 128, drop_path=0.1)
    with pytest.raises(InputError, match="timm has no weights"):
        model.build(name, 1, True, 128)
    with pytest.raises(ValueError, match="published weights"):
        timm.create_model(name, pretrained=True)


@pytest.mark.parametrize("name", NAMES)
def test_kaiming_weights_have_hes_deviation(name):
    for part in weighted(begun(name, "kaiming")):
        weight = part.weight.detach()
        outgoing = weight.shape[0] * weight[0, 0].numel()
        expected = math.sqrt(2 / outgoing)
        assert weight.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * weight.numel()))  # 4 sigma
        assert weight.abs().max() > 2 * expected  # normal: a uniform one of this deviation ends at 1.7
        assert not part.bias.any()


@pytest.mark.parametrize("name", NAMES)
def test_xavier_weights_fill_glorots_bounds(name):
    for part in weighted(begun(name, "xavier")):
        weight = part.weight.detach()
        bound = math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * weight[0, 0].numel()))
        assert 0.9 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=4 / math.sqrt(2 * weight.numel()))
        assert not part.bias.any()


@pytest.mark.parametrize("name", NAMES)
def test_normal_weights_have_a_deviation_of_a_hundredth(name):
    for part in weighted(begun(name, "normal")):
        weight = part.weight.detach()
        assert weight.std().item() == pytest.approx(0.01, rel=4 / math.sqrt(2 * weight.numel()))
        assert not part.bias.any()


@pytest.mark.slow
@pytest.mark.parametrize(("how", "learns"), [("default", False), ("normal", True)])
def test_with_adam_at_a_thousandth_the_first_network_is_stuck_unless_its_weights_begin_small(how, learns):
    net, generator = begun("agecnn", how), torch.Generator().manual_seed(0)
    photos, ages = torch.randn(32, 3, 128, 128, generator=generator), torch.rand(32, generator=generator) * 0.5
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(6):
        answers = net(photos)[:, 0].sigmoid()
        optimizer.zero_grad()
        (answers - ages).abs().mean().backward()
        optimizer.step()
    assert (answers.std() > 0.001) == learns


def test_default_leaves_a_network_as_it_is():
    torch.manual_seed(0)
    plain = timm.create_model("agecnn")
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), begun("agecnn", "default").parameters(), strict=True)
    )


@pytest.mark.parametrize("how", ["default", "kaiming", "xavier", "normal"])
def test_a_seed_gives_its_weights_again(how):
    first, again, other = (begun("agecnn", how, seed) for seed in (1, 1, 2))
    same = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    drawn = zip(weighted(first), weighted(other), strict=True)
    assert not any(torch.equal(a.weight, b.weight) for a, b in drawn)


def test_any_module_can_be_initialised():
    net = nn.Sequential(nn.Conv1d(1, 4, 3, bias=False), nn.BatchNorm1d(4), nn.Linear(8, 2))
    weights.initialise(net, "kaiming")
    assert net[1].weight.eq(1).all() and not net[2].bias.any()


def test_an_unknown_name_is_told_with_the_known_ones():
    with pytest.raises(ValueError, match=r"glorot: .* default, kaiming, xavier, normal"):
        weights.initialise(nn.Linear(2, 2), "glorot")
    with pytest.raises(InputError, match="timm has no such model; it has agecnn"):
        model.build("agecnn_de", 1, False, 128)
