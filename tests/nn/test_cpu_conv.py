"""Convolutions computed another way while they train: the same answers, the same gradients."""

import copy

import pytest
import timm
import torch

from foldface.nn import cpu_conv


def gradients(layer, inputs):
    """What a layer answers, and the gradients of its inputs and parameters."""
    inputs = inputs.clone().requires_grad_(True)
    outputs = layer(inputs)
    told = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).reshape(outputs.shape).square()
    return [outputs, *torch.autograd.grad(outputs, [inputs, *layer.parameters()], told)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (4, 3), (5, 5), (6, 9), (7, 7), (12, 8)])
@pytest.mark.parametrize("kind, near", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_answers_and_gradients_are_those_of_torch(kernel, shape, bias, kind, near):
    torch.manual_seed(0)
    groups = 6 if kernel > 1 else 1
    layer = torch.nn.Conv2d(6, 6, kernel, padding=kernel // 2, groups=groups, bias=bias).to(kind)
    inputs = torch.randn(2 * cpu_conv.PAIRED_PHOTOS + 1, 6, *shape, dtype=kind).to(memory_format=torch.channels_last)
    usual = gradients(layer, inputs)
    with cpu_conv.faster_convolutions(layer) as count:
        found = gradients(layer, inputs)
    assert count == (kernel != 3)
    for mine, other in zip(found, usual, strict=True):
        assert torch.allclose(mine, other, rtol=near, atol=near * max(1, other.abs().max().item()))


def test_each_way_is_taken_where_it_is_the_faster_one(monkeypatch):
    taken = []

    def noting(owner, name):
        way = getattr(owner, name)

        def noted(*given):
            taken.append(name)
            return way(*given)

        monkeypatch.setattr(owner, name, noted)

    noting(cpu_conv, "by_pairs")
    noting(cpu_conv, "by_columns")
    noting(cpu_conv.functional, "linear")
    layer = torch.nn.Conv2d(4, 4, 5, padding=2, groups=4)
    with cpu_conv.faster_convolutions(layer):
        for side in (2, 4, 5, 24):
            gradients(layer, torch.randn(1, 4, side, side))
        gradients(layer, torch.randn(1, 4, 4, 5))  # neither small nor wide: torch's own way
        layer(torch.randn(1, 4, 2, 2, requires_grad=True)).sum().backward()
        layer.weight.requires_grad_(False)
        layer(torch.randn(1, 4, 2, 2, requires_grad=True)).sum().backward()  # nothing of it learns
    assert taken == ["by_pairs", "by_pairs", "by_columns", "by_columns", "by_pairs"]
    taken.clear()
    point = torch.nn.Conv2d(3, 4, 1)
    with cpu_conv.faster_convolutions(point):
        point(torch.randn(2, 3, 16, 16))
        point(torch.randn(1, 3, 27, 19))
    assert taken == ["linear"]


def test_other_convolutions_stay_as_they_are():
    others = [
        torch.nn.Conv2d(4, 4, 5, 2, 2, groups=4),
        torch.nn.Conv2d(4, 4, 5, 1, 4, 2, groups=4),
        torch.nn.Conv2d(4, 4, 5, groups=4),
        torch.nn.Conv2d(4, 8, 5, padding=2, groups=4),
        torch.nn.Conv2d(4, 4, 5, padding=2),
        torch.nn.Conv2d(4, 4, 5, padding=2, groups=4, padding_mode="reflect"),
        torch.nn.Conv2d(4, 4, 1, 2),
        timm.layers.StdConv2d(4, 4, 1),
        torch.nn.Conv2d(4, 4, 1, groups=2),
    ]
    with cpu_conv.faster_convolutions(torch.nn.ModuleList(others)) as count:
        assert count == 0


@pytest.mark.slow
def test_a_network_learns_the_same_and_is_itself_again_afterwards():
    torch.manual_seed(0)
    net = timm.create_model("tf_efficientnet_lite0", num_classes=3).double().eval()
    inputs = torch.randn(2, 3, 64, 64).double().to(memory_format=torch.channels_last)
    usual, plain = gradients(net, inputs), copy.deepcopy(net)
    with cpu_conv.faster_convolutions(net) as count:
        found = gradients(net, inputs)
        assert net.state_dict().keys() == plain.state_dict().keys()
    assert count > 30
    for mine, other in zip(found, usual, strict=True):
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-9 * other.abs().max().item())
    with pytest.raises(ZeroDivisionError), cpu_conv.faster_convolutions(net):
        1 / 0  # noqa: B018
    assert not any("forward" in vars(layer) for layer in net.modules())


def test_it_is_off_on_other_devices_precisions_and_torch_versions_that_were_not_tested(monkeypatch):
    cpu = torch.device("cpu")
    assert not cpu_conv.helps(torch.device("meta"), "no") and not cpu_conv.helps(cpu, "bf16")
    monkeypatch.setattr(torch, "__version__", f"{cpu_conv.TESTED_TORCH[-1]}.3+cpu")
    assert cpu_conv.helps(cpu, "no")
    for version in ("2.1.0", "2.99.0+cpu"):
        monkeypatch.setattr(torch, "__version__", version)
        assert not cpu_conv.helps(cpu, "no")
