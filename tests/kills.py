"""Kill a script (SIGKILL) at random moments, start it again each time, and compare what is there with what an
undisturbed run leaves, byte for byte.

    python tests/kills.py crop --count 20                                         on the sample data
    python tests/kills.py crop --count 20 --data.train DIR --data.eval DIR        on yours

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
    """Names of files that are not the same in both folders."""

    def files(folder):
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - set(ignored)

    both = files(one) | files(other)
    return sorted(name for name in both if not same(one / name, other / name))


def same(one, other):
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def crop(words, home, count, rng):
    """face_crop.py -> (how often it came to its end, files that differed then)."""
    whole, killed = home / "whole", home / "killed"
    seconds, _ = run("face_crop.py", [*words, "--data.crops", whole])
    return compared("face_crop.py", [*words, "--data.crops", killed], count, seconds, rng, whole, killed)


def compared(script, words, count, seconds, rng, whole, killed):
    """Kill a script that fills the folder `killed`, compare it with `whole` at each end, and begin anew."""
    ends, files = [], []

    def ended():
        ends.append(len(files))
        files.extend(different(whole, killed))
        shutil.rmtree(killed)

    run_killed(script, words, count, seconds, rng, ended)
    return len(ends), files


WHAT = {"crop": crop}


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
