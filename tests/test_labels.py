"""Several labels a photo: a head of kind multilabel, from the table to submission.csv."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as theirs
from test_competitions import play  # noqa: F401 (a fixture)
from test_tasks import SMALL, paint
from timm.loss import AsymmetricLossMultiLabel

import dataset
import ensemble
import inference
import loss
import pseudo_label
import train_kfold
from foldface import blend, cli, metrics, predictions, submission
from foldface.data import corrections, folds
from foldface.data.iterative import deal_iterative
from foldface.files import InputError, read_json, write_csv
from foldface.nn import gradcam
from foldface.nn.heads import Heads
from foldface.settings import LossConfig
from foldface.task import Task
from tools import check_submission, eda, explain, label_errors

pytestmark = pytest.mark.usefixtures("one_accelerator")
NAMES = ["cat", "dog", "owl"]
LABELS = [{"name": "labels", "kind": "multilabel", "classes": NAMES}]


def task(**more):
    return Task(LABELS, **more)


def drawn(n=240, seed=0):
    """Sets (n,) of three labels, probabilities (n, 3) that know something of them, people (n,) of three photos each."""
    rng, own = np.random.default_rng(seed), task()
    has = rng.random((n, 3)) < [0.5, 0.3, 0.1]
    told = 1 / (1 + np.exp(-(rng.normal(size=(n, 3)) + 2 * has - 1.5)))
    return own.code(has), told, np.arange(n) // 3 + 100


def test_a_set_of_labels_is_a_number_whose_bits_are_labels():
    own = task(answer_as="name")
    assert own.code([[True, False, True], [False] * 3]).tolist() == [5, 0]
    assert own.sets([5, 0]).tolist() == [[True, False, True], [False] * 3]
    assert own.written([5, 0]).tolist() == ["cat owl", ""] and task().written([5]).tolist() == ["0 2"]
    assert own.decide(np.array([[0.5, 0.4, 0.9]])).tolist() == [5] and (own.size, own.probabilities[-1]) == (3, "p2")
    many = Task([{"name": "x", "kind": "multilabel", "classes": [f"c{k}" for k in range(62)]}])
    assert many.sets(many.code(np.eye(62, dtype=bool))).astype(int).tolist() == np.eye(62).astype(int).tolist()


@pytest.mark.parametrize("how", ["cells", "columns"])
def test_labels_are_read_from_cells_with_blanks_or_from_columns_of_yes_and_no(tmp_path, how):
    for n in range(4):
        paint(tmp_path / f"{n}.png", (9, 9, 9), n)
    if how == "cells":
        text, heads = "photo,labels\n0.png,owl cat\n1.png,\n2.png,dog\n3.png,cat dog owl\n", [{"name": "labels"}]
    else:
        text = "photo,cat,dog,owl\n0.png,1,0,1\n1.png,0,0,0\n2.png,no,yes,no\n3.png,1.0,TRUE,y\n"
        heads = [{"name": "labels", "columns": NAMES}]
    (tmp_path / "train.csv").write_text(text)
    heads[0]["kind"] = "multilabel"
    words = ["--data.train", str(tmp_path / "train.csv"), "--task.heads", json.dumps(heads)]
    config = cli.read("", argv=words)
    rows, _ = dataset.training_rows(config)
    assert config.predicted.classes == tuple(NAMES) and rows["target"].tolist() == [5, 0, 2, 7]
    broken = text.replace("dog\n3", "cow\n3") if how == "cells" else text.replace("no,yes,no", "no,maybe,no")
    (tmp_path / "train.csv").write_text(broken)
    words[-1] = json.dumps([heads[0] | {"classes": NAMES}])
    with pytest.raises(InputError, match="row 4: labels has 'cow'" if how == "cells" else "row 4: dog is 'maybe'"):
        dataset.training_rows(cli.read("", argv=words))


def test_scores_of_labels_are_scikit_learns_with_intervals_over_people():
    target, told, people = drawn()
    has = task().sets(target).astype(int)
    answer = (told >= 0.5).astype(int)
    expected = {
        "f1": theirs.f1_score(has, answer, average="macro"),
        "accuracy": theirs.accuracy_score(has, answer),
        "roc_auc": theirs.roc_auc_score(has, told),
        "average_precision": theirs.average_precision_score(has, told),
        "log_loss": np.mean([theirs.log_loss(has[:, k], told[:, k]) for k in range(3)]),
        "f1_samples": theirs.f1_score(has, answer, average="samples", zero_division=0),
        "f1_micro": theirs.f1_score(has, answer, average="micro"),
        "jaccard_macro": theirs.jaccard_score(has, answer, average="macro"),
    }
    for name, value in expected.items():
        own = task(score=name)
        assert metrics.value(own, target, told) == pytest.approx(value), name
        low, high = metrics.interval(own, target, told, people, samples=50)
        assert low < value < high, name
        who = np.random.default_rng(0).integers(80, size=80)
        photos = np.concatenate([np.flatnonzero(people == one + 100) for one in who])
        first = metrics.bootstrap_scores(own, target, [told], people, samples=1)[0, 0]
        assert first == pytest.approx(metrics.value(own, target[photos], told[photos])), name
    with pytest.raises(InputError, match=r"cohen_kappa is for one class a photo: choose f1, accuracy, roc_auc"):
        metrics.score_of(task(score="cohen_kappa"))


def test_folds_have_even_shares_of_rare_labels_and_keep_groups():
    rng, own = np.random.default_rng(0), task()
    has = rng.random((200, 3)) < [0.5, 0.2, 0.05]
    people = pd.DataFrame({"group": np.arange(200), "stratum": own.code(has)})
    fold = folds.deal(people, 5, "iterative", 0)
    counts = np.array([has[fold == k].sum(0) for k in range(5)])
    assert (counts.max(0) - counts.min(0) <= [2, 2, 1]).all() and np.bincount(fold).tolist() == [40] * 5
    assert not np.array_equal(fold, deal_iterative(people, 5, 1)) and np.array_equal(fold, deal_iterative(people, 5, 0))
    rows = pd.DataFrame({"target": [1, 2, 4], "id": ["a", "a", "b"]})
    assert folds.strata(rows, np.array([0, 0, 1]), True)["stratum"].tolist() == [3, 4]  # all labels of a group


@pytest.mark.parametrize("name", ["cross_entropy", "asymmetric"])
def test_the_loss_of_labels_is_the_librarys_and_a_yes_of_a_rare_label_counts_more(name):
    own, raw = task(), torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    rows = pd.DataFrame({"label": [1, 3, 0, 1, 7, 1], "labels": [1, 3, 0, 1, 7, 1]})
    targets = loss.Targets(own, rows, LossConfig(name=name))
    yes = torch.tensor(own.sets(rows["label"]).astype("float32"))
    assert targets.classes.tolist() == yes.tolist()
    made = loss.Loss(Heads(own), LossConfig(name=name), rows["label"].to_numpy())
    each = made(raw, *targets.of(torch.arange(6), "cpu"))
    if name == "asymmetric":
        expected = AsymmetricLossMultiLabel()(raw, yes)
    else:
        expected = torch.nn.functional.binary_cross_entropy_with_logits(raw, yes, reduction="sum") / 6
    assert each.shape == (6,) and each.mean() == pytest.approx(expected.item(), rel=1e-5)
    weights = loss.label_weights(own, "inverse", rows["label"].to_numpy())
    assert weights.tolist() == pytest.approx([1 / 5, 4 / 2, 5])
    config = LossConfig(name=name, smoothing=0.2)
    assert loss.Targets(own, rows, config).classes.unique().tolist() == pytest.approx([0.1, 0.9])
    assert Heads(own).answers(torch.zeros(1, 3)).tolist() == [[0.5] * 3]


def test_thresholds_are_found_where_they_are_and_scored_on_people_that_they_were_not_chosen_on():
    own, rng = task(), np.random.default_rng(1)
    has = rng.random((600, 3)) < 0.3
    told = np.where(has, 0.35, 0.15) + rng.normal(size=(600, 3)) * 0.04  # never a half
    target = own.code(has)
    found = blend.choose_thresholds(own, told, target)
    assert ((found >= 0.2) & (found <= 0.3)).all()
    bent = blend.at_thresholds(told, found)
    assert np.array_equal(own.decide(bent), own.code(told >= found)) and ((bent >= 0) & (bent <= 1)).all()

    def fit(rows):
        chosen = blend.choose_thresholds(own, told[rows], target[rows])
        return lambda others: own.code(told[others] >= chosen)

    nested = blend.nested(fit, target, np.arange(600) % 5)
    assert metrics.value(own, target, nested) > 0.9 > 0.1 > metrics.value(own, target, told)
    noise = own.code(rng.random((600, 3)) < 0.3)  # what the probabilities know nothing of
    plain = metrics.value(own, noise, np.full(600, 7))
    target[:] = noise
    assert metrics.value(own, noise, blend.nested(fit, target, np.arange(600) % 5)) <= plain + 0.02


@pytest.mark.parametrize(
    ("heads", "words", "said"),
    [
        ([{"name": f"h{k}", "classes": ["0", "1"]} for k in range(12)], [],
         r"12 heads of two classes make 4096 answers; for several labels a photo take one head: .*multilabel"),
        (LABELS, ["--model.heads", "joint"], "several labels a photo: take multi"),
        (LABELS, ["--loss.name", "focal"], "loss.name focal is for one class a photo"),
        (LABELS, ["--train.sampler", "balanced"], "train.sampler balanced is for one class a photo"),
        ([{"name": "a", "classes": ["x", "y"]}], ["--loss.name", "asymmetric"], "asymmetric is for several labels"),
        ([*LABELS, {"name": "a", "classes": ["x", "y"]}], [], "kind multilabel makes the answer alone"),
        ([{"name": "a", "columns": ["x", "y"]}], [], 'has columns, which are of "kind": "multilabel"'),
        ([{"name": "a", "kind": "multilabel", "classes": ["big cat", "dog"]}], [], "a class with a blank"),
        ([{"name": "a", "kind": "multilabel", "classes": [f"c{k}" for k in range(63)]}], [], "63 labels, more than 62"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_several_labels_is_refused_in_one_line(heads, words, said):
    with pytest.raises(InputError, match=said) as caught:
        cli.read("", argv=["--task.heads", json.dumps(heads), *words])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("id,labels\na,cat dog\nb,owl\n", "id,labels\na,cat owl\nb,dog\n"),
        ("id,labels\na,cat dog\nb,\n", "id,labels\na,cat owl\nb,\n"),
        ("id,labels\na,0 1\nb,2\n", "id,labels\na,0 2\nb,1\n"),
        ("id,owl,cat,dog\na,0.5,0.5,0.5\nb,0,0,0\n",
         "id,owl,cat,dog\na,0.700000,0.800000,0.300000\nb,0.200000,0.100000,0.400000\n"),
        ("id,cat,dog,owl\na,0,1,0\nb,0,0,0\n", "id,cat,dog,owl\na,1,0,1\nb,0,0,0\n"),
    ],
)  # fmt: skip
def test_a_submission_of_labels_is_as_the_sample_has_it(tmp_path, sample, expected):
    (tmp_path / "sample.csv").write_text(sample)
    config = cli.read("", argv=["--data.sample_submission", str(tmp_path / "sample.csv")])
    rows = pd.DataFrame({"ImageID": ["a", "b"], "photo": ["a", "b"]})
    told = np.array([[0.8, 0.3, 0.7], [0.1, 0.4, 0.2]])
    frame, _, _ = submission.make(config, task(), rows, task().decide(told), told)
    write_csv(tmp_path / "submission.csv", frame)
    assert (tmp_path / "submission.csv").read_text() == expected
    assert check_submission.problems(str(tmp_path / "submission.csv"), str(tmp_path / "sample.csv")) == []
    (tmp_path / "sample.csv").write_text("id,labels\na,cow\nb,\n")
    with pytest.raises(InputError, match="labels holds 'cow', which is none of the labels one of cat, dog, owl"):
        submission.make(config, task(), rows, task().decide(told), told)


def test_predictions_of_labels_are_read_as_they_were_written(tmp_path):
    many = Task([{"name": "x", "kind": "multilabel", "classes": [f"c{k}" for k in range(60)]}])
    told = np.random.default_rng(0).random((5, 60))
    frame = pd.DataFrame({"ImageID": list("abcde"), "id": list("abcde"), "fold": 0})
    frame = predictions.with_answers(many, frame.assign(target=many.code(told >= 0.7)), told)
    write_csv(tmp_path / "oof.csv", frame)
    again = predictions.read_oof(many, tmp_path / "oof.csv")
    assert again["target"].tolist() == many.code(told >= 0.7).tolist()  # 2^59 is no float32
    assert again["ans"].tolist() == many.code(told.round(6) >= 0.5).tolist()
    write_csv(tmp_path / "fold0.csv", frame)
    assert predictions.read_fold(many, tmp_path / "fold0.csv")["ans"].tolist() == again["ans"].tolist()
    (tmp_path / "oof.csv").write_text((tmp_path / "oof.csv").read_text().replace(str(frame["ans"][1]), "x"))
    with pytest.raises(InputError, match="row 3: ans is no set"):
        predictions.read_oof(many, tmp_path / "oof.csv")


def test_a_wrong_label_among_several_is_found_and_corrected_by_its_name(tmp_path):
    rng, own = np.random.default_rng(0), task()
    has = rng.random((200, 3)) < [0.5, 0.3, 0.2]
    told = np.clip(np.where(has, 0.85, 0.15) + rng.normal(0, 0.08, (200, 3)), 0.01, 0.99)
    photos, people = [f"{n}.jpg" for n in range(200)], np.arange(200).astype(str)
    label = own.code(has)
    for n, k in ((3, 0), (50, 1), (120, 2)):
        label[n] ^= 1 << k
    oof = pd.DataFrame(
        {"ImageID": photos, "id": people, "ans": own.decide(told)} | dict(zip(own.probabilities, told.T, strict=True))
    )
    found = label_errors.find_issues(own, oof, label)
    first = found[:3].sort_values("photo")
    assert set(zip(first["photo"], first["column"], strict=True)) == {
        ("3.jpg", "cat"),
        ("50.jpg", "dog"),
        ("120.jpg", "owl"),
    }
    assert first["flagged"].all()
    for row in first.itertuples():
        right = has[int(row.photo[:-4]), NAMES.index(row.column)]
        assert (row.value, row.given) == (("yes", "no") if right else ("no", "yes"))
        assert row.evidence == f"the photo looks {'like' if right else 'unlike'} {row.column}"
    first[["photo", "column", "value"]].to_csv(tmp_path / "corrections.csv", index=False)
    rows = pd.DataFrame({"ImageID": photos, "id": people, "labels": label})
    after = corrections.correct(rows, tmp_path / "corrections.csv", own)
    assert after["labels"].tolist() == own.code(has).tolist()
    (tmp_path / "whole.csv").write_text("photo,column,value\n3.jpg,labels,owl dog\n4.jpg,labels,\n")
    assert corrections.correct(rows, tmp_path / "whole.csv", own)["labels"][3:5].tolist() == [6, 0]
    for text, reason in (("3.jpg,cat,maybe", "cat is 'maybe'"), ("3.jpg,cow,yes", "column is 'cow', should be one of")):
        (tmp_path / "bad.csv").write_text(f"photo,column,value\n{text}\n")
        with pytest.raises(InputError, match=reason):
            corrections.correct(rows, tmp_path / "bad.csv", own)


def test_the_label_that_is_most_wrong_is_explained():
    told = np.array([0.9, 0.2, 0.4])
    assert gradcam.to_explain(task(), told, np.nan) == 0  # a photo whose labels nobody knows: the likeliest
    assert gradcam.to_explain(task(), told, 0b101) == 2 and gradcam.to_explain(task(), told, 0b000) == 0


def told_of(task, probabilities):
    """A fold's predictions, photos 0.jpg, 1.jpg, ... with these probabilities."""
    names = pd.DataFrame({"ImageID": [f"{n}.jpg" for n in range(len(probabilities))]})
    return predictions.with_answers(task, names, np.array(probabilities))


def test_a_pseudo_label_is_believed_where_each_label_is_sure_and_a_label_has_at_most_so_many():
    frame = told_of(task(), [[0.95, 0.02, 0.1], [0.97, 0.6, 0.01], [0.99, 0.99, 0.0], [0.01, 0.0, 0.02], [0.9, 0, 0.1]])
    found = pseudo_label.choose(task(), frame, 0.9, 0)
    assert found["ImageID"].tolist() == ["2.jpg", "3.jpg", "0.jpg", "4.jpg"] and found["ans"].tolist() == [3, 0, 1, 1]
    assert found["confidence"].tolist() == pytest.approx([0.99, 0.98, 0.9, 0.9])
    assert pseudo_label.choose(task(), frame, [0.9, 0.55, 0.9], 0)["ImageID"].tolist()[-1] == "1.jpg"
    capped = pseudo_label.choose(task(), frame, 0.9, [2, 0, 1])  # two cats at most; photos without a label are free
    assert capped["ImageID"].tolist() == ["2.jpg", "3.jpg", "0.jpg"]


@pytest.mark.slow
@pytest.mark.parametrize("soft", [False, True])
def test_pseudo_labels_of_several_labels_are_trained_on(tmp_path, monkeypatch, capsys, soft):
    monkeypatch.chdir(tmp_path)
    rng, lines = np.random.default_rng(0), ["photo,cat,dog,owl"]
    for n, row in enumerate(rng.random((24, 3)) < 0.5):
        paint(tmp_path / f"data/images/{n}.jpg", tuple(40 + 170 * row), n)
        lines.append(f"images/{n}.jpg," + ",".join(map(str, row.astype(int))))
    (tmp_path / "data/train.csv").write_text("\n".join(lines[:17]) + "\n")
    (tmp_path / "data/test.csv").write_text("photo\n" + "".join(f"images/{n}.jpg\n" for n in range(16, 24)))
    heads = json.dumps([{"name": "labels", "kind": "multilabel", "columns": NAMES}])
    words = [*map(str, SMALL[:-4]), "--data.train", "data", "--task.heads", heads, "--train.epochs", "1"]
    train_kfold.main([*words, "--run", "run"])
    inference.main(["--run", "run"])
    own = cli.read("", argv=["--config", "run/args.json"]).predicted
    told = {fold: predictions.read_fold(own, tmp_path / f"run/fold{fold}.csv") for fold in (0, 1)}
    truth = told[0].assign(ans=["cat owl" if n else "" for n in range(8)])
    truth[["ImageID", "ans"]].to_csv("truth.csv", index=False)
    capsys.readouterr()
    pseudo_label.main(["--run", "run", "--pseudo.threshold", "0.5", "--answers", "truth.csv"])
    made = pd.read_csv("run/pseudo.csv")
    assert sorted(zip(made["fold"], made["ImageID"], made["ans"], strict=True)) == sorted(
        (fold, *row) for fold, frame in told.items() for row in frame[["ImageID", "ans"]].itertuples(index=False)
    )
    out = capsys.readouterr().out
    sets = own.sets(made["ans"])
    assert f"by class {' '.join(map(str, own.sets(told[0]['ans']).sum(0)))}" in out
    wanted = np.where(made["ImageID"] == told[0]["ImageID"][0], 0, 5)
    assert f"right by truth.csv: {(made['ans'] == wanted).mean():.1%} of 16" in out and sets.shape == (16, 3)
    more = ["--data.pseudo", "run/pseudo.csv", "--run", "again", "--data.pseudo_soft", str(soft).lower()]
    train_kfold.main([*words, *more])
    seen = dataset.training_rows(cli.read("", argv=["--config", "again/args.json"]))[0]
    rows = seen[seen["source"] == "pseudo"]
    assert sorted(rows["label"]) == sorted(made["ans"]) and rows["labels"].dtype == np.int64
    targets = loss.Targets(own, rows, LossConfig()).classes.numpy()
    expected = made[own.probabilities].to_numpy() if soft else own.sets(rows["label"])
    assert np.allclose(targets, expected, atol=1e-6)
    (tmp_path / "run/pseudo.csv").write_text((tmp_path / "run/pseudo.csv").read_text().replace(",0,", ",0,8", 1))
    with pytest.raises(InputError, match="ans is not a set of labels, 0 to 7"):
        train_kfold.main([*words, *more, "--run", "third"])


@pytest.mark.slow
def test_several_labels_a_photo_as_a_competition_gives_them(tmp_path, play, capsys):  # noqa: F811
    """Plant pathology: train.csv image, labels with blanks between; the sample has labels too."""
    rng, names = np.random.default_rng(0), ["rust", "scab", "spot"]
    for side, count in (("train", 40), ("test", 8)):
        has, lines = rng.random((count, 3)) < [0.5, 0.4, 0.2], ["image,labels"]
        for n, row in enumerate(has):
            paint(tmp_path / f"data/{side}_images/{side}{n}.jpg", tuple(40 + 170 * row), n)
            lines.append(f"{side}{n}.jpg," + " ".join(name for name, on in zip(names, row, strict=True) if on))
        (tmp_path / f"data/{side}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "data/test.csv").rename(tmp_path / "data/truth.csv")
    ids = [f"test{n}.jpg" for n in range(8)]
    pd.DataFrame({"image": ids, "labels": "rust scab"}).to_csv("data/sample_submission.csv", index=False)
    heads = '[{"name": "labels", "kind": "multilabel"}]'
    out, frame, saved = play(
        "--data.train", "data", "--task.heads", heads, "--train.mixup", "0.2", "--loss.name", "asymmetric"
    )
    assert frame["image"].tolist() == ids and "labels: the labels" in out
    fold = [pd.read_csv(f"run/fold{k}.csv")[["p0", "p1", "p2"]].to_numpy() for k in (0, 1)]
    mean = (fold[0] + fold[1]) / 2
    on = (mean >= 0.5) | ((mean < 0.5).all(1, keepdims=True) & (mean == mean.max(1, keepdims=True)))
    expected = [" ".join(np.array(names)[row]) for row in on]
    assert frame["labels"].tolist() == expected
    table = pd.read_csv("data/train.csv").set_index("image")["labels"].fillna("")
    oof, own = pd.read_csv("run/oof.csv"), cli.read("", argv=["--config", "run/args.json"]).predicted
    truth = np.array([[name in table[image].split() for name in names] for image in oof["ImageID"]])
    assert own.classes == tuple(names) and np.array_equal(own.sets(oof["target"]), truth)
    told = own.sets(oof["ans"])
    assert saved["f1"] == pytest.approx(theirs.f1_score(truth, told, average="macro", zero_division=0), abs=1e-9)
    assert (
        saved["f1_low"] <= saved["f1"] <= saved["f1_high"] and "By class" in (tmp_path / "run/report.html").read_text()
    )
    ensemble.main(["--decide", "thresholds", "--run", "run"])
    assert "decided thresholds, on people not decided on: out-of-fold macro F1" in capsys.readouterr().out
    check_submission.main(["submission.csv", "data/sample_submission.csv"])
    assert read_json("run/args.json", "")["task"]["heads"][0]["classes"] == names
    eda.main(["--config", "run/args.json"])
    assert "rust" in (tmp_path / "run/eda.html").read_text()
    label_errors.main(["--run", "run", "--people", "3"])
    corrected = pd.read_csv("run/corrections.csv")
    assert 0 < corrected["photo"].nunique() <= 3 and set(corrected["column"]) <= set(names)
    assert (
        "unlike " in (tmp_path / "run/clean.html").read_text() or "like " in (tmp_path / "run/clean.html").read_text()
    )
    capsys.readouterr()
    words = ["--config", "run/args.json", "--data.corrections", "run/corrections.csv"]
    now = dataset.training_rows(cli.read("", argv=words))[0].set_index("ImageID")["label"]
    assert f"changed {len(corrected)} labels" in capsys.readouterr().out
    assert all(
        own.has(now[row.photo], names.index(row.column)) == (row.value == "yes") for row in corrected.itertuples()
    )
    explain.main(["--run", "run"])
    shown = (tmp_path / "run/explain.html").read_text()
    off = abs(oof[own.probabilities] - truth).to_numpy()
    wrong = np.flatnonzero(oof["ans"] != oof["target"])
    worst = wrong[np.argsort(-off[wrong].max(1))][:12]
    expected = [(own.words_of(oof["target"][n]), own.words_of(oof["ans"][n]), names[off[n].argmax()]) for n in worst]
    lines = r"\bis ([\w, ]+)\s*<[^>]*>\s*answered ([\w, ]+)\s*<[^>]*>\s*map for (\w+) at"
    assert sorted(re.findall(lines, shown)) == sorted(expected)
    explain.main(["--run", "run", "--of", "scab"])
    assert "map for scab at" in (tmp_path / "run/explain.html").read_text()
    for words in (["--hard"], ["--decide", "bias"]):
        with pytest.raises(InputError, match="several labels"):
            ensemble.main([*words, "--run", "run"])
