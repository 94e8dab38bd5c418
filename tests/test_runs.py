"""A run that can't be written to, as below /kaggle/input: what follows report goes to --output, and is found."""

import os
import shutil
import types

import numpy as np
import pandas as pd
import pytest
from helpers import MASK, fill_up

import ensemble
import inference
import pseudo_label
import train
import train_kfold
from foldface.files import InputError
from tools import compare, compare_page, eda, explain, label_errors, report

pytestmark = pytest.mark.usefixtures("one_accelerator")
FOLLOW = (inference, pseudo_label, ensemble, report, label_errors, explain, eda)


@pytest.fixture
def trained(competition):
    """A competition, words that a command needs beside --run, and a run of two folds."""
    config = competition.config("--train.epochs", 1)
    train.train_folds(config, [0, 1])
    words = ["--data.train", competition.train, "--data.eval", competition.eval, "--data.crops", ""]
    words += ["--submission", competition.root / "submission.csv", "--data.workers", 0, "--device", "cpu"]
    return competition, words, competition.root / "run"


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_run_that_can_not_be_written_to_answers_into_output_and_the_next_script_finds_it(trained, read_only, capsys):
    competition, words, run = trained
    out, before = competition.root / "out", content(run)
    read_only(run)
    for script in FOLLOW:
        with pytest.raises(InputError, match=r"Read-only file system.*--output"):
            script.main(list(map(str, [*words, "--run", run])))
    output = ["--run", run, "--output", out]
    inference.main(
        [*map(str, [*words, *output, "--data.eval", competition.eval / "images", "--inference.backend", "onnx"])]
    )
    assert f"next: python ensemble.py --soft --runs {out}" in capsys.readouterr().out
    words = words[:2] + words[4:]  # data.eval is known from now on
    pseudo_label.main(list(map(str, [*words, *output, "--pseudo.threshold", "0"])))
    ensemble.main(list(map(str, [*words, *output])))
    alone = pd.read_csv(competition.root / "submission.csv")
    assert len(alone) == len(competition.images)
    ensemble.main(list(map(str, [*words, "--runs", out])))
    assert pd.read_csv(competition.root / "submission.csv").equals(alone)
    for script in (report, label_errors, explain, eda):
        script.main(list(map(str, [*words, *output])))
    made = {"fold0.csv", "fold1.csv", "pseudo.csv", "report.html", "clean.html", "corrections.csv", "explain.html"}
    assert made | {"explain.png", "eda.html", "folds.csv", "oof.csv", "args.json"} <= set(os.listdir(out))
    assert len(list(out.glob("fold0/best-*.onnx"))) == 1 and "Ensemble" not in (out / "report.html").read_text()
    ensemble.main(list(map(str, [*words, *output])))
    assert "Ensemble" in (out / "report.html").read_text()
    second = ["--run", competition.root / "second", "--data.pseudo", out / "pseudo.csv", "--train.only_folds", "[]"]
    photos = ["--data.eval", competition.eval / "images", "--train.folds", 2]
    photos += ["--task.heads.age.train_bounds", "[30,60]"]
    train_kfold.main(list(map(str, [*words, *second, *photos])))
    assert content(run) == before


@pytest.mark.slow
def test_an_output_that_is_another_run_is_refused_and_stays_as_it_is(trained):
    competition, words, run = trained
    other = competition.root / "other"
    shutil.copytree(run, other)
    before = content(other)
    for script in FOLLOW:
        if script is not ensemble:  # it writes its report there alone
            with pytest.raises(InputError, match="is a run of its own"):
                script.main(list(map(str, [*words, "--run", run, "--output", other])))
    assert content(other) == before


# --------------------------------------------------------------------------------------------------------- full disks


@pytest.mark.slow
@pytest.mark.parametrize("script", [eda, explain, report, label_errors, inference, pseudo_label])
def test_a_full_disk_is_one_line_and_the_files_of_before_stay_whole(trained, small_disk, script):
    competition, words, run = trained
    out = small_disk(competition.root / "out", 20_000)
    again = [*words, "--run", run, "--output", out]
    more = {inference: ["--inference.backend", "onnx"], pseudo_label: ["--pseudo.threshold", 0]}.get(script, [])
    inference.main(list(map(str, [*again])))
    script.main(list(map(str, [*again, *more])))
    before = content(out)
    fill_up(out)
    more += ["--data.eval", competition.eval / "images"] if script is inference else []
    with pytest.raises(InputError, match="No space left") as error:
        script.main(list(map(str, [*again, *more])))
    assert "\n" not in str(error.value)
    (out / "filler").unlink()
    assert content(out) == before


@pytest.mark.slow
def test_an_export_and_a_comparison_on_a_full_disk_leave_nothing_half_written(tmp_path, small_disk):
    import model
    from foldface.nn import onnx

    disk = small_disk(tmp_path / "disk", 64)
    with pytest.raises(InputError, match="can't be written"):
        onnx.export(model.build("test_resnet", 8, False, 32).eval(), 32, disk / "a.onnx")
    assert not list(disk.iterdir())
    result = types.SimpleNamespace(
        name="a", metrics={"f1": 0.5, "f1_low": 0.4, "f1_high": 0.6}, task=MASK, frame=pd.DataFrame()
    )
    fill_up(disk)
    with pytest.raises(InputError, match="No space left"):
        scores = compare.Scores(["a"], np.zeros((1, 9)), np.zeros((1, 1)), (0.025, 0.975))
        compare_page.picture({"a": {0: result}}, scores, disk / "compare.png")
    assert [path.name for path in disk.iterdir()] == ["filler"]
