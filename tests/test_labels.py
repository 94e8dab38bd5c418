"""Answers, their parts, and their scores."""

import numpy as np
import pytest
from conftest import MASK
from sklearn.metrics import f1_score

import answers
import labels
from files import InputError


def test_an_answer_is_mask_times_six_plus_gender_times_three_plus_age():
    answers = np.arange(18)
    part = MASK.decode(answers)
    assert (part["mask"] * 6 + part["gender"] * 3 + part["age"] == answers).all()
    assert (MASK.encode(part["mask"], part["gender"], part["age"]) == answers).all()
    assert MASK.classes[10] == "incorrect female 30-59"


def test_the_boundary_moves_the_oldest_class_alone():
    head = labels.Task(**labels.MASK_TASK, age_boundary=58).number
    assert head.class_of([29, 30, 57, 58, 59, 60]).tolist() == [0, 1, 1, 1, 1, 2]
    assert head.class_of([29, 30, 57, 58, 59, 60], head.trained).tolist() == [0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("ages", [[0, 116], [0, 80], [0, 100], [10, 90]])
def test_the_boundary_of_ages_moves_whatever_their_range(ages):
    head = {"name": "age", "bounds": [30, 60], "range": ages, "unit": "years"}
    for boundary in range(55, 61):
        assert labels.Task([head], age_boundary=boundary).number.trained == (30, boundary)
    assert labels.Task([head]).number.columns == ["years", "from30", *(f"from{age}" for age in range(55, 61))]
    far = labels.Task([head], age_boundary=45)
    assert far.number.trained == (30, 60) and far.ignored == "the last class of age begins at 60, in training too"


def test_scores_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    target, answer = rng.integers(18, size=500), rng.integers(18, size=500)
    result = MASK.scores(target, answer)
    assert result["f1"] == pytest.approx(f1_score(target, answer, average="macro"))
    assert result["age_f1"] == pytest.approx(f1_score(target % 3, answer % 3, average="macro"))


def test_the_interval_holds_the_score_and_is_wide_when_people_are_few():
    rng = np.random.default_rng(1)
    people = np.repeat(np.arange(300), 7)
    target = np.repeat(rng.integers(18, size=300), 7)
    answer = np.where(np.repeat(rng.random(300) < 0.6, 7), target, rng.integers(18, size=2100))
    low, high = MASK.interval(target, answer, people)
    assert low < MASK.scores(target, answer)["f1"] < high
    alone = MASK.interval(target, answer, np.arange(2100))  # as if photos of a person didn't err together
    assert high - low > 1.5 * (alone[1] - alone[0])


def test_draws_are_scores_of_tables_drawn_person_by_person(monkeypatch):
    rng = np.random.default_rng(2)
    people, target = np.repeat(np.arange(10, 50), 3), rng.integers(18, size=120)
    told = [rng.integers(18, size=120), np.where(rng.random(120) < 0.7, target, 0)]
    found, again = MASK.draws(target, told, people, samples=5), np.random.default_rng(0)
    for draw, who in enumerate(again.integers(40, size=(5, 40))):
        photos = (who[:, None] * 3 + np.arange(3)).ravel()
        scores = [f1_score(target[photos], one[photos], average="macro") for one in told]
        assert found[:, draw] == pytest.approx(scores)
    exact = MASK.draws(target, told, people)
    monkeypatch.setattr(labels.np, "float32", float)  # short floats save time, not digits
    assert np.array_equal(MASK.draws(target, told, people), exact)


@pytest.mark.parametrize(
    "fold, target, said",
    [
        ("0", "", "row 3: target is no class, 0 to 17"),
        ("0", "18", "row 3: target is no class"),
        ("0", "1.5", "row 3: target is no class"),
        ("0", "male", "row 3: target is 'male', which is no number"),
        ("-1", "3", "row 3: fold is no fold"),
        ("nan", "3", "row 3: fold is no fold"),
    ],
)
def test_a_fold_or_target_that_can_not_be_is_named_with_its_row(tmp_path, fold, target, said):
    header = ",".join(["ImageID", "id", "fold", "target ", "ans", *MASK.probabilities])  # the space is no matter
    rows = [["a", "007", "0", "3", "3"], ["b", "8", fold, target, "3"]]
    lines = [",".join([*row, "1", *["0"] * 17]) for row in rows]
    (tmp_path / "oof.csv").write_text("\n".join([header, *lines]) + "\n")
    with pytest.raises(InputError, match=said):
        answers.read_oof(MASK, tmp_path / "oof.csv")
    (tmp_path / "oof.csv").write_text("\n".join([header, lines[0]]) + "\n")
    frame = answers.read_oof(MASK, tmp_path / "oof.csv")
    assert frame[["id", "fold", "target"]].values.tolist() == [["007", 0, 3]]


@pytest.mark.parametrize("columns", [["p0", "p0 "], ["p0"]])
def test_probabilities_that_are_missing_or_doubled_are_said(tmp_path, columns):
    lines = [",".join(["ImageID,id,fold,target,ans", *columns]), ",".join(["a,1,0,3,3", *"1" * len(columns)])]
    (tmp_path / "oof.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="twice" if len(columns) > 1 else "no column p1"):
        answers.read_oof(MASK, tmp_path / "oof.csv")


def test_the_written_answer_is_the_largest_of_the_written_probabilities(tmp_path):
    import pandas as pd

    from files import write_csv

    probabilities = np.full((2, 18), 1 / 18)
    probabilities[1, 5] += 1e-9  # below what is written: the answer must not hang on it
    write_csv(tmp_path / "fold0.csv", answers.with_answers(MASK, pd.DataFrame({"ImageID": ["a", "b"]}), probabilities))
    frame = pd.read_csv(tmp_path / "fold0.csv")
    assert (frame[MASK.probabilities].to_numpy().argmax(1) == frame["ans"]).all()
    assert answers.read_fold(MASK, tmp_path / "fold0.csv")["ans"].tolist() == frame["ans"].tolist()


@pytest.mark.parametrize("cell", ["", "nan", "-1", "7"])
def test_probabilities_that_can_not_be_are_refused_with_their_row(tmp_path, cell):
    header = ",".join(["ImageID", "ans", *MASK.probabilities])
    good = ",".join(["a", "0", "1", *["0"] * 17])
    (tmp_path / "fold0.csv").write_text(f"{header}\n{good}\n{good.replace('a,0,1', f'b,0,{cell}')}\n")
    with pytest.raises(InputError, match="row 3"):
        answers.read_fold(MASK, tmp_path / "fold0.csv")
