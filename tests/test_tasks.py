"""Other tasks by the same scripts: folders of things, boxes, ages as numbers, tables with columns of one's own."""

import json
import subprocess
import sys

import bad_photos
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import MASK, ROOT, write_photo
from PIL import Image
from safetensors import safe_open

import dataset
import ensemble
import inference
import loss
import pseudo_label
import train
import train_kfold
from foldface import blend, cli, files, metrics, oof, predictions, runs
from foldface.data import augment, folds, loader
from foldface.data.photos import cv2
from foldface.files import InputError, read_csv, read_json
from foldface.head import Head
from foldface.nn.heads import Heads
from foldface.settings import LossConfig
from foldface.task import MASK_TASK, Task
from tools import compare, compare_page

pytestmark = pytest.mark.usefixtures("one_accelerator")
COLOURS = {"blue": (200, 40, 30), "green": (40, 190, 50), "red": (20, 30, 210)}
KIND = '[{"name": "kind", "column": "class"}]'
AGE = '[{"name": "age", "range": [0, 100], "unit": "years"}]'
SMALL = ["--model.backbone", "test_resnet", "--model.pretrained", "false", "--device", "cpu", "--data.image_size", 32]
SMALL += [
    "--data.workers",
    0,
    "--train.folds",
    2,
    "--train.epochs",
    2,
    "--data.crops",
    "",
    "--model.freeze_bn",
    "false",
]


def paint(path, colour, seed, size=(36, 48)):
    """A photo of one colour with noise in it, another for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-20, 20, (*size, 3))
    cv2.imwrite(str(path), np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


@pytest.fixture
def things(tmp_path):
    """A folder a colour, eight photos each, and two more of each to answer for."""
    for k, (name, colour) in enumerate(COLOURS.items()):
        for n in range(10):
            paint(tmp_path / ("train" if n < 8 else "eval") / name / f"{n}.png", colour, 100 * k + n)
    return tmp_path


def words_of(root, *more, layout="folder", heads=KIND, score="accuracy"):
    """The words of a command line for a task below a folder."""
    known = ["--data.layout", layout, "--task.heads", heads, "--task.score", score, "--task.answer_as", "name"]
    known += ["--data.train", root / "train", "--data.eval", root / "eval", "--run", root / "run", "--submission"]
    return [*map(str, [*known, root / "submission.csv", *SMALL, *more])]


def of(root, *more, **task):
    """Settings of a task below a folder."""
    return cli.read("", argv=words_of(root, *more, **task))


# ------------------------------------------------------------------------------------------------------- folders


@pytest.mark.slow
def test_a_folder_a_class_goes_through_the_whole_chain(things, capsys):
    config = of(things, "--train.epochs", 6, "--train.lr", 0.01)
    train.train_folds(config, [0, 1])
    saved = read_json(things / "run" / "metrics.json", "")
    assert saved["accuracy"] > 0.6 and {"accuracy_low", "accuracy_high", "f1", "f1_low"} <= saved.keys()
    oof = read_csv(things / "run" / "oof.csv", [*predictions.OOF_COLUMNS, "p0", "p1", "p2"])
    assert len(oof) == 24 and "p3" not in oof and oof["ImageID"][0].split("/")[0] in COLOURS
    with safe_open(things / "run" / "fold0" / "best.safetensors", "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about["task"]["heads"][0]["classes"] == sorted(COLOURS)  # they travel with the weights
    where = ["--submission", str(things / "submission.csv")]  # a run never says where to write
    again = runs.read_for_run("", argv=["--run", str(things / "run"), *where])
    assert again.predicted.classes == tuple(sorted(COLOURS))
    again = ["--run", str(things / "run"), "--device", "cpu", *where]
    inference.main(again)
    ensemble.main([*again, "--soft"])
    submission = pd.read_csv(things / "submission.csv")
    assert submission["ImageID"].tolist() == [f"{name}/{n}.png" for name in sorted(COLOURS) for n in (8, 9)]
    assert set(submission["ans"]) <= set(COLOURS)
    right = (submission["ans"] == submission["ImageID"].str.split("/").str[0]).mean()
    assert f"6 photos whose folder or name tells the truth: accuracy {right:.3f}" in capsys.readouterr().out
    assert (things / "run" / "history.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_folder_of_class_folders_needs_no_other_word_and_what_is_inferred_is_said(things, capsys, monkeypatch):
    monkeypatch.chdir(things)
    small = [word for word in map(str, SMALL) if word not in ("--data.crops", "")]
    train.main(["--data.layout", "folder", "--data.train", str(things / "train"), *small])
    out = capsys.readouterr().out
    assert (
        "the task is a class a folder (task.heads), photos are taken whole (data.crops), the run is runs/train" in out
    )
    counts = ", ".join(f"{name} (8)" for name in sorted(COLOURS))
    assert f"{things / 'train'}: class has 3 classes: {counts}" in out
    assert out.splitlines()[-1] == "next: python inference.py --run runs/train --data.eval FOLDER"
    inference.main(["--run", "runs/train", "--data.eval", str(things / "eval"), "--device", "cpu"])
    ensemble.main(["--soft", "--run", "runs/train", "--device", "cpu"])
    assert set(pd.read_csv("submission.csv")["ans"]) <= set(COLOURS)  # by name, not by number


def test_what_is_given_is_not_inferred(things):
    words = ["--data.layout", "folder", "--data.train", str(things / "train")]
    mine = cli.read("", argv=[*words, "--run", "runs/mine", "--data.crops", "crops", "--data.eval", "photos"])
    assert (mine.run, mine.data.crops, mine.data.eval) == ("runs/mine", "crops", "photos")
    assert [head.name for head in cli.read("", argv=[*words, "--task.heads", KIND]).predicted.heads] == ["kind"]
    home = cli.read("", argv=["--data.train", "elsewhere"])  # the mask competition's own layout: nothing changes
    assert (len(home.predicted.heads), home.data.crops) == (3, "data/sample/crops")


@pytest.mark.slow
def test_a_plain_folder_of_photos_is_answered_too(things):
    for n, name in enumerate(COLOURS):
        paint(things / "eval" / f"{n}.png", COLOURS[name], n)
    config = of(things, "--data.eval", "")
    train.train_folds(config, [0])
    inference.main(words_of(things))
    frame = read_csv(things / "run" / "fold0.csv", ["ImageID"])
    assert len(frame) == 9 and {"0.png", "1.png", "2.png"} <= set(frame["ImageID"])
    assert read_json(things / "run" / "args.json", "")["data"]["eval"] == str(things / "eval")  # ensemble.py reads it
    config.data.eval = str(things / "eval")
    rows = dataset.eval_rows(config)
    assert rows["target"][rows["ImageID"] == "0.png"].tolist() == [-1]


def test_classes_are_sorted_whatever_the_order_of_the_folders(things, monkeypatch):
    honest = dataset.os.walk
    monkeypatch.setattr("os.walk", lambda *a, **k: ((h, d.reverse() or d, n) for h, d, n in honest(*a, **k)))
    assert dataset.infer_classes(of(things)).classes == tuple(sorted(COLOURS))


@pytest.mark.slow
def test_a_class_that_comes_later_does_not_shift_those_that_were_trained(things):
    train.train_folds(of(things), [0])
    paint(things / "train" / "amber" / "0.png", (0, 190, 255), 1)
    with pytest.raises(InputError, match=r"was begun with other settings \(task\.heads"):
        train.train_folds(of(things), [1])


@pytest.mark.slow
def test_a_given_split_is_kept_and_the_test_set_is_scored_once_and_never_trained_on(things, capsys):
    whole = things / "split"
    for split, numbers in (("train", range(5)), ("valid", (5, 6)), ("test", (7,))):
        for k, (name, colour) in enumerate(COLOURS.items()):
            for n in numbers:
                paint(whole / split / name / f"{n}.png", colour, 100 * k + n)
    config = of(things, "--data.train", whole)
    rows = dataset.prepare(config)
    training, validation = folds.split(rows, 0)
    assert set(training["split"]) == {"train"} and set(validation["split"]) == {"valid"}
    assert (rows["source"] == "test").sum() == 3 and folds.folds_of(rows) == [0]
    train.train_folds(config, range(2))
    assert "there is no other" in capsys.readouterr().out
    saved = read_json(things / "run" / "metrics.json", "")
    assert saved["folds"] == [0] and saved["test"]["photos"] == 3 and 0 <= saved["test"]["accuracy"] <= 1
    told = read_csv(things / "run" / "test.csv", ["ImageID", "target", "ans"])
    assert all(name.startswith("test/") for name in told["ImageID"])


def test_the_trash_recipes_take_train_valid_and_test_folders_as_they_are(things, capsys):
    whole, counts = things / "split", {"train": 5, "valid": 2, "test": 1}
    for split, count in counts.items():
        for k, (name, colour) in enumerate(COLOURS.items()):
            for n in range(count):
                paint(whole / split / name / f"{n}.png", colour, 100 * k + 10 * count + n, (70, 80))
    for recipe in ("trash", "trash_report"):
        words = ["--config", ROOT / "recipes/tasks" / f"{recipe}.json", "--data.train", whole, "--run", things / recipe]
        rows = dataset.prepare(cli.read("", argv=[*map(str, words), "--train.only_folds", "[0]"]))
        training, validation = folds.split(rows, 0)
        assert (len(training), len(validation), (rows["source"] == "test").sum()) == (15, 6, 3)
        said = capsys.readouterr().out
        assert "data.test_size 0.1 is not applied" in said and "brings its own test set" in said
        table = said[said.index("photos of each class") :].splitlines()
        assert table[0].split()[-5:] == ["train,", "fold", "0", "valid", "test"]
        assert [line.split() for line in table[1:4]] == [[name, "5", "2", "1"] for name in sorted(COLOURS)]


def test_a_split_without_a_test_folder_gives_the_share_that_was_asked_for_from_train(things):
    whole = things / "split"
    for k, (name, colour) in enumerate(COLOURS.items()):
        for n in range(10):
            paint(whole / ("train" if n < 8 else "valid") / name / f"{n}.png", colour, 100 * k + n)
    rows = dataset.prepare(of(things, "--data.train", whole, "--data.test_size", 0.25))
    assert (rows["source"] == "test").sum() == 6 and set(rows["split"][rows["source"] == "test"]) == {"train"}
    training, validation = folds.split(rows, 0)
    assert (len(training), len(validation)) == (18, 6) and set(validation["split"]) == {"valid"}
    assert rows["source"][rows["fold"] == folds.TEST_FOLD].eq("test").all()


def test_the_trash_recipe_of_the_report_leaves_out_small_photos_and_caps_the_classes():
    config = cli.read("", argv=["--config", str(ROOT / "recipes/tasks/trash_report.json")])
    data, rates = config.data, config.train
    assert (data.min_side, data.max_per_class, data.resize_mode, data.augment) == (65, 1000, "pad", "trash")
    assert (rates.scheduler, rates.step_epochs, rates.gamma) == ("step", 11, 0.1)
    words = ["--config", str(ROOT / "recipes/tasks/trash_report.json"), "--config"]
    steps = [cli.read("", argv=[*words, str(ROOT / "recipes/try" / f"step_{n}.json")]).train for n in (7, 9)]
    assert [(one.scheduler, one.step_epochs, one.gamma) for one in steps] == [("step", 7, 0.1), ("step", 9, 0.1)]


def test_a_photo_that_is_in_the_test_set_too_is_not_trained_on_and_the_test_set_stays(things):
    whole = things / "split"
    for k, (name, colour) in enumerate(COLOURS.items()):
        for n in range(6):
            paint(whole / ("train" if n < 4 else "test") / name / f"{n}.png", colour, 100 * k + n)
    copy = whole / "train" / "red" / "copy.png"
    copy.write_bytes((whole / "test" / "red" / "4.png").read_bytes())
    rows = dataset.prepare(of(things, "--data.train", whole))
    assert (rows["source"] == "test").sum() == 6 and "train/red/copy.png" not in set(rows["ImageID"])
    assert "copy.png" in (things / "run" / "rejected.csv").read_text()


@pytest.mark.parametrize("splitter", ["pandas_streaming", "sklearn"])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_rare_classes_are_dealt_to_all_folds_alike(splitter, count):
    people = pd.DataFrame({"group": range(40 * count), "stratum": np.repeat(np.arange(40), count)})
    if splitter == "sklearn" and count < 5:
        return  # scikit-learn refuses, in one line
    found = np.bincount(folds.deal(people, 5, splitter, 0), minlength=5)
    assert found.max() - found.min() <= (1 if count < 5 else 40)
    assert (folds.deal(people, 5, splitter, 0) == folds.deal(people, 5, splitter, 0)).all()


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
def test_as_many_are_put_aside_as_were_asked_for(things, share):
    rows = dataset.prepare(of(things, "--data.test_size", share))
    assert abs((rows["source"] == "test").sum() - 24 * share) <= 1
    with pytest.raises(InputError, match="that is not one"):
        dataset.prepare(of(things, "--data.test_size", 0.01, "--run", things / "other"))


@pytest.mark.slow
def test_all_folds_that_were_trained_are_put_together_and_others_refused(things):
    train.train_folds(of(things), [1])
    assert read_json(things / "run" / "metrics.json", "")["folds"] == [1]
    with pytest.raises(InputError, match="there are the folds 0, 1"):
        train.train_folds(of(things), [7])


def test_train_may_be_a_class(tmp_path):
    for k, name in enumerate(("train", "car", "boat")):
        for n in range(3):
            paint(tmp_path / "train" / name / f"{n}.png", (60 * k, 90, 200), 10 * k + n)
    assert dataset.infer_classes(of(tmp_path)).classes == ("boat", "car", "train")


def test_links_in_a_circle_names_with_spaces_and_extra_folders(things):
    (things / "train" / "red" / "loop").symlink_to(things / "train")
    with pytest.raises(InputError, match="loop: is a link to a folder that was read already"):
        dataset.training_rows(of(things))
    (things / "train" / "red" / "loop").unlink()
    for k, (name, colour) in enumerate(COLOURS.items()):
        paint(things / "more" / name / "0.png", colour, 999 + k)  # the same names as in train
    extra = json.dumps([{"layout": "folder", "path": str(things / "more")}])
    rows = dataset.prepare(of(things, "--data.extra", extra))
    assert (rows["source"] == "extra").sum() == 3
    paint(things / "train" / " red" / "0.png", COLOURS["red"], 5)
    with pytest.raises(InputError, match="begins or ends with a space"):
        dataset.training_rows(of(things))


@pytest.mark.slow
def test_a_start_that_fails_leaves_nothing_to_be_refused_by(things):
    with pytest.raises(InputError, match=r"gone\.csv"):
        train.train_folds(of(things, "--data.pseudo", things / "gone.csv"), [0])
    train.train_folds(of(things), [0])
    with pytest.raises(InputError):
        train.train_folds(of(things, "--data.train", things / "typo"), [0], overwrite=True)
    assert (things / "run" / "metrics.json").is_file()  # a slip of the pen costs no finished run


@pytest.mark.slow
def test_runs_with_other_classes_never_vote_together(things):
    config = of(things)
    train.train_folds(config, [0])
    inference.main(words_of(things))
    other = '[{"name": "kind", "column": "class", "classes": ["red", "green", "blue"]}]'
    second = of(things, "--task.heads", other, "--run", things / "second")
    train.train_folds(second, [0])
    with pytest.raises(InputError, match="can't vote together"):
        ensemble.main(words_of(things, "--runs", things / "run", things / "second"))
    with pytest.raises(InputError, match="must not change the task"):
        compare.refuse_others([compare.Result(things, name) for name in ("run", "second")])


@pytest.mark.slow
def test_inference_makes_photos_square_as_training_did(things):
    config = of(things, "--data.resize_mode", "pad")
    train.train_folds(config, [0])
    predicted = []
    for words in ((), ("--data.resize_mode", "crop")):
        inference.main(words_of(things, *words))
        predicted.append((things / "run" / "fold0.csv").read_bytes())
        (things / "run" / "fold0.csv").unlink()
    assert predicted[0] == predicted[1]


def test_eight_to_one_to_one_is_a_test_share_and_nine_folds(things):
    for k in range(3):
        for n in range(10, 40):
            paint(things / "train" / list(COLOURS)[k] / f"{n}.png", list(COLOURS.values())[k], 1000 * k + n)
    rows = dataset.prepare(of(things, "--data.test_size", 0.1, "--train.folds", 9))
    training, validation = folds.split(rows, 0)
    aside = rows[rows["source"] == "test"]
    assert [len(training), len(validation), len(aside)] == pytest.approx([91, 11, 11], abs=2)
    assert aside["target"].value_counts().max() - aside["target"].value_counts().min() <= 1


def test_what_is_no_class_folder_or_no_photo_is_said(things, capsys):
    paint(things / "train" / "stray.png", (0, 0, 0), 1)
    with pytest.raises(InputError, match=r"stray\.png: lies in no class's folder"):
        dataset.training_rows(of(things))
    (things / "train" / "stray.png").unlink()
    (things / "train" / "red" / "notes.txt").write_text("not a photo")
    (things / "train" / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no photo"):
        dataset.training_rows(of(things))
    assert "1 files are no photos by their names" in capsys.readouterr().out
    (things / "train" / "empty").rmdir()
    with pytest.raises(InputError, match=r"layout folder has no column mask.*set task.heads"):
        dataset.training_rows(of(things, "--task.heads", json.dumps(MASK_TASK["heads"]), "--task.score", "f1"))


def test_a_link_out_of_the_folder_is_refused(things):
    (things / "train" / "red" / "out.png").symlink_to(things / "eval" / "red" / "8.png")
    with pytest.raises(InputError, match="leaves the folder"):
        dataset.training_rows(of(things))


@pytest.mark.parametrize("how", ["a regular expression", "near copies"])
def test_photos_that_belong_together_share_a_fold(things, how):
    for name in COLOURS:
        for n in range(8):
            (things / "train" / name / f"{n}.png").rename(things / "train" / name / f"item{n // 2}_{n % 2}.png")
    if how == "near copies":  # saved again, a little brighter
        for path in sorted((things / "train").rglob("*_0.png")):
            write_photo(path, hash(path.name) % 1000 + len(str(path)), (64, 64))
            image = cv2.imread(str(path))
            cv2.imwrite(str(path).replace("_0.png", "_1.png"), cv2.convertScaleAbs(image, beta=3))
        words = ["--data.duplicates", "together"]
    else:
        words = ["--data.group", r"^(.*)_\d"]
    rows = dataset.prepare(of(things, *words))
    pair = rows["ImageID"].str.replace(r"_\d\.png", "", regex=True)
    assert (rows.groupby(pair)["fold"].nunique() == 1).all() and rows["fold"].nunique() == 2


def test_a_group_that_matches_nothing_is_a_problem_and_a_broken_one_a_line(things):
    with pytest.raises(InputError, match=r"data\.group item\(\\d\+\) matches nothing"):
        dataset.training_rows(of(things, "--data.group", r"item(\d+)"))
    with pytest.raises(InputError, match="no regular expression"):
        dataset.training_rows(of(things, "--data.group", "("))


@pytest.mark.slow
def test_a_group_that_would_take_years_is_refused(things):
    paint(things / "train" / "red" / ("a" * 60 + ".png"), COLOURS["red"], 7)
    with pytest.raises(InputError, match=r"takes more than 2 s on (train/)?red/aaa"):
        dataset.training_rows(of(things, "--data.group", r"(a|aa)+$"))


# ------------------------------------------------------------------------------------------------------ cleaning


def test_cleaning_leaves_out_what_is_small_or_doubled_says_so_and_touches_no_file(things, capsys):
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 255, (8, 8, 3), np.uint8), (64, 64), interpolation=2)
    for path in ("train/red/x.png", "train/red/y.jpg", "train/blue/z.jpg", "eval/red/w.jpg"):
        cv2.imwrite(str(things / path), picture)
    other = cv2.resize(rng.integers(0, 255, (8, 8, 3), np.uint8), (64, 64), interpolation=2)
    for path in ("train/green/a.png", "train/green/b.jpg"):
        cv2.imwrite(str(things / path), other)
    paint(things / "train" / "green" / "tiny.png", COLOURS["green"], 5, (10, 40))
    before = sorted(path for path in things.rglob("*.*") if "run" not in path.parts)
    config = of(things, "--data.duplicates", "drop", "--data.min_side", 20)
    rows = dataset.prepare(config)
    names = set(rows["ImageID"])
    assert not names & {"red/x.png", "red/y.jpg", "blue/z.jpg"}  # nobody knows which label is right
    assert "green/a.png" in names and "green/b.jpg" not in names and "green/tiny.png" not in names
    rejected = read_csv(things / "run" / "rejected.csv", ["file", "reason"])
    assert rejected["reason"].str.contains("which has another label").sum() == 3
    assert rejected["reason"].str.contains("shorter side is 10 pixels").sum() == 1
    pairs = read_csv(things / "run" / "duplicates.csv", ["photo", "other_photo", "answer", "other_answer"])
    assert pairs["other_photo"].str.contains("eval/red/w.jpg").sum() + pairs["photo"].str.contains("w.jpg").sum() == 3
    assert "between data.train and data.eval" in capsys.readouterr().out
    assert sorted(path for path in things.rglob("*.*") if "run" not in path.parts) == before


def test_a_cap_is_on_training_never_on_validation(things, capsys):
    rows = dataset.prepare(of(things, "--data.max_per_class", 2))
    for k in (0, 1):
        training, validation = folds.split(rows, k)
        assert training["label"].value_counts().max() <= 2 and len(validation) == 12
    assert (~rows["gap"]).sum() == 6
    assert "18 photos are not trained on: 6 of" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------- boxes


def test_boxes_are_cut_out_and_photos_with_several_are_never_split(tmp_path):
    found = []
    for n in range(6):
        image = np.zeros((40, 80, 3), np.uint8)
        image[:, :40], image[:, 40:] = COLOURS["red"], COLOURS["blue"]
        (tmp_path / "train").mkdir(exist_ok=True)
        image[0, 0] = n  # no two are the same
        cv2.imwrite(str(tmp_path / "train" / f"{n}.png"), image)
        found += [{"image": f"{n}.png", "label": "red", "bbox": [0, 0, 38, 40 - n]}]
        found += [{"image": f"{n}.png", "label": "blue", "bbox": [44.4, 2, 90, 40]}]
    path = tmp_path / "train" / "boxes.json"
    path.write_text(json.dumps(found))
    config = of(tmp_path, "--data.train", path, layout="boxes")
    rows = dataset.prepare(config)
    assert rows["ImageID"][:2].tolist() == ["0.png#0", "0.png#1"] and len(rows) == 12
    assert (rows.groupby("photo")["fold"].nunique() == 1).all()
    photos = loader.PhotoDataset(rows, "none", 16, False)
    for row in (0, 1):
        colour = photos[row, 0][1].reshape(-1, 3)[:, ::-1].mean(0)
        assert np.allclose(colour, COLOURS[rows["ImageID"].map(lambda n: ["red", "blue"][int(n[-1])])[row]], atol=2)
    with pytest.raises(InputError, match="boxes are cut out by themselves"):
        of(tmp_path, "--data.train", path, "--data.crops", tmp_path, layout="boxes")
    found[0]["bbox"] = [500, 500, 600, 600]
    path.write_text(json.dumps(found))
    words = ["--data.train", path, "--data.strict", "false", "--run", tmp_path / "second"]
    with pytest.raises(InputError, match="its box lies outside of it"):  # 1 of 12 is more than may be left out
        dataset.prepare(of(tmp_path, *words, layout="boxes"))
    path.write_text(json.dumps(found[1:]))
    config = of(tmp_path, "--data.train", path, "--data.eval", path, layout="boxes")
    dataset.infer_classes(config)
    assert len(dataset.eval_rows(config)) == 11
    assert dataset.eval_rows(config)["target"].tolist() == [0, *[1, 0] * 5]  # their labels are the truth
    path.write_text(json.dumps([{key: box[key] for key in ("image", "bbox")} for box in found[1:]]))
    assert "target" not in dataset.eval_rows(config)


def test_the_recipe_of_boxes_cuts_them_out_and_fills_up_with_black(tmp_path):
    image = np.full((60, 90, 3), 30, np.uint8)
    image[20:30, 10:50] = 200  # 40 wide, 10 high
    (tmp_path / "train").mkdir()
    found = []
    for n in range(12):
        image[0, 0] = n
        cv2.imwrite(str(tmp_path / "train" / f"{n}.png"), image)
        found.append({"image": f"{n}.png", "label": "ab"[n % 2], "bbox": [10, 20, 50, 30]})
    path = tmp_path / "train" / "train.json"
    path.write_text(json.dumps(found))
    words = ["--config", ROOT / "recipes/tasks/metal_boxes.json", "--data.train", path, "--data.eval", path]
    config = cli.read("", argv=[*map(str, words), "--run", str(tmp_path / "run")])
    rows = dataset.prepare(config)
    square = loader.PhotoDataset(rows, "none", 40, False, fit=config.data.resize_mode)[0, 0][1].mean(2)
    assert (square[16:24] > 190).all() and (square[:14] < 5).all() and (square[26:] < 5).all()


@pytest.mark.parametrize(("pixels", "box"), [("stored", [60, 0, 80, 30]), ("upright", [10, 60, 40, 80])])
def test_boxes_lie_in_the_pixels_that_a_setting_names_where_exif_turns_photos(tmp_path, capsys, pixels, box):
    files.warn_once.cache_clear()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: stored 80 x 40, seen 40 x 80
    stored = np.full((40, 80, 3), 200, np.uint8)
    stored[:30, 60:] = 20
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(stored).save(tmp_path / "plain.png")
    entries = [{"image": "turned.png", "label": "dark", "bbox": box}]
    entries += [{"image": "plain.png", "label": "dark", "bbox": [60, 0, 80, 30]}]
    entries += [{"image": "plain.png", "label": "light", "bbox": [0, 0, 50, 40]}]
    (tmp_path / "boxes.json").write_text(json.dumps(entries))
    words = ["--data.train", tmp_path / "boxes.json", "--data.box_pixels", pixels]
    rows, _ = dataset.training_rows(of(tmp_path, *words, layout="boxes"))
    photos = loader.PhotoDataset(rows.assign(file=rows["photo"]), "none", 16, False)
    assert [int(photos[k, 0][1].mean()) for k in range(3)] == [20, 20, 200]
    said = capsys.readouterr().err
    assert "1 of 2 photos are turned by their EXIF tag" in said and f"as it is {pixels}" in said


def test_photos_of_every_ending_and_none_are_answered_for(tmp_path, capsys):
    names = [name for name, (_, whole) in bad_photos.BY_KIND.items() if whole and name != "huge.jpg"]
    photo = np.random.default_rng(0).integers(0, 255, (30, 30, 3), dtype=np.uint8)
    bad_photos.write(tmp_path / "eval" / "more", photo, [*names, "text.jpg", "pipe.jpg"])
    (tmp_path / "eval" / "list.csv").write_text("BMI,age")
    (tmp_path / "eval" / "notes.txt").write_text("P1 is the first")
    rows = dataset.eval_rows(of(tmp_path, "--data.eval", tmp_path / "eval", layout="folder"))
    assert rows["ImageID"].tolist() == sorted(f"more/{name}" for name in [*names, "text.jpg", "pipe.jpg"])
    assert "2 files are no photos by their names and first bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("aaf", ["00000A02.jfif", "00001A20", "07381A40.TIF"]),
        ("utkface", ["25_1_2_20170116.jpe", "26_0_2_20170117", "27_0_2_20170118.jpg.chip.jpg"]),
    ],
)
def test_names_that_hold_labels_may_have_any_ending(tmp_path, layout, names):
    photo = np.zeros((30, 30, 3), np.uint8)
    (tmp_path / "train").mkdir()
    for name in names:
        cv2.imencode(".jpg", photo)[1].tofile(tmp_path / "train" / name)
    config = cli.read("", argv=["--data.layout", layout, "--data.train", str(tmp_path / "train")])
    assert dataset.training_rows(config)[0]["ImageID"].tolist() == names


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"label": "red", "bbox": [0, 0, 9, 9]}, "entry 1 names no image"),
        ({"image": "a.png", "label": "red", "bbox": [0, 0, 9]}, r"bbox of a\.png is \[0, 0, 9\]"),
        ({"image": "a.png", "label": "red", "bbox": [9, 0, 3, 9]}, "should be"),
        ({"image": "gone.png", "label": "red", "bbox": [0, 0, 9, 9]}, "there is no photo"),
        ({"image": "../a.png", "label": "red", "bbox": [0, 0, 9, 9]}, "leaves the folder"),
        ({"image": "a.png", "label": None, "bbox": [0, 0, 9, 9]}, "class is ''"),
        ({"image": "a.png", "label": "red", "bbox": "0099"}, "should be"),
        ({"image": "a.png", "bbox": [0, 0, 9, 9]}, "class is ''"),
    ],
)
def test_a_box_that_can_not_be_is_named(tmp_path, entry, expected):
    paint(tmp_path / "train" / "a.png", COLOURS["red"], 0)
    (tmp_path / "train" / "boxes.json").write_text(json.dumps([entry] + [
        {"image": "a.png", "label": name, "bbox": [0, 0, 9, 9]} for name in ("red", "blue")]))  # fmt: skip
    with pytest.raises(InputError, match=expected):
        dataset.training_rows(of(tmp_path, "--data.train", tmp_path / "train" / "boxes.json", layout="boxes"))


# ------------------------------------------------------------------------------------------------------- numbers


LEARN = ["--task.heads.age.learn"]


@pytest.fixture
def aged(tmp_path):
    """UTKFace's names: the older, the brighter."""
    rng = np.random.default_rng(0)
    for n in range(24):
        age = int(rng.integers(1, 100))
        home = tmp_path / ("train" if n < 18 else "eval")
        paint(home / f"{age}_{n % 2}_{n % 5}_2017{n:013d}.jpg.chip.jpg", (2.5 * age,) * 3, n)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("learned", ["distribution", "ordinal", "regression", "sigmoid"])
def test_an_age_goes_through_the_chain_as_a_number(aged, capsys, learned):
    words = words_of(aged, "--task.heads.age.learn", learned, layout="utkface", heads=AGE, score="mae")
    config = cli.read("", argv=words)
    train.train_folds(config, [0, 1])
    broken = min((aged / "eval").iterdir())
    broken.write_bytes(broken.read_bytes()[:200])
    saved = read_json(aged / "run" / "metrics.json", "")
    oof = predictions.read_oof(config.predicted, aged / "run" / "oof.csv")
    assert saved["mae"] == pytest.approx(abs(oof["target"] - oof["ans"]).mean(), abs=1e-4)
    assert saved["mae_low"] < saved["mae"] < saved["mae_high"] and 0 <= saved["within"] <= 1
    log = read_csv(aged / "run" / "fold0" / "log.csv", ["epoch", "mae", "within"], numbers=["mae"])
    best = oof[oof["fold"] == 0]
    assert abs(best["target"] - best["ans"]).mean() == pytest.approx(log["mae"].min(), abs=1e-3)  # less is better
    inference.main(words)
    _, rows = folds.split(dataset.prepare(config), 1)
    first = read_csv(aged / "run" / "fold0.csv", ["ImageID", "ans"], numbers=["ans"]).set_index("ImageID")
    assert first["ans"][broken.name] == pytest.approx(rows["age"].median(), abs=1e-3)  # what is known without seeing it
    for vote, mean in (("soft", np.mean), ("hard", np.median)):
        ensemble.main([*words, f"--{vote}"])
        told = [read_csv(aged / "run" / f"fold{k}.csv", ["ans"], numbers=["ans"])["ans"] for k in (0, 1)]
        assert np.allclose(pd.read_csv(aged / "submission.csv")["ans"], mean(told, 0), atol=1e-3)
    assert "6 photos whose folder or name tells the truth: MAE" in capsys.readouterr().out
    words += ["--pseudo.threshold", "0"]
    if learned == "sigmoid":
        with pytest.raises(InputError, match="doesn't say how sure it is"):
            pseudo_label.main(words)
        return
    pseudo_label.main(words)
    words = ["--data.pseudo", aged / "run" / "pseudo.csv", "--run", aged / "second", "--task.heads.age.learn", learned]
    rows = dataset.prepare(of(aged, *words, layout="utkface", heads=AGE, score="mae"))
    assert (rows["source"] == "pseudo").sum() == 10 and rows["age"].between(0, 100).all()


@pytest.mark.slow
def test_recipes_of_another_task_are_compared_by_its_own_score(aged):
    results = []
    for name, learned in (("one", "distribution"), ("two", "sigmoid")):
        words = ["--task.heads.age.learn", learned, "--run", aged / "runs" / name]
        train.train_folds(of(aged, *words, layout="utkface", heads=AGE, score="mae"), [0, 1])
        results.append(compare.Result(aged / "runs", name))
    compare.refuse_others(results)
    recipes = {result.name: {0: result} for result in results}
    scores = compare.differences(recipes)
    page = compare.table(recipes, scores)
    assert page.startswith("| recipe | MAE | within 5 years | learn | training MAE | validation MAE | to the first |")
    rows = [line for line in page.splitlines() if line.startswith(("| one", "| two"))]
    assert rows[0].split("|")[1].strip() == min(results, key=lambda result: result.metrics["mae"]).name
    compare_page.picture(recipes, scores, aged / "compare.png")
    known = oof.OofPredictions(results[0].task, [str(aged / "runs" / name) for name in scores.names])
    plain = blend.soft_vote(known.task, known.predictions)
    weights = blend.climb(known.task, known.predictions, known.target)
    assert abs(weights @ known.predictions - known.target).mean() <= abs(plain - known.target).mean() + 1e-9


def test_names_that_are_not_utkfaces_are_reported(aged):
    paint(aged / "train" / "39_1_20170116174525125.jpg.chip.jpg", (9, 9, 9), 1)  # as the real set has: no race
    with pytest.raises(InputError, match=r"39_1_2017.* is not named like UTKFace's"):
        dataset.training_rows(of(aged, *LEARN, "distribution", layout="utkface", heads=AGE, score="mae"))
    words = ["distribution", "--data.strict", "false"]
    rows, problems = dataset.training_rows(of(aged, *LEARN, *words, layout="utkface", heads=AGE, score="mae"))
    assert len(rows) == 18 and len(problems.rows) == 1


def test_the_number_that_is_answered_is_the_median_and_its_confidence_the_share_within():
    heads = [{"name": "age", "range": [0, 100], "learn": "distribution"}]
    reader = Heads(Task(heads, score="mae", tolerance=5), "multi")
    shares = torch.full((1, 101), 1e-9)
    shares[0, 20:30], shares[0, 80] = 0.06, 0.4
    value, sure = reader.answers(shares.log())[0].tolist()
    assert value == pytest.approx(27.83, abs=0.02)  # half of it lies below: the mean would be 46.7
    assert sure == pytest.approx(0.06 * 7, abs=1e-3)
    reader = Heads(Task([heads[0] | {"learn": "sigmoid"}], score="mae"), "multi")
    assert reader.answers(torch.tensor([[-99.0], [0.0], [99.0]]))[:, 0].tolist() == [0, 50, 100]


@pytest.mark.slow
def test_a_head_beside_the_answer_is_learned_and_not_scored(aged):
    heads = AGE[:-1] + ', {"name": "gender", "classes": ["male", "female"]}]'
    config = of(aged, "--task.answer", "[age]", "--task.heads.age.learn", "distribution", layout="utkface", heads=heads,
                  score="mae")  # fmt: skip
    rows = dataset.prepare(config)
    task = config.predicted
    reader = Heads(task, "multi")
    outputs = torch.zeros(len(rows), reader.size, requires_grad=True)
    targets = loss.Targets(task, rows, config.loss).of(torch.arange(len(rows)), "cpu")
    loss.Loss(reader, config.loss, rows["label"]).forward(outputs, *targets).sum().backward()
    assert outputs.grad[:, -2:].abs().min() > 0 and metrics.score_names(task) == ["mae", "within"]
    train.train_folds(config, [0])
    assert read_csv(aged / "run" / "oof.csv", ["ans"]).columns.tolist()[-1] == "confidence"


# ------------------------------------------------------------------------------------------- a task of one's own


@pytest.mark.slow
def test_a_task_of_ones_own_needs_settings_alone(tmp_path):
    """Two columns of a table, one of names and one of numbers that are cut, make six classes."""
    rng = np.random.default_rng(0)
    lines = ["file,animal,kilos,farm"]
    for n in range(36):
        paint(tmp_path / "images" / f"{n}.png", COLOURS[list(COLOURS)[n % 3]], n)
        lines.append(f"{n}.png,{['cow', 'hen'][n % 2]},{rng.integers(1, 900)},farm{n // 4}")
    (tmp_path / "train.csv").write_text("\r\n".join(lines) + "\r\n")
    task = {
        "heads": [
            {"name": "animal"},
            {"name": "weight", "column": "kilos", "bounds": [10, 300], "range": [0, 1000], "learn": "distribution"},
        ],
        "answer_as": "name",
    }
    content = {"task": task, "run": str(tmp_path / "run")}
    content["data"] = {"layout": "table", "train": str(tmp_path / "train.csv"), "eval": str(tmp_path / "images")}
    content["data"] |= {"crops": "", "group": "farm", "image_size": 32, "workers": 0}
    content["model"] = {"backbone": "test_resnet", "pretrained": False}
    content["train"] = {"folds": 2, "epochs": 1}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    run, where = ["--run", str(tmp_path / "run")], ["--submission", str(tmp_path / "submission.csv")]
    scripts = [["train_kfold.py", "--config", str(tmp_path / "mine.json")], ["inference.py", *run]]
    for script in [*scripts, ["ensemble.py", "--soft", *run, *where, "--decide", "boundary", "bias"]]:
        done = subprocess.run([sys.executable, ROOT / script[0], *script[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    answer = pd.read_csv(tmp_path / "submission.csv")["ans"]
    assert set(answer) <= {f"{a} {w}" for a in ("cow", "hen") for w in ("<10", "10-299", ">=300")} and len(answer) == 36
    fold = read_csv(tmp_path / "run" / "folds.csv", ["id", "fold"])
    assert len(fold) == 9  # farms
    assert (tmp_path / "run" / "oof_weight.csv").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["label", "Age (years)"])
def test_a_head_may_have_any_name(tmp_path, name):
    """Of a class and of a number that is cut: rows, scores and files have columns of these names themselves."""
    lines = [f"photo,{name},kilos"]
    for n in range(24):
        paint(tmp_path / f"{n}.png", COLOURS[list(COLOURS)[n % 3]], n)
        lines.append(f"{n}.png,{['cow', 'hen'][n % 2]},{n * 30}")
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    heads = [{"name": name}, {"name": name + "2", "column": "kilos", "bounds": [300], "range": [0, 900]}]
    words = words_of(tmp_path, layout="table", heads=json.dumps(heads), score="f1")
    words += ["--data.train", str(tmp_path / "train.csv"), "--data.eval", str(tmp_path / "train.csv")]
    words += [
        f"--task.heads.{name}.weight",
        "2",
        f"--task.heads.{name}2.learn",
        "ordinal",
        "--run",
        str(tmp_path / "r"),
    ]
    config = cli.read("", argv=words)
    assert [head.weight for head in config.task.heads] == [2, 1] and config.predicted.heads[0].name == name
    train_kfold.main(words)
    saved = read_json(tmp_path / "r" / "metrics.json", "")
    truth = pd.read_csv(tmp_path / "train.csv").set_index("photo")
    frame = pd.read_csv(tmp_path / "r" / "oof.csv")
    animal = (truth.loc[frame["ImageID"], name] == "hen").to_numpy(int)
    assert (frame["target"] == 2 * animal + (truth.loc[frame["ImageID"], "kilos"] >= 300).to_numpy()).all()
    assert saved["photos"] == 24 and {f"{head.key}_f1" for head in config.predicted.heads} <= set(saved)
    assert (tmp_path / "r" / f"oof_{config.predicted.heads[1].key}.csv").is_file()
    words += ["--data.only", json.dumps([f"{name}=hen"])]
    assert len(dataset.only(dataset.training_rows(config)[0], config.predicted, [f"{name} = cow"])) == 12
    inference.main(words[:-2])
    ensemble.main([*words[:-2], "--decide", "boundary", "bias"])


def test_the_task_of_ones_own_in_the_docs_is_a_task(tmp_path):
    text = (ROOT / "docs" / "tasks.md").read_text()
    text = text[text.index('{"run": "runs/mine"') :]
    content = json.loads(text[: text.index("}}") + 2])
    (tmp_path / "mine.json").write_text(json.dumps(content))
    for n in range(4):
        paint(tmp_path / f"{n}.png", COLOURS["red"], n)
    (tmp_path / "train.csv").write_text("photo,kind\n" + "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(4)))
    words = ["--config", str(tmp_path / "mine.json"), "--data.train", str(tmp_path / "train.csv")]
    rows, _ = dataset.training_rows(cli.read("", argv=words))
    assert rows["label"].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("heads", "words", "expected"),
    [
        ("[]", [], "task.heads is empty"),
        ('[{"name": " "}]', [], "' ' is no name"),
        ('[{"name": "a"}, {"name": "a"}]', [], "'a' stands there twice"),
        ('[{"name": "a", "bounds": [3, 1], "range": [0, 9]}]', [], "bounds that rise"),
        ('[{"name": "a", "bounds": [3], "range": [0, 9], "classes": ["x"]}]', [], "make 2 classes, and names 1"),
        ('[{"name": "a", "range": [9, 0]}]', ["--task.score", "mae"], "needs a range"),
        ('[{"name": "a", "range": [0]}]', ["--task.score", "mae"], "needs a range"),
        ('[{"name": "a", "range": [0, 9], "limits": [9, 5]}]', ["--task.score", "mae"], "should hold its range"),
        ('[{"name": "a", "range": [0, 9], "classes": ["x", "y"]}]', ["--task.score", "mae"], "classes of a number"),
        ('[{"name": "a", "classes": ["x", ""]}]', [], "a class without a name"),
        ('[{"name": "a", "classes": ["x y", "x"]}, {"name": "b", "classes": ["z", "y z"]}]', [], "have one name"),
        ('[{"name": "a"}]', ["--loss.name", "neighbour"], "no class has neighbours"),
        ('[{"name": "a", "bounds": [3, 6], "range": [0, 9]}]', ["--task.heads.a.train_bounds", "[6,3]"], "which rise"),
        ('[{"name": "a", "bounds": [3, 6], "range": [0, 9]}]', ["--task.heads.a.train_bounds", "[3]"], "give as many"),
        ('[{"name": "a", "bounds": [3, 6], "range": [0, 9]}]', ["--task.heads.a.learn", "sigmoid"], "has classes"),
        ('[{"name": "a"}]', ["--task.heads.a.train_gap", "2"], "no bounds between classes, which train_gap is about"),
        ('[{"name": "a"}]', ["--task.heads.b.learn", "ordinal"], r"task\.heads\.b: the task has no such head"),
        ('[{"name": "a"}]', ["--task.heads.a.lern", "ordinal"], r"task\.heads\.a\.lern: a head has no such field"),
        ('[{"name": "a", "classes": ["x"]}]', [], "has one class"),
        ('[{"name": "a"}, {"name": "b", "range": [0, 1]}]', [], "can't make one answer"),
        ('[{"name": "a"}]', ["--task.score", "mae"], "the answer is a class: choose one of f1, accuracy"),
        ('[{"name": "a", "range": [0, 1]}]', [], "the answer is a number: choose mae or within"),
        ('[{"name": "a", "range": [0, 1]}]', ["--task.score", "mae"], r"task\.heads\.a\.learn classes: a is a number"),
        ('[{"name": "a"}]', ["--task.answer", "[b]"], "task.answer names b, which is no head"),
        ('[{"name": "a"}]', ["--task.heads.a.learn", "ordinal"], "holds no numbers"),
        ('[{"name": "a", "nme": 1}]', [], "task"),
    ],
)  # fmt: skip
def test_a_task_that_can_not_be_is_one_line(heads, words, expected):
    with pytest.raises(InputError, match=expected) as caught:
        cli.read("", argv=["--task.heads", heads, *words])
    assert "\n" not in str(caught.value)


def test_what_is_answered_for_may_be_a_table_too(tmp_path):
    for n in range(4):
        paint(tmp_path / "images" / f"{n}.png", COLOURS["red"], n)
    (tmp_path / "test.csv").write_bytes("\ufefffilename,note\r\n2.png,x\r\n0.png,y\r\n2.png,x\r\n".encode())
    config = of(tmp_path, "--data.eval", tmp_path / "test.csv", layout="table")
    rows = dataset.eval_rows(config)
    assert rows["ImageID"].tolist() == ["2.png", "0.png", "2.png"]
    assert rows["photo"][0] == str(tmp_path / "images" / "2.png")
    (tmp_path / "test.csv").write_text("name\nnone\n")
    with pytest.raises(InputError, match=r"has no column photo; it has name"):
        dataset.eval_rows(config)
    with pytest.raises(InputError, match=r"data\.eval is empty"):
        dataset.eval_rows(of(tmp_path, "--data.eval", ""))


def test_an_answer_may_be_read_up_to_five_steps_below_the_last_bound():
    assert MASK.number.steps == (30, 55, 56, 57, 58, 59, 60)


def test_names_and_columns_of_numbers_are_plain():
    kilos = Head("kilos", bounds=[0.3, 0.6], range=[0, 1])
    assert kilos.classes == ("<0.3", "0.3 to 0.6", ">=0.6") and kilos.columns[-1] == "from0.6"
    price = Head("price", bounds=[1_000_000, 2_500_000], range=[0, 9_000_000])
    assert price.classes[1] == "1000000-2499999" and len(set(price.columns)) == len(price.columns)


@pytest.mark.parametrize("high", [1, 10_000])
def test_a_distribution_learns_whatever_its_range(high):
    task = Task(heads=[{"name": "x", "range": [0, high], "learn": "distribution"}], score="mae")
    reader, true = Heads(task, "multi"), torch.tensor([0.1, 0.5, 0.9]) * high
    rows = pd.DataFrame({"label": true.numpy(), "x": true.numpy()})
    criterion, targets = loss.Loss(reader, LossConfig(), rows["label"]), loss.Targets(task, rows, LossConfig())
    outputs = torch.zeros(3, reader.size, requires_grad=True)
    optimizer = torch.optim.Adam([outputs], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        criterion(outputs, *targets.of(torch.arange(3), "cpu")).sum().backward()
        optimizer.step()
    assert (reader.answers(outputs.detach())[:, 0] - true).abs().max() < 0.03 * high


def test_rows_may_be_held_to_classes_and_ranges(aged):
    config = of(aged, *LEARN, "distribution", "--data.only", "[age>=20, age<70]", layout="utkface", heads=AGE,
                  score="mae")  # fmt: skip
    rows, _ = dataset.training_rows(config)
    kept = dataset.only(rows, config.predicted, config.data.only)
    assert kept["age"].between(20, 69).all() and len(kept) == rows["age"].between(20, 69).sum() < len(rows)


# ------------------------------------------------------------------------------------------------------ geometry


@pytest.mark.slow
def test_fit_stretches_pads_or_cuts():
    image = np.full((20, 60, 3), 200, np.uint8)
    image[:, :15] = 50
    for fit in ("stretch", "pad", "crop"):
        out = augment.shape("none", 30, fit)(image=image)["image"]
        assert out.shape == (30, 30, 3)
        dark = (out.mean(2) < 20).mean(1) > 0.9  # black rows
        if fit == "pad":
            assert dark[:9].all() and dark[-9:].all() and not dark[12:18].any()
        else:
            assert not dark.any()
        assert (out.min() < 100) == (fit != "crop")


def test_shapes_change_no_colour():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:] = (10, 120, 230)
    turned = augment.variation("shapes")
    for seed in range(20):
        turned.set_random_seed(seed)
        out = turned(image=image)["image"].reshape(-1, 3)
        inside = out[out.sum(1) > 300]
        assert np.allclose(np.median(inside, 0), (10, 120, 230), atol=3)
