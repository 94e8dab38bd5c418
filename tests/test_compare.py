"""compare.py: only what was dealt the same folds is compared, and luck is said to be luck."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import MASK, ROOT
from test_blend import guesses, people

import answers
import args
import compare
from files import InputError


def write_result(home, name, strength, seed=0, photos=None):
    """A finished run of these out-of-fold answers."""
    target, person, fold = people(80)
    folder = home / name
    for k in range(5):
        (folder / f"fold{k}").mkdir(parents=True)
        speed = {"seconds": [60.0], "photos_per_second": [50.0], "waited": [0.0], "memory_gb": [1.5]}
        pd.DataFrame(speed | {"other_seconds": [12.0]}).to_csv(folder / f"fold{k}" / "speed.csv", index=False)
    frame = pd.DataFrame({"ImageID": [f"{k}.jpg" for k in range(len(target))], "id": person, "fold": fold})
    table = answers.with_answers(MASK, frame.assign(target=target), guesses(target, strength, seed))[:photos]
    table.to_csv(folder / "oof.csv", index=False)
    frame.drop_duplicates("id")[["id", "fold"]].to_csv(folder / "folds.csv", index=False)
    (folder / "args.json").write_text(json.dumps(args.as_dict(args.Settings())))
    low, high = MASK.interval(table["target"], table["ans"], table["id"])
    metrics = MASK.scores(table["target"], table["ans"]) | {"f1_low": low, "f1_high": high}
    (folder / "metrics.json").write_text(json.dumps(metrics | {"folds": [0, 1, 2, 3, 4], "photos": len(table)}))
    return compare.Result(home, name)


def test_the_table_marks_what_luck_could_explain_and_nothing_else(tmp_path):
    results = [write_result(tmp_path, name, s, k) for k, (name, s) in enumerate({"a": 2, "b": 2, "c": 4}.items())]
    values, names = compare.differences(results)
    assert values.shape[0] == 3 and names == ["a", "b", "c"]
    page = compare.table(results, values, names)
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| ") and "(" in line}
    assert list(rows) == ["c", *sorted("ab", key=lambda n: -results["ab".index(n)].metrics["f1"])]
    assert "~" in rows["b"] and "~" not in rows["c"] and "6.0 | 50 | 1.5" in rows["c"]
    assert f"{results[2].metrics['f1'] - results[0].metrics['f1']:+.3f} (" in rows["c"]
    assert page.count("| ~ ") == 2  # a and b, both ways
    compare.picture(results, values, names, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_answers_do_not_differ_at_all(tmp_path):
    results = [write_result(tmp_path, name, 2, 0) for name in "ab"]
    values, _ = compare.differences(results)
    assert np.array_equal(values[0], values[1])


def test_a_recipe_with_other_folds_is_refused(tmp_path):
    first, second = (write_result(tmp_path, name, 2) for name in "ab")
    compare.refuse_others([first, second])
    second.folds["fold"] = second.folds["fold"].iloc[::-1].to_numpy()
    with pytest.raises(InputError, match="b has other folds than a"):
        compare.refuse_others([first, second])


def test_a_stage_on_fewer_photos_stands_in_the_table_but_is_compared_with_nobody(tmp_path):
    results = [write_result(tmp_path, "all", 2), write_result(tmp_path, "part", 4, photos=70)]
    values, names = compare.differences(results)
    assert names == ["all"]
    assert "part (on 70 photos)" in compare.table(results, values, names)
    compare.picture(results[::-1], values, names, tmp_path / "compare.png")  # the stage comes first
    assert "Differences of macro F1 to all" in compare.table(results[::-1], values, names)


def test_recipes_come_first_and_must_exist(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")
    found, words = compare.recipes_and_words([str(path), "--config", "b.json", "--train.epochs", "3"])
    assert found == {"a": path} and words == ["--config", "b.json", "--train.epochs", "3"]
    with pytest.raises(InputError, match="no such recipe"):
        compare.recipes_and_words(["gone.json"])
    with pytest.raises(InputError, match="one name"):
        compare.recipes_and_words([str(path), str(path)])


@pytest.mark.chain
def test_two_recipes_are_trained_compared_and_not_trained_twice(competition):
    recipes = {"plain": {}, "second": {"model": {"start": "plain"}, "train": {"lr": 0.01}}}
    for name, content in recipes.items():
        (competition.root / f"{name}.json").write_text(json.dumps(content))
    command = [sys.executable, ROOT / "compare.py", *(competition.root / f"{name}.json" for name in recipes)]
    command += ["--run", competition.root / "runs", "--data.train", competition.train, "--data.eval", competition.eval]
    command += ["--data.crops", "", "--model.backbone", "test_resnet", "--model.pretrained", "false", "--device", "cpu"]
    command += ["--data.image_size", "32", "--train.epochs", "1", "--train.folds", "2", "--data.workers", "0"]
    first, again = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr
    assert "| second | " in first.stdout and "fold 1 is finished" in again.stdout and "epoch 1/1" not in again.stdout
    assert {"compare.md", "compare.png", "plain", "second"} == {p.name for p in (competition.root / "runs").iterdir()}
