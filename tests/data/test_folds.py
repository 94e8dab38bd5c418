"""Folds: people stay together, classes stay in proportion, seeds mean something, leaks are refused."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers import MASK, ROOT

import dataset
import pseudo_label
from foldface import predictions
from foldface.data import folds, leaks
from foldface.files import InputError, read_csv, read_json

REAL_TABLE = {("female", 25): 732, ("female", 45): 817, ("female", 60): 109,
              ("male", 25): 549, ("male", 45): 410, ("male", 60): 83}  # fmt: skip


def real_rows():
    """Rows of the real table's size and shape: 2,700 people, seven photos each."""
    people = [(gender == "female", age) for (gender, age), count in REAL_TABLE.items() for _ in range(count)]
    people = [people[n] for n in np.random.default_rng(0).permutation(len(people))]
    rows = pd.DataFrame(
        [(f"{n:06d}", int(gender), age) for n, (gender, age) in enumerate(people) for _ in range(7)],
        columns=["id", "gender", "age"],
    )
    target = MASK.encode(0, rows["gender"], MASK.number.class_of(rows["age"]))
    return rows.assign(source="train", split="", target=target, twin=np.arange(len(rows)))


@pytest.mark.slow
@pytest.mark.parametrize("splitter", ["pandas_streaming", "sklearn"])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_class_strays_more_than_8_percent_from_its_share(competition, splitter, seed):
    config = competition.config("--data.splitter", splitter, "--seed", seed, "--train.folds", 5)
    rows = folds.assign_folds(real_rows(), config)
    assert (rows.groupby("id")["fold"].nunique() == 1).all()
    people = rows.drop_duplicates("id")
    overall = people.value_counts(["gender", "age"], normalize=True)
    for _, fold in people.groupby("fold"):
        share = fold.value_counts(["gender", "age"], normalize=True)
        assert (abs(share / overall - 1) <= 0.08).all()
        assert 530 <= len(fold) <= 550


@pytest.mark.parametrize(("people", "count", "most"), [(30, 2, 1), (100, 5, 1), (1000, 5, 2), (31, 3, 1), (7, 2, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_folds_are_even_and_so_is_each_stratum(people, count, most, seed):
    stratum = np.arange(people) % 6
    fold = folds.deal(pd.DataFrame({"group": range(people), "stratum": stratum}), count, "pandas_streaming", seed)
    size = np.bincount(fold, minlength=count)
    assert size.max() - size.min() <= most and size.sum() == people
    for one in range(6):
        inside = np.bincount(fold[stratum == one], minlength=count)
        assert inside.max() - inside.min() <= 1


def test_folds_that_are_even_already_stay_as_pandas_streaming_deals_them():
    """The real table's, 537 to 542 people, so that runs and pseudo labels of earlier versions have the same folds."""
    rows = real_rows()
    people = folds.strata(rows, folds.groups(rows))
    fold = folds.deal(people, 5, "pandas_streaming", 0)
    assert np.bincount(fold).tolist() == [540, 542, 539, 542, 537]  # nobody was moved to make them more even


def test_a_person_is_dealt_by_what_most_of_their_photos_are():
    rows = pd.DataFrame({"target": [4, 9, 9, 7, 2, 2, 7, 5]})
    found = folds.strata(rows, np.array([0, 0, 0, 1, 1, 2, 2, 2]))
    assert found["group"].tolist() == [0, 1, 2]
    assert found["stratum"].tolist() == [9, 7, 2]  # of equally many the first


def test_numbers_are_dealt_by_the_tenth_in_which_a_persons_median_lies():
    value = np.random.default_rng(0).permutation(200).astype(float)
    rows = pd.DataFrame({"target": np.concatenate([value, value, np.full(200, 1e6)])})
    found = folds.strata(rows, np.tile(np.arange(200), 3))
    assert (abs(found["stratum"] - value // 20) <= 1).all()
    assert found["stratum"].value_counts().reindex(range(10)).between(19, 21).all()


def test_a_photo_that_vanishes_while_it_is_compared_is_like_no_other(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(100))
    rows = pd.DataFrame({"photo": [str(tmp_path / name) for name in ("a", "b", "missing", "gone")]})
    assert folds.twins(rows).tolist() == [0, 0, 1, 2]

    def vanished(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(folds.Path, "read_bytes", vanished)
    assert folds.twins(rows).tolist() == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("splitter", ["pandas_streaming", "sklearn"])
def test_the_seed_decides_the_folds_in_any_process(competition, splitter, tmp_path):
    def dealt(seed, hashseed, name):
        words = [
            "--data.train",
            competition.train,
            "--run",
            tmp_path / name,
            "--seed",
            seed,
            "--train.only_folds",
            "[]",
        ]
        words += ["--data.crops", "", "--train.folds", 2, "--data.splitter", splitter]
        subprocess.run([sys.executable, ROOT / "train_kfold.py", *map(str, words)], check=True, capture_output=True,
                       env=os.environ | {"PYTHONHASHSEED": str(hashseed)})  # fmt: skip
        return (tmp_path / name / "folds.csv").read_bytes()

    first = dealt(0, 1, "a")
    assert dealt(0, 2, "b") == first == dealt(0, 77, "c")
    assert dealt(1, 1, "d") != first


@pytest.mark.slow
def test_the_folds_and_their_command_never_import_torch(competition):
    code = (
        "import sys; sys.argv = ['train_kfold.py', '--train.only_folds', '[]', '--data.crops', '', '--data.train', "
        f"'{competition.train}', '--run', '{competition.root / 'run'}', '--train.folds', '2']\n"
        "import train_kfold; train_kfold.main(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_doubled_id_and_people_with_an_identical_photo_stay_together(competition):
    rows = real_rows()
    rows.loc[rows["id"] == "000041", "id"] = "000040"  # one id on two rows, as in the real table
    rows.loc[rows.index[7 * 100], "twin"] = rows.loc[rows.index[7 * 2000], "twin"]
    rows = folds.assign_folds(rows, competition.config("--train.folds", 5))
    fold = rows.drop_duplicates("id").set_index("id")["fold"]
    assert (rows[rows["id"] == "000040"]["fold"].nunique(), len(rows[rows["id"] == "000040"])) == (1, 14)
    assert fold["000100"] == fold["002000"]


def test_identical_photos_are_found_whatever_they_are_called(competition):
    config = competition.config()
    home = competition.train / "images"
    copy = (home / competition.people[0][3] / "mask1.jpg").read_bytes()
    (home / competition.people[5][3] / "normal.jpg").write_bytes(copy)
    rows = dataset.prepare(competition.config("--train.only_folds", "[]"))
    assert len(rows) - rows["twin"].nunique() == 1
    fold = rows.drop_duplicates("id").set_index("id")["fold"]
    assert fold["000000"] == fold["000005"]
    # same size and same middle, another end: no twins
    changed = bytearray(copy)
    changed[-1] ^= 1
    (home / competition.people[5][3] / "normal.jpg").write_bytes(bytes(changed))
    fresh, _ = dataset.training_rows(config)
    assert len(np.unique(folds.twins(fresh))) == len(fresh)


@pytest.mark.slow
def test_folds_are_made_once_and_then_read(competition):
    config = competition.config()
    folds.assign_folds(real_rows(), config)
    path = competition.root / "run" / "folds.csv"
    frame = read_csv(path, folds.FOLD_COLUMNS)
    assert len(frame) == 2700 and frame["id"].is_unique
    swapped = frame.assign(fold=frame["fold"].map({"0": "1", "1": "0"}))
    swapped.to_csv(path, index=False)
    rows = folds.assign_folds(real_rows(), config).drop_duplicates("id").set_index("id")["fold"]
    assert (rows[swapped["id"]].to_numpy() == swapped["fold"].astype(int)).all()


def begin(run):
    """As if a step had been trained and kept."""
    (run / "fold0").mkdir()
    (run / "fold0" / "state.pt").write_bytes(b"")


@pytest.mark.slow
def test_until_a_step_is_trained_folds_follow_the_data_and_the_settings(competition):
    run = competition.root / "run"
    dataset.prepare(competition.config("--train.folds", 3))
    dataset.prepare(competition.config("--seed", 1))
    first = (run / "folds.csv").read_bytes()
    dataset.prepare(competition.config("--seed", 1, "--run", competition.root / "other"))
    assert first == (competition.root / "other" / "folds.csv").read_bytes()
    rows = [[f"new{i}", gender, "x", age, path] for i, gender, age, path in competition.people]
    competition.write_table(rows=rows)
    dataset.prepare(competition.config("--seed", 1))
    assert set(read_csv(run / "folds.csv", ["id"])["id"]) == {row[0] for row in rows}
    begin(run)
    kept = (run / "folds.csv").read_bytes()
    dataset.prepare(competition.config("--seed", 2))  # args.refuse_other_settings says what this is
    assert (run / "folds.csv").read_bytes() == kept


def test_a_run_does_not_go_on_with_crops_made_in_another_way(competition):
    config = competition.config()
    dataset.prepare(config)
    record = read_json(competition.root / "run" / "data.json", "")
    other = record | {"crops": {"size": 224, "margin": 0.4}}
    leaks.refuse_other_data(config, record, other)  # nothing was trained yet
    (competition.root / "run" / "fold0").mkdir()
    (competition.root / "run" / "fold0" / "log.csv").touch()
    leaks.refuse_other_data(config, record, record)
    with pytest.raises(InputError, match="was begun on crops made in another way than whole photos"):
        leaks.refuse_other_data(config, record, other)


@pytest.mark.slow
def test_folds_that_were_brought_are_never_dealt_again(competition):
    """A folds.csv that lay there first, or that was changed by hand, holds, after a slip too."""
    run = competition.root / "run"
    run.mkdir()
    mine = "id,fold\n" + "".join(f"{person[0]},{n // 6}\n" for n, person in enumerate(competition.people))
    (run / "folds.csv").write_text(mine)
    for words in ([], ["--seed", 1], ["--data.strict", "false"]):
        dataset.prepare(competition.config(*words))
        assert (run / "folds.csv").read_text() == mine
    (run / "folds.csv").unlink()
    dataset.prepare(competition.config())
    (run / "folds.csv").write_text(mine)
    dataset.prepare(competition.config("--seed", 1))
    assert (run / "folds.csv").read_text() == mine


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [(lambda path: path.write_text(path.read_text().replace(",0", ",2").replace(",1", ",0").replace(",2", ",1")),
      "folds.csv was changed after training began: put the former one back"),
     (lambda path: path.unlink(), "folds.csv was changed after training began"),
     (lambda path: path.write_text(path.read_text() + "000000,1\n"), "row 14: id '000000', .* stands there twice"),
     (lambda path: path.write_bytes(b"\xff\xfe\0"), "is not UTF-8"),
     (lambda path: path.write_text(""), "is empty"),
     (lambda path: path.with_name("data.json").write_text("[]"), "data.json: is not as it was written"),
     (lambda path: path.with_name("data.json").write_text("{"), "data.json: can't be read as JSON")],
)  # fmt: skip
def test_folds_that_change_after_training_began_are_refused(competition, change, expected):
    dataset.prepare(competition.config())
    run = competition.root / "run"
    begin(run)
    dataset.prepare(competition.config())
    lines = (run / "folds.csv").read_text().splitlines()
    (run / "folds.csv").write_bytes("\r\n".join([lines[0], *sorted(lines[1:])[::-1], ""]).encode())
    dataset.prepare(competition.config())  # another order or line end is no change
    change(run / "folds.csv")
    with pytest.raises(InputError, match=expected):
        dataset.prepare(competition.config())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [(lambda frame: frame.assign(fold="7"), "row 2: answer0.jpg: fold is not one of the folds 0 to 1"),
     (lambda frame: frame.assign(fold="0.5"), "row 2: .* fold is not one of"),
     (lambda frame: frame.assign(ans="18"), "row 2: .* ans is not a class, 0 to 17"),
     (lambda frame: frame.assign(ans="-1"), "row 2: .* ans is not a class"),
     (lambda frame: frame.assign(ans="x"), "row 2: .* ans is not a class"),
     (lambda frame: frame.assign(confidence="high"), "row 2: .* confidence is not between 0 and 1"),
     (lambda frame: frame.assign(ImageID=[*frame["ImageID"][:-1], "no.jpg"]), "row 11: no.jpg: is not in"),
     (lambda frame: pd.concat([frame, frame[:1]]), "row 12: answer0.jpg: stands there for its fold already"),
     (lambda frame: frame.assign(p3="x"), "row 2: p3 is 'x', which is no number"),
     (lambda frame: frame.drop(columns="ans"), "has no column ans"),
     (lambda frame: frame.assign(p0=frame["p5"], p5=frame["p0"]), r"leak: .*row \d+: .* is not what .*fold0.csv says"),
     (lambda frame: frame.assign(ans=(frame["ans"].astype(int) + 1) % 18), r"leak: .* is not what .*fold0.csv says"),
     (lambda frame: frame.drop(columns="p7").assign(p3="0.5"), r"leak: .* is not what .*fold0.csv says")],
)  # fmt: skip
def test_damaged_pseudo_labels_are_one_line(competition, tmp_path, change, expected):
    dataset.prepare(competition.config())
    made, rng = competition.root / "run", np.random.default_rng(0)
    parts = []
    for fold in (0, 1):
        names = pd.DataFrame({"ImageID": competition.images})
        frame = predictions.with_answers(MASK, names, rng.dirichlet(np.full(18, 0.1), len(names)))
        frame.to_csv(made / f"fold{fold}.csv", index=False)
        parts.append(
            pseudo_label.choose(MASK, predictions.read_fold(MASK, made / f"fold{fold}.csv"), 0, 0).assign(fold=fold)
        )
    pd.concat(parts).to_csv(made / "pseudo.csv", index=False)
    frame = read_csv(made / "pseudo.csv", []).sort_values(["fold", "ImageID"], ignore_index=True)
    frame.to_csv(made / "pseudo.csv", index=False)
    words = ["--data.pseudo", made / "pseudo.csv", "--run", tmp_path / "second"]
    assert (dataset.prepare(competition.config(*words))["source"] == "pseudo").sum() == 10
    change(frame).to_csv(made / "pseudo.csv", index=False)
    for soft in ("false", "true"):
        with pytest.raises(InputError, match=expected if soft == "false" else "pseudo.csv"):
            dataset.prepare(competition.config(*words, "--data.pseudo_soft", soft))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [(lambda frame: frame[1:], "has no fold there"),
     (lambda frame: frame[:0], "has no fold there"),
     (lambda frame: pd.concat([frame, frame[:1]]), "row 2702: id '000000', .* stands there twice"),
     (lambda frame: frame.assign(fold="4"), "was made for 5 folds"),
     (lambda frame: frame.assign(fold=""), "row 2: id '000000', fold '': fold should be 0, 1"),
     (lambda frame: frame.assign(fold="1.5"), "row 2: .* fold '1.5': fold should be 0, 1"),
     (lambda frame: frame.assign(fold="inf"), "row 2: .* fold should be 0, 1"),
     (lambda frame: frame.assign(fold="-3"), "row 2: .* fold should be 0, 1"),
     (lambda frame: frame.assign(fold="zero"), "row 2: .* fold should be 0, 1"),
     (lambda frame: frame.assign(id=frame["id"].where(frame["id"] != "000007", "")), "row 9: id '', .* id is empty"),
     (lambda frame: frame.rename(columns={"fold": "part"}), "has no column fold"),
     (lambda frame: frame.assign(id=frame["id"].astype(int)), "person 000000 .* has no fold there")],
)  # fmt: skip
def test_folds_that_do_not_fit_the_data_are_refused(competition, change, expected):
    config = competition.config()
    folds.assign_folds(real_rows(), config)
    path = competition.root / "run" / "folds.csv"
    change(read_csv(path, folds.FOLD_COLUMNS)).to_csv(path, index=False)
    with pytest.raises(InputError, match=expected):
        folds.assign_folds(real_rows(), config)


def test_the_gate_names_the_person_or_photo_on_both_sides():
    rows = folds.pd.DataFrame({"id": ["a", "b", "c"], "twin": [0, 1, 2], "photo": ["a.jpg", "b.jpg", "c.jpg"],
                               "source": ["train", "extra", "train"]})  # fmt: skip
    leaks.refuse_leaks(rows[:2], rows[2:])
    with pytest.raises(InputError, match=r"leak: person b .*extra rows"):
        leaks.refuse_leaks(rows[:2], rows[2:].assign(id="b"))
    with pytest.raises(InputError, match=r"leak: b.jpg \(extra\) .*c.jpg"):
        leaks.refuse_leaks(rows[:2], rows[2:].assign(twin=1))


def test_an_extra_photo_that_is_validated_on_stops_training(competition, tmp_path):
    source = competition.train / "images" / competition.people[0][3] / "normal.jpg"
    (tmp_path / "aaf").mkdir()
    (tmp_path / "aaf" / "00001A20.jpg").write_bytes(source.read_bytes())
    extra = f'[{{"layout": "aaf", "path": "{tmp_path / "aaf"}"}}]'
    with pytest.raises(InputError, match=r"leak: .*00001A20.jpg \(extra\)"):
        dataset.prepare(competition.config("--data.extra", extra))


@pytest.mark.slow
def test_pseudo_labels_train_their_own_fold_alone_and_only_with_the_same_folds(competition, tmp_path):
    dataset.prepare(competition.config())
    made = competition.root / "run"
    (made / "pseudo.csv").write_text("ImageID,fold,ans,confidence\nanswer0.jpg,0,3,0.99\nanswer0.jpg,1,4,0.98\n")
    words = ["--data.pseudo", made / "pseudo.csv", "--run", tmp_path / "second"]
    rows = dataset.prepare(competition.config(*words))
    for k, label in ((0, 3), (1, 4)):
        training, validation = folds.split(rows, k)
        assert training[training["source"] == "pseudo"]["label"].tolist() == [label]
        assert set(validation["source"]) == {"train"} and len(validation) + len(training) == 84 + 1
    with pytest.raises(InputError, match=r"leak: .* has others"):
        dataset.prepare(competition.config(*words, "--seed", 5, "--run", tmp_path / "third"))


@pytest.mark.slow
def test_pseudo_labels_by_a_model_that_saw_the_fold_are_caught(competition, tmp_path):
    """The second way to cheat: fold 0 is trained on what fold 1's model, which was trained on fold 0's people, says."""
    dataset.prepare(competition.config())
    made, names = competition.root / "run", competition.images
    rng = np.random.default_rng(0)
    for fold in (0, 1):
        probabilities = rng.dirichlet(np.full(18, 0.1), len(names))
        predictions.with_answers(MASK, pd.DataFrame({"ImageID": names}), probabilities).to_csv(
            made / f"fold{fold}.csv", index=False
        )
    competition.run(pseudo_label, "--pseudo.threshold", 0)
    words = ["--data.pseudo", made / "pseudo.csv", "--run", tmp_path / "second"]
    rows = dataset.prepare(competition.config(*words))
    assert (rows["source"] == "pseudo").sum() == 2 * len(names)
    frame = read_csv(made / "pseudo.csv", ["fold"])
    frame.assign(fold=1 - frame["fold"].astype(int)).to_csv(made / "pseudo.csv", index=False)
    with pytest.raises(InputError, match=r"leak: .*pseudo.csv, row \d+: .* is to train fold \d, but that is not what"):
        dataset.prepare(competition.config(*words))


def test_what_each_fold_holds_is_shown(competition, capsys):
    dataset.prepare(competition.config())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["fold", "0", "fold", "1"]
    assert lines[1].split() == ["photos", "42", "42"] and lines[2].split()[-2:] == ["6", "6"]
    assert any(line.split() == ["female", "30-59", "1", "1"] for line in lines)
