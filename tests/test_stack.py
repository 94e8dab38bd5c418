"""Stacking: it finds what is there, gains nothing on noise, and never learns from whom it is scored on."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers import MASK, guesses, mask_task, people
from test_blend import write_run

import ensemble
from foldface import predictions, stack
from foldface.files import InputError, read_csv
from foldface.task import Task


@pytest.fixture
def world(competition):
    """(competition, run, true genders of the people to answer for): a run of 60 people that knows a little. The column
    `hint` of both tables says the gender, `noise` and `shade` say nothing."""
    target, person, fold = people(60)
    asked = [f"{n}.jpg" for n in range(20)]
    run = write_run(competition.root, "run", target, person, fold, 1.5, 1, answer_for=asked)
    rng = np.random.default_rng(0)
    gender = MASK.decode(target)["gender"][::7]
    rows = [
        [p, ("male", "female")[g], "Drawn", 30, p, ("blue", "red", "")[g if rng.random() < 0.95 else 2],
         round(rng.normal(), 3), rng.choice(["dark", "bright", "grey"])]
        for p, g in zip(pd.unique(person), gender, strict=True)
    ]  # fmt: skip
    competition.write_table("id,gender,race,age,path,hint,noise,shade", rows=rows)
    truth = np.arange(20) % 2
    info = {"ImageID": asked, "ans": 0, "hint": np.array(["blue", "red"])[truth], "noise": "", "shade": "dark"}
    pd.DataFrame(info).to_csv(competition.eval / "info.csv", index=False)
    return competition, run, truth


def stacked(competition, run, capsys, *words):
    """(what ensemble.py --stack prints, the printed gain with its interval, the answers)."""
    capsys.readouterr()
    competition.run(ensemble, "--runs", run, "--stack", *words)
    out = capsys.readouterr().out
    found = re.search(r"stacked on \d+ inputs.*, ([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)", out)
    return out, tuple(map(float, found.groups())), pd.read_csv(competition.config().submission)["ans"].to_numpy()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "boosting"])
def test_a_column_that_tells_is_found_and_used(world, capsys, kind):
    competition, run, truth = world
    out, (gain, low, _), told = stacked(
        competition, run, capsys, kind, "--columns", "hint", "noise", "--task.score", "accuracy"
    )
    assert low > 0 and gain > 0.05 and f"gender {kind}" in out
    assert (MASK.decode(told)["gender"] == truth).mean() > 0.9


@pytest.mark.slow
def test_noise_gains_nothing(world, capsys):
    competition, run, _ = world
    competition.run(ensemble, "--runs", run)
    plain = pd.read_csv(competition.config().submission)["ans"].to_numpy()
    out, (gain, low, high), told = stacked(competition, run, capsys, "auto", "--columns", "noise", "shade")
    assert low <= 0 <= high or gain < 0
    if gain <= 0:
        assert "is not beaten: it stays" in out and np.array_equal(told, plain)


@pytest.mark.slow
def test_what_is_scored_was_not_learned_from(world, capsys):
    """The printed score is that of models which never saw the people that they answer for; one who did has a better."""
    competition, run, _ = world
    out, _, _ = stacked(competition, run, capsys, "linear", "--columns", "hint", "noise", "--task.score", "accuracy")
    frame, table = predictions.read_oof(MASK, f"{run}/oof.csv"), read_csv(competition.train / "train.csv", ["hint"])
    votes, target = predictions.values(MASK, frame).astype(float), frame["target"].to_numpy()
    cells = table.set_index("path").loc[frame["id"], ["hint", "noise"]].reset_index(drop=True)
    inputs = np.concatenate([stack.of_predictions(MASK, votes[None]), stack.of_cells(cells, cells)[0]], 1)
    goal, person = mask_task(), frame["id"].to_numpy(str)
    goal.score = "accuracy"

    def fit(rows):
        heads = [head._replace(target=head.target[rows], plain=head.plain[rows])
                 for head in stack.heads_of(goal, target, votes)]  # fmt: skip
        models = stack.fitted(goal, target[rows], votes[rows], heads, inputs[rows], person[rows], "linear")

        def answer(others):
            plain = stack.heads_of(goal, target[others], votes[others])
            told = [head.plain if model is None else stack.answers_of(model, inputs[others], head.size)
                    for head, (_, model) in zip(plain, models, strict=True)]  # fmt: skip
            return stack.joined(goal, votes[others], told).argmax(1)

        return answer

    everyone, honest = np.ones(len(target), bool), np.empty_like(target)
    for k in range(5):
        part = frame["fold"].to_numpy() == k
        honest[part] = fit(~part)(part)
    printed = float(re.search(r"not fitted to: out-of-fold accuracy ([\d.]+)", out)[1])
    assert printed == pytest.approx((honest == target).mean(), abs=6e-5)
    assert (fit(everyone)(everyone) == target).mean() > printed + 1e-3


@pytest.mark.slow
def test_predictions_of_another_model_are_a_folder_of_csvs_whose_errors_are_mended(world, capsys):
    """The other model takes men for women: a vote with it is worse than without it, a stack makes use of it."""
    competition, run, _ = world
    target, person, fold = people(60)
    asked = [f"{n}.jpg" for n in range(20)]
    other = write_run(competition.root, "other", target, person, fold, 4.0, 7, answer_for=asked)
    assert sorted(path.name for path in (competition.root / "other").iterdir()) == ["fold0.csv", "fold1.csv", "oof.csv"]
    oof = predictions.read_oof(MASK, f"{other}/oof.csv")
    wrong = predictions.values(MASK, oof).reshape(-1, 3, 2, 3)[:, :, ::-1].reshape(-1, 18)
    predictions.with_answers(MASK, oof[["ImageID", "id", "fold", "target"]], wrong).to_csv(
        f"{other}/oof.csv", index=False
    )
    out, (gain, low, _), _ = stacked(competition, run, capsys, "linear", "--runs", run, other)
    assert "stacked on 16 inputs" in out and gain > 0.05 and low > 0


@pytest.mark.slow
@pytest.mark.parametrize("score", ["mae", "rmse"])
def test_numbers_are_stacked_too(competition, capsys, score):
    truth = np.random.default_rng(0).uniform(20, 60, 200)
    names, run = [f"p{n}/a.jpg" for n in range(200)], competition.root / "run"
    run.mkdir()
    frame = pd.DataFrame({"ImageID": names, "id": names, "fold": np.arange(200) % 4, "target": truth})
    frame.assign(ans=40 + 0.5 * (truth - 40), confidence=0.5).to_csv(run / "oof.csv", index=False)
    asked = pd.DataFrame({"ImageID": competition.images, "ans": [25.0, 30, 40, 45, 50], "confidence": 0.5})
    asked.to_csv(run / "fold0.csv", index=False)
    heads = '[{"name": "age", "range": [0, 100], "learn": "sigmoid"}]'
    words = ["linear", "--task.heads", heads, "--task.score", score]
    out, _, told = stacked(competition, str(run), capsys, *words)
    assert "stacked: age linear" in out
    assert np.allclose(told, 40 + 2 * (asked["ans"] - 40), atol=1)  # answers were pulled to the middle


def test_labels_and_heads_are_parts_that_make_the_answer_together():
    labels = Task([{"name": "l", "kind": "multilabel", "classes": ["x", "y"]}])
    votes = np.array([[0.9, 0.2], [0.4, 0.7]])
    parts = stack.heads_of(labels, np.array([1, 2]), votes)
    assert [head.target.tolist() for head in parts] == [[1, 0], [0, 1]]
    assert np.allclose(stack.joined(labels, votes, [head.plain for head in parts]), votes)
    votes = guesses(np.arange(4), 1.0, 0)
    each = [head.plain for head in stack.heads_of(MASK, np.arange(4), votes)]
    assert np.allclose(stack.joined(MASK, votes, each), votes, atol=1e-3)  # what no model changes stays as it is
    each[1] = np.tile([0.9, 0.1], (4, 1))
    found = stack.joined(MASK, votes, each)
    assert np.allclose(MASK.by_head(found)["gender"], [0.9, 0.1], atol=1e-3) and np.allclose(found.sum(1), 1)
    given_male = [told.reshape(4, 3, 2, 3)[:, :, 0] for told in (found, votes)]
    shares = [told / told.sum((1, 2), keepdims=True) for told in given_male]
    assert np.allclose(*shares, atol=1e-3)  # what is known of mask and age of a male stays


def test_cells_are_numbers_or_categories_and_may_be_empty():
    known = pd.DataFrame({"n": ["1", "2.5", ""], "c": ["a", "b", "a"]})
    asked = pd.DataFrame({"n": ["", "3"], "c": ["new", "b"]})
    one, two = stack.of_cells(known, asked)
    assert np.array_equal(one, [[1, 1, 0], [2.5, 0, 1], [np.nan, 1, 0]], equal_nan=True)
    assert np.array_equal(two, [[np.nan, 0, 0], [3, 0, 1]], equal_nan=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stack", "--weights", "search"], "--stack takes the place of --weights search: choose one"),
        (["--stack", "--hard"], "--stack takes the place of --hard"),
        (["--columns", "hint"], "--columns is what --stack learns from: add it"),
        (["--stack", "--columns", "beard"], r"train.csv: has no column beard; it has id, gender"),
        (["--stack", "--columns", "race"], r"info.csv: has no column race; it has ImageID"),
        (["--stack", "--columns", "gender"], "--columns gender: holds what is predicted"),
        (["--stack", "--embeddings"], r"oof_embedding.csv: no such file.*python -m tools.embed --run"),
    ],
)
def test_what_can_not_be_stacked_is_one_line(world, words, said):
    competition, run, _ = world
    with pytest.raises(InputError, match=said) as caught:
        competition.run(ensemble, "--runs", run, *words)
    assert "\n" not in str(caught.value)


def test_embeddings_of_other_photos_are_refused(world):
    competition, run, _ = world
    oof = predictions.read_oof(MASK, f"{run}/oof.csv")
    frame = pd.DataFrame({"ImageID": oof["ImageID"], "e0": 0.5})
    frame.iloc[1:].to_csv(f"{run}/oof_embedding.csv", index=False)
    shutil.copy(f"{run}/oof_embedding.csv", f"{run}/embedding.csv")
    with pytest.raises(InputError, match=r"oof_embedding.csv: has no row of 0/0.jpg"):
        competition.run(ensemble, "--runs", run, "--stack", "--embeddings")
