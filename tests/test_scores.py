"""Scores by scikit-learn's names: equal to its own, with intervals over people, decided by and reported."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT
from sklearn import metrics as theirs
from test_tasks import COLOURS, paint, words_of

import ensemble
import inference
import train_kfold
from foldface import blend, cli, metrics, scorers
from foldface.files import InputError, read_json
from foldface.task import Task
from tools import compare

FOUR = [{"name": "kind", "classes": ["a", "b", "c", "d"]}]
TWO = [{"name": "sick", "classes": ["0", "1"]}]
PAWS = [{"name": "paws", "range": [0, 100], "learn": "sigmoid"}]


def drawn(size, n=120, seed=0, ties=False):
    """Targets (n,) and probabilities (n, size) that know something of them; people (n,) of three photos each."""
    rng = np.random.default_rng(seed)
    target = rng.integers(size, size=n)
    score = np.exp(rng.normal(size=(n, size)) + np.eye(size)[target])
    p = score / score.sum(1, keepdims=True)
    return (
        target,
        (p.round(1) + 0.01) / (p.round(1) + 0.01).sum(1, keepdims=True) if ties else p,
        np.arange(n) // 3 + 100,
    )


def mean_of_classes(function):
    return lambda t, p: np.mean([function(t == k, p[:, k]) for k in range(p.shape[1])])


OF_FOUR = {
    "roc_auc": mean_of_classes(theirs.roc_auc_score),
    "roc_auc_ovr": lambda t, p: theirs.roc_auc_score(t, p, multi_class="ovr"),
    "roc_auc_ovo": lambda t, p: theirs.roc_auc_score(t, p, multi_class="ovo"),
    "average_precision": mean_of_classes(theirs.average_precision_score),
    "log_loss": theirs.log_loss,
    "neg_log_loss": lambda t, p: -theirs.log_loss(t, p),
    "brier_score": lambda t, p: theirs.brier_score_loss(t, p),
    "balanced_accuracy": lambda t, p: theirs.balanced_accuracy_score(t, p.argmax(1)),
    "f1_weighted": lambda t, p: theirs.f1_score(t, p.argmax(1), average="weighted"),
    "precision_macro": lambda t, p: theirs.precision_score(t, p.argmax(1), average="macro"),
    "matthews_corrcoef": lambda t, p: theirs.matthews_corrcoef(t, p.argmax(1)),
    "mcc": lambda t, p: theirs.matthews_corrcoef(t, p.argmax(1)),
    "cohen_kappa": lambda t, p: theirs.cohen_kappa_score(t, p.argmax(1)),
    "cohen_kappa_linear": lambda t, p: theirs.cohen_kappa_score(t, p.argmax(1), weights="linear"),
    "cohen_kappa_quadratic": lambda t, p: theirs.cohen_kappa_score(t, p.argmax(1), weights="quadratic"),
    "top_k_accuracy": theirs.top_k_accuracy_score,
    "top_3_accuracy": lambda t, p: theirs.top_k_accuracy_score(t, p, k=3),
}
OF_TWO = {
    "roc_auc": lambda t, p: theirs.roc_auc_score(t, p[:, 1]),
    "average_precision": lambda t, p: theirs.average_precision_score(t, p[:, 1]),
    "precision": lambda t, p: theirs.precision_score(t, p.argmax(1)),
    "brier_score": lambda t, p: theirs.brier_score_loss(t, p[:, 1]),
    "jaccard": lambda t, p: theirs.jaccard_score(t, p.argmax(1)),
}
OF_NUMBERS = {
    "rmse": theirs.root_mean_squared_error,
    "root_mean_squared_error": theirs.root_mean_squared_error,
    "mse": theirs.mean_squared_error,
    "r2": theirs.r2_score,
    "neg_mean_absolute_error": lambda t, a: -theirs.mean_absolute_error(t, a),
    "median_absolute_error": theirs.median_absolute_error,
    "mean_absolute_percentage_error": theirs.mean_absolute_percentage_error,
    "max_error": theirs.max_error,
    "explained_variance": theirs.explained_variance_score,
}
CASES = [(FOUR, name, function) for name, function in OF_FOUR.items()]
CASES += [(TWO, name, function) for name, function in OF_TWO.items()]
CASES += [(PAWS, name, function) for name, function in OF_NUMBERS.items()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "name", "function"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.parametrize("ties", [False, True])
def test_a_score_is_scikit_learns_and_its_interval_that_of_tables_drawn_person_by_person(heads, name, function, ties):
    own = Task(heads, score=name)
    if own.numeric:
        rng = np.random.default_rng(0)
        target, people = rng.uniform(1, 99, 120).round(0 if ties else 9), np.arange(120) // 3 + 100
        told = (target + rng.normal(size=120) * 9).round(0 if ties else 9)
    else:
        target, told, people = drawn(own.size, ties=ties)
    assert metrics.value(own, target, told) == pytest.approx(function(target, told), abs=1e-9)
    assert metrics.scores(own, target, told)[name] == pytest.approx(function(target, told), abs=1e-9)
    errors = name in ("rmse", "mse") or (name.endswith(("error", "loss", "brier_score")) and "neg_" not in name)
    assert metrics.sign(own) == (-1 if errors else 1)
    found, rng = metrics.bootstrap_scores(own, target, [told], people, samples=4)[0], np.random.default_rng(0)
    for value, who in zip(found, rng.integers(40, size=(4, 40)), strict=True):
        photos = np.concatenate([np.flatnonzero(people == one + 100) for one in who])
        assert value == pytest.approx(function(target[photos], told[photos]), abs=1e-9)
    low, high = metrics.interval(own, target, told, people, samples=60)
    assert low <= metrics.value(own, target, told) <= high and low < high


def test_a_class_that_few_photos_have_is_ranked_where_it_can_be_and_what_can_not_be_scored_is_the_worst():
    own = Task(FOUR, score="roc_auc")
    target, told, people = drawn(4)
    target[target == 3] = 0  # no photo of d
    expected = np.mean([theirs.roc_auc_score(target == k, told[:, k]) for k in range(3)])
    assert metrics.value(own, target, told) == pytest.approx(expected)
    rare = np.where(np.arange(120) == 5, 3, target)  # one person's alone: most samples don't hold it
    low, high = metrics.interval(own, rare, told, people)
    assert 0 < low < high < 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(metrics.value(own, np.zeros(120, int), told))
        assert metrics.gain(own, np.zeros(120, int), told) == -np.inf
        assert np.isnan(metrics.interval(own, np.zeros(120, int), told, people)).all()


@pytest.mark.parametrize(
    ("heads", "words", "said"),
    [
        (FOUR, ["--task.score", "rmse"], "task.score rmse: the answer is a class: choose one of f1, accuracy, roc_auc"),
        (PAWS, ["--task.score", "roc_auc"], "task.score roc_auc: the answer is a number: choose mae or within"),
        (FOUR, ["--task.score", "precision"], "task.score precision: Target is multiclass but average='binary'"),
        (FOUR, ["--task.score", "roc_aux"], "task.score roc_aux: there is no such score; did you mean roc_auc?"),
        (FOUR, ["--task.score", "balanced_acuracy"], "did you mean balanced_accuracy?"),
        (FOUR, ["--task.score", "adjusted_rand_score"], "there is no such score"),
        (FOUR, ["--task.score", "f1_samples"], "task.score f1_samples: "),
        (FOUR, ["--task.reported", "[rmse]"], "task.reported rmse: the answer is a class"),
        (FOUR, ["--task.reported", "[f1,nme]"], "task.reported nme: there is no such score"),
    ],
)
def test_a_score_that_can_not_be_is_refused_in_one_line(heads, words, said):
    with pytest.raises(InputError) as caught:
        cli.read("", argv=["--task.heads", json.dumps(heads), *words])
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_weights_are_searched_for_the_score_that_decides():
    target, told, _ = drawn(4, 600)
    noise = drawn(4, 600, seed=9)[1]
    sure = told**8 / (told**8).sum(1, keepdims=True)  # ranks well, much too sure of itself
    for name in ("log_loss", "roc_auc"):
        own, stack = Task(FOUR, score=name), np.stack([sure, noise, told])
        weights = blend.climb(own, stack, target)
        best = max(metrics.gain(own, target, member) for member in stack)
        assert metrics.gain(own, target, np.tensordot(weights, stack, 1)) >= best - 1e-12
    assert blend.climb(Task(FOUR, score="log_loss"), stack, target).argmax() == 2
    assert blend.scored(Task(FOUR, score="log_loss"), told).shape == (600, 4)
    assert blend.scored(Task(FOUR), told).shape == (600,)


def test_on_pure_noise_a_search_for_a_score_of_probabilities_gains_nothing_on_other_people():
    rng, own = np.random.default_rng(0), Task(FOUR, score="log_loss")
    target, people, part = rng.integers(4, size=900), np.arange(900) // 3, np.arange(900) // 3 % 5
    stack = np.stack([scorers.normalised(rng.random((900, 4))) for _ in range(6)])

    def fit(rows):
        weights = blend.climb(own, stack[:, rows], target[rows])
        return lambda others: np.tensordot(weights, stack[:, others], 1)

    nested, plain = blend.nested(fit, target, part), stack.mean(0)
    one, other = metrics.bootstrap_scores(own, target, [nested, plain], people)
    assert metrics.quantiles(one - other)[1] >= 0  # of a loss: no gain that the interval without 0 would call one


@pytest.mark.slow
def test_settings_of_the_usual_scores_need_no_library_that_takes_a_second():
    code = "import sys; from foldface import cli; cli.read('', argv=[]); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_a_score_of_probabilities_decides_in_training_ensemble_compare_and_report(tmp_path, capsys):
    """Three classes by colour, two runs: what is printed and written is scikit-learn's score of oof.csv."""
    lines = ["photo,kind,patient"]
    for n in range(30):
        paint(tmp_path / f"{n}.png", COLOURS[list(COLOURS)[n % 3]], n)
        lines.append(f"{n}.png,{list(COLOURS)[n % 3]},p{n // 2}")
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    words = words_of(tmp_path, layout="table", heads='[{"name": "kind"}]', score="log_loss")
    words += ["--data.train", str(tmp_path / "train.csv"), "--data.eval", str(tmp_path / "train.csv")]
    words += ["--data.group", "patient", "--task.reported", "[roc_auc,balanced_accuracy]"]
    for seed in ("0", "1"):
        own = [*words, "--run", str(tmp_path / "runs" / seed), "--seed", seed, "--train.folds", "2"]
        own += ["--data.splitter", "sklearn"] * (seed == "x")
        train_kfold.main(own)
        inference.main(["--run", str(tmp_path / "runs" / seed)])
    run = tmp_path / "runs" / "0"
    saved, oof = read_json(run / "metrics.json", ""), pd.read_csv(run / "oof.csv")
    p = oof[["p0", "p1", "p2"]].to_numpy()
    assert saved["log_loss"] == pytest.approx(theirs.log_loss(oof["target"], scorers.normalised(p)), abs=1e-4)
    assert saved["roc_auc"] == pytest.approx(mean_of_classes(theirs.roc_auc_score)(oof["target"], p), abs=1e-6)
    for name in ("log_loss", "roc_auc", "balanced_accuracy", "f1"):
        assert saved[f"{name}_low"] <= saved[name] <= saved[f"{name}_high"]
    assert saved["people"] == 15
    log, fold = pd.read_csv(run / "fold0" / "log.csv"), oof[oof["fold"] == 0]
    chosen = theirs.log_loss(fold["target"], scorers.normalised(fold[["p0", "p1", "p2"]].to_numpy()))
    assert chosen == pytest.approx(log["log_loss"].min(), abs=1e-4)  # less is better: the epoch of the least
    assert list(log)[4:9] == ["log_loss", "roc_auc", "balanced_accuracy", "f1", "accuracy"]
    assert {"train_balanced_accuracy", "train_f1"} <= set(log) and "train_log_loss" not in log
    assert "ROC AUC" in (run / "report.html").read_text()
    capsys.readouterr()
    both = ["--runs", str(run), str(tmp_path / "runs" / "1"), "--submission", str(tmp_path / "submission.csv")]
    for vote in ("--soft", "--hard", "--rank"):
        ensemble.main([vote, "--run", str(run), "--runs", str(run), "--submission", str(tmp_path / "submission.csv")])
    out = capsys.readouterr().out
    assert f"{run}: out-of-fold log loss {saved['log_loss']:.4f}" in out
    assert f"  ROC AUC {saved['roc_auc']:.4f} ({saved['roc_auc_low']:.3f}-{saved['roc_auc_high']:.3f})" in out
    assert f"  balanced accuracy {saved['balanced_accuracy']:.4f} (" in out
    with pytest.raises(InputError, match=r"train all runs on the same"):
        (tmp_path / "runs/1/oof.csv").write_text("ImageID,id,fold,target,ans,p0,p1,p2\nx,y,0,0,0,1,0,0\n")
        ensemble.main(["--weights", "search", *both])
    with pytest.raises(InputError, match=r"--decide chooses among answers; task.score log_loss looks at probabilities"):
        ensemble.main(["--decide", "bias", *both])
    result = compare.Result(tmp_path / "runs", "0")
    scores = compare.differences({"0": {0: result}})
    assert scores.values.mean() == pytest.approx(saved["log_loss"], rel=0.5)
    page = compare.table({"0": {0: result}}, scores)
    assert page.startswith("| recipe | log loss | ROC AUC | balanced accuracy | macro F1 |")
    assert f"| {saved['roc_auc']:.3f} ({saved['roc_auc_low']:.3f}-{saved['roc_auc_high']:.3f}) |" in page
