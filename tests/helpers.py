"""Functions that tests share: small photos, a small competition, drawn answers, small disks."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

import loss
import model
from foldface import cli, settings, task
from foldface.data.photos import cv2
from foldface.faces import manifest
from foldface.files import write_csv
from foldface.nn import averaging, optim, resume
from foldface.nn.heads import Heads
from foldface.nn.learner import Learner

ROOT = Path(__file__).resolve().parent.parent  # of the project

MASK = task.Task(**task.MASK_TASK)


def mask_task(answer=(), **age):
    """The mask task with other fields of its head of ages: mask_task(learn="ordinal")."""
    return task.Task(settings.change_heads(task.MASK_TASK["heads"], {"age": age}, ""), answer=answer)


STEMS = ["mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal"]


def write_photo(path, seed, size=(40, 30)):
    """A small photo of noise, another for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    cv2.imencode(path.suffix, image)[1].tofile(path)


def interrupt():
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


@contextlib.contextmanager
def at_step(number, act=interrupt):
    """Call `act` within the optimizer's step of that number, counted from here, and then no more."""
    steps = itertools.count(1)
    hook = register_optimizer_step_pre_hook(lambda *_: act() if next(steps) == number else None)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def before_each_network(act):
    """Call act(photos) before a network (not a layer of it) computes, but for the black photo that it is tried with."""
    hook = register_module_forward_pre_hook(
        lambda net, given: act(*given) if hasattr(net, "forward_features") and given[0].any() else None
    )
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def never_read(folder):
    """Within it all files of a folder are of zeros, as large and as old as they were: who reads them finds no photo."""
    kept = {path: (path.read_bytes(), path.stat()) for path in Path(folder).rglob("*") if path.is_file()}

    def write(path, content, about):
        path.write_bytes(content)
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))

    for path, (content, about) in kept.items():
        write(path, bytes(len(content)), about)
    try:
        yield
    finally:
        for path, (content, about) in kept.items():
            write(path, content, about)


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

    def words(self, *more):
        """The words of a command line that point here, with whole photos and the smallest model, and some more."""
        words = [
            *("--data.train", self.train, "--data.eval", self.eval, "--data.crops", "", "--run", self.root / "run"),
            *("--submission", self.root / "submission.csv", "--model.backbone", "test_resnet", "--device", "cpu"),
            *("--model.pretrained", "false", "--data.image_size", 32, "--train.epochs", 2, "--train.batch_size", 16),
            *("--train.folds", 2, "--data.workers", 0),
        ]
        return [*map(str, words), *map(str, more)]

    def config(self, *more):
        """The settings that these words give."""
        return cli.read("", argv=self.words(*more))

    def run(self, script, *more):
        """Do what typing a command with these words does, in this process."""
        script.main(self.words(*more))


def crops_that_are_photos(competition):
    """A crop folder of the photos to train on, each its own crop, with a face in it; -> its path."""
    crops = competition.root / "crops"
    crops.mkdir()
    found = []
    for photo in sorted(competition.train.rglob("*.jpg")):
        crop = f"{photo.parent.name}-{photo.name}"
        (crops / crop).write_bytes(photo.read_bytes())
        found.append({"photo": str(photo), "crop": crop, "status": "found", "x1": 0, "y1": 0, "x2": 60, "y2": 60})
    frame = pd.DataFrame(found)
    frame["sha1"] = frame["photo"].map(manifest.sha1_of)
    write_csv(crops / "manifest.csv", frame.reindex(columns=manifest.MANIFEST_COLUMNS).fillna(""))
    (crops / "crop.json").write_text('{"margin": 0.5}')
    return crops


def torchrun(processes, *words, env=None, **keywords):
    """Run a script or `-m` and a module in so many processes, each on one thread, as torchrun starts them."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, *words]
    paths = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    return subprocess.run([*map(str, launch)], capture_output=True, text=True, timeout=300, env=paths, **keywords)


def make_learner(config, rows, steps, accelerator, seconds=None):
    """The Learner of fold 0, of so many steps an epoch, without loaders."""
    heads = Heads(config.predicted, config.model.heads)
    net = model.make(config, heads.size, 0, accelerator)
    criterion, targets = loss.make(heads, rows, config.loss)
    average, mixup = averaging.make_average(net, config.train), loss.make_mixup(config.train)
    parameters = optim.parameter_groups(net, config.train)
    optimizer = optim.make_optimizer(parameters, config.train, fused=accelerator.scaler is None)
    scheduler = optim.make_course(optimizer, config.train, steps, 0, seconds)
    folder, belongs = Path(config.run) / "fold0", resume.belongs(config, 0, rows)
    return Learner(
        net, criterion, targets, optimizer, scheduler, config, accelerator, average, mixup, folder, None, belongs
    )


def people(n=120, seed=0):
    """Targets (7 n,), ids and folds of drawn people: all photos of a person are of one gender and age class."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(n), 7)
    mask = np.tile([0, 0, 0, 0, 0, 1, 2], n)
    target = MASK.encode(mask, rng.integers(2, size=n)[person], rng.choice(3, n, p=[0.45, 0.45, 0.1])[person])
    return target, person.astype(str), person % 5


def guesses(target, strength, seed):
    """Probabilities (n, 18) that know the target as much as `strength` says."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(target), 18)) + strength * np.eye(18)[target]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def mounted(*words):
    """Mount a file system, or skip the test where that isn't allowed."""
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True) if os.name == "posix" else None
    if done is None or done.returncode:
        pytest.skip(f"this test mounts a file system, which is not allowed here: {done and done.stderr.strip()}")


def fill_up(folder):
    """Leave no byte free on a small disk."""
    with open(Path(folder) / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
