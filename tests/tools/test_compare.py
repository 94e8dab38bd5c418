"""compare.py: only what was dealt the same folds is compared, and luck is said to be luck."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers import MASK, guesses, people

from foldface import metrics, predictions, task
from foldface.files import InputError
from foldface.settings import Config, as_dict
from tools import compare, compare_page


def write_result(home, name, strength, seed=0, photos=None, test=None):
    """A finished run of these out-of-fold answers."""
    target, person, fold = people(80)
    folder = home / name
    for k in range(5):
        (folder / f"fold{k}").mkdir(parents=True)
        speed = {"seconds": [60.0], "photos_per_second": [50.0], "waited": [0.0], "memory_gb": [1.5]}
        pd.DataFrame(speed | {"other_seconds": [12.0]}).to_csv(folder / f"fold{k}" / "speed.csv", index=False)
        log = {"epoch": [1, 2], "train_loss": [2.0, 1.0], "val_loss": [2.0, np.nan], "f1": [0.2, 0.3]}
        log |= {"accuracy": [0.5, 0.5 + k / 10], "train_f1": [0.3, 0.4]}
        log |= {"train_accuracy": [0.6, np.nan if seed else 0.9]}
        pd.DataFrame(log).to_csv(folder / f"fold{k}" / "log.csv", index=False)
    frame = pd.DataFrame({"ImageID": [f"{k}.jpg" for k in range(len(target))], "id": person, "fold": fold})
    table = predictions.with_answers(MASK, frame.assign(target=target), guesses(target, strength, seed))[:photos]
    table.to_csv(folder / "oof.csv", index=False)
    frame.drop_duplicates("id")[["id", "fold"]].to_csv(folder / "folds.csv", index=False)
    (folder / "args.json").write_text(json.dumps(as_dict(Config())))
    low, high = metrics.interval(MASK, table["target"], table["ans"], table["id"])
    saved = metrics.scores(MASK, table["target"], table["ans"]) | {"f1_low": low, "f1_high": high}
    saved |= {"test": {"accuracy": test}} if test else {}
    (folder / "metrics.json").write_text(json.dumps(saved | {"folds": [0, 1, 2, 3, 4], "photos": len(table)}))
    return compare.Result(home, name)


def test_the_table_marks_what_luck_could_explain_and_nothing_else(tmp_path):
    results = [write_result(tmp_path, name, s, k) for k, (name, s) in enumerate({"a": 2, "b": 2, "c": 4}.items())]
    found = {result.name: {None: result} for result in results}
    scores = compare.differences(found)
    assert scores.values.shape[0] == 3 and scores.names == ["a", "b", "c"]
    page = compare.table(found, scores)
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| ") and "(" in line}
    assert list(rows) == ["c", *sorted("ab", key=lambda n: -results["ab".index(n)].metrics["f1"])]
    assert "~" in rows["b"] and "~" not in rows["c"] and "6.0 | 50 | 1.5" in rows["c"]
    assert f"{results[2].metrics['f1'] - results[0].metrics['f1']:+.3f} (" in rows["c"]
    assert page.count("| ~ ") == 2  # a and b, both ways
    compare_page.picture(found, scores, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_answers_do_not_differ_at_all(tmp_path):
    results = [write_result(tmp_path, name, 2, 0) for name in "ab"]
    scores = compare.differences({result.name: {None: result} for result in results})
    assert np.array_equal(scores.values[0], scores.values[1]) and scores.difference("a", "b") == (0, 0, 0)


def cells_of(page):
    """The first table of a page: {recipe: {title: cell}}."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.split("\n\n")[0].splitlines()]
    return {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}


def test_of_several_seeds_the_table_has_mean_and_range_and_pairs_are_compared_within_a_seed(tmp_path):
    found = {
        name: {k: write_result(tmp_path, f"{name}-seed{k}", strength + k / 4, k, test=0.7 + k / 10) for k in seeds}
        for name, strength, seeds in (("a", 2, (0, 1, 2)), ("b", 4, (0, 1)))
    }
    scores = compare.differences(found)
    f1 = {name: [run.metrics["f1"] for run in runs.values()] for name, runs in found.items()}
    apart = [f1["b"][k] - f1["a"][k] for k in (0, 1)]
    assert scores.difference("b", "a") == pytest.approx((np.mean(apart), min(apart), max(apart)))
    page = compare.table(found, scores, {("b", 2): "out of memory"})
    cells = cells_of(page)
    mean, low, high = np.mean(f1["a"]), min(f1["a"]), max(f1["a"])
    assert cells["a"]["macro F1"] == f"{mean:.3f} ({low:.3f}-{high:.3f})"
    assert (cells["a"]["learn"], cells["b"]["learn"]) == ("3 of 3", "2 of 2")
    assert cells["a"]["training accuracy"] == "0.900" and cells["a"]["validation accuracy"] == "0.700 (0.700-0.700)"
    assert cells["a"]["test accuracy"] == "0.800 (0.700-0.900)" and "Not compared: b-seed2: out of memory" in page
    compare_page.picture(found, scores, tmp_path / "compare.png")
    compare_page.curves(found, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("numeric", [False, True])
def test_a_run_learns_if_it_beats_the_best_constant_answer_to_each_fold(tmp_path, numeric):
    run = write_result(tmp_path, "a", 2)
    assert run.learns
    target = np.tile([3.0, 4.0, 4.0, 9.0] if numeric else [0, 1, 1, 2], 10)
    constant = np.full(40, target[1])
    for answer, learns in ((constant, False), (target, True), (np.where(np.arange(40) < 4, target, constant), True)):
        run.frame = pd.DataFrame({"fold": np.arange(40) // 20, "target": target, "ans": answer})
        run.task = task.Task([{"name": "age", "range": [0, 100]}], score="mae") if numeric else MASK
        assert run.learns == learns


def test_a_recipe_with_other_folds_is_refused(tmp_path):
    first, second = (write_result(tmp_path, name, 2) for name in "ab")
    compare.refuse_others([first, second])
    second.folds["fold"] = second.folds["fold"].iloc[::-1].to_numpy()
    with pytest.raises(InputError, match="b has other folds than a"):
        compare.refuse_others([first, second])


def test_a_stage_on_fewer_photos_stands_in_the_table_but_is_compared_with_nobody(tmp_path):
    results = [write_result(tmp_path, "all", 2), write_result(tmp_path, "part", 4, photos=70)]
    found = {result.name: {None: result} for result in results[::-1]}  # the stage comes first
    scores = compare.differences(found)
    assert scores.names == ["all"]
    compare_page.picture(found, scores, tmp_path / "compare.png")
    page = compare.table(found, scores)
    assert "part (on 70 photos)" in page and "Differences of macro F1 to all" in page


def test_recipes_come_first_and_must_exist(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")
    found, words = compare.recipes_and_words([str(path), "--config", "b.json", "--train.epochs", "3"])
    assert found == {"a": [path]} and words == ["--config", "b.json", "--train.epochs", "3"]
    other = tmp_path / "b.json"
    other.write_text("{}")
    assert compare.recipes_and_words([f"{path}+{other}", str(other)])[0] == {"a+b": [path, other], "b": [other]}
    flagged = ["--seeds", "0", "1", "--config", "b.json", "--folds=0", "--train.epochs", "3"]
    assert compare.without(flagged, compare.FLAGS) == ["--config", "b.json", "--train.epochs", "3"]
    with pytest.raises(InputError, match="no such recipe"):
        compare.recipes_and_words(["gone.json"])
    with pytest.raises(InputError, match="two recipes are called a"):
        compare.recipes_and_words([str(path), str(path)])


@pytest.mark.chain
def test_recipes_are_trained_with_their_seed_and_not_twice_and_one_that_is_refused_loses_no_other(competition):
    contents = {"plain": {}, "second": {"model": {"init_from_run": "plain"}}, "wrong": {"train": {"freeze_layers": 99}}}
    for name, content in contents.items():
        (competition.root / f"{name}.json").write_text(json.dumps(content))
    command = [sys.executable, "-m", "tools.compare", *(competition.root / f"{name}.json" for name in contents)]
    command += ["--run", competition.root / "runs", "--data.train", competition.train, "--data.eval", competition.eval]
    command += ["--data.crops", "", "--model.backbone", "test_resnet", "--model.pretrained", "false", "--device", "cpu"]
    command += ["--data.image_size", "32", "--train.epochs", "1", "--train.folds", "2", "--data.workers", "0"]
    command += ["--folds", "0", "--seeds", "3"]
    first, again = (subprocess.run(command, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == again.returncode == 2, first.stderr
    assert "train.freeze_layers 99" in first.stderr and "error: wrong-seed3 is not in the comparison" in first.stderr
    assert "| second | " in first.stdout and "fold 0 is finished" in again.stdout and "| second | " in again.stdout
    assert again.stdout.count("epoch 1/1") == 0 and first.stdout.count("epoch 1/1") == 2
    home = competition.root / "runs"
    assert {"compare.html", "compare.md", "compare.png", "curves.png"} <= {path.name for path in home.iterdir()}
    config = json.loads((home / "second-seed3" / "args.json").read_text())
    assert (config["seed"], config["model"]["init_from_run"]) == (3, "plain-seed3")
    assert config["train"]["only_folds"] == [0]
