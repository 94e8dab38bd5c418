"""Measure the speed of each stage beside its usual peer, both in turn in one run, several times.

    python -m tools.benchmark                                               on the sample data
    python -m tools.benchmark --data.train DIR --data.eval DIR --data.crops DIR --rounds 5 --json bench.json
    python -m tools.benchmark --quick                                       fewer photos and steps: about five minutes
    python -m tools.benchmark --stages loader train --config recipes/people_small.json
    python -m tools.benchmark --profile                                 how training and inference spend their time

Prints a Markdown table: median (min-max). A ratio is ours / peer of the same round, since a machine's speed drifts.

    memory       an epoch of training photos as normalised floats (flip, affine, brightness), decoded before: ours from
                 memory; a torch DataLoader with torchvision's transforms from PIL images in memory
    loader       the same, but both sides decode each photo each time: ours with memory_gb 0; PIL and torchvision
    timm         the same beside timm.data.create_loader: RandomResizedCrop, flip, brightness
    crop         all of face_crop.py; facenet-pytorch, photo by photo
    train        a whole epoch of train.py; the bare step of the same model, batch and precision on tensors in memory,
                 with the faster of both memory formats
    inference    five folds in one pass; a timm loop for each fold, which decodes with PIL; both without the start of
                 their workers
    onnx         the same with inference.backend onnx
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from foldface import cli
from foldface.cli import run_main
from foldface.data import folds
from foldface.files import InputError, refuse_unwritable, write_json
from foldface.settings import Config
from tools.benchmark_stages import STAGES, Seconds, predict_folds, train

ROOT = Path(__file__).resolve().parents[1]
PEOPLE = 1_000_000  # assigned to folds


# --------------------------------------------------------------------------------------------- where the time goes


WORK = {  # {kind of work: parts of the names that torch's profiler uses}; the first match counts
    "waiting for photos": ("DataLoader",),
    "convolutions, backward": ("convolution_backward",),
    "convolutions": ("convolution", "mkldnn", "conv2d"),
    "batch norm": ("batch_norm",),
    "activations": ("hardtanh", "relu", "clamp", "silu", "sigmoid"),
    "optimizer and clipping": ("Optimizer", "_fused_", "_foreach", "linalg_vector_norm"),
    "linear layers": ("addmm", "aten::mm", "linear"),
}


def profile(act) -> dict[str, float]:
    """{kind of work: share of a function's time on the main thread}, the largest first, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiler:
        act()
    taken = dict.fromkeys([*WORK, "all else"], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in WORK.items() if any(name in event.key for name in names)), "all else")
        taken[kind] += event.self_cpu_time_total
    return {kind: took / sum(taken.values()) for kind, took in sorted(taken.items(), key=lambda item: -item[1])}


def profile_table(config, folder: Path) -> str:
    """Markdown: how an epoch of training and a prediction with five folds spend their time, after a warm-up each."""
    found = {}
    for name, ours in (("train", train(config, folder)[0]), ("inference", predict_folds(config, folder, "torch")[0])):
        ours()
        found[name] = profile(ours)
    kinds = sorted(found["train"], key=lambda kind: -found["train"][kind])
    rows = [f"| {kind} | {found['train'][kind]:.1%} | {found['inference'][kind]:.1%} |" for kind in kinds]
    return "\n".join(["| work | a training epoch | five folds' answers |", "|---|---|---|", *rows])


# -------------------------------------------------------------------------------------------- seconds, without peers


def made_up_rows(count: int, seed: int = 0) -> pd.DataFrame:
    """Rows for folds.assign_folds of `count` people with seven photos each; there are no such photos."""
    rng, person = np.random.default_rng(seed), np.repeat(np.arange(count), 7)
    kind = np.tile([0, 0, 0, 0, 0, 1, 2], count)
    own = rng.integers(6, size=count)[person]
    rows = pd.DataFrame({"id": np.char.mod("%06d", np.arange(count))[person], "source": "train", "split": ""})
    return rows.assign(target=kind * 6 + own, twin=np.arange(len(rows)))


def folds_seconds(people: int) -> float:
    """Seconds to assign so many people with seven photos each to five folds and write folds.csv."""
    rows = made_up_rows(people)
    with tempfile.TemporaryDirectory() as place:
        config = Config(run=place)
        with Seconds() as taken:
            folds.assign_folds(rows, config)
    return taken.passed


def help_seconds() -> float:
    """Seconds of train.py --help."""
    with Seconds() as taken:
        subprocess.run([sys.executable, str(ROOT / "train.py"), "--help"], check=True, stdout=subprocess.DEVNULL)
    return taken.passed


# ------------------------------------------------------------------------------------------------------- the table


def median_range(values, digits: int) -> str:
    """Median (min-max)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def markdown_table(found: dict[str, list[tuple[float, float]]]) -> str:
    """The Markdown table of {stage: [(ours, peer) of each round]}, photos/s."""
    lines = ["| stage | ours | peer | ratio |", "|---|---|---|---|"]
    for name, pairs in found.items():
        ours, peers = zip(*pairs, strict=True)
        ratios = [one / other for one, other in pairs]
        lines.append(
            f"| {STAGES[name][0]} | {median_range(ours, 1)} | {median_range(peers, 1)} | {median_range(ratios, 2)} |"
        )
    return "\n".join(lines)


USED = ("task", "data", "crop", "model", "loss", "train", "inference")  # --help shows these groups of settings
FLAGS = {
    "--rounds": {"type": int, "default": 3, "help": "how often each side runs"},
    "--quick": {"action": "store_true", "help": "fewer photos and steps, about five minutes"},
    "--stages": {"nargs": "+", "default": [], "metavar": "STAGE", "help": f"of {', '.join(STAGES)}; default: all"},
    "--profile": {"action": "store_true", "help": "only print how training and inference spend their time"},
    "--json": {"type": str, "default": "", "help": "file for the median ratios and the seconds"},
}


def main(argv: list[str] | None = None) -> None:
    config = cli.read(__doc__, FLAGS, argv, USED)
    if config.profile:
        with tempfile.TemporaryDirectory() as place:
            print(profile_table(config, Path(place)))
        return
    if config.json:
        refuse_unwritable(Path(config.json).parent, "name another file with --json")
    unknown = set(config.stages) - set(STAGES)
    if unknown:
        raise InputError(f"--stages {min(unknown)}: there are {', '.join(STAGES)}")
    rounds, chosen = config.rounds, config.stages or list(STAGES)
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name in chosen:
            ours, peer = STAGES[name][1](config, Path(place))
            found[name] = []
            for k in range(rounds):
                first, second = (ours, peer) if k % 2 == 0 else (peer, ours)  # take turns in running first
                one, other = first(), second()
                found[name].append((one, other) if k % 2 == 0 else (other, one))
            print(f"{name}: {median_range([one / other for one, other in found[name]], 2)}", flush=True)
    result = {name: round(statistics.median(a / b for a, b in pairs), 3) for name, pairs in found.items()}
    print(markdown_table(found))
    if not config.stages:
        people = PEOPLE // 10 if config.quick else PEOPLE
        seconds = {"folds_seconds": folds_seconds(people), "help_seconds": help_seconds()}
        print(f"folds of {people:,} people, {7 * people:,} photos: {seconds['folds_seconds']:.1f} s")
        print(f"train.py --help: {seconds['help_seconds']:.1f} s")
        result |= {name: round(value, 2) for name, value in seconds.items()}
    if config.json:
        write_json(Path(config.json), result)


if __name__ == "__main__":
    run_main(main)
