"""Time epochs of the training loader over crops in files and in shards, on a warm disk and on one that opens slowly.

    python -m tools.stress.shards --photos 200000 --people 20000          drawn crops of 32 pixels, 10,000 a shard
    python -m tools.stress.shards --photos 200000 --folder DIR            kept in DIR, and used again
    python -m tools.stress.shards --photos 200000 --url                   shards here, and at a URL of this computer

Each row is a process of its own: photos/s of an epoch, seconds to its first batch, memory of the process and its
workers, and the most files that one of them held open. The slow disk is simulated: each opening of a file, or of a
shard, sleeps `--open_ms` first; there an epoch is of `--slow_photos`. With --url the rows are three instead: shards in
a folder, and those of a server (python -m http.server) the first time, when they are fetched, and the second.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from foldface.data import loader, photos, remote, shards
from foldface.data.shard_index import INDEX
from foldface.faces import manifest, pack
from foldface.files import write_csv, write_json
from foldface.urls import scheme_of

ROOT = Path(__file__).resolve().parents[2]
SIDE = 32  # pixels of a crop
BATCH = 64
KINDS = 64  # different crops


def draw(folder: Path, count: int, people: int, size: int) -> None:
    """Write `count` crops of so many people into files, and pack them into shards of `size`."""
    rng = np.random.default_rng(0)
    drawn = [cv2.imencode(".jpg", rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8))[1].tobytes() for _ in range(KINDS)]
    each = -(-count // people)
    names = [f"train/{k // each:06d}/{k % each}.jpg" for k in range(count)]
    for k, name in enumerate(names):
        if k % each == 0:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(drawn[k % KINDS])
    write_csv(folder / "manifest.csv", pd.DataFrame({"photo": names, "crop": names}))
    write_json(folder / "crop.json", {})
    rows = pd.DataFrame({"crop": names, "person": [name.split("/")[1] for name in names]})
    pack.pack(folder, rows.assign(group="fold" + (rows["person"].astype(int) % 5).astype(str)), size, 0)


def epoch(folder: Path, packed: bool, count: int, wait: float, workers: int, url: str = "") -> dict:
    """One epoch over the first `count` crops: {"photos_per_second", "first_batch", "seconds" (all of it), "memory_gb",
    "open_files"}. url: where the folder's shards lie too, to be read from there."""
    if wait:
        sleep_at_open(wait)
    names = pd.read_csv(folder / "manifest.csv")["crop"]
    begun = time.perf_counter()
    if packed:  # whole shards: a run reads the shards of its folds
        index = pd.read_csv(folder / "shards" / INDEX)
        names = index.sort_values(["shard", "offset"])["crop"]
    place = remote.crop_folder(url or str(folder / "shards" if packed else folder))
    files = manifest.files_of(place, names[:count].tolist())
    places = shards.places(files)
    dataset = loader.PhotoDataset(pd.DataFrame({"file": files}), "none", SIDE, True)
    batches = loader.SeededBatchSampler(len(files), BATCH, shuffle=True, places=places)
    feed, seen, most = loader.make(dataset, batches, workers), 0, 0
    first = started = 0.0
    for step, (indices, _, errors) in enumerate(feed):
        if any(errors):
            sys.exit(f"{files[int(indices[0])]}: {next(filter(None, errors))}")
        if step == 0:
            started = time.perf_counter()
            first = started - begun
        else:
            seen += len(indices)
        if step % 200 == 1:
            most = max(most, *(open_files(pid) for pid in processes()))
    ended = time.perf_counter()
    found = {"photos_per_second": seen / (ended - started), "first_batch": first, "seconds": ended - begun}
    return found | {"memory_gb": sum(map(resident, processes())), "open_files": most}


def sleep_at_open(seconds):
    """Let each opening of a photo's file or of a shard in this process and its workers sleep first."""
    look, take = photos.refuse_special, shards.Shards.opened

    def opened(self, shard):
        if shard not in self.files:
            time.sleep(seconds)
        return take(self, shard)

    photos.refuse_special = lambda path: time.sleep(seconds) or look(path)
    shards.Shards.opened = opened


def processes():
    """Ids of this process and its children (Linux)."""
    found = ["self"]
    with contextlib.suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            found += (task / "children").read_text().split()
    return found


def open_files(pid):
    """How many files a process holds open."""
    with contextlib.suppress(OSError):
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return 0


def resident(pid):
    """The memory that a process alone holds, in GB: what it shares with others is counted once, by its share."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e6
    return 0.0


def in_own_process(folder: Path, workers: int, row: str, count: int, wait: float = 0.0, cache: str = "") -> dict:
    """What `epoch` finds in a new process. row: files, shards, or a URL, whose copy goes to the folder `cache`."""
    words = ["--folder", folder, "--workers", workers, "--count", count, "--open_ms", wait, "--row", row]
    command = [sys.executable, "-m", "tools.stress.shards", *map(str, words)]
    environment = os.environ | {"XDG_CACHE_HOME": cache}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def beside_a_url(folder: Path, workers: int, count: int, rounds: int) -> None:
    """Print the rows of --url: each round begins without a copy."""
    with contextlib.ExitStack() as stack:
        free = stack.enter_context(socket.socket())
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        words = ["-m", "http.server", port, "--bind", "127.0.0.1", "--directory", str(folder / "shards")]
        server = stack.enter_context(subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL))
        stack.callback(server.terminate)
        time.sleep(2)
        for number in range(rounds):
            with tempfile.TemporaryDirectory(prefix="copies-", dir=folder) as cache:
                for name, row in (("folder", "shards"), ("URL, first", ""), ("URL, second", "")):
                    url = f"http://127.0.0.1:{port}"
                    found = in_own_process(folder, workers, row or url, count, cache=cache)
                    print(
                        f"round {number + 1}, {name:11}: {found['seconds']:6.1f} s of {count} photos, first batch "
                        f"after {found['first_batch']:.1f} s, then {found['photos_per_second']:6.0f} photos/s, "
                        f"{found['memory_gb']:.2f} GB",
                        flush=True,
                    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("photos", 200_000), ("people", 20_000), ("size", 10_000), ("slow_photos", 20_000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("rounds", 3), ("workers", 2), ("count", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--open_ms", type=float, default=5.0)
    parser.add_argument("--folder", default="")
    parser.add_argument("--url", action="store_true")
    parser.add_argument("--row", help="files, shards or a URL")
    options = parser.parse_args(argv)
    if options.row:
        url = options.row if scheme_of(options.row) else ""
        found = epoch(Path(options.folder), options.row != "files", options.count, options.open_ms / 1000,
                      options.workers, url)  # fmt: skip
        print(json.dumps(found))
        return
    with contextlib.ExitStack() as stack:
        folder = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="shards-")))
        if not (folder / "shards" / INDEX).is_file():
            draw(folder, options.photos, options.people, options.size)
        if options.url:
            beside_a_url(folder, options.workers, options.photos, options.rounds)
            return
        for wait, count in ((0.0, options.photos), (options.open_ms, options.slow_photos)):
            for number in range(options.rounds):  # in turn
                for packed in (False, True):
                    row = "shards" if packed else "files"
                    found = in_own_process(folder, options.workers, row, count, wait)
                    print(
                        f"{wait:g} ms, round {number + 1}, {row:6}: "
                        f"{found['photos_per_second']:6.0f} photos/s of {count}, first batch after "
                        f"{found['first_batch']:.1f} s, {found['memory_gb']:.2f} GB, "
                        f"{found['open_files']} open files",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
