"""Kill a script (SIGKILL) at random moments, start it again each time, and compare what is there with what an
undisturbed run leaves, byte for byte.

    python tests/kills.py crop --count 20                                         on the sample data
    python tests/kills.py crop --count 20 --data.train DIR --data.eval DIR        on yours
    python tests/kills.py train --count 20 --train.folds 3                        mid-epoch too
    python tests/kills.py answer --count 20                                       inference, pseudo labels, ensemble

Everything after --count goes to the scripts. Exit 1 and the names of the files if anything differs.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start(script, words):
    return subprocess.Popen(
        [sys.executable, ROOT / script, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(script, words):
    """Run to the end; raise if it fails. Returns its seconds and what it printed."""
    begun = time.monotonic()
    process = start(script, words)
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{script} {' '.join(map(str, words))} failed:\n{said}")
    return time.monotonic() - begun, said


def run_killed(script, words, count, seconds, rng, ended):
    """Kill the run `count` times at random moments; call `ended` whenever it came to its end, the last time too.

    seconds: how long an undisturbed run takes, start-up included; a kill comes at any moment of them. `ended` clears
    the ground, so that the kills that are left fall on work and not on a run that finds all done.
    """
    landed = 0
    while landed < count:
        process = start(script, words)
        try:
            said, _ = process.communicate(timeout=rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            landed += 1
            continue
        if process.returncode:
            raise SystemExit(f"{script} failed after {landed} kills:\n{said}")
        ended()
    run(script, words)
    ended()


def different(one, other, ignored=()):
    """Files that are not the same in both folders; ignored: names of files that may differ."""
    names = {path.relative_to(folder) for folder in (one, other) for path in folder.rglob("*") if path.is_file()}
    return sorted(str(name) for name in names if name.name not in ignored and not same(one / name, other / name))


def same(one, other):
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def crop(words, home, count, rng):
    """face_crop.py -> (how often it came to its end, files that differed then)."""
    whole, killed = home / "whole", home / "killed"
    seconds, _ = run("face_crop.py", [*words, "--data.crops", whole])
    return compared("face_crop.py", [*words, "--data.crops", killed], count, seconds, rng, whole, killed)


def train(words, home, count, rng):
    """train_kfold.py, its state saved every second, so that kills find it in mid-epoch."""
    whole, killed, words = home / "whole", home / "killed", [*words, "--save_minutes", "0.02"]
    seconds, _ = run("train_kfold.py", [*words, "--run", whole])
    return compared("train_kfold.py", [*words, "--run", killed], count, seconds, rng, whole, killed)


def answer(words, home, count, rng):
    """inference.py, then pseudo_label.py, then ensemble.py, on one trained run; a third of the kills each."""
    whole, killed, words = home / "whole", home / "killed", [*words, "--save_minutes", "0.02"]
    run("train_kfold.py", [*words, "--run", whole, "--train.epochs", "1"])
    ends, files = 0, []
    for script, more in (
        ("inference.py", []),
        ("pseudo_label.py", ["--pseudo.threshold", "0"]),
        ("ensemble.py", ["--soft"]),
    ):
        shutil.copytree(whole, killed)
        seconds, _ = run(script, [*words, *more, "--run", whole, "--submission", whole / "submission.csv"])
        before = [path.relative_to(killed) for path in killed.rglob("*")]
        again = [*words, *more, "--run", killed, "--submission", killed / "submission.csv"]
        some, found = compared(script, again, -(-count // 3), seconds, rng, whole, killed, before)
        shutil.rmtree(killed)
        ends, files = ends + some, files + found
    return ends, files


def compared(script, words, count, seconds, rng, whole, killed, before=()):
    """Kill a script that fills the folder `killed`; at each end compare it with `whole`, and begin anew.

    before: what was in the folder to begin with, and stays. Returns (number of ends, files that differed).
    """
    ends, files = [], []

    def ended():
        ends.append(len(files))
        files.extend(different(whole, killed, ["args.json", "speed.csv", "report.html"]))
        for path in sorted(killed.rglob("*"), reverse=True):
            if path.relative_to(killed) not in before:
                path.rmdir() if path.is_dir() else path.unlink()

    run_killed(script, words, count, seconds, rng, ended)
    return len(ends), files


WHAT = {"crop": crop, "train": train, "answer": answer}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options, words = parser.parse_known_args()
    home = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        ends, files = WHAT[options.what](words, home, options.count, random.Random(options.seed))
    finally:
        shutil.rmtree(home)
    print(f"{options.what}: killed {options.count} times, came to its end {ends} times; {len(files)} files differ")
    if files:
        print("\n".join(files[:20]))
        sys.exit(1)


if __name__ == "__main__":
    main()
