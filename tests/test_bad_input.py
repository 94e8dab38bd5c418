"""What strangers' data holds, and what becomes of each: it works, or it is one line, or it is listed and left out."""

import json
import os
import subprocess
import sys

import bad_photos
import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, write_photo

import dataset
import ensemble
import inference
import train
from foldface import cli, devices
from foldface.data import folds
from foldface.files import InputError

PEOPLE = 24  # one of them is less than 5 % of the rows
GOOD = np.random.default_rng(1).integers(0, 255, (40, 30, 3), dtype=np.uint8)


@pytest.fixture
def people(make_competition):
    return make_competition(people=PEOPLE)


def rows_of(people, **cells):
    """The table's rows, some cells of the first person replaced."""
    rows = [dict(zip(("id", "gender", "race", "age", "path"), (*row[:2], "x", *row[2:]), strict=True))
            for row in people.people]  # fmt: skip
    rows[0] |= cells
    return [list(row.values()) for row in rows]


def cell(**cells):
    return lambda people: people.write_table(rows=rows_of(people, **cells))


def table(**keywords):
    return lambda people: people.write_table(rows=rows_of(people), **keywords)


def text(change):
    """Change the table's text."""

    def bend(people):
        path = people.train / "train.csv"
        path.write_bytes(change(path.read_bytes()))

    return bend


def home(people):
    return people.train / "images" / people.people[0][3]


def linked(target):
    """The first photo is a link to elsewhere."""

    def bend(people):
        write_photo(people.root / "elsewhere" / "secret.jpg", 5)
        (home(people) / "mask1.jpg").unlink()
        (home(people) / "mask1.jpg").symlink_to(people.root / target)

    return bend


def linked_folder(people):
    home(people).rename(people.root / "elsewhere")
    home(people).symlink_to(people.root / "elsewhere")


def allowed(people):
    linked_folder(people)
    return ["--data.roots", f"[{people.root / 'elsewhere'}]"]


def emptied(people):
    for photo in home(people).iterdir():
        photo.unlink()


def five_photos(people):
    for stem in ("mask4", "normal"):
        (home(people) / f"{stem}.jpg").unlink()


ALL = PEOPLE * 7
TABLES = [  # what it is, how it is made, rows that are trained on or the line, rows that are left without strict
    ("as it should be", lambda people: None, ALL, ALL),
    ("CRLF", table(newline="\r\n"), ALL, ALL),
    ("byte-order mark", table(encoding="utf-8-sig"), ALL, ALL),
    ("blank lines at the end", text(lambda data: data + b"\n\n"), ALL, ALL),
    ("no newline at the end", text(lambda data: data.rstrip()), ALL, ALL),
    ("spaces around cells", text(lambda data: data.replace(b",", b" , ")), ALL, ALL),
    ("quoted cells", text(lambda data: data.replace(b"Drawn", b'"Drawn"')), ALL, ALL),
    ("columns in another order", lambda people: people.write_table(
        "path,age,id,gender", rows=[[p, age, i, g] for i, g, age, p in people.people]), ALL, ALL),
    ("UTF-16, as Excel's Unicode text", text(lambda data: data.decode().encode("utf-16")), "is not UTF-8", None),
    ("Latin-1 letters", text(lambda data: data.replace(b"Drawn", "Müller".encode("latin-1"))), "is not UTF-8", None),
    ("semicolons", text(lambda data: data.replace(b",", b";")), "has no column id, gender, age, path", None),
    ("a column missing", table(header="id,sex,race,age,path"), "has no column gender", None),
    ("0 bytes", text(lambda data: b""), "is empty", None),
    ("a header alone", text(lambda data: data.splitlines()[0] + b"\n"), "no photo to train on is left", None),
    ("a row with a cell too many", text(lambda data: data + b"1,male,x,3,y,z,\n"), "can't be read as CSV", None),
    ("no table", lambda people: (people.train / "train.csv").unlink(), "train.csv: no such file", None),
    ("a folder named train.csv", lambda people: ((people.train / "train.csv").unlink(),
        (people.train / "train.csv").mkdir()), "is a folder", None),
    ("age 29.0", cell(age="29.0"), ALL, ALL),
    ("age sixty", cell(age="sixty"), "row 2: age is 'sixty'", ALL - 7),
    ("age -1", cell(age="-1"), "row 2: age is '-1'", ALL - 7),
    ("age 1e9", cell(age="1e9"), "row 2: age is '1e9'", ALL - 7),
    ("age inf", cell(age="inf"), "row 2: age is 'inf'", ALL - 7),
    ("age NaN", cell(age="NaN"), "row 2: age is 'NaN'", ALL - 7),
    ("no age", cell(age=""), "row 2: age is ''", ALL - 7),
    ("gender MALE", cell(gender="MALE"), ALL, ALL),
    ("gender unknown", cell(gender="diverse"), "row 2: gender is 'diverse'", ALL - 7),
    ("no id", cell(id=""), "row 2: id is empty", ALL - 7),
    ("the same id twice, two ages", cell(id="000001", age=70), ALL, ALL),
    ("the same folder twice", cell(path="000001_person"), "row 3: path '000001_person' stands on an earlier", ALL - 7),
    ("path ../", cell(path="../images/000000_person"), "row 2: path '../images/000000_person' leaves", ALL - 7),
    ("path with a backslash", cell(path="..\\000000_person"), "leaves the folder", ALL - 7),
    ("path absolute", cell(path="/etc"), "row 2: path '/etc' leaves the folder", ALL - 7),
    ("path of 5,000 characters", cell(path="p" * 5000), "is longer than a file's name can be", ALL - 7),
    ("path of 2,500 folders", cell(path="p/" * 2500), "is longer than a file's name can be", ALL - 7),
    ("gender of 5,000 characters", cell(gender="g" * 5000), "row 2: gender is 'gggg", ALL - 7),
    ("age of 400 digits", cell(age="1" + "0" * 400), "row 2: age is '1000", ALL - 7),
    ("path not there", cell(path="nobody"), "doesn't exist", ALL - 7),
    ("a folder that is a link out", linked_folder, "row 2: path '000000_person' leaves the folder", ALL - 7),
    ("the same, allowed", allowed, ALL, ALL),
    ("a photo that is a link out", linked("elsewhere/secret.jpg"), "mask1.jpg: leaves the folder", ALL - 1),
    ("a photo that is a link to a sibling", linked("train/images/000001_person/mask1.jpg"), ALL, ALL),
    ("a folder without photos", emptied, "row 2: the folder", ALL - 7),
    ("a person with five photos", five_photos, ALL - 2, ALL - 2),
    ("a photo of another name", lambda people: write_photo(home(people) / "mask9.jpg", 3), "is named none of", ALL),
    ("a copy, mask1 (1).jpg", lambda people: write_photo(home(people) / "mask1 (1).jpg", 3), "is named none of", ALL),
    ("mask1 as .jpg and .png", lambda people: write_photo(home(people) / "mask1.png", 3), ALL + 1, ALL + 1),
    ("MASK2.JPG", lambda people: (home(people) / "mask2.jpg").rename(home(people) / "MASK2.JPG"), ALL, ALL),
    ("a photo whose name is no UTF-8", lambda people: write_photo(home(people) / "mask\udcff.jpg", 3),
        "is named none of", ALL),
    ("hidden files", lambda people: (home(people) / "._mask1.jpg").write_bytes(b"x"), ALL, ALL),
    ("two people with one photo", lambda people: (home(people) / "normal.jpg").write_bytes(
        (people.train / "images" / "000001_person" / "normal.jpg").read_bytes()), ALL, ALL),
]  # fmt: skip


def outcome(people, *words):
    """Rows that would be trained on, or the line that stops it."""
    try:
        return len(dataset.prepare(people.config(*words)))
    except InputError as error:
        return str(error)


@pytest.mark.parametrize(("bend", "strict", "lenient"), [row[1:] for row in TABLES], ids=[row[0] for row in TABLES])
def test_tables(people, bend, strict, lenient):
    words = bend(people)
    words = words if isinstance(words, list) else []
    found = outcome(people, *words)
    if isinstance(strict, int):
        assert found == strict
    else:
        assert isinstance(found, str) and strict in found and "\n" not in found and str(people.root) in found
    found = outcome(people, *words, "--data.strict", "false", "--run", people.root / "lenient")
    if lenient is None:
        assert isinstance(found, str) and strict in found
    else:
        assert found == lenient
        assert (people.root / "lenient" / "rejected.csv").is_file() == (not isinstance(strict, int))


REASONS = {name: reason for name, reason in bad_photos.UNREADABLE.items() if name != "missing.jpg"}
PHOTOS = [name for name in bad_photos.BY_KIND if name not in ("huge.jpg", "missing.jpg")]


@pytest.mark.parametrize("name", PHOTOS, ids=[bad_photos.BY_KIND[name][0] for name in PHOTOS])
def test_training_photos(people, name):
    (home(people) / "mask1.jpg").unlink()
    bad_photos.write(people.root / "made", GOOD, [name])
    (people.root / "made" / name).rename(home(people) / f"mask1{os.path.splitext(name)[1]}")
    assert outcome(people) == ALL - (name in REASONS)
    rejected = people.root / "run" / "rejected.csv"
    assert rejected.is_file() == (name in REASONS)
    if name in REASONS:
        row = pd.read_csv(rejected).iloc[0]
        assert "000000_person/mask1" in row["file"] and REASONS[name] in row["reason"]


@pytest.mark.slow
def test_photos_to_answer_for(people):
    config = people.config("--train.epochs", 1)
    train.train_folds(config, [0])
    names = bad_photos.write(people.eval / "images", GOOD)
    info = "﻿ImageID,ans\r\n" + "".join(f"{name},0\r\n" for name in [*names, names[0]])
    (people.eval / "info.csv").write_text(info, encoding="utf-8")
    people.run(inference)
    unreadable = pd.read_csv(people.root / "run" / "unreadable.csv").set_index("ImageID")["reason"].to_dict()
    assert unreadable == bad_photos.UNREADABLE
    people.run(ensemble, "--soft")
    answer = pd.read_csv(people.root / "submission.csv")
    assert answer["ImageID"].tolist() == [*names, names[0]] and answer["ans"].between(0, 17).all()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("ImageID\n../train/train.csv\n", "row 2: ImageID '../train/train.csv' leaves the folder"),
        ("ImageID\n/etc/passwd\n", "row 2: ImageID '/etc/passwd' leaves the folder"),
        ("ImageID\nanswer0.jpg\n\"\"\n", "row 3: ImageID is empty"),
        ("ImageID\nlink.jpg\n", "row 2: ImageID 'link.jpg' leaves the folder"),
        ("Image,ans\nanswer0.jpg,0\n", "has no column ImageID; it has Image, ans"),
        ("ImageID,ans\n", "has no rows"),
        ("", "is empty"),
    ],
)  # fmt: skip
def test_tables_to_answer_for(people, content, expected):
    (people.eval / "images" / "link.jpg").symlink_to("/etc/passwd")
    (people.eval / "info.csv").write_text(content)
    with pytest.raises(InputError) as caught:
        dataset.eval_rows(people.config())
    assert expected in str(caught.value) and "info.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_nul_in_a_table_is_no_traceback(people):
    text(lambda data: data.replace(b"000000_person", b"000000\0person"))(people)
    assert "row 2: " in outcome(people) or "NUL" in outcome(people)
    (people.eval / "info.csv").write_bytes(b"ImageID\nanswer0.jpg\nans\0wer.jpg\n")
    with pytest.raises(InputError, match=r"row 3: ImageID"):
        dataset.eval_rows(people.config())


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("photo.jpg", b"x", "is neither a folder nor a .csv or .json file"),
        ("list.txt", b"answer0.jpg", "is neither a folder nor a .csv or .json file"),
        ("deep.json", b"[" * 100_000, "can't be read as JSON (nested too deep)"),
        ("half.json", b'[{"image": "\\ud800.jpg"}]', "can't be read as JSON"),
        ("digits.json", b'[{"image": "answer0.jpg", "bbox": [0, 0, 1' + b"0" * 400 + b', 5]}]', "entry 1: bbox of"),
        ("more.json", b'[{"image": "answer0.jpg", "bbox": [0, 0, 1' + b"0" * 9000 + b', 5]}]', "can't be read as JSON"),
        ("long.json", b'[{"image": "' + b"a" * 5000 + b'", "bbox": [0, 0, 9, 9]}]', "longer than a file's name can be"),
        ("nul.json", b'[{"image": "a\\u0000.jpg", "bbox": [0, 0, 9, 9]}]', "holds a NUL"),
        ("long.csv", b"photo\n" + b"a" * 5000 + b".jpg\n", "longer than a file's name can be"),
    ],
)  # fmt: skip
def test_files_to_answer_for_that_are_none(people, name, content, expected):
    (people.eval / "images" / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        dataset.eval_rows(people.config("--data.eval", people.eval / "images" / name))
    assert expected in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", ["data.train", "data.eval", "data.corrections", "data.crops"])
def test_a_setting_that_can_be_no_path_is_one_line(people, setting, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"data": {setting.removeprefix("data."): "a\0b"}}))
    for words in (["--config", tmp_path / "mine.json"], [f"--{setting}", "a\udcffb"]):
        with pytest.raises(InputError, match=f"{setting}: holds a NUL, or what is no UTF-8"):
            cli.read("", argv=[*map(str, words)])


@pytest.mark.slow
def test_names_and_classes_are_shown_in_any_terminal(tmp_path):
    name = "a\x1b[31mred\x1b]0;title\x07 \u202egpj.exe 한글 " + "long" * 2000
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from foldface import cli, files\n"
        "def main():\n"
        "    name = open(sys.argv[2], encoding='utf-8').read()\n"
        "    print(name, 'half \\udcff'); files.warn_once(name); raise files.InputError(name)\n"
        "cli.run_main(main)"
    )
    (tmp_path / "name").write_text(name, encoding="utf-8")
    for environment in ({"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "utf-8"}, {"LANG": "C", "LC_ALL": "C"}):
        done = subprocess.run(
            [sys.executable, "-c", program, str(ROOT), str(tmp_path / "name")],
            capture_output=True, env=os.environ | environment, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        for shown in (done.stdout, done.stderr):
            assert b"\x1b" not in shown and b"\x07" not in shown and b"Traceback" not in shown
            assert rb"a\x1b[31mred\x1b]0;title\x07 \u202egpj.exe" in shown
        assert rb"half \udcff" in done.stdout and done.stderr.count(b"\n") == 2
        assert len(done.stderr.splitlines()[1]) < 500


def test_a_progress_bar_may_move_and_a_name_may_not(capsys):
    stream = cli.Escaping(sys.stderr, ("\r", "\n", "\x1b"))
    for words in ("\r 50 %", "\x1b[A", "warning: \r\x1b[A"):
        stream.write(words)
    assert capsys.readouterr().err == "\r 50 %\x1b[Awarning: \\x0d\\x1b[A".replace("\\x0d", "\\r")


def test_photos_lie_where_the_first_that_exists_lies(people):
    (people.eval / "photos.csv").write_text("photo\ngone.jpg\n" + "\n".join(people.images) + "\n")
    rows = dataset.eval_rows(people.config("--data.eval", people.eval / "photos.csv"))
    assert rows["photo"].map(os.path.isfile).tolist() == [False, *[True] * len(people.images)]
    (people.eval / "images" / "labels.csv").write_text("photo\ngone.jpg\nanswer0.jpg\n")
    rows = dataset.eval_rows(people.config("--data.eval", people.eval / "images" / "labels.csv"))
    assert os.path.isfile(rows["photo"][1])


@pytest.mark.slow
def test_answering_stops_where_no_photo_can_be_read(people):
    config = people.config("--train.epochs", 1)
    train.train_folds(config, [0])
    for name in people.images:
        (people.eval / "images" / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 5 photos to predict can be read, such as .*\(empty file\)"):
        people.run(inference)
    for name in people.images:
        (people.eval / "images" / name).unlink()
    with pytest.raises(InputError, match=r"none of the 5 photos .*\(there is no such file\)"):
        people.run(inference)
    assert not (people.root / "run" / "fold0.csv").is_file()


@pytest.mark.slow
def test_a_photo_that_changes_or_vanishes_while_training_reads_it_is_one_line(people):
    for number, change in enumerate((lambda photo: photo.unlink(), lambda photo: photo.write_bytes(b"other"),
                                     lambda photo: (photo.unlink(), os.mkfifo(photo)))):  # fmt: skip
        config = people.config("--data.workers", 1, "--run", people.root / f"run{number}")
        rows = dataset.prepare(config)
        photo = home(people) / "mask2.jpg"
        content = photo.read_bytes()
        change(photo)
        training, validation = folds.split(rows, 0)
        with pytest.raises(InputError, match=r"mask2.jpg: can't be read any more \(.*\); start again to leave it out"):
            train.fit(training, validation, config, 0, devices.make_accelerator(config))
        photo.unlink(missing_ok=True)
        photo.write_bytes(content)


def test_a_run_on_too_little_of_its_rows_stops(people):
    for _, _, _, path in people.people[:2]:
        for photo in (people.train / "images" / path).iterdir():
            photo.write_bytes(b"")
    assert "only 154 of 168 rows can be trained on, less than 95%" in outcome(people)
    rows = rows_of(people)
    for row in rows[:2]:
        row[3] = "old"
    people.write_table(rows=rows)
    found = outcome(people, "--data.strict", "false", "--run", people.root / "lenient")
    assert "only 154 of 168 rows" in str(found)
