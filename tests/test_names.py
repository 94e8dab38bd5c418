"""Names: what a reader takes for the same name is one class, one person and one file, or is said."""

import json
import unicodedata

import pandas as pd
import pytest
from helpers import write_photo

import dataset
from foldface import cli, names, runs, task
from foldface.files import InputError
from foldface.settings import as_dict

NFC, NFD = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")


def table(root, rows, *words, header="photo,kind"):
    """Settings of layout table for these rows; the photos are those that there are."""
    (root / "train.csv").write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    known = ["--data.layout", "table", "--task.heads", '[{"name": "kind"}]', "--data.train", root / "train.csv"]
    known += ["--data.crops", "", "--data.eval", root / "test.csv", "--run", root / "run"]
    return cli.read("", argv=[*map(str, [*known, *words])])


def of_kinds(root, kinds, *words):
    """Settings of a table with a photo for each of these classes."""
    for k in range(len(kinds)):
        write_photo(root / f"{k}.png", k)
    return table(root, [(f"{k}.png", kind) for k, kind in enumerate(kinds)], *words)


# ------------------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize(
    ("found", "order"),
    [
        (["0", "1", "10", "11", "2"], ["0", "1", "2", "10", "11"]),
        (["10", "-3", "2", "-20"], ["-20", "-3", "2", "10"]),
        (["0.5", "10.25", "2.5", "-0.5"], ["-0.5", "0.5", "2.5", "10.25"]),
        (["b", "10", "a", "9"], ["10", "9", "a", "b"]),
        (["1e3", "2e1"], ["1e3", "2e1"]),
    ],
)
def test_classes_that_are_numbers_are_in_the_order_of_numbers(tmp_path, found, order):
    config = of_kinds(tmp_path, found)
    assert list(dataset.infer_classes(config).classes) == order
    rows, _ = dataset.training_rows(config)
    assert [order[k] for k in rows["target"]] == found


@pytest.mark.parametrize(
    ("spelled", "kept"),
    [
        ([NFC, NFC, NFD], NFC),
        (["1", "1.0", "1"], "1"),
        (["True", "TRUE", "True"], "True"),
        (["cat", "\uff43\uff41\uff54", "cat"], "cat"),
        (["cat", " cat", "cat\u200b", "cat"], "cat"),
        (["a b", "a\u00a0b", "a b"], "a b"),
    ],
    ids=["unicode forms", "1 and 1.0", "True and TRUE", "full width", "blanks", "blanks inside"],
)
def test_spellings_of_one_class_are_one_class_and_it_is_said(tmp_path, capsys, spelled, kept):
    config = of_kinds(tmp_path, [*spelled, "other"])
    assert set(dataset.infer_classes(config).classes) == {kept, "other"}
    said = capsys.readouterr().out
    assert f"are one class, {kept!r}" in said or len({word.strip() for word in spelled}) == 1
    rows, _ = dataset.training_rows(config)
    assert rows["target"].nunique() == 2 and rows["target"][: len(spelled)].nunique() == 1


def test_classes_that_differ_in_letter_case_are_refused_until_the_user_says_what_they_are(tmp_path):
    with pytest.raises(InputError, match=r"'Cat' \(2\) and 'cat' \(1\) differ in letter case only") as caught:
        dataset.infer_classes(of_kinds(tmp_path, ["Cat", "cat", "Cat", "dog"]))
    assert "\n" not in str(caught.value)
    for classes, targets in ((["Cat", "dog"], [0, 0, 0, 1]), (["Cat", "cat", "dog"], [0, 1, 0, 2])):
        heads = json.dumps([{"name": "kind", "classes": classes}])
        config = of_kinds(tmp_path, ["Cat", "cat", "Cat", "dog"], "--task.heads", heads)
        assert dataset.training_rows(config)[0]["target"].tolist() == targets


def test_a_class_that_is_named_is_found_in_any_spelling_and_its_own_goes_first():
    head = task.Head("kind", classes=["a", "A", "1", NFD, "straße"])
    assert [head.index_of(name) for name in ("a", "A", "\uff41", "1.0", NFC, "STRASSE", "\uff21")] == [
        0,
        1,
        0,
        2,
        3,
        4,
        1,
    ]
    assert head.parse("b")[1].startswith("kind is 'b', should be one of a, A, 1")
    assert task.Head("kind", classes=["cat", "dog"]).parse("Cat") == (0, "")


def test_a_run_keeps_the_order_of_classes_that_it_was_begun_with(tmp_path):
    old = ["0", "1", "10", "2"]
    config = of_kinds(tmp_path, ["0", "1", "2", "10"])
    config.task.heads[0].classes = old
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.json").write_text(json.dumps(as_dict(config)))
    again = of_kinds(tmp_path, ["0", "1", "2", "10"])
    assert list(dataset.infer_classes(again).classes) == old  # goes on
    follows = runs.read_for_run("", argv=["--run", str(tmp_path / "run")])
    assert follows.predicted.classes == tuple(old)  # answers
    anew = dataset.infer_classes(of_kinds(tmp_path, ["0", "1", "2", "10"]), overwrite=True)
    assert list(anew.classes) == ["0", "1", "2", "10"]


def test_where_an_index_reads_like_another_class_it_is_said():
    heads = [{"name": "kind", "classes": ["1", "2", "10"]}]
    assert "class 1 is written as its index, 0" in task.Task(heads).confused
    assert task.Task([{"name": "kind", "classes": ["0", "1", "2"]}]).confused == ""
    assert task.Task(heads, answer_as="name").confused == ""
    named = task.Task(heads, answer_as="name")
    assert named.read(["1", "2.0", "\uff11\uff10", "3", ""]).tolist()[:3] == [0, 1, 2]  # 3 is no index
    assert pd.isna(named.read(["3", ""])).all()


# --------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("on_disk", "in_table"),
    [(NFD, NFC), (NFC, NFD), ("A.JPG", "a.jpg"), ("a.jpg", "A.JPG"), ("\uff41", "a"), ("a", "\uff41")],
    ids=["NFD on the disk", "NFC on the disk", ".JPG on the disk", ".jpg on the disk", "full width", "half width"],
)
@pytest.mark.parametrize("where", ["name", "folder"])
def test_a_photo_that_is_there_is_found_whatever_the_form_of_its_name(tmp_path, capsys, on_disk, in_table, where):
    def path(name):
        name = name if name.lower().endswith("jpg") else f"{name}.jpg"
        return f"{name}/1.jpg" if where == "folder" else name

    for home in ("", "images"):
        write_photo(tmp_path / home / path(on_disk), 1)
    write_photo(tmp_path / "b.jpg", 2)
    config = table(tmp_path, [(path(in_table), "x"), ("b.jpg", "y")])
    rows, problems = dataset.training_rows(config)
    assert problems.rows == [] and rows["ImageID"].tolist() == [path(in_table), "b.jpg"]
    assert rows["photo"][0] == str(tmp_path / path(on_disk))
    assert "1 names have another letter case or Unicode form on the disk" in capsys.readouterr().out
    (tmp_path / "info.csv").write_text(f"ImageID\n{path(in_table)}\n", encoding="utf-8")
    config.data.eval = str(tmp_path)
    rows = dataset.eval_rows(config)
    assert rows[["ImageID", "photo"]].values.tolist() == [[path(in_table), str(tmp_path / "images" / path(on_disk))]]
    boxes = [{"image": path(in_table), "label": "x", "bbox": [0, 0, 9, 9]}]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    config.data.eval = str(tmp_path / "boxes.json")
    assert dataset.eval_rows(config)["photo"].tolist() == [str(tmp_path / path(on_disk))]


def test_the_folder_of_a_person_is_found_whatever_the_form_of_its_name(competition):
    path = competition.people[0][3]
    (competition.train / "images" / path).rename(competition.train / "images" / path.upper())
    rows, problems = dataset.training_rows(competition.config())
    assert problems.rows == [] and len(rows) == 84
    assert str(competition.train / "images" / path.upper() / "mask1.jpg") in rows["photo"].tolist()


def test_two_rows_that_name_one_file_are_one_photo_and_a_name_with_two_files_is_asked_about(tmp_path):
    for name in ("a.jpg", "b.jpg", "C.jpg", "c.jpg"):
        write_photo(tmp_path / name, len(name))
    with pytest.raises(InputError, match=r"row 3: photo 'A.JPG' stands on an earlier row already"):
        dataset.training_rows(table(tmp_path, [("a.jpg", "x"), ("A.JPG", "y"), ("b.jpg", "y")]))
    with pytest.raises(InputError, match=r"row 3: photo 'C.JPG' may be C.jpg or c.jpg: write it as it is"):
        dataset.training_rows(table(tmp_path, [("a.jpg", "x"), ("C.JPG", "y"), ("b.jpg", "y")]))
    rows, _ = dataset.training_rows(table(tmp_path, [("C.jpg", "x"), ("c.jpg", "y")]))
    assert rows["photo"].tolist() == [str(tmp_path / "C.jpg"), str(tmp_path / "c.jpg")]
    with pytest.raises(InputError, match=r"row 2: there is no photo .*d\.jpg"):
        dataset.training_rows(table(tmp_path, [("d.jpg", "x"), ("a.jpg", "x"), ("b.jpg", "y")]))


def test_photos_whose_names_read_alike_are_two_and_it_is_said(tmp_path, capsys):
    for k, name in enumerate((f"{NFC}.jpg", f"{NFD}.jpg")):
        write_photo(tmp_path / name, k)
    rows, _ = dataset.training_rows(table(tmp_path, [(f"{NFC}.jpg", "x"), (f"{NFD}.jpg", "y")]))
    assert rows["photo"].nunique() == 2
    assert "1 photos have a name that reads like another's; they stay apart" in capsys.readouterr().out


def test_another_form_of_a_name_does_not_lead_out_of_the_folder(tmp_path):
    write_photo(tmp_path / "outside.jpg", 1)
    home = tmp_path / "data"
    write_photo(home / "b.jpg", 2)
    write_photo(home / "c.jpg", 3)
    (home / "A.jpg").symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(InputError, match="leaves the folder"):
        dataset.training_rows(table(home, [("a.jpg", "x"), ("b.jpg", "x"), ("c.jpg", "y")]))


# --------------------------------------------------------------------------------------------------------- people


def test_a_person_whose_id_is_spelled_in_two_ways_is_one_person_and_zeros_count(tmp_path, capsys):
    people = ["kim", "Kim", NFC, NFD, "007", "7", "7.0"]
    for k in range(len(people)):
        write_photo(tmp_path / f"{k}.png", k)
    rows = [(f"{k}.png", "xy"[k % 2], person) for k, person in enumerate(people)]
    found, _ = dataset.training_rows(table(tmp_path, rows, header="photo,kind,id"))
    assert found["id"].tolist() == ["kim", "kim", NFC, NFC, "007", "7", "7.0"]
    assert "2 ids read like another and are taken for it: 'Kim' for 'kim'" in capsys.readouterr().out


def test_millions_of_plain_names_cost_little():
    texts = [f"{k:07}_Female/{k % 7}.jpg" for k in range(20_000)]
    assert names.one_spelling(texts) == {} and names.one_spelling([*texts, texts[5].upper()]) == {
        texts[5].upper(): texts[5]
    }
