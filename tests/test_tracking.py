"""Trackers: each fold is a run of its own that has every epoch once, as numbers, however often training stopped."""

import json
import os
import signal
import struct
import subprocess
import sys
import time

import pandas as pd
import pytest
from helpers import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from foldface import predictions, tracking
from foldface.files import InputError


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # commands that a test runs start a service of their own


class WandbRun:
    """What the offline files of one W&B run hold: info, config, points (a dict each, in their order), summary."""

    def __init__(self, folder, run_id):
        self.info, self.config, self.points, self.summary = None, {}, [], {}
        for path in sorted(folder.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")):
            for record in records(path):
                kind = record.WhichOneof("record_type")
                if kind == "run":
                    self.info = record.run
                    self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
                elif kind == "history":
                    self.points.append({item_name(item): json.loads(item.value_json) for item in record.history.item})
                elif kind == "summary":
                    self.summary |= {item_name(item): json.loads(item.value_json) for item in record.summary.update}


def item_name(item):
    return item.key or ".".join(item.nested_key)


def records(path):
    """W&B's offline file: LevelDB's log format behind seven bytes, each record a protobuf message."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768  # a block; what is too short for a header is padding
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def wandb_run(run, fold):
    return WandbRun(run, json.loads((run / f"fold{fold}" / "wandb.json").read_text())["id"])


def scalars(run, fold):
    """{name: [(step, value)]} of a fold's TensorBoard events."""
    seen = EventAccumulator(str(run / f"fold{fold}")).Reload()
    return {name: [(point.step, point.value) for point in seen.Scalars(name)] for name in seen.Tags()["scalars"]}


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_each_fold_is_a_wandb_run_with_all_its_epochs_and_its_score(competition):
    pytest.importorskip("wandb")
    train.train_folds(competition.config("--log", "wandb"), [0, 1])
    run, saved = competition.root / "run", json.loads((competition.root / "run" / "metrics.json").read_text())
    assert len(list(run.glob("wandb/offline-run-*"))) == 2
    for fold in (0, 1):
        found, log = wandb_run(run, fold), pd.read_csv(run / f"fold{fold}" / "log.csv")
        assert (found.info.run_group, found.info.display_name) == ("run", f"run/fold{fold}")
        assert found.config["train"]["lr"] == 0.001 and found.config["train"]["epochs"] == 2
        assert found.config["data"]["strict"] is True and found.config["fold"] == fold
        points = [point for point in found.points if "train_loss" in point]
        assert [point["_step"] for point in points] == [point["epoch"] for point in points] == [1, 2]
        for name in log:
            assert [point[name] for point in points] == pytest.approx(log[name].tolist(), abs=1e-5), name
        config = competition.config()
        scores = predictions.measured(
            config.predicted, predictions.read_oof(config.predicted, run / f"fold{fold}/oof.csv")
        )
        assert {name: found.summary[f"oof/{name}"] for name in scores} == pytest.approx(scores)
        assert any("confusion._type" in point and "mistakes._type" in point for point in found.points)
    together = {name: found.summary[f"all_folds/{name}"] for name in ("f1", "f1_low", "f1_high")}
    assert together == pytest.approx({name: saved[name] for name in together})
    assert found.summary["all_folds/folds"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_each_fold_is_a_tensorboard_run_with_all_its_epochs_settings_and_score(competition):
    train.train_folds(competition.config("--log", "tensorboard"), [0, 1])
    run, saved = competition.root / "run", json.loads((competition.root / "run" / "metrics.json").read_text())
    for fold in (0, 1):
        found, log = scalars(run, fold), pd.read_csv(run / f"fold{fold}" / "log.csv")
        for name in log.drop(columns="epoch"):
            assert [step for step, _ in found[name]] == [1, 2]
            assert [value for _, value in found[name]] == pytest.approx(log[name].tolist(), abs=1e-5), name
        assert {"oof/f1", "oof/f1_low", "oof/f1_high"} < set(found)
        seen = EventAccumulator(str(run / f"fold{fold}")).Reload()
        assert {"confusion", "mistakes"} <= {tag.split("/")[0] for tag in seen.Tags()["images"]}
        content = seen.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        assert b"train.lr" in content and b"model.backbone" in content and b"test_resnet" in content
    assert [found[f"all_folds/{name}"] for name in ("f1", "f1_low", "f1_high")] == [
        [(2, pytest.approx(saved[name]))] for name in ("f1", "f1_low", "f1_high")
    ]


@pytest.mark.chain
@pytest.mark.parametrize("log", ["wandb", "tensorboard"])
def test_a_fold_stopped_by_ctrl_c_goes_on_in_its_own_run(competition, log):
    pytest.importorskip(log)
    run = competition.root / "run"
    words = ["--data.train", competition.train, "--data.crops", "", "--run", run]
    words += ["--model.backbone", "test_resnet", "--model.pretrained", "false", "--data.image_size", 32, "--log", log]
    command = [sys.executable, ROOT / "train.py", *map(str, words), "--train.epochs", "9", "--data.workers", "0"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while first.poll() is None and not (run / "fold0" / "log.csv").is_file():
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to all that the command has started, too
    assert first.wait() == 130
    before = len(pd.read_csv(run / "fold0" / "log.csv"))
    arrived = json.loads((run / "fold0" / f"{log}.json").read_text())["epochs"]
    assert 1 <= before < 9 and arrived in (before - 1, before)  # the stop may come between log.csv and the tracker
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    if log == "wandb":
        assert {path.name.split("-")[-1] for path in run.glob("wandb/offline-run-*")} == {wandb_run(run, 0).info.run_id}
        steps = [point["_step"] for point in wandb_run(run, 0).points if "train_loss" in point]
    else:
        steps = [step for step, _ in scalars(run, 0)["train_loss"]]
    assert steps == list(range(1, 10))


@pytest.mark.slow
@pytest.mark.parametrize("log", ["wandb", "tensorboard"])
def test_a_kill_loses_no_epoch(competition, log):
    """A killed W&B has not written its last seconds; what may be missing is sent again."""
    pytest.importorskip(log)
    config, run = competition.config("--log", log), competition.root / "run"
    (run / "fold0").mkdir(parents=True)
    killed = """
import os, sys
from foldface import tracking
from foldface.settings import Config
config = Config(run=sys.argv[1], log=sys.argv[2])
with tracking.opened(config, 0) as tracker:
    tracker.log({"epoch": 1, "lr": 0.1})
    tracker.log({"epoch": 2, "lr": 0.2})
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", killed, run, log], cwd=ROOT).returncode == -9
    time.sleep(1.1)  # events are read in the order of the seconds in their files' names
    with tracking.opened(config, 0) as tracker:
        for epoch in (1, 2, 3):
            tracker.log({"epoch": epoch, "lr": epoch / 10})
    if log == "wandb":
        assert {point["_step"]: point["lr"] for point in wandb_run(run, 0).points} == {1: 0.1, 2: 0.2, 3: 0.3}
    else:
        assert scalars(run, 0)["lr"] == [(n, pytest.approx(n / 10)) for n in (1, 2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("log", ["wandb", "tensorboard"])
def test_a_folder_that_a_tracker_left_behind_is_not_its_package(competition, monkeypatch, log):
    config = competition.config("--log", log)
    (competition.root / log).mkdir()
    monkeypatch.delitem(sys.modules, log, raising=False)
    monkeypatch.setattr(sys, "path", [str(competition.root)])
    with pytest.raises(InputError, match=f"log is {log}, which is not installed: pip install {log}, or --log none"):
        train.train_folds(config, [0])
    assert not (competition.root / "run").exists()


@pytest.mark.chain
def test_what_wandb_refuses_is_one_line(competition, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(competition.root))  # no login is remembered there
    words = ["--data.train", competition.train, "--data.crops", "", "--run", competition.root / "run", "--log", "wandb"]
    command = [sys.executable, ROOT / "train.py", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: log is wandb, and W&B refuses: ") and "set WANDB_MODE=offline, or --log none" in last
    assert not list(competition.root.glob("run/fold0/*.pt"))
