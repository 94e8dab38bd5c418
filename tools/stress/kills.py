"""Kill a script or one of its workers at random moments and restart it; compare its files with an undisturbed run's.

    python -m tools.stress.kills crop --count 20    on the sample data
    python -m tools.stress.kills crop --count 20 --data.train DIR --data.eval DIR    on yours
    python -m tools.stress.kills train --count 20 --train.folds 3    mid-epoch too
    python -m tools.stress.kills answer --count 20    inference, pseudo labels, ensemble
    python -m tools.stress.kills tools --count 21    all tools that write files
    python -m tools.stress.kills train --victim worker    one of its workers; term, int: a signal that stops it
    OMP_NUM_THREADS=1 python -m tools.stress.kills answer --victim rank    one of two processes that torchrun started


All other arguments go to the scripts. Exit 1 with the names of the files if any byte differs, or if a script that was
stopped or lost a worker printed a traceback or left a process running. With --victim rank the undisturbed run of
crop and answer is one process's.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]


def start(script, words, victim="main"):
    """Start a script (train.py) or a module (tools.eda), where a rank is the victim in two processes."""
    what = [script] if script.endswith(".py") else ["-m", script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    launcher = TORCHRUN if victim == "rank" else []
    return subprocess.Popen([sys.executable, *launcher, *what, *words], cwd=ROOT, **pipes)


def ranks_of(process):
    """Process ids of the processes that torchrun started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"/torch" not in command_of(pid).split(b"\0")[1]]


def workers_of(process):
    """Process ids of the Python processes that a process started, and that these started (Linux)."""
    found, waiting = [], [process.pid]
    while waiting:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        found += [pid for pid in waiting if pid not in found]
    return [pid for pid in found if b"resource_tracker" not in command_of(pid)]


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def strike(process, victim, rng):
    """Kill or stop a process, or kill one of its workers, the next one where it has none now: (whether one was hit, its
    worker processes)."""
    workers = workers_of(process)
    if victim == "worker":
        while not workers and process.poll() is None:  # some live for a second only
            time.sleep(rng.uniform(0, 0.1))
            workers = workers_of(process)
        if not workers:
            return False, workers
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(workers), signal.SIGKILL)
    elif victim == "rank":
        ranks = ranks_of(process)
        if not ranks:
            return False, workers
        os.kill(rng.choice(ranks), signal.SIGKILL)
    else:
        process.send_signal({"main": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}[victim])
    return True, workers


def find_fault(process, errors, victim, workers):
    """What is wrong with how a killed or stopped process ended, "" if nothing is. errors: its stderr."""
    if "Failed to import the site module" in errors:  # stopped before Python itself had begun: exit 1
        return ""
    expected = {"main": (-9,), "term": (143, -15), "int": (130, -2), "worker": (2, 0), "rank": (1,)}[victim]
    own = errors.count("ChildFailedError") > 0  # torchrun prints its own traceback
    if process.returncode not in (*expected, 0):
        return f"exit {process.returncode}: {errors[-2000:]}"
    begun = process.returncode != -signal.SIGINT  # before the script itself runs, Python prints its own traceback
    if errors.count("Traceback (most recent call last)") > own and begun:
        return f"a traceback: {errors[-6000:]}"
    until = time.monotonic() + 15
    while any(command_of(pid) for pid in workers):
        if time.monotonic() > until:
            return f"left running: {[command_of(pid) for pid in workers]}"
        time.sleep(0.1)
    return ""


def run(script, words, victim="main"):
    """Run a script to its end: (seconds, stdout). Raises SystemExit if it fails."""
    begun = time.monotonic()
    process = start(script, words, victim)
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{script} {' '.join(map(str, words))} failed:\n{output}{errors}")
    return time.monotonic() - begun, output


def run_killed(script, words, count, seconds, rng, ended, victim="main"):
    """Strike a script `count` times at random moments; call `ended` each time that it finishes, also the last time.

    seconds: duration of an undisturbed run, start-up included; a strike comes at a random moment of it. `ended` removes
    the results, so that the next strikes hit work and not a run that finds all of it done.
    """
    landed = 0
    while landed < count:
        process, struck = start(script, words, victim), False
        try:
            output, errors = process.communicate(timeout=rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            struck, workers = strike(process, victim, rng)
            output, errors = process.communicate()
            wrong = find_fault(process, errors, victim, workers)
            if struck and wrong:
                raise SystemExit(f"{script}, {victim} struck: {wrong}") from None
            landed += struck
        if not struck and process.returncode:
            raise SystemExit(f"{script} failed after {landed} strikes:\n{output}{errors}")
        if process.returncode == 0:
            ended()
    run(script, words, victim)
    ended()


def different(one, other, ignored=()):
    """Files that are not the same in both folders; ignored: names of files that may differ."""
    names = {path.relative_to(folder) for folder in (one, other) for path in folder.rglob("*") if path.is_file()}
    return sorted(str(name) for name in names if name.name not in ignored and not same(one / name, other / name))


def same(one, other):
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def crop(words, home, count, rng, victim="main"):
    """face_crop.py -> (how often it came to its end, files that differed then)."""
    whole, killed = home / "whole", home / "killed"
    seconds, _ = run("face_crop.py", [*words, "--data.crops", whole])
    return compared("face_crop.py", [*words, "--data.crops", killed], count, seconds, rng, whole, killed, victim=victim)


def train(words, home, count, rng, victim="main"):
    """train_kfold.py, its state saved every second, so that kills find it in mid-epoch."""
    whole, killed, words = home / "whole", home / "killed", [*words, "--save_minutes", "0.02"]
    seconds, _ = run("train_kfold.py", [*words, "--run", whole], victim)
    return compared("train_kfold.py", [*words, "--run", killed], count, seconds, rng, whole, killed, victim=victim)


def answer(words, home, count, rng, victim="main"):
    """inference.py, then pseudo_label.py, then ensemble.py, on one trained run; a third of the kills each.

    A worker or a rank is struck in inference alone: the other two have none."""
    whole, killed, words = home / "whole", home / "killed", [*words, "--save_minutes", "0.02"]
    run("train_kfold.py", [*words, "--run", whole, "--train.epochs", "1"])
    ends, files = 0, []
    scripts = {"inference.py": [], "pseudo_label.py": ["--pseudo.threshold", "0"], "ensemble.py": ["--soft"]}
    if victim in ("worker", "rank"):  # the other two have none
        del scripts["pseudo_label.py"], scripts["ensemble.py"]
    for script, more in scripts.items():
        shutil.copytree(whole, killed)
        seconds, _ = run(script, [*words, *more, "--run", whole, "--submission", whole / "submission.csv"])
        before = [path.relative_to(killed) for path in killed.rglob("*")]
        again = [*words, *more, "--run", killed, "--submission", killed / "submission.csv"]
        some, found = compared(script, again, -(-count // len(scripts)), seconds, rng, whole, killed, before, victim)
        shutil.rmtree(killed)
        ends, files = ends + some, files + found
    return ends, files


def tools(words, home, count, rng, victim="main"):
    """The tools that read a trained run or stand alone; each gets a share of the kills."""
    trained, whole, place = home / "trained", home / "whole", home / "place"
    run("train_kfold.py", [*words, "--run", trained, "--train.epochs", "1", "--train.folds", "2"])
    run("inference.py", [*words, "--run", trained])
    ends, files = 0, []
    for script, more in (
        ("tools.eda", [*words, "--run", place / "run"]),
        ("tools.label_errors", [*words, "--run", place / "run"]),
        ("tools.explain", [*words, "--run", place / "run"]),
        ("tools.report", [*words, "--run", place / "run"]),
        ("tools.average_weights", [*words, "--run", place / "run"]),
        ("tools.compare", [RECIPE, *words, "--run", place / "runs", "--train.epochs", "1", "--train.folds", "2"]),
        (
            "tools.sample_data",
            ["--sample.people", "4", "--sample.eval_people", "2", "--sample.folder", place / "sample"],
        ),
    ):
        shutil.copytree(trained, place / "run")
        seconds, _ = run(script, more)
        place.rename(whole)  # files name the place that they lie in
        shutil.copytree(trained, place / "run")
        before = [path.relative_to(place) for path in place.rglob("*")]
        some, found = compared(script, more, -(-count // 7), seconds, rng, whole, place, before, victim)
        shutil.rmtree(place)
        shutil.rmtree(whole)
        ends, files = ends + some, files + [f"{script}: {name}" for name in found]
    return ends, files


RECIPE = ROOT / "recipes/try/focal.json"


def compared(script, words, count, seconds, rng, whole, killed, before=(), victim="main"):
    """Kill a script that fills the folder `killed`; at each end compare it with `whole`, and start over.

    before: files that were in the folder before, and stay. Returns (number of ends, files that differed).
    """
    ends, files = [], []

    def ended():
        ends.append(len(files))
        apart = ["args.json", "speed.csv", "report.html", "report.json", "compare.md", "compare.png"]
        files.extend(different(whole, killed, apart))
        for path in sorted(killed.rglob("*"), reverse=True):
            if path.relative_to(killed) not in before:
                path.rmdir() if path.is_dir() else path.unlink()

    run_killed(script, words, count, seconds, rng, ended, victim)
    return len(ends), files


WHAT = {"crop": crop, "train": train, "answer": answer, "tools": tools}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--victim", choices=("main", "term", "int", "worker", "rank"), default="main")
    parser.add_argument("--seed", type=int, default=0)
    options, words = parser.parse_known_args(argv)
    home = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        ends, files = WHAT[options.what](words, home, options.count, random.Random(options.seed), options.victim)
    finally:
        shutil.rmtree(home)
    what = f"{options.what}, {options.victim}: struck {options.count} times, came to its end {ends} times"
    print(f"{what}; {len(files)} files differ")
    if files:
        print("\n".join(files[:20]))
        sys.exit(1)


if __name__ == "__main__":
    main()
