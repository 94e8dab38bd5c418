"""A folder of shards at a URL, and its copy on this machine.

    ~/.cache/foldface/crops/DIGEST OF THE URL/source.json            the URL, and which version it had
    .../VERSION/index.csv, manifest.csv, crop.json, sizes.json       fetched when a command opens the folder
    .../VERSION/fold0-000000.tar ...                                 fetched when it is first read, or a little before

The copy is a folder of shards as any other. VERSION is a digest of the small files: where they have changed at the
URL, a command begins another copy, and one that runs goes on with its own. Nothing is removed here.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock

from foldface.data.fetch import WAITS, FetchError, fetch
from foldface.data.shard_index import INDEX, read_index, sizes_of
from foldface.files import InputError, atomic_write
from foldface.runtime import is_main_process
from foldface.urls import SOURCE, cache_root, home_of, scheme_of

SMALL = {INDEX: 2**32, "manifest.csv": 2**32, "crop.json": 2**20}  # bytes that each may have
SIZES = "sizes.json"  # {shard: bytes}
CONNECTIONS = 4  # shards that are fetched at a time in the background


def crop_folder(crops: Path | str) -> Path:
    """The folder that holds what data.crops names: itself, or the copy of a URL.

    A URL is asked once a process whether its index has changed. Raises InputError where it can't be read.
    """
    if not scheme_of(crops):
        return Path(crops)
    return Path(opened(crops.rstrip("/"), str(cache_root())))


@functools.cache
def opened(url, _):
    """The path of a URL's copy, whose small files are those that lie there now."""
    home = home_of(url)
    with waiting_lock(home / ".folder.lock"):
        before = read_source(home)
        folder, tags = with_small_files(url, home, before)
        with atomic_write(home / SOURCE, every_rank=True) as partial:
            partial.write_text(json.dumps({"url": url, "version": folder.name, "tags": tags}), encoding="utf-8")
    sizes = json.loads((folder / SIZES).read_text(encoding="utf-8"))
    held = {path.name: path.stat().st_size for path in folder.glob("*.tar")}
    for name in held:
        if held[name] != sizes.get(name):  # damaged: it is fetched again
            (folder / name).unlink(missing_ok=True)
    if is_main_process():
        there = sum(held.get(name) == size for name, size in sizes.items())
        total = sum(sizes.values()) / 1e9
        print(f"{url}: {there} of {len(sizes)} shards ({total:.1f} GB) are in {folder}, others come when they are read")
        if before and before["version"] != folder.name:
            print(f"warning: {url}: has changed, all is fetched anew; {home / before['version']} is its copy of before",
                  file=sys.stderr)  # fmt: skip
    return str(folder)


def with_small_files(url, home, before):
    """(folder of the version that lies at a URL now, {file: its tag}); it is made if it isn't there.

    before: content of source.json, {} without one.
    """
    known = home / before["version"] if before else home
    tags = before.get("tags", {}) if all((known / name).is_file() for name in (*SMALL, SIZES)) else {}
    fresh = home / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed
    fresh.mkdir()
    try:
        now = {name: fetch(f"{url}/{name}", fresh / name, most, tag=tags.get(name, "")) for name, most in SMALL.items()}
    except FetchError as error:
        hint = f"; --data.crops {known} is the copy of before" if tags else ""
        raise FetchError(f"{error}{hint}") from None
    if all(tag is None for tag in now.values()):
        return known, tags
    for name in (name for name in SMALL if now[name] is None):
        shutil.copyfile(known / name, fresh / name)
    digest = hashlib.sha256()
    for name in SMALL:
        digest.update(hashlib.sha256((fresh / name).read_bytes()).digest())
    folder = home / digest.hexdigest()[:16]
    if not folder.is_dir():
        try:
            sizes = sizes_of(read_index(fresh))
        except InputError as error:
            raise InputError(f"{url}: {error}") from None
        (fresh / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
        fresh.rename(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    return folder, {name: tags[name] if tag is None else tag for name, tag in now.items()}


def read_source(home):
    """The content of a copy's source.json, {} where there is none that can be read."""
    try:
        found = json.loads((home / SOURCE).read_text(encoding="utf-8"))
        return found if {"url", "version", "tags"} <= found.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


@functools.lru_cache(64)
def url_of(folder: str) -> str:
    """The URL whose copy a folder is, "" for other folders: what lies elsewhere, a source.json beside it or not, makes
    nobody fetch anything."""
    home = os.path.dirname(folder)
    if os.path.dirname(home) != str(cache_root()):
        return ""
    url = read_source(Path(home)).get("url", "")
    return url if scheme_of(url) and str(home_of(url)) == home else ""


def is_remote(shard: str) -> bool:
    """Is a shard one of a URL's copy? It may not be there yet."""
    return url_of(os.path.dirname(shard)) != ""


def ensure(shard: str, waits: Sequence[float] = WAITS, stop: threading.Event | None = None) -> None:
    """Fetch a shard of a URL that is not there yet; processes and threads that want the same one wait for one of them.

    Does nothing for other files. waits, stop: as of `fetch`. Raises FetchError.
    """
    folder, name = os.path.split(shard)
    url = url_of(folder)
    if not url or os.path.isfile(shard):
        return
    with waiting_lock(Path(folder) / f".{name}.lock", stop) as locked:
        if not locked or os.path.isfile(shard):
            return
        size = shard_sizes(folder).get(name)
        if size is None:
            raise FetchError(f"{url}/{INDEX}: names no {name}")
        free = shutil.disk_usage(folder).free
        if free < size:
            raise InputError(
                f"{folder}: the disk is full: {name} takes {size / 1e6:.1f} MB, {free / 1e6:.1f} MB are free: remove "
                "other copies, or name a folder of another disk in XDG_CACHE_HOME"
            )
        fetch(f"{url}/{name}", shard, size, exact=True, waits=waits, stop=stop)


@functools.lru_cache(8)
def shard_sizes(folder):
    """{shard: bytes} of a copy."""
    return json.loads((Path(folder) / SIZES).read_text(encoding="utf-8"))


@contextlib.contextmanager
def waiting_lock(path: Path, stop: threading.Event | None = None) -> Iterator[bool]:
    """Hold a lock while the block runs, however long another process or thread holds it; False where `stop` came
    first. On a disk without locks nothing is locked: then two may fetch the same file, and each puts it there whole."""
    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked and not (stop and stop.is_set()):
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(timeout=1, poll_interval=0.05)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path.parent}: can't be written to ({error.strerror}): name another folder in "
                         "XDG_CACHE_HOME") from None  # fmt: skip
    except OSError:
        pass
    try:
        yield not (stop and stop.is_set())
    finally:
        if lock.is_locked:  # while it is held: who waits for it sees that it is gone, and makes a new one
            with contextlib.suppress(OSError):
                path.unlink()
        lock.release()


class Background:
    """Fetches shards in a few threads, in the order given, as far as `go_to` says; the block's end stops them.

    Errors are left to whoever reads the shard: that process fetches it again.
    """

    def __init__(self, shards: Sequence[str]) -> None:
        self.shards, self.sent = shards, 0
        self.stop = threading.Event()
        self.pool = ThreadPoolExecutor(CONNECTIONS)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.pool.shutdown(cancel_futures=True)

    def go_to(self, count: int) -> None:
        """Fetch the first `count` shards, those that are not there."""
        for shard in self.shards[self.sent : count]:
            self.pool.submit(ensure, shard, stop=self.stop)
        self.sent = max(self.sent, count)
