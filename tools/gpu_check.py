"""Run every path that only a GPU takes, and print a table of what was found: a few minutes on any CUDA machine.

    python -m tools.gpu_check
    python -m tools.gpu_check --config recipes/gpu_hour.json        its network, size and batch
    python -m tools.gpu_check --only fp16 resume

It needs no data and no weights: photos are drawn, the network begins at random. Each check is a process of its own.
Exit 1 if one fails. Without a CUDA GPU it says so and exits 0.
"""

import contextlib
import copy
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

import dataset
from foldface import cli, devices
from foldface.cli import run_main
from foldface.data.folds import split
from foldface.files import InputError
from foldface.settings import as_dict, put
from tools import gpu_checks
from tools.gpu_checks import CHECKS, Failed, NotHere

USED = ("data", "model", "train")  # --help shows these groups of settings
FLAGS = {
    "--only": {"nargs": "+", "default": [], "help": f"checks to run: {', '.join(CHECKS)} (default: all)"},
    "--here": {"action": "store_true", "help": "run them in this process and print lines of JSON"},
}
PEOPLE = 16  # drawn people; seven photos each
LONGEST = 300  # seconds that a check may take


def main(argv: list[str] | None = None) -> None:
    config = cli.read(__doc__, FLAGS, argv, USED)
    unknown = [name for name in config.only if name not in CHECKS]
    if unknown:
        raise InputError(f"--only {unknown[0]}: there is no such check; there are {', '.join(CHECKS)}")
    if not torch.cuda.is_available():
        print(f"no CUDA GPU is here (torch {torch.__version__} sees none): nothing was checked")
        return
    names = config.only or list(CHECKS)
    if config.here:
        for name in names:
            print(json.dumps(result_of(name, config)), flush=True)
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN "
          f"{torch.backends.cudnn.version()}: {config.model.backbone}, {config.data.image_size} pixels, batches of "
          f"{config.train.batch_size}")  # fmt: skip
    failed = []
    for name in names:
        found = in_own_process(name, config)
        failed += [name] * (found["state"] == "FAILED")
        print(f"{CHECKS[name].title:44} {found['state']:8} {found['seconds']:5.0f} s  {found['said']}", flush=True)
    if failed:
        print(f"{len(failed)} of {len(names)} failed: {', '.join(failed)}")
        sys.exit(1)


def in_own_process(name: str, config) -> dict:
    """The result of a check in a new process, since one that breaks CUDA would break all after it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.json"
        settings.write_text(json.dumps(as_dict(config)))
        command = [sys.executable, "-m", "tools.gpu_check", "--here", "--config", settings, "--only", name]
        begun = time.monotonic()
        try:
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=LONGEST)
        except subprocess.TimeoutExpired:
            return {"state": "FAILED", "seconds": LONGEST, "said": f"took more than {LONGEST} seconds"}
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"state"')]
    if lines:
        return json.loads(lines[-1])
    why = (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]
    return {"state": "FAILED", "seconds": time.monotonic() - begun, "said": why}


def result_of(name: str, config) -> dict:
    """{"state": ok | FAILED | not here, "seconds", "said"} of a check, computed in this process."""
    begun, check = time.monotonic(), CHECKS[name]
    with tempfile.TemporaryDirectory() as folder:
        try:
            refuse_device(check, devices.named_device(config))
            with contextlib.redirect_stdout(io.StringIO()):
                bench = make_bench(config, Path(folder), check.amp)
                said, state = check.run(bench, devices.make_accelerator(bench.config)), "ok"
        except Failed as error:
            said, state = str(error), "FAILED"
        except NotHere as error:
            said, state = str(error), "not here"
    return {"state": state, "seconds": round(time.monotonic() - begun, 1), "said": said}


def refuse_device(check: gpu_checks.Check, device: torch.device) -> None:
    """Raise NotHere where a device has not what a check needs."""
    if check.only_cuda and device.type != "cuda":
        raise NotHere(f"needs a CUDA GPU, and this is {device.type}")
    if check.amp in ("fp16", "bf16") and not devices.has(device, check.amp):
        raise NotHere(f"this device has no {check.amp} of its own")


def draw(folder: Path, side: int) -> None:
    """Draw PEOPLE in the competition's layout: smooth noise, JPEGs of `side` pixels."""
    rng, table = np.random.default_rng(0), []
    for person in range(PEOPLE):
        gender, age = ("male", "female")[person % 2], (20, 40, 60)[person // 2 % 3]
        home = folder / "train" / "images" / f"{person:06d}_drawn"
        home.mkdir(parents=True)
        table.append((f"{person:06d}", gender, "drawn", age, home.name))
        for stem in ("mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal"):
            small = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
            cv2.imwrite(str(home / f"{stem}.jpg"), cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC))
    frame = pd.DataFrame(table, columns=["id", "gender", "race", "age", "path"])
    frame.to_csv(folder / "train" / "train.csv", index=False)


def make_bench(config, folder: Path, amp: str) -> gpu_checks.Bench:
    """Drawn photos in `folder`, and the settings with this precision ("" = as they are) that are trained with."""
    config = copy.deepcopy(config)
    draw(folder, config.data.image_size)
    plain = {"run": str(folder / "run"), "data.train": str(folder / "train"), "data.eval": "", "data.crops": ""}
    plain |= {"data.layout": "competition", "data.draw_masks": 0.0, "data.memory_gb": 0.0, "train.folds": 2}
    plain |= {"train.minutes": 0.0, "train.epochs": 3, "train.freeze_layers": 0, "train.weight_averaging": "none"}
    plain |= {"model.pretrained": False, "model.init_from_run": "", "train.amp": amp or config.train.amp}
    for key, value in plain.items():
        put(config, key, value)
    cli.check(config)
    dataset.infer_classes(config)
    rows, _ = split(dataset.prepare(config), 0)
    return gpu_checks.Bench(config, rows.reset_index(drop=True), folder)


if __name__ == "__main__":
    run_main(main)
