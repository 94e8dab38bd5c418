"""Who is trained on is not scored on: small cases of people and photos in several sources, kept apart or refused."""

import json
import shutil

import pytest
from helpers import write_photo

import dataset
from foldface import cli, runs
from foldface.files import InputError

PEOPLE, FOLDS = 12, 2
HEADS = '[{"name": "kind", "classes": ["a", "b"]}]'


class World:
    """A table of 12 people with two photos each, a second table to train on, and photos to answer for."""

    def __init__(self, root):
        self.root, self.seed = root, 0
        self.train = self.table("train", [(f"p{n:02d}_{k}.jpg", n) for n in range(PEOPLE) for k in "xy"])
        self.eval = root / "eval"
        self.photo(self.eval / "unknown.jpg")

    def photo(self, path, like=None):
        """A new photo, or a copy of another."""
        self.seed += 1
        write_photo(path, self.seed)
        if like:
            shutil.copy(like, path)
        return path

    def table(self, name, photos, column="id"):
        """A table of (photo, id), its photos drawn where they aren't there; the class follows from the id."""
        home = self.root / name
        for photo, _ in photos:
            if not (home / photo).is_file():
                self.photo(home / photo)
        lines = [f"{photo},{person},{'ab'[sum(map(ord, str(person))) % 2]}" for photo, person in photos]
        (home / "table.csv").write_text(f"photo,{column},kind\n" + "\n".join(lines) + "\n", encoding="utf-8")
        return home / "table.csv"

    def config(self, *words, run="run"):
        known = ["--data.layout", "table", "--data.train", self.train, "--data.eval", self.eval, "--data.crops", ""]
        known += ["--task.heads", HEADS, "--task.answer_as", "name", "--train.folds", FOLDS, "--run", self.root / run]
        return cli.read("", argv=[*map(str, [*known, "--train.only_folds", "[]", *words])])

    def extra(self, *photos, column="id", name="more", layout="table"):
        """Words of a command line that add a table of (photo, id) to train on."""
        path = self.table(name, photos, column)
        return ["--data.extra", json.dumps([{"layout": layout, "path": str(path)}])]

    def dealt(self, *words):
        """The rows of a first run, whose folds a second has too."""
        return dataset.prepare(self.config(*words, run="first"))

    def pseudo(self, *photos):
        """Words of a command line that train photos to answer for: (name, fold)."""
        lines = [f"{name},{fold},0,0.9" for name, fold in photos]
        path = self.root / "first" / "pseudo.csv"
        path.write_text("ImageID,fold,ans,confidence\n" + "\n".join(lines) + "\n")
        return ["--data.pseudo", path]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def fold_of(rows, **of):
    """The one fold of the rows that have these values."""
    for column, value in of.items():
        rows = rows[rows[column] == value]
    assert rows["fold"].nunique() == 1
    return int(rows["fold"].iloc[0])


NAME = r"^(p\d+)_"


def same_ids(world):
    return world.extra(("a.jpg", 0), ("b.jpg", 1))


def same_ids_that_are_the_same_people(world):
    return [*same_ids(world), "--data.group", "id"]


def a_column_that_both_tables_have(world):
    world.train = world.table("train", [(f"p{n:02d}_{k}.jpg", n) for n in range(PEOPLE) for k in "xy"], "patient")
    return [*world.extra(("a.jpg", 3), column="patient"), "--data.group", "patient"]


def a_column_that_one_table_has(world):
    world.train = world.table("train", [(f"p{n:02d}_{k}.jpg", n) for n in range(PEOPLE) for k in "xy"], "patient")
    return [*world.extra(("a.jpg", 3)), "--data.group", "patient"]


def a_name_that_says_who_it_is(world):
    return [*world.extra(("p03_z.jpg", "zz")), "--data.group", NAME]


def a_name_that_says_that_it_is_another(world):
    return [*world.extra(("p77_z.jpg", 3)), "--data.group", NAME]


def a_name_that_says_nothing(world):
    return [*world.extra(("z.jpg", 3)), "--data.group", NAME]


def a_name_that_says_nothing_and_may(world):
    return [*world.extra(("z.jpg", 3)), "--data.group", NAME + "|(.+)"]


def an_empty_match(world):
    return ["--data.group", r"^(\d*)"]


def a_copy_of_a_training_photo(world):
    world.photo(world.root / "more" / "copy.jpg", like=world.root / "train" / "p05_x.jpg")
    return world.extra(("copy.jpg", 99))


def two_copies_in_one_set(world):
    world.photo(world.root / "more" / "copy.jpg", like=world.photo(world.root / "more" / "first.jpg"))
    return world.extra(("first.jpg", 98), ("copy.jpg", 99))


def a_copy_among_the_photos_to_answer_for(world):
    world.photo(world.eval / "copy.jpg", like=world.root / "train" / "p05_x.jpg")
    return []


def a_pseudo_label_in_the_fold_that_validates_the_person(world):
    rows = world.dealt("--data.group", NAME)
    world.photo(world.eval / "p03_e.jpg")
    return [*world.pseudo(("p03_e.jpg", fold_of(rows, id="p03"))), "--data.group", NAME]


def a_pseudo_label_in_a_fold_that_trains_the_person(world):
    rows = world.dealt("--data.group", NAME)
    world.photo(world.eval / "p03_e.jpg")
    return [*world.pseudo(("p03_e.jpg", 1 - fold_of(rows, id="p03"))), "--data.group", NAME]


def a_pseudo_label_of_whoever(world):
    world.dealt("--data.group", NAME)
    return [*world.pseudo(("unknown.jpg", 0), ("unknown.jpg", 1)), "--data.group", NAME]


def a_pseudo_label_of_a_copy(world):
    rows = world.dealt()
    world.photo(world.eval / "copy.jpg", like=world.root / "train" / "p05_x.jpg")
    return world.pseudo(("copy.jpg", fold_of(rows, id="5")))


def a_pseudo_label_of_a_copy_in_another_fold(world):
    rows = world.dealt()
    world.photo(world.eval / "copy.jpg", like=world.root / "train" / "p05_x.jpg")
    return world.pseudo(("copy.jpg", 1 - fold_of(rows, id="5")))


def a_pseudo_label_that_a_copy_in_another_fold_ties_to_the_person(world):
    """q_1 is a photo of p05, so q_2, which shows the same person by its name, is one too."""
    rows = world.dealt("--data.group", r"^(p\d+|q)_")
    fold = fold_of(rows, id="p05")
    world.photo(world.eval / "q_1.jpg", like=world.root / "train" / "p05_x.jpg")
    world.photo(world.eval / "q_2.jpg")
    return [*world.pseudo(("q_1.jpg", 1 - fold), ("q_2.jpg", fold)), "--data.group", r"^(p\d+|q)_"]


def set_aside(world, *words):
    """A person of the test set, and the words that put him there."""
    words = ["--data.test_size", 0.2, *words]
    rows = dataset.prepare(world.config(*words, run="aside"))
    return rows[rows["source"] == "test"]["ImageID"].iloc[0], words


def a_copy_of_a_test_photo(world):
    name, words = set_aside(world)
    world.photo(world.root / "more" / "copy.jpg", like=world.root / "train" / name)
    return [*world.extra(("copy.jpg", 99)), *words]


def a_person_of_the_test_set(world):
    name, words = set_aside(world, "--data.group", NAME)
    return [*world.extra((name.replace("_", "_other"), 99)), *words]


def a_pseudo_label_of_a_test_photo(world):
    name, words = set_aside(world)
    world.dealt(*words)
    world.photo(world.eval / "copy.jpg", like=world.root / "train" / name)
    return [*world.pseudo(("copy.jpg", 0)), *words]


CASES = [  # what is the case; what the line says, or None where it is no leak
    (same_ids, None),
    (same_ids_that_are_the_same_people, r"leak: person [01] is validated on .*\(extra rows\)"),
    (a_column_that_both_tables_have, r"leak: person 3 is validated on .*\(extra rows\)"),
    (a_column_that_one_table_has, None),
    (a_name_that_says_who_it_is, r"leak: person p03 is validated on .*\(extra rows\)"),
    (a_name_that_says_that_it_is_another, None),
    (a_name_that_says_nothing, r"more/z.jpg: data.group .* matches nothing in its name"),
    (a_name_that_says_nothing_and_may, None),
    (an_empty_match, r"p00_x.jpg: data.group .* matches nothing in its name \(and 23 more"),
    (a_copy_of_a_training_photo, r"leak: .*copy.jpg \(extra\) is trained on and is, byte for byte, the photo .*p05_x"),
    (two_copies_in_one_set, None),
    (a_copy_among_the_photos_to_answer_for, None),
    (a_pseudo_label_in_the_fold_that_validates_the_person, r"leak: person p03 is validated on .*\(pseudo rows\)"),
    (a_pseudo_label_in_a_fold_that_trains_the_person, None),
    (a_pseudo_label_of_whoever, None),
    (a_pseudo_label_of_a_copy, r"leak: .*copy.jpg \(pseudo\) .* byte for byte, the photo .*p05_x.jpg"),
    (a_pseudo_label_of_a_copy_in_another_fold, None),
    (
        a_pseudo_label_that_a_copy_in_another_fold_ties_to_the_person,
        r"leak: .*q_2.jpg \(pseudo\) .* together with .*p05",
    ),
    (a_copy_of_a_test_photo, r"leak: .*copy.jpg \(extra\) is trained on and is, byte for byte, the photo .*train/p\d+"),
    (a_person_of_the_test_set, r"leak: person p\d+ is validated on .*\(extra rows\); 1 such"),
    (a_pseudo_label_of_a_test_photo, r"leak: .*copy.jpg \(pseudo\) .* byte for byte"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "expected"), CASES, ids=[case.__name__ for case, _ in CASES])
def test_a_person_is_never_on_both_sides(world, case, expected):
    words = case(world)
    if expected:
        with pytest.raises(InputError, match=expected):
            dataset.prepare(world.config(*words))
    else:
        rows = dataset.prepare(world.config(*words))
        people = rows[rows["source"].isin(["train", "test"])].groupby("id")
        assert (people["fold"].nunique() == 1).all() and (people["source"].nunique() == 1).all()


def started(world, table, start, *words):
    """Prepare a run of a table, which starts from another run."""
    words = ["--data.train", table, "--model.init_from_run", start, "--train.only_folds", "[0, 1]", *words]
    config = world.config(*words, run=f"after_{start}")
    dataset.prepare(config)
    runs.save(config)


@pytest.mark.slow
def test_a_fold_does_not_start_from_weights_that_saw_its_photos_as_extra_rows(world, capsys):
    dataset.prepare(world.config(*world.extra(("a.jpg", 0), ("b.jpg", 1)), run="first"))
    people = [(f"z{n}.jpg", f"z{n}") for n in range(6)]
    other, own = world.table("other", people), world.table("own", [*people, ("copy.jpg", "me")])
    shutil.copy(world.root / "more" / "a.jpg", world.root / "own" / "copy.jpg")
    with pytest.raises(InputError, match=r"leak: .*first/fold\d, which was trained on person me"):
        started(world, own, "first")
    started(world, other, "first")
    with pytest.raises(InputError, match=r"leak: .*after_first/fold\d, which was trained on person me"):
        started(world, own, "after_first")
    shutil.rmtree(world.root / "first")
    assert "are not compared" not in capsys.readouterr().err
    with pytest.raises(InputError, match="which was trained on person z"):  # in the other half there
        started(world, own, "after_first", "--seed", 3)
    assert "first/fold0, which " in capsys.readouterr().err


@pytest.mark.slow
def test_a_fold_does_not_start_from_weights_that_saw_its_people_as_extra_rows(world):
    words = ["--data.group", NAME]
    dataset.prepare(world.config(*words, *world.extra(("p20_x.jpg", 0), ("p21_x.jpg", 0)), run="first"))
    people = [(f"p{n}_y.jpg", 0) for n in range(30, 36)]
    started(world, world.table("other", people), "first", *words)
    with pytest.raises(InputError, match="which was trained on person p21 and 0 more"):
        started(world, world.table("own", [*people, ("p21_z.jpg", 0)]), "first", *words)


def test_people_of_two_tables_with_the_same_ids_are_said_to_count_as_different(world, capsys):
    rows, _ = dataset.training_rows(world.config(*same_ids(world)))
    assert rows[rows["source"] == "extra"]["id"].tolist() == ["extra1/0", "extra1/1"]
    assert "2 ids, such as 0, are ids of data.train too" in capsys.readouterr().err


@pytest.mark.slow
def test_pseudo_labels_that_data_group_says_nothing_of_are_counted(world, capsys):
    dataset.prepare(world.config(*a_pseudo_label_of_whoever(world)))
    assert "says nothing of 2 of 2 pseudo-labelled photos, such as unknown.jpg" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("Ann", "ann"), ("Zoe\u0308", "Zo\u00eb")], ids=["letter case", "Unicode form"])
def test_ids_that_read_alike_share_a_fold(world, pair):
    for seed in range(4):
        photos = [(f"{n}.jpg", n) for n in range(8)]
        world.train = world.table("train", [*photos, ("s.jpg", pair[0]), ("t.jpg", pair[1])])
        rows = dataset.prepare(world.config("--seed", seed, run=f"run{seed}")).set_index("ImageID")["fold"]
        assert rows["s.jpg"] == rows["t.jpg"]


def test_photos_of_equal_name_in_two_extra_sets_stay_two(world):
    more = [{"layout": "table", "path": str(world.table(name, [("a.jpg", 0)]))} for name in ("more", "others")]
    rows, _ = dataset.training_rows(world.config("--data.extra", json.dumps(more)))
    extra = rows[rows["source"] == "extra"]
    assert extra["ImageID"].tolist() == ["extra1/a.jpg", "extra2/a.jpg"]
    assert extra["id"].tolist() == ["extra1/0", "extra2/0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "changed"),
    [("photo,column,value\np00_x.jpg,kind,b", ["p00_x.jpg"]),
     ("photo,column,value\nextra1/p00_x.jpg,kind,b", ["extra1/p00_x.jpg"]),
     ("id,column,value\n0,kind,b", ["p00_x.jpg", "p00_y.jpg"]),
     ("id,column,value\nextra1/0,kind,b", ["extra1/p00_x.jpg", "extra1/q.jpg"])],
)  # fmt: skip
def test_a_correction_reaches_the_table_that_it_names_and_no_other(world, line, changed):
    words = world.extra(("p00_x.jpg", 0), ("q.jpg", 0))
    before, _ = dataset.training_rows(world.config(*words))
    (world.root / "corrections.csv").write_text(line + "\n")
    after, _ = dataset.training_rows(world.config(*words, "--data.corrections", world.root / "corrections.csv"))
    assert after["ImageID"][after["kind"] != before["kind"]].tolist() == changed


def test_a_name_that_only_an_extra_set_has_is_shown_as_it_is_to_be_written(world):
    (world.root / "corrections.csv").write_text("photo,column,value\nq.jpg,kind,b\n")
    words = [*world.extra(("q.jpg", 0)), "--data.corrections", world.root / "corrections.csv"]
    with pytest.raises(InputError, match=r"row 2: there is no photo 'q.jpg' .*; data.extra has extra1/q.jpg"):
        dataset.training_rows(world.config(*words))
