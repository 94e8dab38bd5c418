"""Several processes of one command: the same files as one process writes, and nothing lost where one is killed."""

import json
import random

import numpy as np
import pandas as pd
import pytest
from helpers import MASK, ROOT, crops_that_are_photos, torchrun, write_photo

import dataset
import model
from foldface import predictions, runs
from foldface.faces import manifest
from foldface.files import write_csv
from foldface.nn import predicting
from foldface.nn.progress import Progress
from foldface.ranks import Ranks
from foldface.settings import as_dict
from tools.stress import kills

SLOW = pytest.mark.slow


def as_file(competition, *words):
    """--config and a file of the settings that these words give."""
    path = competition.root / "config.json"
    path.write_text(json.dumps(as_dict(competition.config(*words))))
    return ["--config", path]


def many_photos(competition, count=40):
    """Have `count` photos to answer for, of which one can't be read."""
    competition.images = [f"answer{n}.jpg" for n in range(count)]
    for n, name in enumerate(competition.images):
        write_photo(competition.eval / "images" / name, 20_000 + n)
    (competition.eval / "images" / competition.images[9]).write_bytes(b"")
    (competition.eval / "info.csv").write_text("ImageID,ans\n" + "".join(f"{name},0\n" for name in competition.images))


def answers_of(run):
    return {path.name: path.read_bytes() for path in run.glob("*.csv")}


def test_each_job_is_done_once_and_its_result_stands_in_its_place():
    for count in (1, 2, 3, 7):
        shares = [Ranks(index, count).share(range(10)) for index in range(count)]
        assert sorted(job for share in shares for job in share) == list(range(10))


@SLOW
def test_no_process_ends_while_threads_of_its_group_run(tmp_path):
    """They would abort it with signal 6, now and then."""
    program = tmp_path / "program.py"
    program.write_text(
        """
import atexit, os, sys
import torch.distributed
from foldface import devices
from foldface.settings import Config

atexit.register(lambda: torch.distributed.is_initialized() and os._exit(6))  # called last
if sys.argv[1] == "ranks":
    assert devices.join_ranks(Config(device="cpu")).gather([1]) == [1, 1]
else:
    assert devices.make_accelerator(Config(device="cpu")).num_processes == 2
assert torch.distributed.is_initialized()
"""
    )
    for way in ("ranks", "accelerator"):
        done = torchrun(2, "--", program, way, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr


@SLOW
@pytest.mark.parametrize("backend, counts", [("torch", (1, 3)), ("onnx", (1, 2))])
def test_several_processes_answer_with_the_bytes_of_one(trained, backend, counts):
    many_photos(trained)
    run = trained.root / "run"
    words = as_file(trained, "--inference.batch_size", 4, "--inference.backend", backend)
    found = []
    for count in counts:
        done = torchrun(count, "--", ROOT / "inference.py", *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("40 photos, 2 folds") == 1 and done.stderr.count("1 of 40 photos can't be read") == 1
        found.append(answers_of(run))
        assert found[-1].keys() == {"fold0.csv", "fold1.csv", "unreadable.csv"}
        for name in found[-1]:
            (run / name).unlink()
        assert not list(run.glob("*.npz"))
    assert found[0] == found[1]


@SLOW
def test_an_answer_goes_on_with_another_number_of_processes(trained):
    """What three processes had done before they were killed is not done again by two."""
    many_photos(trained)
    run, words = trained.root / "run", as_file(trained, "--inference.batch_size", 4)
    config = runs.read_for_run("", argv=[*map(str, words)])
    rows = manifest.with_files(dataset.eval_rows(config), "")
    key = predicting.key_of(model.checkpoints(run), rows, config)
    parts = [[*range(4), *range(24, 32)], [*range(12, 16)], [*range(32, 36)]]
    for rank, photos in enumerate(parts):
        part = Progress(run / "inference.npz", key, [0, 1], 40, 18, 0, Ranks(rank, 1))
        for found in part.found.values():
            found[:] = 0.75  # no model says that
        part.add(np.array(photos))
    assert len(list(run.glob("*.npz"))) == 3
    done = torchrun(2, "--", ROOT / "inference.py", *words)
    assert "20 of 40 photos were predicted before" in done.stdout, done.stderr
    table = pd.read_csv(run / "fold0.csv")
    assert sorted(table.index[table["p0"] == 0.75]) == sorted(np.concatenate(parts))
    assert not list(run.glob("*.npz"))


@SLOW
def test_scores_of_the_test_set_maps_and_shifts_are_those_of_one_process(competition):
    many_photos(competition)
    run, crops = competition.root / "run", crops_that_are_photos(competition)
    words = as_file(competition, "--data.test_size", 0.3, "--train.epochs", 1, "--inference.batch_size", 4)
    here = [*words, "--data.eval", competition.eval, "--run", run]
    check = ["tools.explain", *here, "--data.crops", crops, "--check", 6]
    found = []
    for count in (1, 2):
        done = torchrun(count, "--", ROOT / "train_kfold.py", *words)  # the second time all folds are finished
        assert done.returncode == 0, done.stderr
        oof = predictions.read_oof(MASK, run / "oof.csv")
        write_csv(run / "oof.csv", oof.assign(ans=oof["target"]))  # all were right
        told = torchrun(count, "-m", "--", *check)
        page = torchrun(count, "-m", "--", "tools.eda", *here)
        assert page.returncode == 0 and "6 photos answered rightly" in told.stdout, told.stderr + page.stderr
        lines = [line for line in told.stdout.splitlines() if "of the heat" in line]
        found.append([lines, *((run / name).read_bytes() for name in ("test.csv", "metrics.json", "eda.html"))])
        for name in ("test.csv", "metrics.json", "oof.csv", "eda.html"):
            (run / name).unlink()
        assert not list(run.glob("*.npz"))
    for one, other in zip(*found, strict=True):
        assert one == other


@SLOW
def test_a_killed_rank_is_said_in_one_line_and_the_same_command_ends_the_same(competition, tmp_path, monkeypatch):
    """Ten times: OMP_NUM_THREADS=1 python -m tools.stress.kills answer --victim rank --count 10."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    many_photos(competition, 300)
    words = as_file(competition, "--inference.batch_size", 2)
    ends, files = kills.WHAT["answer"](words, tmp_path / "kills", 1, random.Random(1), "rank")
    assert ends >= 1 and files == []
