"""foldface/nn/optim.py: timm's optimizers by their names, and schedules that move them."""

import itertools

import numpy as np
import pytest
import timm
import torch
from helpers import at_step, before_each_network, make_learner
from safetensors.torch import load_file

import dataset
import loss
import model
import train
from foldface.files import InputError
from foldface.nn import optim, progressive
from foldface.nn.mixup import mix
from foldface.settings import TrainConfig


def stepped(config):
    """(weights before, weights after) three steps of a small network, its optimizer made and moved as in training."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=4)
    optimizer = optim.make_optimizer(optim.parameter_groups(net, config), config, fused=False)
    scheduler = optim.make_scheduler(optimizer, config, 2)
    before = net.get_classifier().weight.detach().clone()
    photos, classes = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    for _ in range(3):
        torch.nn.functional.cross_entropy(net(photos), classes).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    return before, net.get_classifier().weight.detach()


@pytest.mark.parametrize("name", ["lion", "nadamw", "lamb", "madgrad", "muon", "adafactor", "rmsprop", "larc"])
@pytest.mark.parametrize("scheduler", ["onecycle", "cosine"])
def test_an_optimizer_of_timms_moves_the_weights_under_every_schedule(name, scheduler):
    before, after = stepped(TrainConfig(optimizer=name, scheduler=scheduler, epochs=2))
    assert after.isfinite().all() and not torch.equal(before, after)


def test_the_three_of_ours_are_torchs_own():
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    for name, kind in kinds.items():
        optimizer = optim.make_optimizer([torch.zeros(1, requires_grad=True)], TrainConfig(optimizer=name))
        assert type(optimizer) is kind


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adamx", "train.optimizer adamx: timm has no such optimizer; there are adam"),
        ("adahessian", "train.optimizer adahessian: needs second derivatives"),
    ],
)
def test_an_optimizer_that_can_not_be_had_is_one_line(name, said):
    with pytest.raises(InputError) as caught:
        optim.make_optimizer([torch.zeros(1, requires_grad=True)], TrainConfig(optimizer=name))
    assert str(caught.value).startswith(said)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it needs a machine without CUDA")
def test_an_optimizer_of_a_package_that_is_not_there_is_one_line():
    with pytest.raises(InputError, match=r"^train\.optimizer fusedlamb: can't be had here \("):
        optim.make_optimizer([torch.zeros(1, requires_grad=True)], TrainConfig(optimizer="fusedlamb"))


def test_photos_are_mixed_until_the_epoch_that_is_named(competition, accelerator):
    config = competition.config("--train.mixup", 0.2, "--train.mixup_off_epoch", 1, "--train.epochs", 3)
    learner = make_learner(config, dataset.prepare(config), 4, accelerator)
    assert learner.mixing is learner.mixup is not None
    learner.next_epoch()
    assert learner.mixing is None


@pytest.mark.parametrize(
    ("first", "full", "sizes"),
    [(64, 192, [64, 64, 96, 128, 128, 128, 160, 192, 192, 192]), (0, 192, [192] * 10), (32, 40, [32] * 8 + [40] * 2)],
)
def test_photos_grow_over_four_fifths_of_the_training(first, full, sizes):
    assert [progressive.side_at(first, full, k / 10) for k in range(10)] == sizes


@pytest.mark.slow
def test_training_begins_with_small_photos_and_an_interrupt_changes_nothing(competition, one_accelerator, tmp_path):
    words = ["--train.first_size", 32, "--data.image_size", 64, "--train.epochs", 5]
    seen = []
    with before_each_network(lambda photos: seen.append(photos.shape[-1]) if torch.is_grad_enabled() else None):
        train.train_folds(competition.config(*words), [0])
    assert [side for side, _ in itertools.groupby(seen)] == [32, 64] and 2 * seen.count(64) == 3 * seen.count(32)
    stopped = competition.config(*words, "--run", tmp_path / "stopped")
    with at_step(seen.count(32) + 1), pytest.raises(KeyboardInterrupt):
        train.train_folds(stopped, [0])
    train.train_folds(stopped, [0])
    one, other = (load_file(run / "fold0/best.safetensors") for run in (competition.root / "run", tmp_path / "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_first_size_that_can_not_be_is_one_line(competition, accelerator):
    with pytest.raises(InputError, match=r"train\.first_size 64: is more than data\.image_size 32: photos only grow"):
        model.make(competition.config("--train.first_size", 64), 4, 0, accelerator)
    words = ["--model.backbone", "vit_tiny_patch16_224", "--data.image_size", 224, "--train.first_size", 96]
    with pytest.raises(InputError, match=r"train\.first_size 96: vit_tiny_patch16_224 takes no photos of that size"):
        model.make(competition.config(*words), 4, 0, accelerator)


def test_only_a_share_of_the_batches_is_mixed():
    inputs, targets = torch.randn(8, 3, 4, 4), [torch.eye(8)]
    shares = []
    torch.manual_seed(0)
    np.random.seed(0)
    mixup = loss.make_mixup(TrainConfig(mixup=1.0, mixup_prob=0.3))
    for _ in range(300):
        _, kept = mix(mixup, inputs.clone(), targets)
        shares.append(bool((kept < 1).any()))
    assert 0.22 < np.mean(shares) < 0.38


def test_grad_checkpointing_changes_no_gradient(competition, accelerator):
    found = []
    for words in ((), ("--model.grad_checkpointing", "true")):
        net = model.make(competition.config(*words), 4, 0, accelerator).train()
        net(torch.linspace(-1, 1, 4 * 3 * 32 * 32).view(4, 3, 32, 32)).square().sum().backward()
        found.append([weight.grad for weight in net.parameters() if weight.grad is not None])
    assert net.grad_checkpointing and len(found[0]) == len(found[1]) > 10
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in zip(*found, strict=True))


def test_a_backbone_that_keeps_all_activations_is_one_line(competition, accelerator):
    words = ["--model.grad_checkpointing", "true", "--model.backbone", "alexnet", "--data.image_size", 64]
    config = competition.config(*words)
    with pytest.raises(InputError, match=r"model\.grad_checkpointing true: alexnet doesn't know how"):
        model.make(config, 4, 0, accelerator)
