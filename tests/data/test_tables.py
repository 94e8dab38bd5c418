"""Tables of photos as competitions give them: which column names the photo, where it lies, how the table is written."""

import json

import pandas as pd
import pytest
from helpers import write_photo

import dataset
from foldface import cli
from foldface.data import tables
from foldface.files import InputError

KIND = [{"name": "kind", "classes": ["cat", "dog"]}]


def config_of(table, *more, heads=KIND, evaluate=""):
    """Settings of layout table for a file."""
    words = ["--data.layout", "table", "--data.train", table, "--data.eval", evaluate or table, "--data.crops", ""]
    return cli.read("", argv=[*map(str, words), "--task.heads", json.dumps(heads), *map(str, more)])


def write(path, column, names, kinds=("cat", "dog"), **how):
    """A table with a column that names photos, and kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({column: names, "kind": [kinds[k % 2] for k in range(len(names))], "width": 640})
    frame.to_csv(path, index=False, **how)
    return path


def below(rows, folder):
    return [str(path).removeprefix(f"{folder}/") for path in rows["photo"]]


@pytest.mark.parametrize(
    ("column", "cells", "files", "said"),
    [
        ("image_id", ["a1", "a2"], ["train_images/{}.png", "test_images/{}.png"], "train_images/<image_id>.png"),
        ("Id", ["a1", "a2"], ["train/{}.jpg", "test/{}.jpg"], "train/<Id>.jpg"),
        ("id_code", ["a1", "a2"], ["images/{}.png"], "images/<id_code>.png"),
        ("image_name", ["a1", "a2"], ["jpeg/train/{}.jpg", "jpeg/test/{}.jpg"], "jpeg/train/<image_name>.jpg"),
        ("StudyInstanceUID", ["1.2.3", "1.2.4"], ["deep/er/down/{}.jpg"], "deep/er/down/<StudyInstanceUID>.jpg"),
        ("image", ["a1.jpg", "a2.jpg"], ["train_images/{}"], "train_images/<image>"),
        ("photo", ["a1.jpg", "a2.jpg"], ["{}"], ""),
        ("photo", ["a1.jpg", "a2.jpg"], ["images/{}"], ""),
    ],
)
def test_the_photos_of_a_competitions_table_are_found_by_looking_and_where_they_are_is_said(
    tmp_path, capsys, column, cells, files, said
):
    for n, cell in enumerate(cells):
        for k, file in enumerate(files):
            write_photo(tmp_path / file.format(cell), 2 * n + k)
    rows, _ = dataset.training_rows(config_of(write(tmp_path / "train.csv", column, cells)))
    assert below(rows, tmp_path) == [files[0].format(cell) for cell in cells]
    assert rows["ImageID"].tolist() == cells and rows["target"].tolist() == [0, 1]
    out = capsys.readouterr().out
    assert (f"train.csv: the photos are {said}\n" in out) if said else "the photos are" not in out
    test = write(tmp_path / "test.csv", column, cells[::-1])
    rows = dataset.eval_rows(config_of(tmp_path / "train.csv", evaluate=test))
    assert below(rows, tmp_path) == [
        files[-1].format(cell) for cell in cells[::-1]
    ]  # test's own folder, where there is


def test_photos_may_lie_in_several_folders_with_several_endings(tmp_path, capsys):
    names = [f"p{n:03d}" for n in range(250)]
    where = [f"part{n % 3}/{name}.{'png' if n % 2 else 'jpg'}" for n, name in enumerate(names)]
    where[7] = "rare/p007.bmp"  # no row of the sample lies there
    for n, file in enumerate(where):
        write_photo(tmp_path / file, n, size=(8, 8))
    rows, _ = dataset.training_rows(config_of(write(tmp_path / "train.csv", "id", names)))
    assert below(rows, tmp_path) == where
    assert "the photos are part" in capsys.readouterr().out


def test_settings_name_the_column_the_folder_the_ending_and_the_id(tmp_path):
    for n in range(2):
        write_photo(tmp_path / "small" / f"x{n}.png", n)
        write_photo(tmp_path / "large" / f"x{n}.png", 9 + n)
    table = tmp_path / "train.csv"
    table.write_text("key,name,kind\nk0,x0,cat\nk1,x1,dog\n")
    with pytest.raises(InputError, match=r"name 'x0' may be large/x0.png or small/x0.png: name one folder with"):
        dataset.training_rows(config_of(table))
    rows, _ = dataset.training_rows(config_of(table, "--data.photo_folder", "small"))
    assert below(rows, tmp_path) == ["small/x0.png", "small/x1.png"]
    words = ["--data.photo_folder", "[large]", "--data.photo_suffix", ".png", "--data.photo_column", "name"]
    rows, _ = dataset.training_rows(config_of(table, *words, "--data.id_column", "key"))
    assert below(rows, tmp_path) == ["large/x0.png", "large/x1.png"] and rows["ImageID"].tolist() == ["k0", "k1"]
    rows = dataset.eval_rows(config_of(table, *words, "--data.id_column", "key"))
    assert rows["answer_id"].tolist() == ["k0", "k1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.photo_column", "nme"], r"has no column nme \(data.photo_column\); it has key, name, kind"),
        (["--data.photo_folder", "gone"], "data.photo_folder: there is no folder .*gone"),
        (["--data.photo_suffix", ".jpeg"], r"row 2: there is no photo .*/x0.jpeg"),
        (["--data.photo_column", "key"], r"row 2: there is no photo .*/k0;"),
    ],
)
def test_what_a_setting_names_and_is_not_there_is_said_in_one_line(tmp_path, words, said):
    write_photo(tmp_path / "x0.png", 0)
    (tmp_path / "train.csv").write_text("key,name,kind\nk0,x0,cat\n")
    words += ["--data.photo_column", "name"] if "--data.photo_suffix" in words else []
    with pytest.raises(InputError, match=said) as caught:
        dataset.training_rows(config_of(tmp_path / "train.csv", *words))
    assert "\n" not in str(caught.value)


def test_a_row_without_a_photo_is_named_and_a_name_that_leads_out_refused(tmp_path):
    for n in range(3):
        write_photo(tmp_path / "data" / "train" / f"x{n}.png", n)
    write_photo(tmp_path / "out.png", 9)
    table = write(tmp_path / "data" / "train.csv", "image_id", ["x0", "gone", "x2"])
    with pytest.raises(InputError, match=r"train.csv, row 3: there is no photo .*/data/train/gone.png"):
        dataset.training_rows(config_of(table))
    write(table, "image_id", ["x0", "../../out", "x2"])
    with pytest.raises(InputError, match=r"row 3: image_id '../../out.png' leaves the folder"):
        dataset.training_rows(config_of(table))
    write(table, "image_id", ["x0", "x1", "x1"])
    with pytest.raises(InputError, match=r"row 4: image_id 'x1' stands on an earlier row already"):
        dataset.training_rows(config_of(table))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"sep": "\t"}, "is read as UTF-8, cells parted by tabs"),
        ({"sep": ";"}, "is read as UTF-8, cells parted by semicolons"),
        ({"encoding": "utf-16"}, "is read as UTF-16, cells parted by commas"),
        ({"encoding": "utf-16-le", "sep": "\t"}, "is read as UTF-16-LE, cells parted by tabs"),
        ({"encoding": "cp949"}, "is read as cp949, cells parted by commas"),
        ({"encoding": "utf-8-sig"}, ""),
    ],
)
def test_a_table_is_read_however_it_is_written(tmp_path, capsys, how, said):
    kinds, names = ("고양이", "개"), [f"x{n}.png" for n in range(4)]
    for n, name in enumerate(names):
        write_photo(tmp_path / name, n)
    table = write(tmp_path / "train.tsv", "photo", names, kinds=kinds, **how)
    rows, _ = dataset.training_rows(config_of(table, heads=[{"name": "kind", "classes": list(kinds)}]))
    assert rows["target"].tolist() == [0, 1, 0, 1]
    assert len(dataset.eval_rows(config_of(table))) == 4
    out = capsys.readouterr().out
    assert out.count("is read as") == bool(said) and said in out


@pytest.mark.parametrize("text", [b"photo,kind\nx0.png,caf\xe9\n", b"\xff\xfe\0", b"photo,kind\nx0.png,\x81\xff\n"])
def test_what_is_in_no_known_encoding_is_said(tmp_path, text):
    (tmp_path / "train.csv").write_bytes(text)
    with pytest.raises(InputError, match=r"train.csv: is not UTF-8"):
        dataset.training_rows(config_of(tmp_path / "train.csv"))


@pytest.mark.parametrize(
    ("name", "side"),
    [("train_images", "train"), ("trainLabels", "train"), ("jpeg/test", "test"), ("latest", "")],
)  # fmt: skip
def test_a_folders_name_says_on_which_side_it_is(name, side):
    assert tables.side_of(name) == side


@pytest.mark.parametrize(
    ("columns", "more", "said"),
    [
        ({"person": [k // 4 for k in range(48)]}, (), "person repeats (12 values in 48 rows)"),
        ({"PatientID": [f"p{k // 4}" for k in range(48)], "id": range(48)}, (), "PatientID repeats"),
        ({"taken_at": [f"place {k // 4}" for k in range(48)]}, (), "taken_at repeats"),
        ({"person": [k // 4 for k in range(48)]}, ("--data.group", "person"), ""),
        ({"person": [k // 4 for k in range(48)], "id": [k // 4 for k in range(48)]}, (), ""),  # id keeps them together
        ({"width": [640 + k // 4 for k in range(48)], "colour": ["red", "blue"] * 24}, (), ""),
        ({"patient": range(48)}, (), ""),
    ],
)
def test_a_column_that_may_name_a_person_and_is_not_data_group_is_said(tmp_path, capsys, columns, more, said):
    names = [f"{k}.jpg" for k in range(48)]
    for k, name in enumerate(names):
        write_photo(tmp_path / name, k)
    table = write(tmp_path / "train.csv", "photo", names)
    pd.read_csv(table).assign(**columns).to_csv(table, index=False)
    dataset.training_rows(config_of(table, *more))
    heard = capsys.readouterr()
    assert (said in heard.err and "--data.group" in heard.err) if said else "repeats" not in heard.err + heard.out
