"""Submissions scored where the truth is known: what a cell means, what is printed, what is refused."""

import numpy as np
import pandas as pd
import pytest
from helpers import MASK
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score

from foldface import metrics
from foldface.files import InputError, write_csv
from foldface.report import charts
from foldface.task import Task
from tools import score_submission

LEAVES = Task([{"name": "leaf", "classes": ["healthy", "rust", "scab"]}])
SICK = Task([{"name": "sick", "classes": ["0", "1"]}])
TWO = Task([{"name": "kind", "classes": ["cat", "dog"]}, {"name": "age", "classes": ["0", "1", "2"]}])
LABELS = Task([{"name": "labels", "classes": ["car", "tree", "sky"], "kind": "multilabel"}])
PAWS = Task([{"name": "paws", "range": [0, 100], "learn": "sigmoid"}], score="mae")


@pytest.mark.parametrize(
    ("task", "columns", "expected"),
    [
        (LEAVES, {"label": ["scab", "healthy"]}, [2, 0]),
        (LEAVES, {"label": ["2", "0"]}, [2, 0]),
        (LEAVES, {"rust": [".1"], "scab": [".7"], "healthy": [".2"]}, [[0.2, 0.1, 0.7]]),
        (SICK, {"target": ["1", "0"]}, [1, 0]),
        (SICK, {"target": [".75", "1"]}, [[0.25, 0.75], [0, 1]]),
        (SICK, {"0": [".75", "1"]}, [[0.75, 0.25], [1, 0]]),
        (TWO, {"age": ["2", "0"], "kind": ["cat", "dog"]}, [2, 3]),
        (LABELS, {"labels": ["tree sky", ""]}, [6, 0]),
        (PAWS, {"paws": ["3", "12.5"]}, [3, 12.5]),
    ],
)  # fmt: skip
def test_a_cell_means_what_it_means_in_a_submission(task, columns, expected):
    frame = pd.DataFrame(columns)
    assert score_submission.read_answers(task, "a.csv", frame, list(columns)).tolist() == expected


@pytest.mark.parametrize(
    ("task", "columns", "reason"),
    [
        (LEAVES, {"label": ["scab", "mould"]}, r"a.csv: row 3: label is 'mould', which is not a class, one of healthy"),
        (LEAVES, {"label": ["2", "3"]}, r"row 2: label is '2'"),
        (LEAVES, {"label": ["²", "1"]}, r"row 2: label is '\\xb2'"),
        (LABELS, {"labels": ["tree", "²"]}, r"row 3: labels is '\\xb2'"),
        (LEAVES, {"scab": [".7", "x"], "rust": ["0", "0"], "healthy": ["0", "0"]}, "row 3: scab is 'x', which"),
        (LEAVES, {"scab": ["0"], "rust": ["0"]}, "the columns scab or rust are no answers of this task"),
        (SICK, {"target": [".75", "1.5"]}, "row 3: target is '1.5', which is not a probability"),
        (LABELS, {"labels": ["tree", "tree moon"]}, "row 3: labels is 'tree moon'"),
        (PAWS, {"paws": ["3", ""]}, "row 3: paws is '', which is not a number"),
    ],
)  # fmt: skip
def test_a_cell_that_is_no_answer_is_refused_with_its_row(task, columns, reason):
    with pytest.raises(InputError, match=reason):
        score_submission.read_answers(task, "a.csv", pd.DataFrame(columns), list(columns))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """60 photos of 20 people: the truth, answers of which a third is wrong, and better ones, in another order."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    truth = pd.DataFrame({"ImageID": [f"{k}.jpg" for k in range(60)], "ans": rng.integers(18, size=60)})
    write_csv(tmp_path / "answers.csv", truth.assign(id=np.arange(60) // 3))
    made = {}
    for name, wrong in (("a", 20), ("b", 5)):
        made[name] = truth.copy()
        made[name].loc[: wrong - 1, "ans"] = (truth["ans"][:wrong] + 1) % 18
        write_csv(tmp_path / f"{name}.csv", made[name].sample(frac=1, random_state=0))
    return truth, made["a"], made["b"]


def test_scores_are_sklearns_and_differences_are_on_the_same_people(files, capsys):
    truth, a, b = files
    score_submission.main(["answers.csv", "a.csv", "b.csv"])
    header, _, first, second, _, note = capsys.readouterr().out.splitlines()
    assert header == "| 60 answers of 20 people | macro F1 | accuracy | mask | gender | age |"
    assert note.startswith("95 % intervals over people; differences to a.csv")
    f1 = [f1_score(truth["ans"], one["ans"], average="macro") for one in (a, b)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (first, second)]
    assert [row[0] for row in cells] == ["a.csv", "b.csv"]
    assert cells[0][1].startswith(f"{f1[0]:.3f} (") and cells[0][2].startswith("0.667 (")
    gender = accuracy_score(truth["ans"] % 6 // 3, b["ans"] % 6 // 3)
    assert cells[1][4].startswith(f"{gender:.3f} (")
    drawn = metrics.bootstrap_scores(MASK, truth["ans"], [a["ans"], b["ans"]], np.arange(60) // 3)
    low, high = np.quantile(drawn[1] - drawn[0], [0.025, 0.975])
    assert cells[1][1].endswith(f", {f1[1] - f1[0]:+.3f} ({low:+.3f} to {high:+.3f})") and low > 0


def test_photos_of_one_person_are_drawn_together(files, capsys):
    """With each photo by itself the interval is narrower: the wrong ones are of few people."""
    _, a, _ = files
    task, truth = MASK, files[0]["ans"].to_numpy()
    wide = metrics.interval(task, truth, a["ans"], np.arange(60) // 3, name="accuracy")
    narrow = metrics.interval(task, truth, a["ans"], np.arange(60), name="accuracy")
    for words, (low, high) in ((["--group", "id"], wide), (["--group", "ImageID"], narrow)):
        score_submission.main(["answers.csv", "a.csv", *words])
        assert f"| 0.667 ({low:.3f}-{high:.3f}) |" in capsys.readouterr().out
    assert wide[1] - wide[0] > 1.3 * (narrow[1] - narrow[0])


def test_an_id_that_names_the_photos_is_no_person(files, capsys):
    """As in most competitions: each photo is drawn by itself then."""
    for name in ("answers", "a"):
        frame = pd.read_csv(f"{name}.csv", dtype=str).drop(columns="id", errors="ignore")
        write_csv(f"{name}.csv", frame.rename(columns={"ImageID": "id"}))
    score_submission.main(["answers.csv", "a.csv"])
    assert capsys.readouterr().out.startswith("| 60 answers | macro F1 |")


def test_a_score_of_probabilities_needs_them(files):
    with pytest.raises(InputError, match="log loss is a score of probabilities: each submission needs a column"):
        score_submission.main(["answers.csv", "a.csv", "--task.score", "log_loss"])


def test_the_picture_has_a_point_a_submission(files, capsys):
    score_submission.main(["answers.csv", "a.csv", "b.csv", "--people", "300", "900", "--picture", "curve.png"])
    assert capsys.readouterr().out.endswith("look at it: curve.png\n")
    assert Image.open("curve.png").width > 1000
    two = {"macro F1": [((0.5, 0.4, 0.6), None), ((0.7, 0.6, 0.75), None), ((0.6, 0.5, 0.7), None)]}
    draw = score_submission.draw(two, [900, 2700, 300], ["small", "small", "faces"])
    with charts.figure(draw, 3, 3) as made:
        points = {bars.get_label(): bars[0].get_xydata().tolist() for bars in made.axes[0].containers}
        ends = [segment[:, 1].tolist() for segment in made.axes[0].containers[0][2][0].get_segments()]
    assert points == {"small": [[900, 0.5], [2700, 0.7]], "faces": [[312, 0.6]]}
    assert np.allclose(ends, [[0.4, 0.6], [0.6, 0.75]])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["answers.csv"], "name the true answers, then submissions"),
        (["answers.csv", "none.csv"], "none.csv: no such file"),
        (["empty.csv", "a.csv"], "empty.csv: has no rows"),
        (["answers.csv", "part.csv"], r"part.csv: answers 40 of the 60 photos of answers.csv, not '0.jpg'"),
        (["answers.csv", "twice.csv"], "twice.csv: ImageID '7.jpg' stands there twice"),
        (["answers.csv", "other.csv"], "answers.csv: has no column label, which other.csv has"),
        (["answers.csv", "a.csv", "--group", "who"], "answers.csv: has no column who, which --group names"),
        (["answers.csv", "a.csv", "--people", "3", "4"], "--people: has 2 values for 1 submissions"),
        (["answers.csv", "a.csv", "--picture", "x.png"], "--picture: draws scores by --people"),
        (["answers.csv", "a.csv", "--task.heads", '[{"name": "kind"}]'], "the classes of kind come from the data"),
    ],
)
def test_what_cannot_be_scored_is_one_line(files, words, reason):
    truth, a, _ = files
    write_csv("part.csv", a[20:])
    write_csv("empty.csv", a[:0])
    write_csv("twice.csv", pd.concat([a, a[7:8]]))
    write_csv("other.csv", truth.rename(columns={"ans": "label"}))
    with pytest.raises(InputError, match=reason):
        score_submission.main(words)


def test_answers_that_nobody_asks_for_are_counted(files, capsys):
    write_csv("answers.csv", files[0][10:])
    score_submission.main(["answers.csv", "a.csv"])
    assert "a.csv: 10 of its 60 answers are not in answers.csv, and not scored" in capsys.readouterr().out
