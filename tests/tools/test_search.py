"""tools.search: on noise the honest gain is none, on planted structure it is there; what stops goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from helpers import MASK, ROOT, guesses, people

from foldface import metrics, predictions
from foldface.files import InputError, write_csv
from tools import search


def figures(strengths, seed):
    """(gain of the recipe that looks best, gain of the nested choice, its interval) to the first of recipes that know
    the target as much as `strengths` says."""
    target, ids, part = people(150, seed)
    answers = np.stack([guesses(target, one, 100 * seed + k).argmax(1) for k, one in enumerate(strengths)])
    nested = search.choose_nested(MASK, answers, target, part)
    draws = metrics.bootstrap_scores(MASK, target, [nested, answers[0]], ids)
    base = metrics.value(MASK, target, answers[0])
    best = metrics.value(MASK, target, answers[search.best_of(MASK, answers, target)])
    return best - base, metrics.value(MASK, target, nested) - base, np.quantile(draws[0] - draws[1], [0.025, 0.975])


def test_on_pure_noise_the_best_looks_better_and_the_honest_gain_is_within_its_interval_of_none():
    found = [figures([0.0] * 20, seed) for seed in range(5)]
    assert all(best > 0 for best, _, _ in found)
    assert sum(low <= 0 <= high for _, _, (low, high) in found) >= 4
    assert np.mean([honest for _, honest, _ in found]) < np.mean([best for best, _, _ in found]) / 2


def test_what_is_there_is_found():
    best, honest, (low, _) = figures([1.0, 1.0, 3.0, 1.0], 1)
    assert low > 0 and honest == pytest.approx(best)


def test_the_choice_for_a_fold_does_not_look_at_that_fold():
    target, _, part = people(150, 2)
    good, other = guesses(target, 2.3, 1).argmax(1), guesses(target, 2.0, 2).argmax(1)
    spoilt = np.where(part == 0, (target + 1) % 18, good)  # the better one by the other folds, the worse one by all
    answers = np.stack([other, spoilt])
    assert search.best_of(MASK, answers, target) == 0
    nested = search.choose_nested(MASK, answers, target, part)
    assert (nested[part == 0] == spoilt[part == 0]).all()


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"optim.lr": [1, 2]}, "optim.lr: there is no such setting"),
        ({"train.lr": {"low": 1, "high": 0.1}}, "train.lr: low should be below high"),
        ({"train.lr": {"low": 0, "high": 0.1, "log": True}}, "train.lr: a logarithmic range begins above 0"),
        ({"train.lr": {"low": 0.1}}, "train.lr: a range has the numbers low and high"),
        ({"train.lr": {"low": -1, "high": 0.1}}, "train.lr: -1 can't be: "),
        ({"train.epochs": {"low": 0.5, "high": 4}}, "train.epochs: 0.5 can't be: "),
        ({"loss.name": ["cross_entropy"]}, "loss.name: give a list of at least two values"),
        ({"loss.name": ["cross_entropy", "focall"]}, "loss.name: .focall. can't be: "),
        ({"train.folds": [3, 5]}, "train.folds: decides what is scored"),
        ({"run": ["a", "b"]}, "run: decides what is scored, or nothing that is"),
        ({}, "should be a JSON object such as"),
    ],
)
def test_a_bad_space_is_refused_with_its_key(tmp_path, space, said):
    path = tmp_path / "space.json"
    path.write_text(json.dumps(space))
    with pytest.raises(InputError, match=said):
        search.read_space(str(path), [])


class Drawn(search.Trainer):
    """A trainer whose models know the more, the nearer train.lr is to 0.01; `done` lists (folder, fold)."""

    def train(self, chosen, folds):
        self.done = [*getattr(self, "done", []), (self.folder(chosen).name, folds[0])]
        target, ids, part = people(40)
        strength = 3 + np.log10(chosen.get("train.lr", 1e-4))
        answers = predictions.with_answers(
            MASK,
            pd.DataFrame({"ImageID": range(len(ids)), "id": ids, "fold": part, "target": target}),
            guesses(target, strength, 1),
        )
        write_csv(self.folder(chosen) / f"fold{folds[0]}" / "oof.csv", answers[part == folds[0]])
        return 0

    def folds(self):
        return [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_trials_that_are_worse_end_after_few_folds_and_the_good_setting_is_found(tmp_path):
    optuna = pytest.importorskip("optuna")
    sampler, pruner = optuna.samplers.TPESampler(seed=0), optuna.pruners.MedianPruner(n_startup_trials=4)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    trainer = Drawn(tmp_path, [], MASK)
    space = {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    search.run_trials(study, optuna.trial.TrialState, space, trainer, lambda: len(study.trials) >= 20)
    states = [trial.state.name for trial in study.trials]
    assert states[:4] == ["COMPLETE"] * 4 and states.count("PRUNED") >= 3
    assert len(trainer.done) < 5 * 20 and study.best_params["train.lr"] > 5e-3
    for trial in study.trials:
        assert len(trial.intermediate_values) == 5 or trial.state.name == "PRUNED"


@pytest.mark.chain
def test_a_search_goes_on_and_leaves_a_recipe_and_a_page(competition, capsys):
    pytest.importorskip("optuna")
    (path := competition.root / "space.json").write_text(
        json.dumps({"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "loss.name": ["cross_entropy", "focal"]})
    )
    words, home = (
        ["--space", path, "--run", competition.root / "found", "--train.epochs", 1],
        competition.root / "found",
    )
    competition.run(search, *words, "--trials", 1)
    trained = {path.parent.parent.name: path.stat().st_mtime_ns for path in home.glob("*/fold0/oof.csv")}
    assert len(trained) == 2 and "default" in trained
    competition.run(search, *words, "--trials", 2)
    said = capsys.readouterr().out
    assert said.count("chosen by the other folds (honest): out-of-fold macro F1") == 2
    now = {path.parent.parent.name: path.stat().st_mtime_ns for path in home.glob("*/fold0/oof.csv")}
    assert len(now) == 3 and trained.items() <= now.items()
    recipe = home / "best.json"
    assert set(json.loads(recipe.read_text())) in ({"train", "loss"}, set())
    competition.config("--config", recipe)
    assert "Trials" in (home / "search.html").read_text()
    path.write_text(json.dumps({"train.lr": [0.1, 0.2]}))
    with pytest.raises(InputError, match="was begun with another space"):
        competition.run(search, *words)


@pytest.mark.chain
def test_a_search_stopped_in_mid_trial_goes_on_with_that_trial(competition):
    pytest.importorskip("optuna")
    (space := competition.root / "space.json").write_text(json.dumps({"train.lr": {"low": 1e-4, "high": 1e-2}}))
    home = competition.root / "found"
    words = competition.words("--space", space, "--run", home, "--train.epochs", 1, "--trials", 1)
    command = [sys.executable, "-m", "tools.search", *words]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    while first.poll() is None and not list(home.glob("trial-*/fold0/oof.csv")):
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait() == 130 and not (home / "best.json").exists()
    stopped = {path.name for path in home.glob("trial-*")}
    said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert {path.name for path in home.glob("trial-*")} == stopped and "1 trials of 2 are complete" in said
