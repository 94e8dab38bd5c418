"""Training by the clock: over in time, the learning rate all the way down, whatever the machine does meanwhile."""

import signal
import time
import types

import pandas as pd
import pytest
import torch

import train
from foldface.files import InputError
from foldface.nn import learner, optim

pytestmark = pytest.mark.usefixtures("one_accelerator")


@pytest.fixture
def clock(monkeypatch):
    """A clock that passes when it is told."""
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(time, "perf_counter", lambda: now.seconds)
    return now


def config(**changes):
    from foldface import settings as settings_module

    return settings_module.TrainConfig(**{"scheduler": "onecycle", "lr": 0.01} | changes)


def walk(clock, seconds, step, look, epoch=40, **changes):
    """Steps of step(k) seconds, looks of look seconds at each epoch's end, until the budget is over: its rates."""
    optimizer = optim.make_optimizer([torch.zeros(1, requires_grad=True)], config(**changes))
    budget, rates = optim.Budget(optimizer, config(**changes), seconds, epoch, look=epoch / 12), []
    budget.begin()
    while not budget.over:
        clock.seconds += step(len(rates))
        rates.append(optimizer.param_groups[0]["lr"])
        budget.step()
        if budget.due:
            budget.follow(budget.plan())
        if budget.over or len(rates) % epoch == 0:
            clock.seconds += look
            budget.took_look(look)
            budget.begin()
    return rates + [optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
@pytest.mark.parametrize(
    "step",
    [lambda k: 0.5, lambda k: 3.0 if k == 0 else 0.5, lambda k: 0.5 if k < 100 else 0.9, lambda k: 0.6 - k / 2000],
)
def test_it_ends_in_time_with_its_rate_all_the_way_down(clock, schedule, step):
    rates = walk(clock, 180, step, look=4.0, scheduler=schedule)
    assert 0.95 * 180 <= clock.seconds - 100 <= 1.02 * 180
    assert max(rates) == pytest.approx(0.01, rel=0.02)
    assert rates[-1] < 0.01 * max(rates)
    assert len(rates) > 100


def test_what_takes_longer_than_its_time_stops_after_a_few_steps(clock):
    assert len(walk(clock, 10, lambda k: 4.0, look=1.0)) <= 6


def test_a_plan_is_what_fits_beside_the_looks(clock):
    budget = optim.Budget(optim.make_optimizer([torch.zeros(1, requires_grad=True)], config()), config(), 100, 20, 3)
    budget.begin()
    due = []
    for seconds in (7.0, 2.0, 2.0, 1.0, 3.0, *[2.0] * 15):  # the first one warms up: no step takes so long
        clock.seconds += seconds
        budget.step()
        due.append(budget.due)
        if budget.done == 3:
            assert budget.remaining == pytest.approx(89)
            assert budget.plan() == (89 - 6) // (2 + 6 / 20)  # before the first look one costs three steps
            budget.took_look(5.0)
            assert budget.plan() == (89 - 5) // (2 + 5 / 20)
            budget.follow(budget.plan())
    assert [k + 1 for k, now in enumerate(due) if now] == [3, 10, 20]
    assert budget.left == 37 - 17 and budget.progress == pytest.approx(17 / 37)
    assert budget.optimizer.param_groups[0]["lr"] == pytest.approx(budget.curves[0]["lr"][round(1000 * 17 / 37)])
    assert budget.plan() == (55 - 5) // (2 + 5 / 20)
    clock.seconds += 54  # one second is left
    assert budget.plan() == 0
    budget.follow(0)
    assert budget.over and not budget.due and budget.plan() == 1, "a stretch of steps has one at least"


def test_a_budget_goes_on_where_it_was(clock):
    def make():
        optimizer = optim.make_optimizer([torch.zeros(1, requires_grad=True)], config())
        return optim.Budget(optimizer, config(), 100, 20, 1), optimizer

    budget, optimizer = make()
    budget.begin()
    for _ in range(30):
        clock.seconds += 1
        budget.step()
        if budget.due:
            budget.follow(budget.plan())
    kept, rate = budget.state_dict(), optimizer.param_groups[0]["lr"]
    clock.seconds += 1000  # the machine was off
    other, optimizer = make()
    other.seconds = budget.remaining + 1000
    other.load_state_dict(kept)
    other.step()
    assert other.progress > kept["progress"] > 0.2
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=0.2)
    assert other.left == kept["left"] - 1


def test_momentum_follows_the_cycle_too():
    optimizer = optim.make_optimizer([torch.zeros(1, requires_grad=True)], config(optimizer="sgd"))
    budget = optim.Budget(optimizer, config(optimizer="sgd"), 100, 20, 1)
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.95)
    budget.progress = 0.3
    budget.apply()
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.85, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("interval", [1, 5])
def test_a_stop_at_the_last_step_still_looks_at_what_it_came_to(competition, monkeypatch, interval):
    step = learner.Learner.train_step

    def last_step(self, *words):
        found = step(self, *words)
        if self.steps == 4:
            self.budget.follow(0)
            signal.raise_signal(signal.SIGINT)
        return found

    words = ["--train.minutes", "5", "--train.scheduler", "onecycle", "--train.checkpoint", "last"]
    words += ["--train.batch_size", "2", "--train.val_interval", interval]
    monkeypatch.setattr(learner.Learner, "train_step", last_step)
    with pytest.raises(KeyboardInterrupt):
        train.train_folds(competition.config(*words), [0], started=time.monotonic())
    monkeypatch.undo()
    train.train_folds(competition.config(*words), [0], started=time.monotonic())
    log = pd.read_csv(competition.root / "run" / "fold0" / "log.csv")
    assert len(log) == 1 and log["f1"].notna().all() and (competition.root / "run" / "oof.csv").is_file()


def test_what_counts_in_epochs_is_refused_with_minutes(competition):
    for words in (["--train.scheduler", "step"], ["--train.warmup_epochs", "1"], ["--train.weight_averaging", "swa"]):
        with pytest.raises(InputError, match="counts in epochs"):
            competition.config("--train.minutes", "3", "--train.scheduler", "cosine", *words)


@pytest.mark.slow
def test_a_run_by_the_clock_is_over_in_time_and_goes_on(competition, capsys):
    chosen = competition.config("--train.minutes", "0.7", "--train.scheduler", "onecycle", "--train.epochs", "1")
    began = time.monotonic()
    train.train_folds(chosen, [0, 1], started=began)
    assert time.monotonic() - began < 120  # 42 on an idle machine
    logs = [pd.read_csv(competition.root / "run" / f"fold{k}" / "log.csv") for k in (0, 1)]
    # where the rate ends has tests with a clock of their own: here a busy machine may stop a step for seconds
    assert all(len(log) and log["lr"].iloc[-1] < chosen.train.lr for log in logs)
    assert capsys.readouterr().out.count(" are about ") == 2
    with pytest.raises(InputError, match="over before training begins"):
        train.seconds_for(chosen, [], 1, time.monotonic() - 40)
