"""Answers, their parts, and their scores."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers import MASK
from sklearn.metrics import f1_score

from foldface import metrics, predictions, task
from foldface.files import InputError, write_csv


def test_an_answer_is_mask_times_six_plus_gender_times_three_plus_age():
    answers = np.arange(18)
    part = MASK.decode(answers)
    assert (part["mask"] * 6 + part["gender"] * 3 + part["age"] == answers).all()
    assert (MASK.encode(part["mask"], part["gender"], part["age"]) == answers).all()
    assert MASK.classes[10] == "incorrect female 30-59"


def test_the_boundary_moves_the_oldest_class_alone():
    head = task.Task(**task.MASK_TASK).number
    assert head.class_of([29, 30, 57, 58, 59, 60]).tolist() == [0, 1, 1, 1, 1, 2]
    assert head.class_of([29, 30, 57, 58, 59, 60], head.trained).tolist() == [0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("ages", [[0, 116], [0, 80], [0, 100], [10, 90]])
def test_training_may_have_other_bounds_whatever_the_range(ages):
    head = {"name": "years", "bounds": [30, 60], "range": ages, "unit": "years"}
    for last in (45, *range(55, 61)):
        assert task.Task([head | {"train_bounds": [30, last]}]).number.trained == (30, last)
    assert task.Task([head]).number.trained == (30, 60)
    assert task.Task([head]).number.columns == ["years", "from30", *(f"from{age}" for age in range(55, 61))]


def test_a_column_that_is_called_age_is_like_any_other():
    head = {"bounds": [30, 60], "range": [0, 100]}
    age, price = (task.Task([head | {"name": name}]).number for name in ("age", "price"))
    assert age.trained == price.trained == (30, 60) and age.steps == price.steps
    assert task.MASK_TASK["heads"][2]["train_bounds"] == [30, 58]


@pytest.mark.parametrize("name", ["label", "fold", "p0", "head1", "train", "last", "id", "Age (years)", "나이"])
def test_a_heads_name_is_a_column_of_our_rows_only_where_rows_have_none_of_that_name(name):
    own = task.Task([{"name": name, "classes": ["a", "b"]}, {"name": "kind", "classes": ["x", "y"]}])
    assert [head.name for head in own.heads] == [name, "kind"]
    assert [head.key for head in own.heads] == [name if name == "나이" else "head0", "kind"]
    assert own.parse({name: "b", "kind": "x"}) == ({own.heads[0].key: 1, "kind": 0}, "")
    assert own.condition(f"{name} = b") == (own.heads[0], "=", 1)


def test_answers_are_written_as_the_competition_wants_them():
    for answer_as, expected in (("index", [1, 0]), ("name", ["dog", "cat"])):
        kind = task.Task([{"name": "kind", "classes": ["cat", "dog"]}], answer_as=answer_as)
        assert kind.written(np.array([1, 0])).tolist() == expected
        assert kind.read([*map(str, expected), "1", "bird"])[:3].tolist() == [1, 0, 1]
        assert np.isnan(kind.read(["bird"])).all()
        age = task.Task([{"name": "age", "range": [0, 100]}], score="mae", answer_as=answer_as)
        assert age.written([30.5]).tolist() == age.read(["30.5"]).tolist() == [30.5]
    years = task.Task([{"name": "year", "classes": ["1", "0"]}], answer_as="name")
    assert years.read(["1", "0"]).tolist() == [0, 1] and np.isnan(years.read(["7"])).all()  # no index among numbers


def test_scores_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    target, answer = rng.integers(18, size=500), rng.integers(18, size=500)
    result = metrics.scores(MASK, target, answer)
    assert result["f1"] == pytest.approx(f1_score(target, answer, average="macro"))
    assert result["age_f1"] == pytest.approx(f1_score(target % 3, answer % 3, average="macro"))


def test_numbers_are_scored_by_their_error_and_by_how_many_are_near():
    target, answer = np.array([20.0, 30, 40, 50]), np.array([25.0, 24, 40, 50.5])
    for score, value, each in (("mae", 2.875, [5, 6, 0, 0.5]), ("within", 0.75, [1, 0, 1, 1])):
        age = task.Task([{"name": "age", "range": [0, 100], "unit": "years"}], score=score)
        assert metrics.scores(age, target, answer) == {"mae": 2.875, "within": 0.75}
        assert metrics.value(age, target, answer) == value
        assert metrics.score_named(score).each(age, target, answer).tolist() == each
        assert (metrics.sign(age), metrics.score_names(age)) == ({"mae": -1, "within": 1}[score], ["mae", "within"])
        low, high = metrics.interval(age, target, answer, ["a", "b", "c", "d"])
        assert low < value < high and metrics.interval(age, target, answer, list("aaaa")) == (value, value)
    assert [metrics.title(age, name) for name in ("mae", "within")] == ["MAE", "within 5 years"]
    titles = [metrics.title(MASK, name) for name in metrics.score_names(MASK)]
    assert titles == ["macro F1", "accuracy", "mask", "gender", "age"]


def test_the_interval_is_of_the_level_that_is_asked_for():
    rng = np.random.default_rng(0)
    target, answer = rng.integers(18, size=300), rng.integers(18, size=300)
    draws = metrics.bootstrap_scores(MASK, target, [answer], np.arange(300))[0]
    assert draws.shape == (1000,)
    for level in (0.95, 0.5):
        expected = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
        assert metrics.interval(MASK, target, answer, np.arange(300), level=level) == pytest.approx(expected)


def test_classes_that_are_hardly_answered_are_named():
    kind = task.Task([{"name": "kind", "classes": ["cat", "dog", "eel", "fox"]}])
    describe = predictions.describe_underpredicted
    training = np.repeat([0, 1, 2, 3], [60, 20, 10, 10])
    said = predictions.describe_underpredicted(
        kind, training, np.repeat([0, 1, 2], [170, 24, 6])
    )  # 20 eels and foxes are expected
    assert said.startswith("answered less than a third as often as in training: eel, fox; macro F1")
    assert describe(kind, training, np.repeat([0, 1, 2, 3], [170, 16, 7, 7])) == ""
    assert describe(kind, training, np.repeat([0, 1], [30, 10])) == ""  # four foxes say nothing


def test_answers_are_shown_by_how_they_are_spread():
    kind = task.Task([{"name": "kind", "classes": ["cat", "dog"]}])
    lines = predictions.spread(kind, {"training": [0, 0, 0, 1], "answers": [1, 1]}).split("\n")
    assert [line.split() for line in lines] == [
        ["class", "training", "answers"], ["0", "cat", "75.0%", "0.0%"], ["1", "dog", "25.0%", "100.0%"],
    ]  # fmt: skip
    for unit, title in (("years", "years"), ("", "quantile")):
        age = task.Task([{"name": "age", "range": [0, 100], "unit": unit}], score="mae")
        lines = predictions.spread(age, {"training": np.arange(101.0)}).split("\n")
        assert [line.split() for line in lines] == [
            [title, "training"], ["5%", "5.0"], ["25%", "25.0"], ["50%", "50.0"], ["75%", "75.0"], ["95%", "95.0"],
        ]  # fmt: skip


def test_the_interval_holds_the_score_and_is_wide_when_people_are_few():
    rng = np.random.default_rng(1)
    people = np.repeat(np.arange(300), 7)
    target = np.repeat(rng.integers(18, size=300), 7)
    answer = np.where(np.repeat(rng.random(300) < 0.6, 7), target, rng.integers(18, size=2100))
    low, high = metrics.interval(MASK, target, answer, people)
    assert low < metrics.scores(MASK, target, answer)["f1"] < high
    alone = metrics.interval(MASK, target, answer, np.arange(2100))  # as if photos of a person didn't err together
    assert high - low > 1.5 * (alone[1] - alone[0])


def test_bootstrap_scores_are_scores_of_tables_drawn_person_by_person(monkeypatch):
    rng = np.random.default_rng(2)
    people, target = np.repeat(np.arange(10, 50), 3), rng.integers(18, size=120)
    told = [rng.integers(18, size=120), np.where(rng.random(120) < 0.7, target, 0)]
    found, again = metrics.bootstrap_scores(MASK, target, told, people, samples=5), np.random.default_rng(0)
    for draw, who in enumerate(again.integers(40, size=(5, 40))):
        photos = (who[:, None] * 3 + np.arange(3)).ravel()
        scores = [f1_score(target[photos], one[photos], average="macro") for one in told]
        assert found[:, draw] == pytest.approx(scores)
    exact = metrics.bootstrap_scores(MASK, target, told, people)
    monkeypatch.setattr(metrics.np, "float32", float)  # short floats save time, not digits
    assert np.array_equal(metrics.bootstrap_scores(MASK, target, told, people), exact)


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
        predictions.read_oof(MASK, tmp_path / "oof.csv")
    (tmp_path / "oof.csv").write_text("\n".join([header, lines[0]]) + "\n")
    frame = predictions.read_oof(MASK, tmp_path / "oof.csv")
    assert frame[["id", "fold", "target"]].values.tolist() == [["007", 0, 3]]


@pytest.mark.parametrize("columns", [["p0", "p0 "], ["p0"]])
def test_probabilities_that_are_missing_or_doubled_are_said(tmp_path, columns):
    lines = [",".join(["ImageID,id,fold,target,ans", *columns]), ",".join(["a,1,0,3,3", *"1" * len(columns)])]
    (tmp_path / "oof.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="twice" if len(columns) > 1 else "no column p1"):
        predictions.read_oof(MASK, tmp_path / "oof.csv")


def test_the_written_answer_is_the_largest_of_the_written_probabilities(tmp_path):
    probabilities = np.full((2, 18), 1 / 18)
    probabilities[1, 5] += 1e-9  # below what is written: the answer must not hang on it
    write_csv(
        tmp_path / "fold0.csv", predictions.with_answers(MASK, pd.DataFrame({"ImageID": ["a", "b"]}), probabilities)
    )
    frame = pd.read_csv(tmp_path / "fold0.csv")
    assert (frame[MASK.probabilities].to_numpy().argmax(1) == frame["ans"]).all()
    assert predictions.read_fold(MASK, tmp_path / "fold0.csv")["ans"].tolist() == frame["ans"].tolist()


def test_answers_are_written_with_six_decimals_whatever_the_rows_are_called():
    frame = pd.DataFrame({"ImageID": ["a", "b"]}, index=[7, 3])
    found = predictions.with_answers(MASK, frame, np.full((2, 18), 1 / 18))
    assert len(found) == 2 and found["ImageID"].tolist() == ["a", "b"] and "index" not in found
    assert (found[MASK.probabilities] == 0.055556).all(axis=None)
    age = task.Task([{"name": "age", "range": [0, 100]}], score="mae")
    found = predictions.with_answers(age, frame, [[30.12345678, 0.5], [40, 0.25]])
    assert found["ans"].tolist() == [30.123457, 40] and found["confidence"].tolist() == [0.5, 0.25]


def test_the_predictions_of_a_run_are_its_folds_in_order(tmp_path):
    with pytest.raises(InputError, match=r"has no fold0\.csv: run inference\.py --run"):
        predictions.fold_files(tmp_path)
    for name in ("fold10.csv", "fold2.csv", "fold0_age.csv", "folds.csv"):
        (tmp_path / name).touch()
    assert list(predictions.fold_files(tmp_path).items()) == [
        (2, tmp_path / "fold2.csv"),
        (10, tmp_path / "fold10.csv"),
    ]


def test_predictions_lie_in_output_if_they_were_written_there_and_else_in_the_run(tmp_path):
    run, output = tmp_path / "run", tmp_path / "output"
    for folder in (run, output):
        folder.mkdir()
    for named in ("", output):
        assert predictions.folder_of(SimpleNamespace(run=run, output=named)) == run
    (output / "fold0.csv").touch()
    assert predictions.folder_of(SimpleNamespace(run=run, output=output)) == output
    assert predictions.folder_of(SimpleNamespace(run=run, output="")) == run


def test_every_class_and_fold_that_there_is_can_be_read(tmp_path):
    header = ",".join(["ImageID", "id", "fold", "target", "ans", *MASK.probabilities])
    lines = [",".join([f"{k}.jpg", "1", str(k), str(k), str(17 - k), "1", *["0"] * 17]) for k in range(18)]
    (tmp_path / "oof.csv").write_text("\n".join([header, *lines]) + "\n")
    frame = predictions.read_oof(MASK, tmp_path / "oof.csv")
    assert frame["fold"].tolist() == frame["target"].tolist() == frame["ans"].tolist()[::-1] == list(range(18))
    assert frame[["fold", "target", "ans"]].dtypes.tolist() == [int] * 3


def test_a_number_that_is_none_is_named_with_its_row(tmp_path):
    age = task.Task([{"name": "age", "range": [0, 100]}], score="mae")
    (tmp_path / "fold0.csv").write_text("ImageID,ans,confidence\na,30.5,0.4\nb,inf,0.4\n")
    with pytest.raises(InputError, match="row 3: ans is no number"):
        predictions.read_fold(age, tmp_path / "fold0.csv")
    (tmp_path / "fold0.csv").write_text("ImageID,ans,confidence\na,30.5,0.4\nb,0,\n")
    assert predictions.read_fold(age, tmp_path / "fold0.csv")["ans"].tolist() == [30.5, 0]


def test_scores_are_said_the_tasks_own_first_with_its_interval():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": np.arange(90) // 3, "target": rng.integers(18, size=90)})
    frame["ans"] = np.where(rng.random(90) < 0.5, frame["target"], 3)
    saved = predictions.measured(MASK, frame)
    assert list(saved) == ["f1", "f1_low", "f1_high", "accuracy", "mask_f1", "gender_f1", "age_f1"]
    assert (saved["f1_low"], saved["f1_high"]) == metrics.interval(MASK, frame["target"], frame["ans"], frame["id"])
    saved = dict(zip(saved, (0.5, 0.25, 0.75, 0.1, 0.2, 0.3, 0.4), strict=True))
    first, *others = predictions.describe(MASK, saved)
    assert first == "macro F1 0.500 (95 % 0.250-0.750"
    assert others == ["accuracy 0.100", "mask 0.200", "gender 0.300", "age 0.400"]
    by_accuracy = task.Task(**task.MASK_TASK, score="accuracy")
    saved = predictions.measured(by_accuracy, frame)
    assert list(saved)[:6] == ["accuracy", "accuracy_low", "accuracy_high", "f1", "f1_low", "f1_high"]
    assert saved["f1_low"] < saved["f1"] < saved["f1_high"]
    age = task.Task([{"name": "age", "range": [0, 100], "unit": "years"}], score="mae")
    saved = predictions.measured(age, frame)
    assert list(saved) == ["mae", "mae_low", "mae_high", "within"]
    assert predictions.describe(age, saved | {"within": 0.5})[1:] == ["within 5 years 0.500"]


def test_the_predictions_of_finished_folds_are_put_together_and_scored(tmp_path, capsys):
    rng = np.random.default_rng(0)
    predictions.gather(MASK, tmp_path, [0, 1])
    assert not any(tmp_path.iterdir()) and capsys.readouterr().out == ""  # no fold is finished
    frames = {}
    for fold in (0, 2):
        home = tmp_path / f"fold{fold}"
        home.mkdir()
        names = [f"{fold}_{k}.jpg" for k in range(30)]
        frame = pd.DataFrame({"ImageID": names, "id": [name[:3] for name in names], "fold": fold})
        frame["target"] = rng.integers(18, size=30)
        for file, share in (("oof.csv", 0.8), ("oof_last.csv", 0.5)):
            right = (rng.random(30) < share)[:, None] * np.eye(18)[frame["target"]]
            p = right + 0.1
            frames[fold, file] = predictions.with_answers(MASK, frame, p / p.sum(1, keepdims=True))
            write_csv(home / file, frames[fold, file])
        ages = pd.DataFrame(rng.random((30, 8)), columns=MASK.number.columns).round(4)
        write_csv(home / "oof_age.csv", pd.concat([frame[["ImageID"]], ages], axis=1))
    predictions.gather(MASK, tmp_path, [0, 1, 2], more={"test": {"f1": 0.5, "f1_low": 0.4, "f1_high": 0.6, "photos": 7,
                   "accuracy": 0.1, "mask_f1": 0.2, "gender_f1": 0.3, "age_f1": 0.4}})  # fmt: skip
    joined = predictions.read_oof(MASK, tmp_path / "oof.csv")
    best, last = (pd.concat([frames[fold, file] for fold in (0, 2)]) for file in ("oof.csv", "oof_last.csv"))
    assert joined["ImageID"].tolist() == best["ImageID"].tolist() and joined["ans"].tolist() == best["ans"].tolist()
    assert len(pd.read_csv(tmp_path / "oof_age.csv")) == 60
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert {key: saved[key] for key in ("folds", "photos", "people")} == {"folds": [0, 2], "photos": 60, "people": 20}
    assert saved["f1"] == pytest.approx(metrics.scores(MASK, best["target"], best["ans"])["f1"])
    assert saved["f1_last_epoch"] == pytest.approx(metrics.scores(MASK, last["target"], last["ans"])["f1"])
    header, zero, two, mean, everything, interval, first, test = capsys.readouterr().out.splitlines()
    assert " ".join(header.split()) == "fold photos epochs minutes macro F1 accuracy mask F1 gender F1 age F1"
    assert [line.split()[0] for line in (zero, two, mean, everything)] == ["0", "2", "mean", "all"]
    alone = [metrics.scores(MASK, frames[k, "oof.csv"]["target"], frames[k, "oof.csv"]["ans"])["f1"] for k in (0, 2)]
    assert [f"{one:.3f}" for one in (*alone, np.mean(alone))] == [zero.split()[4], two.split()[4], mean.split()[1]]
    assert everything.split()[:3] == ["all", "60", f"{saved['f1']:.3f}"]
    assert interval.split() == ["95", "%", f"{saved['f1_low']:.3f}-{saved['f1_high']:.3f}"]
    assert first.startswith(f"{tmp_path}: 2 of 3 folds, out-of-fold macro F1 {saved['f1']:.3f} (95 % ")
    assert f"{saved['f1_last_epoch']:.3f}" in first
    assert first.endswith(f"accuracy {saved['accuracy']:.3f}, mask {saved['mask_f1']:.3f}, gender "
                          f"{saved['gender_f1']:.3f}, age {saved['age_f1']:.3f}")  # fmt: skip
    assert "test set, 7 photos" in test and "macro F1 0.500 (95 % 0.400-0.600), accuracy 0.100, mask" in test


@pytest.mark.parametrize("cells", [",0", "nan,0", "-1,0", "7,0", "1.5,-0.5"])
def test_probabilities_that_can_not_be_are_refused_with_their_row(tmp_path, cells):
    header = ",".join(["ImageID", "ans", *MASK.probabilities])
    good = ",".join(["a", "0", "1", *["0"] * 17])
    (tmp_path / "fold0.csv").write_text(f"{header}\n{good}\n{good.replace('a,0,1,0', f'b,0,{cells}')}\n")
    with pytest.raises(InputError, match=r"row 3: (p0\.\.p17 are not probabilities|p0 is)"):
        predictions.read_fold(MASK, tmp_path / "fold0.csv")
