"""Photos that are answered together: which heads they share, what it brings out of fold, and what is refused."""

import re

import numpy as np
import pandas as pd
import pytest
from helpers import MASK, STEMS, guesses
from test_blend import write_run

import ensemble
from foldface import metrics, predictions
from foldface.files import InputError
from foldface.shared import Groups, codes, from_file
from foldface.task import Task

SHARED = ("gender", "age")


def test_a_group_shares_the_mean_of_some_heads_and_each_photo_keeps_its_own_of_the_others():
    told = guesses(np.arange(6), 1.0, 0)
    code = np.array([0, 1, 0, 0, 1, 2])
    found = Groups(MASK, SHARED, code).share(told).reshape(6, 3, 6)
    joint = told.reshape(6, 3, 6)
    for group in range(2):
        mean = joint[code == group].sum(1).mean(0)
        assert np.allclose(found[code == group].sum(1), mean)  # gender and age: the group's
    assert np.allclose(found.sum(2), joint.sum(2))  # the mask: each photo's own
    assert len(set(found[code == 0].sum(1).argmax(1))) == 1
    assert np.array_equal(found[5].ravel(), told[5])  # who is alone keeps what is joint in it
    whole = Groups(MASK, ("mask", *SHARED), code).share(told)
    assert np.allclose(whole[code == 1], told[code == 1].mean(0))


def test_a_file_of_persons_may_name_photos_to_train_on_and_to_answer_for_alike(tmp_path):
    path = tmp_path / "persons.csv"
    path.write_text("set,ImageID,person\ntrain,a.jpg,1\neval,a.jpg,7\neval,b.jpg,7\n")
    assert from_file(str(path), np.array(["b.jpg", "a.jpg"]), "eval").tolist() == ["7", "7"]
    assert from_file(str(path), np.array(["a.jpg"]), "train").tolist() == ["1"]
    assert from_file(str(path), np.array(["c.jpg"]), "train") is None


def test_a_photo_is_of_one_person(tmp_path):
    path = tmp_path / "persons.csv"
    path.write_text("ImageID,person\na.jpg,7\na.jpg,7\nb.jpg,7\na.jpg,8\n")
    with pytest.raises(InputError, match=r"persons.csv, row 5: a.jpg has another person in a row above"):
        from_file(str(path), np.array(["a.jpg"]), "eval")


def test_numbers_and_several_labels_share_their_mean():
    age = Task([{"name": "age", "range": [0, 100]}], score="mae")
    code = codes(["a", "b", "a", "", " "])
    assert len(set(code)) == 4  # who has no group is alone
    shared = Groups(age, ("age",), code).share(np.array([10.0, 20, 30, 40, 50]))
    assert shared.tolist() == [20, 20, 20, 40, 50]
    labels = Task([{"name": "l", "kind": "multilabel", "classes": ["x", "y"]}])
    told = np.array([[0.9, 0.2], [0.1, 0.8], [0.3, 0.6], [0.5, 0.5], [1, 0]])
    shared = Groups(labels, ("l",), code).share(told)
    assert np.allclose(shared[[0, 2]], [0.6, 0.4]) and np.array_equal(shared[[1, 3, 4]], told[[1, 3, 4]])


@pytest.fixture
def asked(make_competition):
    """(competition, run, true answers): a run that knows little of each photo; the photos to answer for are of people,
    seven each, which info.csv names."""
    competition = make_competition(people=60, photos=STEMS, answer_for=1)
    rng = np.random.default_rng(0)
    person = np.repeat([name for name, *_ in competition.people], 7)
    gender = np.repeat([k % 2 for k in range(60)], 7)
    target = MASK.encode(np.tile([0, 0, 0, 0, 0, 1, 2], 60), gender, np.repeat([k // 2 % 3 for k in range(60)], 7))
    fold = np.repeat(np.arange(60) % 5, 7)
    names = [f"{n}.jpg" for n in range(70)]
    run = write_run(competition.root, "run", target, person, fold, 2.0, 1, answer_for=names)
    oof = pd.read_csv(f"{run}/oof.csv", dtype={"id": str})
    oof["ImageID"] = [f"{name}_person/{stem}.jpg" for name in pd.unique(person) for stem in STEMS]
    oof.to_csv(f"{run}/oof.csv", index=False)
    truth = np.repeat(rng.integers(6, size=10), 7) + 6 * rng.integers(3, size=70)
    for k in range(2):
        found = guesses(truth, 2.0, 5 + k)
        frame = predictions.with_answers(MASK, pd.DataFrame({"ImageID": names}), found)
        frame.to_csv(f"{run}/fold{k}.csv", index=False)
    who = [f"who{n // 7}" for n in range(70)]
    pd.DataFrame({"ImageID": names, "ans": 0, "who": who}).to_csv(competition.eval / "info.csv", index=False)
    return competition, run, truth


def answers(competition):
    return pd.read_csv(competition.config().submission)["ans"].to_numpy()


def test_photos_of_a_person_are_answered_together_and_what_that_brings_is_said(asked, capsys):
    competition, run, truth = asked
    competition.run(ensemble, "--run", run)
    plain, said = answers(competition), capsys.readouterr().out
    assert "answered together" not in said  # off unless it is named
    words = ["--data.eval_group", "who", "--data.eval_group_heads", '["gender", "age"]']
    competition.run(ensemble, "--run", run, *words)
    out, told = capsys.readouterr().out, answers(competition)
    assert all(len(set(told[k : k + 7] % 6)) == 1 for k in range(0, 70, 7))  # gender and age are one
    assert (told % 6 == truth % 6).mean() > (plain % 6 == truth % 6).mean()
    assert any(len(set(told[k : k + 7] // 6)) > 1 for k in range(0, 70, 7))  # but each photo has its own mask
    assert "measured over its ids" in out  # train.csv has no column who: the people are its groups
    found = re.search(r"one who answered together \(gender, age\): .* ([\d.]+) \(.*\), \+([\d.]+) \(\+", out)
    oof = predictions.read_oof(MASK, f"{run}/oof.csv")
    values = predictions.values(MASK, oof).astype(float)
    groups = Groups(MASK, SHARED, codes(oof["id"]))
    value = metrics.value(MASK, oof["target"], groups.share(values).argmax(1))
    assert float(found[1]) == pytest.approx(value, abs=6e-5)
    own = metrics.value(MASK, oof["target"], values.argmax(1))
    assert float(found[2]) == pytest.approx(value - own, abs=1.1e-4) and value > own + 0.05


@pytest.mark.parametrize("words", [["--hard"], ["--rank"], ["--weights", "search"], ["--decide", "bias"]])
def test_every_vote_answers_a_group_alike(asked, words):
    competition, run, _ = asked
    words = [*words, "--data.eval_group", "who", "--data.eval_group_heads", '["gender", "age"]']
    competition.run(ensemble, "--runs", run, run, *words)
    told = answers(competition)
    assert all(len(set(told[k : k + 7] % 6)) == 1 for k in range(0, 70, 7))


@pytest.mark.slow
def test_groups_of_the_training_table_are_those_that_are_measured(asked, capsys):
    """Two people of one house, of other gender and age, answered as one: that is measured to be bad, and still done."""
    competition, run, _ = asked
    rows = [
        [i, gender, "Drawn", age, path, f"house{n // 2}"] for n, (i, gender, age, path) in enumerate(competition.people)
    ]
    competition.write_table("id,gender,race,age,path,who", rows=rows)
    competition.run(ensemble, "--run", run, "--data.eval_group", "who")
    out = capsys.readouterr().out
    assert re.search(r"one who answered together \(mask, gender, age\): .*, -0\.\d+ \(-", out)
    assert "that is no better; it is done since data.eval_group says so" in out
    assert all(len(set(answers(competition)[k : k + 7])) == 1 for k in range(0, 70, 7))


def test_a_group_may_be_a_part_of_the_photos_names(asked):
    competition, run, _ = asked
    competition.run(ensemble, "--run", run, "--data.eval_group", r"^(\d).*jpg")
    told = answers(competition)
    first = np.array([f"{n}"[0] for n in range(70)])
    assert all(len(set(told[first == digit])) == 1 for digit in set(first))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.eval_group", "family"], r"family: .*info.csv has no column of that name; it has ImageID, ans, who"),
        (["--data.eval_group", "(("], r"data.eval_group \(\(: no column of that name, and no regular expression"),
        (["--data.eval_group", "who", "--data.eval_group_heads", '["beard"]'], r"beard makes no part of the answer"),
    ],
)
def test_what_tells_no_photos_apart_is_one_line(asked, words, said):
    competition, run, _ = asked
    with pytest.raises(InputError, match=said) as caught:
        competition.run(ensemble, "--run", run, *words)
    assert "\n" not in str(caught.value)
