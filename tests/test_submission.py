"""submission.csv as a competition's sample has it, and what a server would refuse of one."""

import numpy as np
import pandas as pd
import pytest
from helpers import MASK

from foldface import cli, submission
from foldface.files import InputError, write_csv
from foldface.task import Task
from tools import check_submission

LEAVES = Task([{"name": "leaf", "classes": ["healthy", "rust", "scab"]}], score="accuracy")
GRADES = Task([{"name": "grade", "classes": ["0", "1", "2"]}], score="accuracy")
SICK = Task([{"name": "sick", "classes": ["0", "1"]}], score="accuracy")
PAWS = Task([{"name": "paws", "range": [0, 100], "learn": "sigmoid"}], score="mae")
TWO = Task([{"name": "kind", "classes": ["cat", "dog"]}, {"name": "age", "classes": ["0", "1", "2"]}], score="f1")
IDS = ["a", "b", "c"]


def rows(names=IDS, **more):
    return pd.DataFrame({"ImageID": names, "photo": [f"/p/{name}" for name in names]} | more)


def made(tmp_path, task, text, names=IDS, answer=None, scores=None, more=None):
    """The submission for photos with these names, as a sample of this text wants it, and what is said."""
    (tmp_path / "sample.csv").write_text(text)
    config = cli.read("", argv=["--data.sample_submission", str(tmp_path / "sample.csv")])
    scores = None if scores is None else np.array(scores, float)
    answer = scores.argmax(1) if answer is None else np.array(answer)
    frame, delimiter, said = submission.make(config, task, rows(names, **(more or {})), answer, scores)
    write_csv(tmp_path / "submission.csv", frame, delimiter)
    return (tmp_path / "submission.csv").read_text(), said


THREE = [[0.2, 0.7, 0.1], [0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]
HALF = [[0.4, 0.6], [0.75, 0.25], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("task", "sample", "scores", "expected", "said"),
    [
        (LEAVES, "id,label\nc,healthy\na,healthy\nb,healthy\n", THREE,
         "id,label\nc,scab\na,rust\nb,healthy\n", "label: the class's name"),
        (LEAVES, "id,label\na,0\nb,0\nc,0\n", THREE, "id,label\na,1\nb,0\nc,2\n", "label: the class's index"),
        (GRADES, "id,grade\na,0\nb,0\nc,0\n", THREE, "id,grade\na,1\nb,0\nc,2\n", "grade: the class"),
        (GRADES, "id,grade\na,0.0\nb,0.0\nc,1.0\n", THREE,
         "id,grade\na,1.000000\nb,0.000000\nc,2.000000\n", "grade: the class"),
        (LEAVES, "id,rust,healthy,scab\na,0.25,0.25,0.25\nc,0,0,0\nb,0,0,0\n", THREE,
         "id,rust,healthy,scab\na,0.700000,0.200000,0.100000\nc,0.200000,0.100000,0.700000\n"
         "b,0.250000,0.500000,0.250000\n", "rust, healthy, scab: the probability of each class"),
        (LEAVES, "id,p_rust,p_healthy,p_scab\na,0,0,0\nb,0,0,0\nc,0,0,0\n", THREE,
         "id,p_rust,p_healthy,p_scab\na,0.700000,0.200000,0.100000\nb,0.250000,0.500000,0.250000\n"
         "c,0.200000,0.100000,0.700000\n", "the probability of each class"),
        (SICK, "id,target\na,0.5\nb,0.5\nc,0.5\n", HALF,
         "id,target\na,0.600000\nb,0.250000\nc,0.500000\n", "target: the probability of 1"),
        (SICK, "id,target\na,0\nb,0\nc,0\n", HALF, "id,target\na,1\nb,0\nc,0\n", "target: the class"),
        (SICK, "id\ttarget\na\t0\nb\t0\nc\t0\n", HALF, "id\ttarget\na\t1\nb\t0\nc\t0\n", "target: the class"),
        (TWO, "id,age,kind\na,0,cat\nb,0,cat\nc,0,cat\n", [[0] * k + [1] + [0] * (5 - k) for k in (4, 2, 3)],
         "id,age,kind\na,1,dog\nb,2,cat\nc,0,dog\n", "age, kind: the class, the class's name"),
    ],
)  # fmt: skip
def test_a_submission_has_the_samples_columns_ids_order_and_kinds(tmp_path, task, sample, scores, expected, said):
    text, told = made(tmp_path, task, sample, scores=scores)
    assert text == expected and said in told
    assert check_submission.problems(str(tmp_path / "submission.csv"), str(tmp_path / "sample.csv")) == []


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("id,paws\na,0\nb,0\nc,0\n", "id,paws\na,3.400000\nb,90.500000\nc,7.000000\n"),  # a placeholder
        ("id,paws\na,12.5\nb,0\nc,0\n", "id,paws\na,3.400000\nb,90.500000\nc,7.000000\n"),
        ("id,paws\na,12\nb,7\nc,0\n", "id,paws\na,3\nb,90\nc,7\n"),
    ],
)
def test_numbers_are_whole_where_the_samples_are(tmp_path, sample, expected):
    assert made(tmp_path, PAWS, sample, answer=[3.4, 90.5, 7])[0] == expected


def test_ids_may_be_photos_without_folder_and_ending_and_fewer_than_the_photos(tmp_path):
    text, said = made(tmp_path, SICK, "id,sick\nb,0\na,0\n", names=["x/a.png", "x/b.png", "x/c.png"], scores=HALF)
    assert text == "id,sick\nb,0\na,1\n" and "1 photos that it doesn't ask for are left out" in said


def test_photos_of_one_id_are_answered_together(tmp_path):
    names, more = ["l", "r", "q"], {"answer_id": ["p1", "p1", "p2"]}
    text, said = made(tmp_path, SICK, "prediction,sick\np2,0.0\np1,0.5\n", names, scores=HALF, more=more)
    assert text == "prediction,sick\np2,0.500000\np1,0.425000\n"
    assert "3 photos make 2 answers, the mean of each prediction's" in said


@pytest.mark.parametrize(
    ("task", "sample", "said"),
    [
        (LEAVES, "id,label\na,mildew\n", r"label holds 'mildew', which is none of the classes one of healthy"),
        (LEAVES, "id,label\na,\n", "label is empty: the sample should show"),
        (LEAVES, "id,label\na,0.5\n", r"label holds '0\.5'"),
        (LEAVES, "id,rust,healthy,mildew\na,0,0,0\n", "mildew is none of the 3 classes"),
        (LEAVES, "id,rust,healthy\na,0,0\n", "there is no column for scab"),
        (LEAVES, "id\na\n", "has no column beside id"),
        (LEAVES, "id,label\n", "has no rows"),
        (LEAVES, "id,label\nx,0\n", "none of its columns names photos of data.eval: id has 'x', data.eval has 'a'"),
        (LEAVES, "id,label\na,0\nx,0\ny,0\n", "2 of its 3 ids are of no photo in data.eval, such as 'x'"),
        (PAWS, "id,low,high\na,0,1\n", "has the columns low or high; the answer is one number"),
        (PAWS, "id,paws\na,cat\n", "paws holds 'cat'; the answer is a number"),
    ],
)
def test_a_sample_that_can_not_be_followed_is_refused_in_one_line(tmp_path, task, sample, said):
    with pytest.raises(InputError, match=said) as caught:
        made(tmp_path, task, sample, answer=[0, 1, 2], scores=None if task is PAWS else THREE)
    assert "\n" not in str(caught.value) and str(tmp_path / "sample.csv") in str(caught.value)


def test_the_mask_competitions_info_csv_as_the_sample_changes_nothing(tmp_path):
    names, answer = ["b.jpg", "a.jpg"], [17, 3]
    frame, _, _ = submission.make(cli.read("", argv=[]), MASK, rows(names), np.array(answer), np.eye(18)[answer])
    write_csv(tmp_path / "plain.csv", frame)
    text, _ = made(tmp_path, MASK, "ImageID,ans\nb.jpg,0\na.jpg,0\n", names, scores=np.eye(18)[answer])
    assert text == (tmp_path / "plain.csv").read_text() == "ImageID,ans\nb.jpg,17\na.jpg,3\n"


SAMPLE = "id,cat,dog\na,0.5,0.5\nb,0.5,0.5\nc,0.5,0.5\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,cat,dog\na,0.1,0.9\nb,1,0\nc,0.25,0.75\n", []),
        ("id,dog,cat\na,0.1,0.9\nb,1,0\nc,0.25,0.75\n", ["its columns are id, dog, cat; the sample's are"]),
        ("id,cat\na,0.1\nb,1\nc,1\n", ["its columns are id, cat; the sample's are", "there is no column dog"]),
        ("id,cat,dog\na,0.1,0.9\nb,1,0\n", ["has 2 rows, the sample has 3", "1 ids of the sample are missing"]),
        ("id,cat,dog\na,0,1\nb,1,0\nx,0,1\n", ["missing, such as id 'c'", "in the sample, such as id 'x' in row 4"]),
        ("id,cat,dog\na,0,1\nb,1,0\nb,0,1\n", ["missing, such as id 'c'", "'b' stands there twice, in row 4"]),
        ("id,cat,dog\nb,0,1\na,1,0\nc,0,1\n", ["another order than the sample's from row 2 on"]),
        ("id,cat,dog\na,0,1\nb,,1\nc,0,1\n", ["cat is empty in 1 rows, first in row 3"]),
        ("id,cat,dog\na,0,1\nb,x,1\nc,0,1\n", ["cat is 'x' in row 3, which is no number"]),
        ("id,cat,dog\na,0,1\nb,inf,1\nc,0,1\n", ["cat is 'inf' in row 3, which is no number", "sum to inf"]),
        ("id,cat,dog\na,0,1\nb,-1,2\nc,0,1\n", ["cat is -1 in row 3; the sample has probabilities", "dog is 2 in row"]),
        ("id,cat,dog\na,0.5,0.4\nb,0,1\nc,0,1\n", ["the probabilities of row 2 sum to 0.900"]),
        ("\ufeffid,cat,dog\na,0,1\nb,0,1\nc,0,1\n", ["begins with a byte-order mark"]),
        ("id;cat;dog\na;0;1\nb;0;1\nc;0;1\n", ["its cells are parted by ';', the sample's by ','"]),
    ],
)  # fmt: skip
def test_what_a_server_would_refuse_is_said_line_by_line(tmp_path, capsys, text, said):
    (tmp_path / "sample.csv").write_text(SAMPLE)
    (tmp_path / "mine.csv").write_text(text)
    words = [str(tmp_path / "mine.csv"), str(tmp_path / "sample.csv")]
    if not said:
        check_submission.main(words)
        assert "mine.csv: 3 rows, as " in capsys.readouterr().out
        return
    with pytest.raises(InputError, match=rf"mine\.csv: {len(said)} things that a server would refuse"):
        check_submission.main(words)
    lines = [line for line in capsys.readouterr().out.splitlines() if "is read as" not in line]
    assert len(lines) == len(said) and all(part in line for part, line in zip(said, lines, strict=True))


@pytest.mark.parametrize(
    ("sample", "text", "said"),
    [
        ("id,n\na,1\nb,2\n", "id,n\na,1\nb,2.5\n", "n is 2.5 in row 3; the sample has whole numbers"),
        ("id,n\na,0\nb,0\n", "id,n\na,1\nb,2.5\n", ""),
        ("id,n\na,cat\nb,dog\n", "id,n\na,cat\nb,cow\n", "n holds 'cow' in row 3; the sample has cat or dog"),
        ("id,n\na,cat\nb,cat\n", "id,n\na,cat\nb,cow\n", ""),  # says nothing of the other classes
        ("id,n\na,1 2\nb,\n", "id,n\na,\nb,3\n", ""),
    ],
)
def test_cells_are_of_the_samples_kind(tmp_path, sample, text, said):
    (tmp_path / "sample.csv").write_text(sample)
    (tmp_path / "mine.csv").write_text(text)
    assert check_submission.problems(str(tmp_path / "mine.csv"), str(tmp_path / "sample.csv")) == [said] * bool(said)
