"""fp16 with loss scaling: steps that overflow are skipped whole, folds know nothing of one another. On a CPU, whose own
GradScaler and fp16 stand in for a GPU's."""

import copy

import pytest
import torch
from helpers import make_learner

import dataset
from foldface.data import folds
from foldface.nn import optim
from tools import check_repeat

RATE = 0.01
pytestmark = pytest.mark.filterwarnings("error:.*lr_scheduler.step:UserWarning", "error:.*optimizer.step:UserWarning")


def learner_of(competition, accelerator, *words, seconds=None):
    """A Learner at a constant rate, without weight decay."""
    plain = ["--train.scheduler", "constant", "--train.lr", RATE, "--train.weight_decay", 0, "--train.clip_grad", 0]
    config = competition.config(*plain, *words)
    rows, _ = folds.split(dataset.prepare(config), 0)
    return make_learner(config, rows, 5, accelerator, seconds)


def step(mine, overflow=False):
    """One step with photos of noise, always the same; overflow: as if one gradient had."""
    photos = torch.randint(0, 255, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    bias = mine.module.get_classifier().bias
    hook = bias.register_hook(lambda gradient: gradient * float("inf")) if overflow else None
    mine.set_train_mode()
    mine.train_step(torch.arange(8), photos, 8)
    if hook:
        hook.remove()


def weights(mine):
    return {name: value.clone() for name, value in mine.module.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_first_step_that_overflows_leaves_no_trace(competition, scaling, optimizer):
    words = ["--train.optimizer", optimizer, "--train.weight_averaging", "ema", "--train.scheduler", "cosine"]
    mine = learner_of(competition, scaling, *words)
    before = weights(mine)
    step(mine, overflow=True)
    assert mine.optimizer.step_was_skipped and same(weights(mine), before) and not mine.optimizer.state
    assert same(dict(mine.average.module.named_parameters()), before) and mine.steps == 0
    rate = mine.optimizer.param_groups[0]["lr"]
    assert rate == RATE, "the schedule counts steps that were taken"
    step(mine)
    assert not mine.optimizer.step_was_skipped and mine.steps == 1
    assert mine.optimizer.param_groups[0]["lr"] < rate
    found = weights(mine)
    assert not same(found, before) and all(value.isfinite().all() for value in found.values())
    if optimizer == "sgd":  # the momentum is this step's gradient alone
        for name, value in mine.module.named_parameters():
            momentum = mine.optimizer.state[value]["momentum_buffer"]
            assert torch.allclose(before[name] - found[name], RATE * momentum, atol=1e-6)


@pytest.mark.slow
def test_every_fold_begins_at_the_same_scale(competition, scaling):
    first = learner_of(competition, scaling)
    begun = scaling.scaler.get_scale()
    for _ in range(3):
        step(first, overflow=True)
    assert scaling.scaler.get_scale() == begun / 8
    learner_of(competition, scaling)
    assert scaling.scaler.get_scale() == begun


@pytest.mark.slow
def test_a_stopped_fold_goes_on_at_the_scale_it_had(competition, scaling):
    mine = learner_of(competition, scaling, "--train.optimizer", "sgd")
    step(mine, overflow=True)
    step(mine)
    mine.save()
    step(mine)
    went_on = learner_of(competition, scaling, "--train.optimizer", "sgd")
    went_on.resume()
    assert scaling.scaler.get_scale() == 32768 and went_on.steps == 1
    step(went_on)
    assert same(weights(went_on), weights(mine))


@pytest.mark.slow
def test_a_budget_takes_overflows_for_no_steps(competition, scaling):
    mine = learner_of(competition, scaling, "--train.scheduler", "onecycle", "--train.minutes", 1, seconds=60)
    mine.budget.begin()
    for _ in range(2):
        step(mine, overflow=True)
    assert mine.budget.done == 0 and not mine.budget.due, "there is nothing yet to plan from"
    for _ in range(3):
        step(mine)
    assert mine.budget.done == 3 and mine.budget.due and mine.budget.plan() > 0


@pytest.mark.slow
@pytest.mark.parametrize("clip", [0.001, 1000.0])
def test_gradients_are_clipped_by_what_they_are_not_by_what_they_are_scaled_to(competition, scaling, clip):
    moved = []
    for limit in (0, clip):
        mine = learner_of(competition, scaling, "--train.optimizer", "sgd", "--train.clip_grad", limit)
        before = weights(mine)
        step(mine)
        after = weights(mine)
        scaling.free_memory()
        moved.append(torch.cat([(before[name] - after[name]).flatten() for name in before]).norm().item())
    assert 0.001 < moved[0] / RATE < 1000
    assert moved[1] == pytest.approx(RATE * clip if clip < 1 else moved[0], rel=1e-2)


@pytest.mark.slow
def test_a_repeated_training_is_compared_by_gradients_that_are_not_scaled(competition, scaling, monkeypatch):
    """A second start at half the first one's scale is the same training."""
    begun, honest = iter((65536.0, 32768.0)), torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: honest(device, init_scale=next(begun)))
    monkeypatch.setitem(scaling.state._shared_state, "_mixed_precision", "no")  # no rounding to 16 bits
    scaling.native_amp = False
    config = competition.config("--train.clip_grad", 0)
    rows, _ = folds.split(dataset.prepare(config), 0)
    one, other = (check_repeat.trace(rows, config, 2, scaling) for _ in range(2))
    gradients = [(first, second) for first, second in zip(one, other, strict=True) if "gradient" in first[1]]
    assert gradients and all(first == second for first, second in gradients)


@pytest.mark.slow
def test_optimizers_are_fused_where_no_loss_is_scaled(competition, accelerator, scaling):
    assert learner_of(competition, scaling).optimizer.defaults["fused"] is False
    assert optim.make_optimizer([torch.zeros(1, requires_grad=True)], competition.config().train).defaults["fused"]
    mine = copy.copy(accelerator)
    mine.scaler = None
    assert learner_of(competition, mine).optimizer.defaults["fused"] is True
