"""Who is who: found where features tell it, measured with its errors, and used only if it is asked for."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import MASK, STEMS, guesses
from test_blend import write_run

import ensemble
from foldface import predictions
from foldface.data.photos import cv2
from foldface.files import InputError
from foldface.stack import EMBEDDINGS
from tools import same_person

PEOPLE, OTHERS = 40, 10
HEADS = ["--data.eval_group_heads", '["gender", "age"]']


@pytest.fixture
def world(make_competition):
    """(competition, run): a run that knows little of each photo, among whose photos to answer for are seven each of
    ten people; `plant` writes its embeddings."""
    competition = make_competition(people=PEOPLE, photos=STEMS, answer_for=7 * OTHERS)
    person = np.repeat([name for name, *_ in competition.people], 7)
    gender, age = np.arange(PEOPLE) % 2, np.arange(PEOPLE) // 2 % 3
    mask = [0, 0, 0, 0, 0, 1, 2]
    target = MASK.encode(np.tile(mask, PEOPLE), np.repeat(gender, 7), np.repeat(age, 7))
    fold = np.repeat(np.arange(PEOPLE) % 3, 7)
    run = write_run(competition.root, "run", target, person, fold, 2.0, 1, answer_for=competition.images)
    oof = pd.read_csv(f"{run}/oof.csv", dtype={"id": str})
    oof["ImageID"] = [f"{name}_person/{stem}.jpg" for name in pd.unique(person) for stem in STEMS]
    oof.to_csv(f"{run}/oof.csv", index=False)
    truth = np.repeat(np.arange(OTHERS) % 6, 7) + 6 * np.tile(mask, OTHERS)
    for k in range(2):
        frame = predictions.with_answers(
            MASK, pd.DataFrame({"ImageID": competition.images}), guesses(truth, 2.0, 5 + k)
        )
        frame.to_csv(f"{run}/fold{k}.csv", index=False)
    return competition, run


def plant(world, spread=0.05, people=True):
    """Write embeddings in which the photos of a person lie near each other, or, without `people`, noise."""
    competition, run = world
    rng = np.random.default_rng(0)
    places = rng.normal(size=(PEOPLE + OTHERS, 8)) * people
    features = np.repeat(places, 7, 0) + (spread if people else 1.0) * rng.normal(size=(7 * (PEOPLE + OTHERS), 8))
    names = pd.read_csv(f"{run}/oof.csv")["ImageID"], competition.images
    for name, photos, rows in zip(EMBEDDINGS, names, np.split(features, [7 * PEOPLE]), strict=True):
        frame = pd.DataFrame(rows, columns=[f"e{k}" for k in range(8)])
        frame.insert(0, "ImageID", list(photos))
        frame.to_csv(f"{run}/{name}", index=False)


def found(world, *words):
    """What the tool writes: {"train": persons (n,), "eval": persons (N,)}."""
    competition, run = world
    competition.run(same_person, "--run", run, "--features", "embeddings", *words)
    frame = pd.read_csv(f"{run}/same_person.csv")
    assert frame[frame["set"] == "eval"]["ImageID"].tolist() == competition.images
    return {side: rows["person"].to_numpy() for side, rows in frame.groupby("set")}


def answers(competition):
    return pd.read_csv(competition.config().submission)["ans"].to_numpy()


@pytest.mark.slow
def test_people_are_found_and_answered_together_and_the_gain_is_measured_on_found_people(world, capsys):
    competition, run = world
    plant(world)
    persons = found(world)
    out = capsys.readouterr().out
    assert f"out of fold: {PEOPLE} persons found among {7 * PEOPLE} photos of {PEOPLE}" in out
    assert "precision 1.000 (1.000-1.000)" in out and "recall 1.000 (1.000-1.000)" in out
    assert f"{OTHERS} persons found among {7 * OTHERS} photos; by photos: {OTHERS} with 7" in out
    assert "a competition may forbid" in out
    for side, people in (("train", PEOPLE), ("eval", OTHERS)):
        assert len(set(persons[side])) == people and (persons[side].reshape(-1, 7).std(1) == 0).all()
    competition.run(ensemble, "--run", run, "--data.eval_group", f"{run}/same_person.csv", *HEADS)
    out = capsys.readouterr().out
    gain = float(re.search(r"answered together \(gender, age\): .*, ([+-][\d.]+) \(", out)[1])
    assert gain > 0.03 and "measured over its ids" not in out and "a competition may forbid" in out
    told = answers(competition)
    assert all(len(set(told[k : k + 7] % 6)) == 1 for k in range(0, 7 * OTHERS, 7))


@pytest.mark.slow
def test_of_noise_each_photo_is_a_person_and_the_printed_gain_is_none(world, capsys):
    competition, run = world
    plant(world, people=False)
    persons = found(world)
    assert len(set(persons["train"])) == 7 * PEOPLE and len(set(persons["eval"])) == 7 * OTHERS
    assert "recall 0.000" in capsys.readouterr().out
    competition.run(ensemble, "--run", run, "--data.eval_group", f"{run}/same_person.csv", *HEADS)
    out = capsys.readouterr().out
    assert "+0.0000 (+0.0000 to +0.0000); the 95 % interval contains 0" in out


@pytest.mark.slow
def test_wrong_people_are_measured_to_be_wrong(world, capsys):
    """The gain is that of the persons in the file, not of true ids: photos of two people as one cost score."""
    competition, run = world
    plant(world)
    found(world)
    frame = pd.read_csv(f"{run}/same_person.csv")
    frame["person"] = frame.groupby("set").cumcount() // 14
    frame.to_csv(f"{run}/same_person.csv", index=False)
    capsys.readouterr()
    competition.run(ensemble, "--run", run, "--data.eval_group", f"{run}/same_person.csv", *HEADS)
    assert re.search(r"answered together \(gender, age\): .*, -0\.\d+ \(-", capsys.readouterr().out)


@pytest.mark.slow
def test_a_file_of_persons_changes_nothing_unless_it_is_named(world, capsys):
    competition, run = world
    competition.run(ensemble, "--run", run)
    before = answers(competition)
    plant(world)
    found(world)
    capsys.readouterr()
    path = Path(run) / "args.json"  # a run that names one may be a stranger's
    path.write_text(json.dumps({"data": {"eval_group": f"{run}/same_person.csv"}}))
    competition.run(ensemble, "--run", run)
    printed = capsys.readouterr()
    assert (answers(competition) == before).all() and "answered together" not in printed.out
    assert "same_person.csv" in printed.err and "not taken from a run" in printed.err


def test_a_photo_that_can_not_be_read_is_a_person_of_its_own(world, capsys):
    run = world[1]
    plant(world)
    frame = pd.read_csv(f"{run}/embedding.csv")
    frame.iloc[[0, 1], 1:] = 0  # what tools.embed writes for it
    frame.to_csv(f"{run}/embedding.csv", index=False)
    persons = found(world)["eval"]
    assert (np.bincount(persons)[persons[:8]] == [1, 1, 5, 5, 5, 5, 5, 7]).all()
    assert "0 + 2 photos can't be read or have no crop: each a person of its own" in capsys.readouterr().out


@pytest.mark.slow
def test_clothes_and_background_tell_people_too(world):
    """Photos that are of one colour for each person, a damaged one among them."""
    competition, run = world
    plant(world, people=False)
    rng = np.random.default_rng(1)
    places = [competition.train / "images" / path / f"{stem}.jpg" for *_, path in competition.people for stem in STEMS]
    places += [competition.eval / "images" / name for name in competition.images]
    colours = rng.integers(0, 255, (PEOPLE + OTHERS, 2, 1, 3))
    for k, path in enumerate(places):
        image = np.repeat(np.repeat(colours[k // 7], 12, 0), 16, 1) + rng.integers(-8, 9, (24, 16, 3))
        cv2.imencode(".png", np.clip(image, 0, 255).astype(np.uint8))[1].tofile(path)
    places[-1].write_bytes(b"no photo")
    competition.run(same_person, "--run", run, "--features", "background")
    persons = pd.read_csv(f"{run}/same_person.csv").query("set == 'eval'")["person"].to_numpy()
    assert len(set(persons)) == OTHERS + 1 and len(set(persons[-7:-1])) == 1
    assert (persons[-1] != persons[:-1]).all()


@pytest.mark.slow
def test_persons_in_a_file_are_only_names(world):
    """Another's file names persons as it likes: they are compared, and nothing else."""
    competition, run = world
    names = ["../../etc/passwd", "=1+1", "$(touch x)", "a,b", "\u202e", "-1", "NaN", "p" * 5000, "0x0", "__import__"]
    frame = pd.DataFrame({"ImageID": competition.images, "person": np.repeat(names, 7)})
    path = competition.root / "named.csv"
    frame.to_csv(path, index=False)
    before = sorted(str(place) for place in competition.root.rglob("*"))
    competition.run(ensemble, "--run", run, "--data.eval_group", path, *HEADS)
    told = answers(competition)
    assert all(len(set(told[k : k + 7] % 6)) == 1 for k in range(0, 7 * OTHERS, 7))
    after = sorted(str(place) for place in competition.root.rglob("*"))
    assert set(after) - set(before) == {str(competition.root / "submission.csv")} and not os.path.exists("x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"named.csv: no such file: python -m tools.same_person writes such a file"),
        ("ImageID,who\nanswer0.jpg,1\n", r"named.csv: has no column person; it has ImageID, who"),
        ("ImageID,person\nanswer0.jpg,1\n", r"named.csv: has no row of answer1.jpg \(set eval\), nor of 68 more"),
        ("set,ImageID,person\ntest,answer0.jpg,1\n", r"named.csv, row 2: set is 'test', should be train or eval"),
        ("", r"named.csv: is empty"),
    ],
)
def test_a_file_of_persons_that_is_none_is_one_line(world, text, said):
    competition, run = world
    path = competition.root / "named.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        competition.run(ensemble, "--run", run, "--data.eval_group", path)
    assert "\n" not in str(caught.value)


def test_what_can_not_be_compared_is_one_line(world):
    competition, run = world
    with pytest.raises(InputError, match=r"oof_embedding.csv: no such file: python -m tools.embed --run .* writes it"):
        competition.run(same_person, "--run", run)
    with pytest.raises(InputError, match=r"--precision 1: should be between 0 and 1"):
        competition.run(same_person, "--run", run, "--precision", 1)
    with pytest.raises(InputError, match=r"model.backbone onnx:gone.onnx: gone.onnx: no such file"):
        competition.run(same_person, "--run", run, "--features", "networks", "--networks", "onnx:gone.onnx")
