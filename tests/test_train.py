"""Training: scored by the true boundary, resumable to the bit, finished folds left alone."""

import json
import random
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import MASK, ROOT, at_step, before_each_network, make_learner
from safetensors.torch import load_file

import dataset
import model
import train
from foldface import devices, metrics, predictions, registry, runs
from foldface.data import folds, loader
from foldface.files import InputError
from foldface.nn import cpu_conv, learner, optim, predicting, training_log
from foldface.settings import TrainConfig, as_dict
from tools.stress import kills

pytestmark = pytest.mark.usefixtures("one_accelerator")


def weights(run, fold=0):
    return load_file(run / f"fold{fold}" / "best.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_run_leaves_what_the_contract_names(competition):
    train.train_folds(competition.config(), [0, 1])
    run = competition.root / "run"
    oof = pd.read_csv(run / "oof.csv", dtype={"id": str})
    assert list(oof.columns) == [*predictions.OOF_COLUMNS, *MASK.probabilities]
    rows, _ = dataset.training_rows(competition.config())
    assert sorted(oof["ImageID"]) == sorted(rows["ImageID"])
    assert oof.set_index("ImageID")["target"].to_dict() == rows.set_index("ImageID")["target"].to_dict()
    dealt = pd.read_csv(run / "folds.csv", dtype={"id": str}).set_index("id")["fold"]
    assert (oof["fold"].to_numpy() == dealt[oof["id"]].to_numpy()).all()
    saved = json.loads((run / "metrics.json").read_text())
    assert {"f1", "f1_low", "f1_high", "accuracy", "mask_f1", "gender_f1", "age_f1", "folds"} <= saved.keys()
    assert saved["folds"] == [0, 1]
    assert saved["f1"] == pytest.approx(metrics.scores(MASK, oof["target"], oof["ans"])["f1"])
    assert len(pd.read_csv(run / "fold0" / "log.csv")) == 2
    assert not (run / "fold0" / "state.pt").exists()


@pytest.mark.slow
def test_a_slip_does_not_poison_a_run(competition):
    """Nothing was trained: neither args.json nor folds.csv refuse the command as it should have been."""
    with pytest.raises(InputError, match="test_resnett"):
        train.train_folds(competition.config("--model.backbone", "test_resnett", "--train.folds", 3), [0])
    train.train_folds(competition.config("--train.epochs", 1), [0])
    assert set(pd.read_csv(competition.root / "run" / "folds.csv")["fold"]) == {0, 1}
    with pytest.raises(InputError, match=r"was begun with other settings \(train.epochs was 1, is 2\)"):
        train.train_folds(competition.config(), [0])


@pytest.mark.slow
def test_a_run_goes_on_where_its_data_lies_elsewhere_and_on_no_other_data(competition):
    epochs = ["--train.epochs", 1]
    train.train_folds(competition.config(*epochs), [0])
    competition.train.rename(competition.root / "moved")
    competition.train = competition.root / "moved"
    kept = (competition.root / "run" / "args.json").read_bytes()
    competition.write_table(rows=[[i, g, "x", 25, path] for i, g, _, path in competition.people])
    with pytest.raises(
        InputError, match=r"was begun on other data: 84 photos of 12 people .*, as now, with other names"
    ):
        train.train_folds(competition.config(*epochs), [1])
    assert (competition.root / "run" / "args.json").read_bytes() == kept  # what follows it finds the data that it had
    competition.write_table()
    train.train_folds(competition.config(*epochs), [1])
    assert json.loads((competition.root / "run" / "metrics.json").read_text())["folds"] == [0, 1]


@pytest.mark.slow
def test_scores_use_60_whatever_is_trained_on(competition):
    rows = [
        ["000000", "male", "x", 58, competition.people[0][3]],
        ["000001", "male", "x", 59, competition.people[1][3]],
    ]
    competition.write_table(rows=rows)
    train.train_folds(competition.config("--task.heads.age.train_bounds", "[30,55]"), [0, 1])
    oof = pd.read_csv(competition.root / "run" / "oof.csv")
    assert (oof["target"] % 3 == 1).all()  # 58 and 59 are not yet 60


@pytest.mark.slow
def test_an_epoch_is_scored_by_60_though_58_is_trained_on(competition):
    people = [[i, gender, "x", (20, 58, 59)[n % 3], path] for n, (i, gender, _, path) in enumerate(competition.people)]
    competition.write_table(rows=people)
    config = competition.config("--train.lr", 0.01)
    train.train_folds(config, [0])
    rows = dataset.training_rows(config)[0].set_index("ImageID")
    oof = pd.read_csv(competition.root / "run" / "fold0" / "oof_last.csv")
    log = pd.read_csv(competition.root / "run" / "fold0" / "log.csv").iloc[-1]
    target, label = (rows.loc[oof["ImageID"], name].to_numpy() for name in ("target", "label"))
    assert log["f1"] == pytest.approx(metrics.scores(MASK, target, oof["ans"])["f1"], abs=1e-5)
    assert log["accuracy"] == pytest.approx((target == oof["ans"]).mean(), abs=1e-5)
    assert (label == oof["ans"]).mean() != pytest.approx(
        log["accuracy"], abs=1e-3
    )  # 58 and 59 were learned as the oldest


@pytest.mark.slow
def test_the_saved_epoch_is_the_one_of_best_f1_over_the_whole_validation_set(competition):
    train.train_folds(competition.config("--train.epochs", 4, "--train.lr", 0.01), [0])
    run = competition.root / "run"
    log, oof = pd.read_csv(run / "fold0" / "log.csv"), pd.read_csv(run / "oof.csv")
    assert metrics.scores(MASK, oof["target"], oof["ans"])["f1"] == pytest.approx(log["f1"].max(), abs=1e-5)


@pytest.mark.slow
def test_each_epoch_has_the_training_photos_scores_beside_the_validation_scores(competition):
    plain = ["--data.augment", "none", "--model.freeze_bn", "true", "--train.epochs", 1]
    train.train_folds(competition.config(*plain, "--train.lr", 1e-12), [0])  # all steps see the same model
    run = competition.root / "run"
    log = pd.read_csv(run / "fold0" / "log.csv").iloc[0]
    rows, _ = folds.split(dataset.prepare(competition.config(*plain)), 0)
    found, _ = predicting.predict(
        *model.load_folds({0: run / "fold0" / "best.safetensors"}), rows, competition.config(*plain)
    )
    scores = metrics.scores(MASK, rows["target"], found[0].argmax(1))
    assert log["train_f1"] == pytest.approx(scores["f1"], abs=1e-6)
    assert log["train_accuracy"] == pytest.approx(scores["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_mixed_photos_have_no_right_answer_and_no_training_score(competition):
    train.train_folds(competition.config("--train.mixup", 0.2), [0])
    log = pd.read_csv(competition.root / "run" / "fold0" / "log.csv")
    assert log["train_f1"].isna().all() and log["f1"].notna().all()


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "epoch"), [("best", 2), ("last", 3)])
def test_the_last_epoch_can_be_kept_whatever_its_score(competition, own_registry, keep, epoch):
    looks = []

    @registry.register("score", "scripted")
    class Scripted(metrics.Score):
        def value(self, task, target, answer):
            return (0.1, 0.9, 0.2)[min(2, (sum(looks) - 1) // 42)]

    words = ["--train.epochs", 3, "--train.checkpoint", keep, "--task.score", "scripted"]
    with before_each_network(lambda photos: looks.append(0 if torch.is_grad_enabled() else len(photos))):
        train.train_folds(competition.config(*words), [0])
    assert model.load(competition.root / "run" / "fold0" / "best.safetensors")[2]["epoch"] == epoch
    saved = json.loads((competition.root / "run" / "metrics.json").read_text())
    assert keep == "best" or saved["scripted"] == saved["scripted_last_epoch"]


@pytest.mark.slow
def test_validation_photos_are_looked_at_now_and_then_and_at_the_end(competition, capsys):
    looks = []
    words = ["--train.epochs", "5", "--train.val_interval", "2", "--train.checkpoint", "last"]
    with before_each_network(lambda photos: looks.append(len(photos)) if not torch.is_grad_enabled() else None):
        train.train_folds(competition.config(*words), [0])
    log = pd.read_csv(competition.root / "run" / "fold0" / "log.csv")
    assert sum(looks) == 3 * 42 and log["epoch"].tolist() == [1, 2, 3, 4, 5] and log["train_loss"].notna().all()
    assert log["f1"].notna().tolist() == log["val_loss"].notna().tolist() == [False, True, False, True, True]
    printed = capsys.readouterr().out.splitlines()
    assert [line.count(" F1 ") for line in printed if line.startswith("fold 0 epoch")] == [0, 1, 0, 1, 1]
    assert (competition.root / "run" / "report.html").is_file()
    with pytest.raises(InputError, match=r"leave train\.val_interval"):
        competition.config("--train.patience", "2", "--train.val_interval", "2")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_weights_whatever_the_workers(competition, tmp_path, workers):
    train.train_folds(competition.config("--data.augment", "strong"), [0])
    again = ["--data.augment", "strong", "--run", tmp_path / "again", "--data.workers", workers]
    train.train_folds(competition.config(*again), [0])
    assert same(weights(competition.root / "run"), weights(tmp_path / "again"))
    train.train_folds(competition.config(*again, "--run", tmp_path / "other", "--seed", 1), [0])
    assert not same(weights(tmp_path / "again"), weights(tmp_path / "other"))


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_interrupted_fit_goes_on_to_the_same_weights(competition, tmp_path, step, optimizer):
    words = ["--data.augment", "light", "--model.dropout", 0.3, "--train.optimizer", optimizer]
    train.train_folds(competition.config(*words), [0])
    resumed = competition.config(*words, "--run", tmp_path / "resumed")
    with at_step(step), pytest.raises(KeyboardInterrupt):  # in mid-step: the step is finished first
        train.train_folds(resumed, [0])
    train.train_folds(resumed, [0])
    assert same(weights(competition.root / "run"), weights(tmp_path / "resumed"))
    for name in ("fold0/log.csv", "oof.csv"):
        assert (competition.root / "run" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def stopped(config, fold):
    """A fold that was stopped in its first step: the path of its state.pt."""
    with at_step(1), pytest.raises(KeyboardInterrupt):
        train.train_folds(config, [fold])
    return Path(config.run) / f"fold{fold}" / "state.pt"


@pytest.mark.slow
def test_a_state_is_only_gone_on_from_in_its_own_fold_photos_and_settings(competition, tmp_path):
    state = stopped(competition.config(), 0)
    for words, fold, complaint in (
        ([], 1, "it is of fold 0"),
        (["--data.only", '["mask=wear"]'], 0, "other photos or labels"),
        (["--train.lr", 0.5], 0, r"other settings: train\.lr"),
    ):
        other = competition.config(*words, "--run", tmp_path / "other")
        target = tmp_path / "other" / f"fold{fold}" / "state.pt"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(state.read_bytes())
        with pytest.raises(InputError, match=f"go on from it .*{complaint}"):
            train.train_folds(other, [fold])
        shutil.rmtree(tmp_path / "other")


@pytest.mark.slow
def test_a_compressed_state_that_would_grow_is_refused(competition):
    config = competition.config()
    state = stopped(config, 0)
    with zipfile.ZipFile(state) as plain, zipfile.ZipFile(state.with_name("bomb"), "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    state.with_name("bomb").replace(state)
    with pytest.raises(InputError, match="is compressed"):
        train.train_folds(config, [0])


@pytest.mark.slow
def test_finished_folds_are_left_alone_and_the_others_join_them(competition, capsys):
    config = competition.config()
    train.train_folds(config, [0])
    before = (competition.root / "run" / "fold0" / "best.safetensors").stat().st_mtime_ns
    assert json.loads((competition.root / "run" / "metrics.json").read_text())["folds"] == [0]
    train.train_folds(config, [0, 1])
    assert "fold 0 is finished" in capsys.readouterr().out
    assert (competition.root / "run" / "fold0" / "best.safetensors").stat().st_mtime_ns == before
    assert len(pd.read_csv(competition.root / "run" / "oof.csv")) == 84


@pytest.mark.slow
def test_a_damaged_state_says_what_to_do(competition):
    (competition.root / "run" / "fold0").mkdir(parents=True)
    (competition.root / "run" / "fold0" / "state.pt").write_bytes(b"half")
    with pytest.raises(InputError, match=r"state.pt: can't go on from it .*remove it"):
        train.train_folds(competition.config(), [0])


@pytest.mark.slow
def test_extra_and_pseudo_rows_are_trained_on_and_never_validated(competition, tmp_path):
    dataset.prepare(competition.config())
    pseudo = competition.root / "run" / "pseudo.csv"
    pseudo.write_text("ImageID,fold,ans,confidence\nanswer0.jpg,1,3,0.99\n")
    trained = []
    with before_each_network(lambda photos: trained.append(len(photos)) if torch.is_grad_enabled() else None):
        for fold in (0, 1):
            words = ["--data.pseudo", pseudo, "--run", tmp_path / "b", "--train.epochs", 1]
            train.train_folds(competition.config(*words), [fold])
            trained.append("end")
    first, second = (trained[: trained.index("end")], trained[trained.index("end") + 1 : -1])
    assert (sum(first), sum(second)) == (42, 43)
    assert set(pd.read_csv(tmp_path / "b" / "oof.csv")["ImageID"]).isdisjoint({"answer0.jpg"})


SWA = {"weight_averaging": "swa", "swa_lr": 0.02}


@pytest.mark.parametrize("ends", [{}, *({**SWA, "swa_start": first} for first in (0, 1, 3, 9))])
@pytest.mark.parametrize("warm", [0, 1, 2])
@pytest.mark.parametrize("scheduler", ["constant", "exponential", "cosine", "onecycle", "step"])
def test_the_learning_rate_takes_its_course(scheduler, warm, ends):
    """After any warm-up, before any averaging, whatever the rate of a group: at each of 5 epochs' 10 steps."""
    config = TrainConfig(lr=0.1, epochs=5, scheduler=scheduler, gamma=0.5, step_epochs=2, warmup_epochs=warm, **ends)
    last = 10 * min(5, ends.get("swa_start", 5))
    if warm and 10 * warm >= last:
        pytest.skip("refused")

    def make():
        weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
        groups = [{"params": [one], "lr": rate} for one, rate in zip(weights, (0.1, 0.01), strict=True)]
        optimizer = torch.optim.SGD(groups, 0.1)
        return optimizer, optim.make_scheduler(optimizer, config, 10)

    optimizer, course = make()
    rates = []
    for step in range(50):
        if step == 25:  # stopped, and started again
            kept, (optimizer, course) = (optimizer.state_dict(), course.state_dict()), make()
            optimizer.load_state_dict(kept[0])
            course.load_state_dict(kept[1])
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        course.step()

    def share(step):
        """The rate that belongs there, of the peak."""
        step, end = step - 10 * warm, last - 10 * warm
        if scheduler == "onecycle":  # from a 25th to the peak, down to next to nothing; warm-up is its own rise
            step, end = step + 10 * warm, last - 1
            top = 10 * warm if warm else 0.3 * last - 1
            low, far = (0.04, 1 - step / top) if step < top else (0.04 / 1e4, (step - top) / (end - top))
            return low + (1 - low) * (1 + np.cos(np.pi * far)) / 2
        if step < 0:
            return 0.01 + 0.99 * (step + 10 * warm) / (10 * warm)
        courses = {"exponential": 0.5 ** (step // 10), "step": 0.5 ** (step // 20)}
        return courses.get(scheduler, 1.0 if scheduler == "constant" else (1 + np.cos(np.pi * step / end)) / 2)

    expected = [[0.1 * share(step), 0.01 * share(step)] if step < last else [0.02, 0.02] for step in range(50)]
    assert np.allclose(rates, expected, rtol=1e-6, atol=1e-9)


def test_a_warm_up_that_ends_in_the_average_is_refused(competition):
    words = ["--train.epochs", 6, "--train.weight_averaging", "swa", "--train.warmup_epochs", 3]
    with pytest.raises(InputError, match=r"train.warmup_epochs 3: swa averages from epoch 2 on"):
        competition.config(*words, "--train.swa_start", 2)
    competition.config(*words, "--train.swa_start", 4)


def test_patience_stops_when_f1_no_longer_rises():
    log = [{"f1": value} for value in (0.1, 0.3, 0.2, 0.3)]
    assert (
        training_log.stalled(log, 2, MASK)
        and not training_log.stalled(log, 3, MASK)
        and not training_log.stalled(log, 0, MASK)
    )


def test_a_photo_that_vanishes_while_training_is_named():
    with pytest.raises(InputError, match=r"b.jpg: can't be read any more \(empty file\)"):
        loader.refuse_unreadable(["", "empty file"], torch.tensor([0, 1]), ["a.jpg", "b.jpg"])


def test_precision_that_the_machine_has_not_is_refused(competition, monkeypatch):
    monkeypatch.undo()
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for words, expected in ((["--device", "cuda"], "sees no GPU"), (["--train.amp", "fp16"], "needs a GPU")):
        with pytest.raises(InputError, match=expected):
            devices.make_accelerator(competition.config(*words))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen", "said"),
    [("true", "steps stay as they are"), ("false", "batch norm takes its statistics from each micro-batch alone")],
)
def test_out_of_memory_halves_the_batch_and_the_step_stays_the_same(competition, tmp_path, capsys, frozen, said):
    """But for batch norm that learns its statistics: that is said."""
    words = ["--model.freeze_bn", frozen, "--train.epochs", 1, "--train.optimizer", "sgd"]
    train.train_folds(competition.config(*words), [0])

    def small_memory(photos):
        if len(photos) > 4 and torch.is_grad_enabled():
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with before_each_network(small_memory):
        train.train_folds(competition.config(*words, "--run", tmp_path / "again"), [0])
    assert f"a batch is now computed in 4 micro-batches; {said}" in capsys.readouterr().out
    one, other = weights(competition.root / "run"), weights(tmp_path / "again")
    alike = all(torch.allclose(one[name].float(), other[name].float(), atol=1e-5) for name in one)
    assert alike == (frozen == "true")


@pytest.mark.slow
def test_what_no_halving_helps_is_said(competition):
    def full(photos):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    said = r"out of memory with 16 photos in 8 micro-batches: start again with --train"
    with before_each_network(full), pytest.raises(InputError, match=said):
        train.train_folds(competition.config(), [0])


@pytest.mark.slow
def test_other_settings_are_refused_until_the_run_is_begun_anew(competition):
    train.train_folds(competition.config(), [0, 1])
    (competition.root / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"train.epochs was 2, is 1.*--overwrite"):
        train.train_folds(competition.config("--train.epochs", 1), [0])
    train.train_folds(competition.config("--train.epochs", 1), [0], overwrite=True)
    run = competition.root / "run"
    assert json.loads((run / "metrics.json").read_text())["folds"] == [0]
    assert not (run / "fold1").exists() and (run / "notes.txt").read_text() == "mine"
    (competition.root / "fold0").mkdir()
    runs.reset_run(competition.root)  # no run
    assert (competition.root / "fold0").is_dir() and (competition.root / "train").is_dir()
    assert len(pd.read_csv(run / "fold0" / "log.csv")) == 1


@pytest.mark.slow
def test_folds_apart_are_the_folds_together(competition, tmp_path):
    train.train_folds(competition.config(), [0, 1])
    for k in (0, 1):
        train.train_folds(competition.config("--run", tmp_path / f"machine{k}"), [k])
    shutil.copytree(tmp_path / "machine1" / "fold1", tmp_path / "machine0" / "fold1")
    train.train_folds(competition.config("--run", tmp_path / "machine0"), [0, 1])
    apart = ["speed.csv", "args.json", "report.html", "report.json"]  # they hold minutes, and the run's name
    assert kills.different(competition.root / "run", tmp_path / "machine0", apart) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("order", "the batch: which photos it holds"),
        ("pixels", "the augmentation: the photos' pixels"),
        ("layer", "the output of layer layer2.0.conv1"),
        ("gradient", "the gradient of conv1.0.weight"),
    ],
)
def test_what_differs_between_two_starts_is_named(competition, monkeypatch, capsys, where, expected):
    from foldface.data import loader
    from tools import check_repeat

    noise = iter(range(1, 1_000_000))
    if where == "order":
        monkeypatch.setattr(
            loader.SeededBatchSampler, "__init__", unlike(loader.SeededBatchSampler.__init__, "seed", noise)
        )
    elif where == "pixels":
        honest = loader.PhotoDataset.__getitem__
        monkeypatch.setattr(loader.PhotoDataset, "__getitem__", lambda self, key: honest(self, (key[0], next(noise))))
    else:
        honest = learner.Learner.__init__

        def shaky(self, *words):
            honest(self, *words)
            layers = dict(self.module.named_modules())
            if where == "gradient":  # of a layer outside of the residual branches, whose first gradients are zero
                layers["conv1.0"].weight.register_hook(lambda gradient: gradient * (1 + 0.001 * next(noise)))
            else:
                layers["layer2.0.conv1"].register_forward_hook(lambda _, __, out: out * (1 + 0.001 * next(noise)))

        monkeypatch.setattr(learner.Learner, "__init__", shaky)
    with pytest.raises(SystemExit):
        check_repeat.check(competition.config("--data.augment", "light"), 3)
    assert f"not the same: the first difference is {expected} at step 1\n" in capsys.readouterr().out


def unlike(honest, keyword, noise):
    return lambda *words, **keywords: honest(*words, **keywords | {keyword: next(noise)})


@pytest.mark.slow
def test_what_repeats_is_said_to(competition, capsys):
    from tools import check_repeat

    check_repeat.check(competition.config("--data.augment", "strong", "--model.dropout", 0.2), 7)
    assert "7 steps, twice: the same to the last bit" in capsys.readouterr().out
    assert not (competition.root / "run").exists()


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_state_whole(competition):
    """A limit on the size of files stands in for the disk: the state of test_resnet is about 5 MB."""
    words = ["--train.epochs", "3", "--train.folds", "2"]
    config = competition.config(*words)
    path = competition.root / "config.json"
    path.write_text(json.dumps(as_dict(config)))
    code = (
        "import resource, sys, train; from foldface.nn import learner\n"
        "honest = learner.Learner.save\n"
        "def save(self):\n"
        "    if self.epoch == 2:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "    honest(self)\n"
        "learner.Learner.save = save\n"
        "train.run_main(train.main)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, "--config", path], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and "state.pt: can't be written" in lines[0] and "Traceback" not in ended.stderr
    state = torch.load(competition.root / "run" / "fold0" / "state.pt", weights_only=True)
    assert state["epoch"] == 1
    train.train_folds(config, [0])
    assert len(pd.read_csv(competition.root / "run" / "fold0" / "log.csv")) == 3


@pytest.mark.slow
def test_two_processes_do_what_one_does(competition, tmp_path):
    words = ["--model.freeze_bn", "true", "--train.optimizer", "sgd", "--train.batch_size", 11, "--train.folds", 3]
    train.train_folds(competition.config(*words), [0, 1])
    config = competition.config(*words, "--run", tmp_path / "two", "--train.only_folds", "[0,1]", "--device", "auto")
    words_file = tmp_path / "config.json"
    words_file.write_text(json.dumps(as_dict(config)))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    ended = subprocess.run(
        [*launch, ROOT / "train_kfold.py", "--config", words_file], capture_output=True, text=True, timeout=180
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("fold 1 epoch 2/2") == 1  # one speaks
    one, two = (pd.read_csv(path / "oof.csv") for path in (competition.root / "run", tmp_path / "two"))
    assert one["ImageID"].equals(two["ImageID"])  # each photo scored once
    assert np.allclose(one[MASK.probabilities], two[MASK.probabilities], atol=1e-3)
    first, second = weights(competition.root / "run"), weights(tmp_path / "two")
    assert all(torch.allclose(first[name].float(), second[name].float(), atol=1e-4) for name in first)
    logs = [pd.read_csv(path / "fold0" / "log.csv") for path in (competition.root / "run", tmp_path / "two")]
    assert np.allclose(logs[0]["train_loss"], logs[1]["train_loss"], atol=1e-4)
    assert np.allclose(logs[0]["train_accuracy"], logs[1]["train_accuracy"], atol=0.05)
    assert logs[1]["train_accuracy"].notna().all()
    assert sorted(path.name for path in (tmp_path / "two").rglob(".*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "answer"])
def test_killed_and_started_again_it_ends_byte_for_byte_the_same(competition, tmp_path, what):
    """Twenty kills and more: python -m tools.stress.kills train --count 20."""
    config = competition.config("--data.augment", "light", "--model.dropout", 0.2)
    (tmp_path / "config.json").write_text(json.dumps(as_dict(config)))
    ends, files = kills.WHAT[what](["--config", tmp_path / "config.json"], tmp_path / "kills", 3, random.Random(3))
    assert ends >= 1 and files == []


@pytest.mark.parametrize(
    "words",
    [
        *([], ["--loss.name", "f1"], ["--train.mixup", 0.2], ["--train.weight_averaging", "ema"]),
        *(["--task.heads.age.learn", "distribution"], ["--task.answer", '["mask","gender"]']),  # age beside the answer
    ],
)
def test_no_step_waits_for_the_device(competition, words):
    """On a GPU each of these would stop the queue until all before it is computed; here they are counted."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        waiting = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "allclose")
        waiting += ("lift_fresh",)  # a tensor made of Python's numbers, to be copied there
        met = ()

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            name = function.overloadpacket.__name__
            by_mask = name == "index" and any(one is not None and one.dtype == torch.bool for one in arguments[1])
            if name in self.waiting or by_mask:
                self.met += (name,)
            return function(*arguments, **(keywords or {}))

    with Counter() as counter:
        torch.ones(1).item()
        _ = torch.ones(2)[torch.ones(2) > 0]
        torch.tensor([0.5])
    assert counter.met == ("_local_scalar_dense", "index", "lift_fresh")
    config = competition.config(*words)
    dataset.infer_classes(config)
    rows = dataset.prepare(config)
    accelerator = devices.make_accelerator(config)
    mine = make_learner(config, rows, 10, accelerator)
    photos = torch.randint(0, 255, (8, 32, 32, 3), dtype=torch.uint8)
    mine.set_train_mode()
    mine.train_step(torch.arange(8), photos, 8)  # the first step makes the optimizer's state
    with Counter() as counter:
        mine.train_step(torch.arange(8), photos, 8)
    assert counter.met == ()


@pytest.mark.slow
@pytest.mark.parametrize("words, faster", [((), True), (("--train.compile", "true"), False)])
def test_convolutions_are_computed_the_faster_way_only_while_they_train(competition, monkeypatch, words, faster):
    monkeypatch.setattr(cpu_conv, "helps", lambda device, precision: precision == "no")
    config = competition.config(*words)
    dataset.infer_classes(config)
    mine = make_learner(config, dataset.prepare(config), 10, devices.make_accelerator(config))

    def replaced():
        return any("forward" in vars(layer) for layer in mine.module.modules())

    with cpu_conv.where_it_helps(mine.module, mine.config.compile, mine.accelerator):
        assert replaced() == faster
    assert not replaced()


@pytest.mark.slow
def test_memory_that_was_freed_is_not_asked_for_again():
    code = """if True:
        import resource, sys, numpy as np
        from foldface import runtime
        if sys.argv[1] == "keep":
            runtime.keep_memory()
        for k in range(3):  # 200 MB, each page touched
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            block = np.ones(25_000_000)
            del block
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("glibc's business")
    faults = [
        int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, cwd=ROOT).stdout)
        for how in ("keep", "as it was")
    ]
    assert faults[0] < 100 and faults[0] < faults[1]


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_in_a_pipe_an_epoch_is_one_plain_line_and_the_next_command_comes_last(competition, capsys):
    competition.run(train)
    out, err = capsys.readouterr()
    assert err == "" and "\r" not in out and "\x1b" not in out
    epochs = [line for line in out.splitlines() if "epoch" in line and line.startswith("fold 0")]
    assert [line.split("  ")[0] for line in epochs] == ["fold 0 epoch 1/2", "fold 0 epoch 2/2"]
    lines = out.splitlines()
    assert lines[-1] == f"next: python inference.py --run {competition.root / 'run'}"
    assert any(re.match(r"fold +photos +epochs +minutes +macro F1 ", line) for line in lines)


def test_the_next_command_is_typed_as_a_shell_reads_it(competition):
    said = runs.next_command(competition.config("--run", competition.root / "my run; ls"))
    assert shlex.split(said)[-1] == str(competition.root / "my run; ls")


def test_every_command_that_is_printed_quotes_its_paths():
    """As it stands in the code: a path of the user's is put into a command by files.quoted alone."""
    names = "run|runs|config|output|data\\.(?:train|pseudo|corrections|eval_group)"
    flag = re.compile(rf"--(?:{names}) \{{(?!quoted\(|words)")
    rooms = [*ROOT.glob("*.py"), *(ROOT / "foldface").rglob("*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("demo/*.py")]
    lines = [(path.name, line) for path in rooms for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) > 10_000 and [one for one in lines if flag.search(one[1])] == []


def test_the_next_command_asks_for_photos_where_there_are_none(competition):
    assert runs.next_command(competition.config("--data.eval", "")).endswith(" --data.eval FOLDER")
