"""Tables and their quirks: each is read rightly, or is one line with file and row."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import never_read, write_photo

import dataset
from foldface.data import cleaning
from foldface.data.problems import Problems
from foldface.faces import manifest
from foldface.files import InputError, read_csv, write_csv


def complaint(config):
    with pytest.raises(InputError) as caught:
        dataset.training_rows(config)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_row_a_photo_with_its_three_labels(competition):
    rows, problems = dataset.training_rows(competition.config())
    assert len(rows) == 12 * 7 and not problems.rows
    normal = rows[rows["ImageID"] == "000001_person/normal.jpg"].iloc[0]
    assert (normal["id"], normal["target"]) == ("000001", 2 * 6 + 1 * 3 + 0)
    assert (rows.groupby("id")["mask"].apply(lambda masks: np.bincount(masks).tolist()).map(str) == "[5, 1, 1]").all()


@pytest.mark.parametrize(("newline", "encoding"), [("\r\n", "utf-8"), ("\n", "utf-8-sig"), ("\r\n", "utf-8-sig")])
def test_line_ends_and_byte_order_marks_change_nothing(competition, newline, encoding):
    plain, _ = dataset.training_rows(competition.config())
    competition.write_table(newline=newline, encoding=encoding)
    assert dataset.training_rows(competition.config())[0].equals(plain)


def test_ids_stay_strings_with_their_zeros(competition):
    rows = [["000600-1", "female", "Drawn", 40, competition.people[0][3]]]
    rows += [["000600", "male", "Drawn", 40, competition.people[1][3]]]
    competition.write_table(rows=rows)
    assert set(dataset.training_rows(competition.config())[0]["id"]) == {"000600-1", "000600"}


def test_any_order_and_number_of_columns_will_do(competition):
    rows = [[path, "x", age, i, gender] for i, gender, age, path in competition.people]
    competition.write_table("path, note ,age,id,gender", rows=rows)
    assert len(dataset.training_rows(competition.config())[0]) == 84


def test_file_endings_vary_and_hidden_files_are_no_photos(competition):
    home = competition.train / "images" / competition.people[0][3]
    (home / "normal.jpg").rename(home / "normal.JPEG")
    (home / "mask1.jpg").unlink()
    write_photo(home / "mask1.png", 7)
    (home / "._mask2.jpg").write_bytes(b"\0Mac OS X")
    rows, _ = dataset.training_rows(competition.config())
    names = set(rows["ImageID"][rows["id"] == "000000"])
    assert len(names) == 7 and {"000000_person/normal.JPEG", "000000_person/mask1.png"} <= names


def test_the_boundary_of_58_trains_and_the_boundary_of_60_scores(competition):
    competition.write_table(
        rows=[
            ["000000", "male", "Drawn", 58, competition.people[0][3]],
            ["000001", "male", "Drawn", 57, competition.people[1][3]],
        ]
    )
    rows, _ = dataset.training_rows(competition.config("--task.heads.age.train_bounds", "[30,58]"))
    for person, label, target in (("000000", 2, 1), ("000001", 1, 1)):
        own = rows[rows["id"] == person]
        assert (own["label"] % 3 == label).all() and (own["target"] % 3 == target).all()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["000000", "male", "x", "sixty"], "row 2: age is 'sixty'"),
        (["000000", "male", "x", "-1"], "row 2: age is '-1'"),
        (["000000", "male", "x", ""], "row 2: age is ''"),
        (["000000", "male", "x", "nan"], "row 2: age is 'nan'"),
        (["000000", "mann", "x", "30"], "row 2: gender is 'mann'"),
        (["", "male", "x", "30"], "row 2: id is empty"),
    ],
)
def test_a_bad_cell_is_named_with_file_and_row(competition, cells, expected):
    competition.write_table(rows=[[*cells, competition.people[0][3]]])
    line = complaint(competition.config())
    assert "train.csv, " + expected in line and "--data.strict false" in line


@pytest.mark.parametrize("age", ["29.0", " 29 "])
def test_an_age_that_is_a_number_in_disguise_is_read(competition, age):
    competition.write_table(rows=[["000000", "Male", "x", age, competition.people[0][3]]])
    assert (dataset.training_rows(competition.config())[0]["age"] == 29).all()


@pytest.mark.parametrize(
    ("path", "expected"),
    [("../train/images/000000_person", "leaves the folder"), ("/etc", "leaves the folder"), ("", "path is empty"),
     ("nobody", "doesn't exist")],
)  # fmt: skip
def test_a_path_that_leads_astray_is_refused(competition, path, expected):
    competition.write_table(rows=[["000000", "male", "x", 30, path]])
    assert expected in complaint(competition.config())


def test_a_folder_without_photos_a_wrong_name_and_a_doubled_path_are_named(competition):
    home = competition.train / "images" / "000099_empty"
    home.mkdir()
    competition.write_table(rows=[["000099", "male", "x", 30, "000099_empty"]])
    assert "holds no photo" in complaint(competition.config())
    write_photo(home / "mask9.jpg", 1)
    assert "mask9.jpg: is named none of mask1" in complaint(competition.config())
    path = competition.people[0][3]
    competition.write_table(rows=[["000000", "male", "x", 30, path], ["000001", "male", "x", 30, path]])
    assert "row 3" in complaint(competition.config())


def test_without_strict_bad_rows_are_listed_and_the_rest_goes_on(competition):
    rows = [
        [i, gender, "x", "old" if n == 3 else age, path] for n, (i, gender, age, path) in enumerate(competition.people)
    ]
    competition.write_table(rows=rows)
    kept, problems = dataset.training_rows(competition.config("--data.strict", "false"))
    assert len(kept) == 11 * 7 and [p["row"] for p in problems.rows] == [5]


def test_a_missing_column_or_table_is_named(competition):
    competition.write_table("id,sex,race,age,path")
    assert "has no column gender; it has id, sex, race, age, path" in complaint(competition.config())
    (competition.train / "train.csv").write_text("")
    assert "is empty" in complaint(competition.config())
    (competition.train / "train.csv").unlink()
    assert "no such file" in complaint(competition.config())


def test_all_age_faces_are_read_from_their_names(tmp_path, competition):
    for name in ("00000A02.jpg", "07380A60.jpg", "07381A25.jpg"):
        write_photo(tmp_path / "aaf" / "original images" / name, 3)
    config = competition.config("--data.extra", f'[{{"layout": "aaf", "path": "{tmp_path / "aaf"}"}}]')
    rows, _ = dataset.training_rows(config)
    extra = rows[rows["source"] == "extra"]
    assert extra["id"].tolist() == ["aaf-00000", "aaf-07380", "aaf-07381"]
    assert extra["target"].tolist() == [12 + 3, 12 + 3 + 2, 12]
    write_photo(tmp_path / "aaf" / "face.jpg", 4)
    assert "face.jpg: is not named like" in complaint(config)


def test_a_plain_table_is_a_layout_too(tmp_path, competition):
    write_photo(tmp_path / "mine" / "p" / "a.png", 1)
    table = tmp_path / "mine" / "people.csv"
    table.write_text("photo,id,mask,gender,age\np/a.png,7,incorrect,female,33\n")
    config = competition.config("--data.layout", "table", "--data.train", table)
    assert dataset.training_rows(config)[0]["target"].tolist() == [6 + 3 + 1]
    table.write_text("photo,id,mask,gender,age\np/a.png,7,none,female,33\np/b.png,8,wear,male,33\n")
    line = complaint(config)
    assert "row 2: mask is 'none'" in line and "1 more" in line


@pytest.mark.parametrize("key", ["id", "photo"])
def test_corrections_change_labels_and_say_how_many(competition, tmp_path, capsys, key):
    name = {"id": "000000", "photo": "000000_person/normal.jpg"}[key]
    path = tmp_path / "corrections.csv"
    path.write_text(f"{key},column,value\r\n{name},gender,female\r\n{name},age,61\r\n")
    rows, _ = dataset.training_rows(competition.config("--data.corrections", path))
    own = rows[rows["ImageID"] == "000000_person/normal.jpg"].iloc[0]
    assert own["target"] == 12 + 3 + 2
    touched = {"id": 14, "photo": 2}[key]
    assert f"changed {touched} labels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected"),
    [("999,gender,male", "row 2: there is no id '999'"), ("000000,gender,man", "row 2: gender is 'man'"),
     ("000000,race,x", "row 2: column is 'race'"), (",age,3", "row 2: names neither")],
)  # fmt: skip
def test_a_correction_that_fits_nothing_is_refused(competition, tmp_path, line, expected):
    path = tmp_path / "corrections.csv"
    path.write_text(f"id,column,value\n{line}\n")
    assert expected in complaint(competition.config("--data.corrections", path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("photo,id,column,value\n000000_person/normal.jpg,000001,gender,male\n", "row 2: photo .* is of id '000000', not"),
     ("id,column,value\n000000,age,30\n000000,age,31\n", "row 3: age of id '000000' is '31', by row 2 '30'"),
     ("id,column,value\n000000,age,3e400\n", "row 2: age is '3e400'"),
     ("id,value\n000000,3\n", "has no column column"), ("column,value\nage,3\n", "has neither a column photo nor id"),
     ("", "is empty"), ("\xff", "is not UTF-8")],
)  # fmt: skip
def test_damaged_corrections_are_one_line(competition, tmp_path, text, expected):
    (tmp_path / "corrections.csv").write_bytes(text.encode("latin-1"))
    line = complaint(competition.config("--data.corrections", tmp_path / "corrections.csv"))
    assert re.search(expected, line) and "corrections.csv" in line


def test_info_csv_keeps_its_rows_and_order_even_twice(competition):
    (competition.eval / "info.csv").write_bytes("\ufeffImageID,ans\r\nb.jpg,0\r\na.jpg,0\r\nb.jpg,0\r\n".encode())
    assert dataset.eval_rows(competition.config())["ImageID"].tolist() == ["b.jpg", "a.jpg", "b.jpg"]
    (competition.eval / "info.csv").write_text("ImageID\n../answers.csv\n")
    with pytest.raises(InputError, match="row 2"):
        dataset.eval_rows(competition.config())


def test_a_photo_that_was_never_cropped_is_an_error_that_says_what_to_run(competition, tmp_path):
    config = competition.config("--data.crops", tmp_path / "crops")
    rows, _ = dataset.training_rows(config)
    with pytest.raises(InputError, match=r"run face_crop\.py first"):
        manifest.with_files(rows, config.data.crops)
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops" / "manifest.csv").write_text(",".join(manifest.MANIFEST_COLUMNS) + "\n")
    with pytest.raises(InputError, match="84 of 84 photos have no crop yet"):
        manifest.with_files(rows, config.data.crops)


def test_unreadable_photos_are_left_out_and_too_many_stop_the_run(competition):
    config = competition.config()
    home = competition.train / "images" / competition.people[0][3]
    (home / "mask1.jpg").write_bytes(b"")
    rows, problems = dataset.training_rows(config)
    rows = manifest.with_files(rows, "")
    kept = cleaning.drop_unreadable(rows, config, problems)
    assert len(kept) == 83 and "mask1.jpg" in problems.rows[0]["file"] and "empty" in problems.rows[0]["reason"]
    for n in range(5):
        (competition.train / "images" / competition.people[n][3] / "normal.jpg").write_text("not a photo")
    with pytest.raises(InputError, match="only 78 of 84 rows can be trained on, less than 95%"):
        cleaning.drop_unreadable(rows, config, Problems())


@pytest.fixture
def cropped(competition, tmp_path):
    """Rows of a competition, and a folder that holds for each photo a crop that was made of it."""
    rows, _ = dataset.training_rows(competition.config())
    crops, frame = tmp_path / "crops", rows[["photo"]].assign(crop=rows["ImageID"], status="found")
    shutil.copytree(competition.train / "images", crops)
    nothing = np.full((len(frame), 3), "")
    frame = pd.concat([frame, manifest.digests(rows["photo"].tolist(), nothing)], axis=1)
    write_csv(
        crops / "manifest.csv", frame.reindex(columns=[*manifest.MANIFEST_COLUMNS, *manifest.STAMP], fill_value="")
    )
    return rows, crops


@pytest.mark.parametrize("missing", ["guess", "drop"])
def test_photos_without_a_face_are_trained_on_or_left_out_as_asked(competition, cropped, capsys, missing):
    _, crops = cropped
    frame = pd.read_csv(crops / "manifest.csv", dtype=str, keep_default_na=False)
    frame.loc[[0, 8, 9], "status"] = ["guessed", "guessed", "missed"]
    frame.loc[9, "crop"] = ""
    write_csv(crops / "manifest.csv", frame)
    (crops / "crop.json").write_text("{}")
    rows = dataset.prepare(competition.config("--data.crops", crops, "--crop.missing", missing))
    said, out = capsys.readouterr().out, pd.read_csv(competition.root / "run" / "rejected.csv")
    faceless = set(frame["photo"][[0, 8, 9]])
    if missing == "drop":
        assert len(rows) == 81 and not faceless & set(rows["photo"])
        assert set(out["file"]) == faceless and set(out["reason"]) == {"no detector found a face in it"}
        assert "left out: 3 photos in which no detector found a face" in said
    else:
        assert len(rows) == 83 and set(out["file"]) == {frame["photo"][9]}  # which has no crop


def test_faces_that_are_not_found_are_no_reason_to_answer_less(competition, cropped):
    _, crops = cropped
    answer = dataset.eval_rows(competition.config())
    frame = answer[["photo"]].assign(crop="", status="missed")
    frame = pd.concat([frame, manifest.digests(frame["photo"].tolist(), np.full((len(frame), 3), ""))], axis=1)
    write_csv(
        crops / "manifest.csv", frame.reindex(columns=[*manifest.MANIFEST_COLUMNS, *manifest.STAMP], fill_value="")
    )
    assert len(manifest.with_files(answer, crops)) == len(answer)


def test_where_no_face_is_found_at_all_that_is_said(competition, cropped):
    _, crops = cropped
    frame = pd.read_csv(crops / "manifest.csv", dtype=str, keep_default_na=False).assign(status="guessed")
    write_csv(crops / "manifest.csv", frame)
    with pytest.raises(InputError, match=r"no detector found a face in any photo .*--crop.missing guess"):
        dataset.prepare(competition.config("--data.crops", crops, "--crop.missing", "drop"))
    with pytest.raises(InputError, match=r"crop.missing drop: without crops .*--crop.missing guess"):
        competition.config("--crop.missing", "drop")


def test_a_photo_that_was_replaced_under_its_name_is_not_answered_by_its_old_crop(cropped):
    rows, crops = cropped
    photo, other = map(Path, rows["photo"].iloc[[3, 4]])
    before = photo.stat()
    data = bytearray(photo.read_bytes())
    data[-20] ^= 1  # as many bytes, one of them another
    photo.write_bytes(data)
    other.unlink()
    with pytest.raises(InputError, match=rf"1 of 84 photos were replaced since they were cropped, such as {photo}"):
        manifest.with_files(rows, crops)
    data[-20] ^= 1
    photo.write_bytes(data)
    assert photo.stat().st_mtime_ns != before.st_mtime_ns and len(manifest.with_files(rows, crops)) == 84
    photo.write_bytes(data + b"1")
    os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))  # another size, the same time
    with pytest.raises(InputError, match="1 of 84 photos were replaced"):
        manifest.with_files(rows, crops)


def test_photos_of_known_size_and_time_are_not_read_again_and_crops_of_earlier_versions_are_compared(
    cropped, competition
):
    rows, crops = cropped
    frame = read_csv(crops / "manifest.csv", manifest.MANIFEST_COLUMNS)
    with never_read(competition.train / "images"):
        assert manifest.with_files(rows, crops)["sha1"].tolist() == frame["sha1"].tolist()
    write_csv(crops / "manifest.csv", frame[manifest.MANIFEST_COLUMNS])
    manifest.with_files(rows, crops)
    Path(rows["photo"].iloc[0]).write_bytes(b"other")
    with pytest.raises(InputError, match="1 of 84 photos were replaced"):
        manifest.with_files(rows, crops)


def test_crops_that_are_taken_along_without_their_photos_are_used_and_that_is_said(cropped, competition, capsys):
    rows, crops = cropped
    shutil.rmtree(competition.train / "images")
    assert len(manifest.with_files(rows, crops)) == 84
    assert "84 of 84 photos don't exist" in capsys.readouterr().err


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_crop_that_is_lost_or_empty_is_to_be_made_again(cropped, lose):
    rows, crops = cropped
    lose(crops / rows["ImageID"].iloc[5])
    with pytest.raises(InputError, match=r"is missing or empty, as are 0 more crops: run face_crop\.py"):
        manifest.with_files(rows, crops)


def test_a_crop_outside_of_the_crops_folder_is_refused(competition, tmp_path):
    rows, _ = dataset.training_rows(competition.config())
    (tmp_path / "crops").mkdir()
    lines = [",".join(manifest.MANIFEST_COLUMNS), f"{rows['photo'].iloc[0]},../../secret.jpg,found,,,,,,,1,"]
    (tmp_path / "crops" / "manifest.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"row 2: crop '../../secret.jpg' leaves the folder"):
        manifest.with_files(rows, str(tmp_path / "crops"))
