"""What the tests share: a tiny competition of plain photos in milliseconds, and one of drawn people for the chain."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from foldface import cli, task
from foldface.data.photos import cv2
from foldface.nn import learner

ROOT = Path(__file__).resolve().parent.parent
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as cli.run_main does for the scripts

os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # of processes

MASK = task.Task(**task.MASK_TASK)
STEMS = ["mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal"]


def write_photo(path, seed, size=(40, 30)):
    """A small photo of noise, another for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    cv2.imencode(path.suffix, image)[1].tofile(path)


@pytest.fixture(scope="session", autouse=True)
def no_args_json(tmp_path_factory):
    """All tests run in a folder that has no args.json, as do the processes that they start: its user may edit ours."""
    os.chdir(tmp_path_factory.mktemp("no_args_json"))


class Competition:
    """A folder in the competition's layout that a test can bend."""

    def __init__(self, root, people=12, photos=STEMS, answer_for=5):
        self.root, self.train, self.eval = root, root / "train", root / "eval"
        self.people = [
            (f"{n:06d}", ("male", "female")[n % 2], (20, 40, 60)[n // 2 % 3], f"{n:06d}_person") for n in range(people)
        ]
        for n, (*_, path) in enumerate(self.people):
            for k, stem in enumerate(photos):
                write_photo(self.train / "images" / path / f"{stem}.jpg", n * 100 + k)
        self.images = [f"answer{n}.jpg" for n in range(answer_for)]
        for n, name in enumerate(self.images):
            write_photo(self.eval / "images" / name, 10_000 + n)
        self.write_table()
        (self.eval / "info.csv").write_text("ImageID,ans\n" + "".join(f"{name},0\n" for name in self.images))

    def write_table(self, header="id,gender,race,age,path", newline="\n", encoding="utf-8", rows=None):
        """Write train.csv; rows: lists of cells, by default those of self.people."""
        rows = rows or [[i, gender, "Drawn", age, path] for i, gender, age, path in self.people]
        text = newline.join([header] + [",".join(map(str, row)) for row in rows]) + newline
        (self.train / "train.csv").write_bytes(text.encode(encoding))

    def config(self, *overrides):
        """Settings that point here, with whole photos and the smallest model; overrides: words of a command line."""
        words = [
            *("--data.train", self.train, "--data.eval", self.eval, "--data.crops", "", "--run", self.root / "run"),
            *("--submission", self.root / "submission.csv", "--model.backbone", "test_resnet", "--device", "cpu"),
            *("--model.pretrained", "false", "--data.image_size", 32, "--train.epochs", 2, "--train.batch_size", 16),
            *("--train.folds", 2, "--data.workers", 0),
        ]
        return cli.read("", argv=[*map(str, words), *map(str, overrides)])


@pytest.fixture
def competition(tmp_path):
    return Competition(tmp_path)


@pytest.fixture
def make_competition(tmp_path):
    return lambda **keywords: Competition(tmp_path, **keywords)


def mounted(*words):
    """Mount a file system, or skip the test where that isn't allowed."""
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True) if os.name == "posix" else None
    if done is None or done.returncode:
        pytest.skip(f"this test mounts a file system, which is not allowed here: {done and done.stderr.strip()}")


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


def fill_up(folder):
    """Leave no byte free on a small disk."""
    with open(Path(folder) / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


@pytest.fixture(scope="session")
def accelerator():
    from accelerate import Accelerator

    return Accelerator(cpu=True)


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """A function that does what typing a command does, in this process: typed(inference, "--run", run)."""

    def run(script, *words):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, words)])
        monkeypatch.chdir(tmp_path)
        script.main()

    return run


@pytest.fixture
def one_accelerator(monkeypatch, accelerator):
    """accelerate keeps its state for the process; building it once is what the scripts do too."""

    monkeypatch.setattr(learner, "make_accelerator", lambda config: accelerator)
