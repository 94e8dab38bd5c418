"""Fixtures that tests share; the functions that they share are in helpers.py."""

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, Competition, mounted

import model
from foldface import devices, registry, task

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as cli.run_main does for the scripts

os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # of processes


@pytest.fixture(scope="session", autouse=True)
def no_args_json(tmp_path_factory):
    """All tests run in a folder that has no args.json, as do the processes that they start: its user may edit ours."""
    os.chdir(tmp_path_factory.mktemp("no_args_json"))


@pytest.fixture
def competition(tmp_path):
    return Competition(tmp_path)


@pytest.fixture
def make_competition(tmp_path):
    return lambda **keywords: Competition(tmp_path, **keywords)


@pytest.fixture
def read_only():
    """A function that makes a folder read-only, as /kaggle/input is, until the test ends."""
    folders = []

    def make(folder):
        mounted("--bind", folder, folder)
        folders.append(folder)
        mounted("-o", "remount,ro,bind", folder)

    yield make
    for folder in reversed(folders):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk():
    """A function that mounts a disk of so many kilobytes at a folder, which it makes; it is gone when the test ends."""
    folders = []

    def make(folder, kilobytes):
        Path(folder).mkdir(parents=True, exist_ok=True)
        mounted("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder)
        folders.append(folder)
        return Path(folder)

    yield make
    for folder in reversed(folders):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers, and the files it imports, are forgotten after it."""
    monkeypatch.setattr(registry, "REGISTERED", {kind: dict(found) for kind, found in registry.REGISTERED.items()})
    monkeypatch.setattr(registry, "PLUGINS", {})
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="session")
def accelerator():
    from accelerate import Accelerator

    return Accelerator(cpu=True)


@pytest.fixture
def scaling(accelerator, monkeypatch):
    """The accelerator that a GPU without bf16 would have: a CPU's own GradScaler and fp16 stand in for it."""
    monkeypatch.setitem(accelerator.state._shared_state, "_mixed_precision", "fp16")
    mine = copy.copy(accelerator)
    mine.scaler, mine.native_amp, mine._optimizers = torch.amp.GradScaler("cpu"), True, []
    return mine


@pytest.fixture
def one_accelerator(monkeypatch, accelerator):
    """accelerate keeps its state for the process; building it once is what the scripts do too."""

    monkeypatch.setattr(devices, "make_accelerator", lambda config: accelerator)


@pytest.fixture
def trained(competition):
    """A competition with a run of two folds of random weights."""
    for fold in (0, 1):
        torch.manual_seed(fold)
        about = {
            "backbone": "test_resnet",
            "heads": "multi",
            "image_size": 32,
            "augment": "light",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "crops": {},
            "fold": fold,
            "task": task.MASK_TASK,
            "fit": "stretch",
            "prior": [1 / 18] * 17 + [1 / 18],
        }
        about["prior"][0], about["prior"][1] = 1.5 / 18, 0.5 / 18
        net = model.build("test_resnet", 8, False, 32)
        torch.nn.init.normal_(net.get_classifier().weight)  # apart from quiet: answers should differ
        model.save(competition.root / "run" / f"fold{fold}" / "best.safetensors", net, about)
    return competition
