"""Time large tables: seconds and memory of each command on made-up people, without photos.

    python -m tools.stress.scale                                    a million people; 20 runs of 100,000 rows
    python -m tools.stress.scale --people 100000 --rows 20000 --runs 5

Prints seconds and peak memory of assigning people (seven photos each) to folds, of ensemble.py over all runs, and of
pseudo_label.py and tools.report of one run. Each command is a process of its own.
"""

import argparse
import contextlib
import io
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

import dataset
from foldface import files, predictions
from foldface.settings import Config, as_dict, put

ROOT = Path(__file__).resolve().parents[2]


def noisy_probabilities(task, target, rng):
    """Probabilities (n, k) that favour the targets (n,)."""
    logits = rng.normal(size=(len(target), task.size))
    logits[np.arange(len(target)), target] += 2
    shares = np.exp(logits)
    return shares / shares.sum(1, keepdims=True)


def make_competition(home, rows):
    """Write train.csv and info.csv of `rows` photos, which are all the same grey one."""
    people, table = rows // 7, []
    photo = cv2.imencode(".jpg", np.full((48, 48, 3), 128, np.uint8))[1].tobytes()
    (home / "eval" / "images").mkdir(parents=True)
    asked = pd.DataFrame({"ImageID": [f"{k:07}.jpg" for k in range(rows)], "ans": 0})
    asked.to_csv(home / "eval" / "info.csv", index=False)
    for k in range(people):
        gender, age = ("male", "female")[k % 2], 18 + k * 7 % 43
        folder = home / "train" / "images" / f"{k:07}_{gender}_{age}"
        folder.mkdir(parents=True)
        for name in ("mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal"):
            (folder / f"{name}.jpg").write_bytes(photo)
        table.append((f"{k:07}", gender, "drawn", age, folder.name))
    frame = pd.DataFrame(table, columns=["id", "gender", "race", "age", "path"])
    frame.to_csv(home / "train" / "train.csv", index=False)


def make_run(home, name, photos, seed):
    """Write a run with oof.csv, metrics.json and fold0.csv, as if it had been trained."""
    rng, run = np.random.default_rng(seed), home / name
    config = Config(run=str(run))
    for key, value in (("train", str(home / "train")), ("eval", str(home / "eval")), ("crops", "")):
        put(config, f"data.{key}", value)
    files.write_json(run / "args.json", as_dict(config))
    task, target = config.predicted, photos["target"].to_numpy(int)
    known = photos[["ImageID", "id"]].assign(fold=0, target=target)
    for table in ("oof.csv", "oof_last.csv"):
        files.write_csv(
            run / "fold0" / table, predictions.with_answers(task, known, noisy_probabilities(task, target, rng))
        )
    with contextlib.redirect_stdout(io.StringIO()):
        predictions.gather(task, run, [0])
    asked = pd.read_csv(home / "eval" / "info.csv", dtype=str)[["ImageID"]]
    some = rng.integers(task.size, size=len(asked))
    files.write_csv(run / "fold0.csv", predictions.with_answers(task, asked, noisy_probabilities(task, some, rng)))
    return str(run)


def timed(title, *words):
    """Run a command; print its seconds and the memory of its largest process."""
    watch = "import resource, subprocess, sys, time; t = time.time(); code = subprocess.run(sys.argv[1:], "
    watch += "stdout=subprocess.DEVNULL).returncode; print(round(time.time() - t, 1), "
    watch += "round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2)); sys.exit(code)"
    command = [sys.executable, "-c", watch, sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{title}: {done.stderr}")
    seconds, memory = done.stdout.split()
    print(f"{title}: {seconds} s, {memory} GB", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, default in (("--people", 1_000_000), ("--rows", 100_000), ("--runs", 20)):
        parser.add_argument(flag, type=int, default=default)
    options = parser.parse_args(argv)
    timed(
        f"{options.people:,} people into folds",
        "-c",
        f"from tools import benchmark; benchmark.folds_seconds({options.people})",
    )
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        make_competition(home, options.rows)
        config = Config()
        put(config, "data.train", str(home / "train"))
        photos, _ = dataset.training_rows(config)
        runs = [make_run(home, f"run{k}", photos, k) for k in range(options.runs)]
        votes, title = ["--soft", "--submission", str(home / "submission.csv")], f"of {options.rows:,} rows"
        timed(f"ensemble.py, {options.runs} runs {title}", "ensemble.py", *votes, "--runs", *runs)
        timed(f"pseudo_label.py {title}", "pseudo_label.py", "--run", runs[0], "--pseudo.threshold", "0.5")
        timed(f"tools.report {title}", "-m", "tools.report", "--run", runs[0])


if __name__ == "__main__":
    main()
