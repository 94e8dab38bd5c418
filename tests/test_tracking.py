"""Trackers: each fold is a run of its own that has every epoch once, as numbers, however often training stopped.

A point's step counts batches: of 42 photos three a fold and epoch, of which the first two have a loss of their own.
"""

import importlib.util
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time

import pandas as pd
import pytest
from helpers import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from foldface import predictions
from foldface.files import InputError


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # commands that a test runs start a service of their own
    for name in ("TRACKIO_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


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


class Found:
    """What a tracker's file holds of a fold: name, group, settings {name: text}, points {metric: [(step, value)]}."""

    def __init__(self, run, fold, log):
        self.run, self.id = run, json.loads((run / f"fold{fold}" / f"{log}.json").read_text())["id"]
        self.points = {}
        getattr(self, log)()

    def trackio(self):
        with sqlite3.connect(self.run / "trackio" / "foldface.db") as file:
            row = file.execute("SELECT run_name, config FROM configs WHERE run_id = ?", (self.id,)).fetchone()
            self.name, self.settings = row[0], json.loads(row[1])
            self.group = self.settings["_Group"]
            rows = file.execute("SELECT step, metrics FROM metrics WHERE run_id = ? ORDER BY id", (self.id,)).fetchall()
        for step, values in rows:
            for name, value in json.loads(values).items():
                self.points.setdefault(name, []).append((step, value))
        self.pictures = {name.split("/")[0] for name, found in self.points.items() if isinstance(found[0][1], dict)}

    def mlflow(self):
        with sqlite3.connect(self.run / "mlflow.db") as file:
            asked = "SELECT r.name, e.name FROM runs r JOIN experiments e USING (experiment_id) WHERE run_uuid = ?"
            self.name, self.group = file.execute(asked, (self.id,)).fetchone()
            self.settings = dict(file.execute("SELECT key, value FROM params WHERE run_uuid = ?", (self.id,)))
            asked = "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY timestamp, step"
            for name, step, value in file.execute(asked, (self.id,)):
                self.points.setdefault(name, []).append((step, value))
        self.pictures = {path.name for path in self.run.glob(f"mlflow/{self.id}/artifacts/*")}


def steps_of(run, log, metric):
    """The steps at which fold 0's run in a tracker has a metric."""
    if log == "wandb":
        return [point["_step"] for point in wandb_run(run, 0).points if metric in point]
    points = scalars(run, 0) if log == "tensorboard" else Found(run, 0, log).points
    return [step for step, _ in points[metric]]


@pytest.mark.chain
def test_several_trackers_at_once_hold_every_fold_with_all_its_points_settings_and_scores(competition):
    """Each of those that are installed; its files lie in the run's folder."""
    logs = [log for log in ("trackio", "mlflow") if importlib.util.find_spec(log)]
    if not logs:
        pytest.skip("neither Trackio nor MLflow is installed")
    words = competition.words("--log", json.dumps(["tensorboard", *logs]))
    subprocess.run([sys.executable, ROOT / "train_kfold.py", *words], stdout=subprocess.DEVNULL, check=True)
    run, task = competition.root / "run", competition.config().predicted
    saved = json.loads((run / "metrics.json").read_text())
    for fold in (0, 1):
        log, speed = (pd.read_csv(run / f"fold{fold}" / f"{name}.csv") for name in ("log", "speed"))
        assert [step for step, _ in scalars(run, fold)["batch_loss"]] == [1, 2, 4, 5]
        oof = predictions.measured(task, predictions.read_oof(task, run / f"fold{fold}" / "oof.csv"))
        for found in (Found(run, fold, name) for name in logs):
            assert (found.name, found.group) == (f"run/fold{fold}", "run")
            assert float(found.settings["train.lr"]) == 0.001 and found.settings["model.backbone"] == "test_resnet"
            assert int(found.settings["fold"]) == fold and int(found.settings["train.epochs"]) == 2
            for name in log:
                expected = list(zip([3, 6], log[name], strict=True))
                assert found.points[name] == [(step, pytest.approx(value, abs=1e-5)) for step, value in expected], name
            assert [step for step, _ in found.points["photos_per_second"]] == [3, 6]
            rates = [rate for _, rate in found.points["photos_per_second"]]
            assert rates == pytest.approx(speed["photos_per_second"].tolist(), rel=1e-3)
            assert [step for step, _ in found.points["batch_loss"]] == [1, 2, 4, 5]
            first, second, *_ = [value for _, value in found.points["batch_loss"]]
            third = (log["train_loss"][0] * 42 - 16 * (first + second)) / 10  # 16, 16 and 10 photos make the epoch's
            assert max(abs(third - second), abs(third - first)) < 0.2
            for name, value in oof.items():
                assert found.points[f"oof/{name}"] == [(6, pytest.approx(value))], name
            assert {"confusion", "mistakes"} <= found.pictures
    for found in (Found(run, 1, name) for name in logs):
        for name in ("f1", "f1_low", "f1_high"):
            assert found.points[f"all_folds/{name}"] == [(6, pytest.approx(saved[name]))]


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
        assert found.config["train.lr"] == 0.001 and found.config["train.epochs"] == 2
        assert found.config["data.strict"] is True and found.config["fold"] == fold
        points = [point for point in found.points if "train_loss" in point]
        assert [(point["_step"], point["epoch"]) for point in points] == [(3, 1), (6, 2)]
        assert [point["_step"] for point in found.points if "batch_loss" in point] == [1, 2, 4, 5]
        for name in log:
            assert [point[name] for point in points] == pytest.approx(log[name].tolist(), abs=1e-5), name
        config = competition.config()
        scores = predictions.measured(
            config.predicted, predictions.read_oof(config.predicted, run / f"fold{fold}/oof.csv")
        )
        assert {name: found.summary[f"oof/{name}"] for name in scores} == pytest.approx(scores)
        assert {"confusion._type", "mistakes._type"} <= {name for point in found.points for name in point}
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
        for name in log:
            assert [step for step, _ in found[name]] == [3, 6]
            assert [value for _, value in found[name]] == pytest.approx(log[name].tolist(), abs=1e-5), name
        assert {"oof/f1", "oof/f1_low", "oof/f1_high"} < set(found)
        seen = EventAccumulator(str(run / f"fold{fold}")).Reload()
        assert {"confusion", "mistakes"} <= {tag.split("/")[0] for tag in seen.Tags()["images"]}
        content = seen.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        assert b"train.lr" in content and b"model.backbone" in content and b"test_resnet" in content
    assert [found[f"all_folds/{name}"] for name in ("f1", "f1_low", "f1_high")] == [
        [(6, pytest.approx(saved[name]))] for name in ("f1", "f1_low", "f1_high")
    ]


@pytest.mark.chain
@pytest.mark.parametrize("log", ["wandb", "tensorboard", "trackio", "mlflow"])
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
    batches = json.loads((run / "fold0" / f"{log}.json").read_text())["step"] / 4
    assert 1 <= before < 9 and before - 1 <= batches <= before + 1  # the stop may come before or after a point
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    if log == "wandb":
        assert {path.name.split("-")[-1] for path in run.glob("wandb/offline-run-*")} == {wandb_run(run, 0).info.run_id}
    assert steps_of(run, log, "train_loss") == [4 * epoch for epoch in range(1, 10)]
    assert steps_of(run, log, "batch_loss") == [4 * epoch + k for epoch in range(9) for k in (1, 2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("log", ["wandb", "tensorboard", "trackio", "mlflow"])
def test_a_kill_loses_no_epoch(competition, log):
    """A killed W&B has not written its last seconds; what may be missing is sent again."""
    pytest.importorskip(log)
    run = competition.root / "run"
    (run / "fold0").mkdir(parents=True)
    program = """
import os, sys
from accelerate import PartialState
from foldface import trackers
from foldface.settings import Config
PartialState()
config = Config(run=sys.argv[1], log=sys.argv[2])
with trackers.opened(config, 0) as tracker:
    for epoch in range(1, int(sys.argv[3]) + 1):
        tracker.log({"epoch": epoch, "lr": epoch / 10}, epoch)
    if sys.argv[3] == "2":
        os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", program, run, log]
    assert subprocess.run([*command, "2"], cwd=ROOT).returncode == -9
    time.sleep(1.1)  # events are read in the order of the seconds in their files' names
    assert subprocess.run([*command, "3"], cwd=ROOT).returncode == 0
    if log == "wandb":
        assert {point["_step"]: point["lr"] for point in wandb_run(run, 0).points} == {1: 0.1, 2: 0.2, 3: 0.3}
    else:
        points = scalars(run, 0) if log == "tensorboard" else Found(run, 0, log).points
        assert points["lr"] == [(n, pytest.approx(n / 10)) for n in (1, 2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("log", ["wandb", "tensorboard", "trackio", "mlflow"])
def test_a_folder_that_a_tracker_left_behind_is_not_its_package(competition, monkeypatch, log):
    config = competition.config("--log", log)
    (competition.root / log).mkdir()
    monkeypatch.delitem(sys.modules, log, raising=False)
    monkeypatch.setattr(sys, "path", [str(competition.root)])
    package = {"mlflow": "mlflow-skinny sqlalchemy alembic"}.get(log, log)
    with pytest.raises(InputError, match=f"log is {log}, which is not installed: pip install {package}, or --log none"):
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
