"""Competitions as they are unpacked, rebuilt in small from public descriptions of their files: docs/competitions.md."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score
from test_tasks import COLOURS, SMALL, paint

import ensemble
import inference
import train_kfold
from foldface import cli
from foldface.files import InputError, read_json
from tools import check_submission

pytestmark = pytest.mark.usefixtures("one_accelerator")
NAMES = list(COLOURS)


@pytest.fixture
def play(tmp_path, monkeypatch, capsys):
    """A function that trains, predicts and votes in a competition's folder with these settings; returns what is
    printed, the submission and the scores, after the submission was checked by the sample."""
    monkeypatch.chdir(tmp_path)

    def run(*settings, sample="data/sample_submission.csv"):
        assert len(settings) <= 2 * 4
        words = [*map(str, settings), *map(str, SMALL[:-4]), "--run", "run"]  # not --data.crops: it is found
        train_kfold.main(words)
        inference.main(["--run", "run"])
        ensemble.main(["--soft", "--run", "run"])
        out = capsys.readouterr().out
        check_submission.main(["submission.csv", sample])
        return out, pd.read_csv("submission.csv", dtype=str), read_json("run/metrics.json", "")

    return run


def draw(folder, names, seed=0):
    """Photos, each of one of three colours: returns which (n,)."""
    kind = np.random.default_rng(seed).permutation(np.arange(len(names)) % 3)
    for n, (name, k) in enumerate(zip(names, kind, strict=True)):
        paint(folder / name, COLOURS[NAMES[k]], n + 1000 * seed)
    return kind


@pytest.mark.slow
def test_ids_without_ending_and_a_probability_a_class(tmp_path, play):
    """Cassava, dogs, leaves: train_images/ID.png, labels by name, a column a class, in an order of its own."""
    train, test = [f"t{n:03x}" for n in range(18)], [f"e{n:03x}" for n in range(6)]
    kind = draw(tmp_path / "data/train_images", [f"{name}.png" for name in train])
    draw(tmp_path / "data/test_images", [f"{name}.png" for name in test], 1)
    pd.DataFrame({"image_id": train, "label": [NAMES[k] for k in kind]}).to_csv("data/train.csv", index=False)
    pd.DataFrame({"image_id": test}).to_csv("data/test.csv", index=False)
    sample = pd.DataFrame({"image_id": test[::-1]} | dict.fromkeys(NAMES[::-1], 1 / 3))
    sample.to_csv("data/sample_submission.csv", index=False)
    out, frame, saved = play("--data.train", "data", "--task.heads", '[{"name": "label"}]')
    assert "data: trains on train.csv, answers for test.csv, as sample_submission.csv has it, on whole photos" in out
    assert "the photos are train_images/<image_id>.png" in out and "the photos are test_images/<image_id>.png" in out
    assert list(frame) == ["image_id", *NAMES[::-1]] and frame["image_id"].tolist() == test[::-1]
    fold = [pd.read_csv(f"run/fold{k}.csv").set_index("ImageID").loc[test[::-1]] for k in (0, 1)]
    mean = (fold[0] + fold[1]) / 2
    for k, name in enumerate(NAMES):  # classes are sorted: p0 is blue
        assert np.allclose(frame[name].astype(float), mean[f"p{k}"], atol=2e-6)
    assert saved["photos"] == 18


@pytest.mark.slow
def test_numbers(tmp_path, play):
    """Pawpularity: Id, yes-no columns, a number from 1 to 100; train/ID.jpg; the sample has numbers."""
    train, test = [f"{n:08x}" for n in range(18)], [f"f{n:07x}" for n in range(5)]
    kind = draw(tmp_path / "data/train", [f"{name}.jpg" for name in train])
    draw(tmp_path / "data/test", [f"{name}.jpg" for name in test], 1)
    more = {"Eyes": 1, "Blur": 0}
    pd.DataFrame({"Id": train} | more | {"Pawpularity": 20 + 30 * kind}).to_csv("data/train.csv", index=False)
    pd.DataFrame({"Id": test} | more).to_csv("data/test.csv", index=False)
    pd.DataFrame({"Id": test, "Pawpularity": [63.5, 12.0, 7.0, 50.0, 1.0]}).to_csv(
        "data/sample_submission.csv", index=False
    )
    heads = json.dumps([{"name": "Pawpularity", "range": [1, 100], "learn": "distribution"}])
    _, frame, saved = play("--data.train", "data", "--task.heads", heads, "--task.score", "rmse")
    assert frame["Id"].tolist() == test and frame["Pawpularity"].astype(float).between(1, 100).all()
    oof = pd.read_csv("run/oof.csv")
    assert saved["rmse"] == pytest.approx(np.sqrt(((oof["target"] - oof["ans"]) ** 2).mean()), abs=1e-4)
    assert saved["rmse_low"] <= saved["rmse"] <= saved["rmse_high"] and saved["mae"] <= saved["rmse"]


@pytest.mark.slow
def test_grades_of_patients_by_quadratic_kappa(tmp_path, play):
    """Diabetic retinopathy: trainLabels.csv, PATIENT_left and PATIENT_right, levels 0 to 4; both eyes share a fold."""
    eyes = [f"{p}_{side}" for p in range(10, 30) for side in ("left", "right")]
    test = [f"{p}_{side}" for p in range(40, 43) for side in ("left", "right")]
    draw(tmp_path / "data/train", [f"{name}.jpeg" for name in eyes])
    draw(tmp_path / "data/test", [f"{name}.jpeg" for name in test], 1)
    level = np.arange(40) % 5
    pd.DataFrame({"image": eyes, "level": level}).to_csv("data/trainLabels.csv", index=False)
    pd.DataFrame({"image": test, "level": 0}).to_csv("data/sampleSubmission.csv", index=False)
    words = ["--data.train", "data", "--task.heads", '[{"name": "level"}]', "--task.score", "cohen_kappa_quadratic"]
    out, frame, saved = play(*words, "--data.group", r"^(\d+)_", sample="data/sampleSubmission.csv")
    assert "quadratic kappa" in out and "the photos are train/<image>.jpeg" in out
    assert frame["image"].tolist() == test and set(frame["level"]) <= set("01234")
    oof = pd.read_csv("run/oof.csv")
    kappa = cohen_kappa_score(oof["target"], oof["ans"], weights="quadratic")
    assert saved["cohen_kappa_quadratic"] == pytest.approx(kappa) and saved["people"] == 20
    sides = oof.assign(patient=oof["ImageID"].str.split("_").str[0]).groupby("patient")["fold"].nunique()
    assert (sides == 1).all() and len(sides) == 20


@pytest.mark.slow
def test_two_photos_a_patient_are_answered_together(tmp_path, play):
    """Mammography: train.csv has a row a photo, test.csv too with prediction_id, of which both photos of a breast have
    one; photos lie in PATIENT/IMAGE.png; a probability by the score's name."""
    rng, rows = np.random.default_rng(0), []
    for image in range(24):
        rows.append((image // 2 + 100, image + 500, int(image // 2 % 2)))
        paint(tmp_path / f"data/train_images/{rows[-1][0]}/{rows[-1][1]}.png", COLOURS[NAMES[rows[-1][2]]], image)
    pd.DataFrame(rows, columns=["patient_id", "image_id", "cancer"]).to_csv("data/train.csv", index=False)
    asked = [(200 + k // 2, 700 + k, f"{200 + k // 2}_L") for k in rng.permutation(8)]
    for patient, image, _ in asked:
        paint(tmp_path / f"data/test_images/{patient}/{image}.png", COLOURS["green"], image)
    test = pd.DataFrame(asked, columns=["patient_id", "image_id", "prediction_id"])
    test.to_csv("data/test.csv", index=False)
    ids = sorted(test["prediction_id"].unique())
    pd.DataFrame({"prediction_id": ids, "cancer": 0.021}).to_csv("data/sample_submission.csv", index=False)
    words = ["--data.train", "data", "--task.heads", '[{"name": "cancer"}]', "--task.score", "average_precision"]
    out, frame, saved = play(*words, "--data.group", "patient_id")
    assert "8 photos make 4 answers, the mean of each prediction_id's" in out
    assert "the photos are train_images/" in out and saved["people"] == 12
    fold = [pd.read_csv(f"run/fold{k}.csv").assign(id=test["prediction_id"]) for k in (0, 1)]
    mean = pd.concat(fold).groupby("id")["p1"].mean()
    assert frame["prediction_id"].tolist() == ids
    assert np.allclose(frame["cancer"].astype(float), mean[ids], atol=2e-6)


def test_what_an_unpacked_folder_says_is_taken_only_where_nothing_is_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("data/train", "data/test"):
        paint(tmp_path / folder / "a.png", COLOURS["red"], 0)
    (tmp_path / "data/train.csv").write_text("Id,label\na,x\n")
    (tmp_path / "data/sampleSubmission.csv").write_text("Id,label\na,x\n")
    data = cli.read("", argv=["--data.train", "data"]).data
    assert (data.layout, data.train, data.eval, data.crops) == (
        "table", "data/train.csv", "data/sampleSubmission.csv", ""
    )  # fmt: skip
    assert data.sample_submission == "data/sampleSubmission.csv"
    words = ["--data.eval", "other", "--data.crops", "mine", "--data.sample_submission", ""]
    data = cli.read("", argv=["--data.train", "data/train.csv", *words]).data
    assert (data.layout, data.eval, data.crops, data.sample_submission) == ("table", "other", "mine", "")
    (tmp_path / "data/sampleSubmission.csv").unlink()
    assert cli.read("", argv=["--data.train", "data"]).data.eval == "data/test"
    (tmp_path / "data/train_labels.csv").write_text("Id,label\na,x\n")
    (tmp_path / "data/train.csv").rename(tmp_path / "data/train_info.csv")
    with pytest.raises(InputError, match=r"train_info.csv and train_labels.csv may be the table"):
        cli.read("", argv=["--data.train", "data"])


@pytest.mark.parametrize("words", [["--data.layout", "folder"], ["--data.layout", "competition"], []])
def test_the_mask_competition_and_other_layouts_stay_what_they_are(competition, words):
    words = ["--data.train", str(competition.train), *words]
    config = cli.read("", argv=words)
    assert config.data.train == str(competition.train) and config.data.sample_submission == ""
    assert config.data.crops == ("" if "folder" in words else "data/sample/crops")
    assert config.data.layout == (words[-1] if "--data.layout" in words else "competition")
