"""A folder of shards at a URL, and its copy on this machine.

    ~/.cache/foldface/crops/DIGEST OF THE URL/source.json            the URL, and which version it had
    .../VERSION/index.csv, manifest.csv, crop.json                   fetched when a command opens the folder
    .../VERSION/sizes.json, members/fold0-000000.tar.json ...        made of index.csv: what each shard must be
    .../VERSION/fold0-000000.tar ...                                 fetched when it is first read, or a little before

The copy is a folder of shards as any other. VERSION is a digest of the small files: where they have changed at the
URL, a command begins another copy; one that runs goes on with what it has of its own, and fetches no more shards into
it. No copy is removed here.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock

from foldface.data.fetch import WAITS, FetchError, fetch
from foldface.data.shard_index import INDEX, members_of, misplaced, read_index, sizes_of
from foldface.files import DAY, UMASK, InputError, atomic_write
from foldface.runtime import is_main_process
from foldface.urls import SOURCE, cache_root, home_of, scheme_of

SMALL = {INDEX: 2**32, "manifest.csv": 2**32, "crop.json": 2**20}  # bytes that each may have
SIZES = "sizes.json"  # {shard: bytes}
MEMBERS = "members"  # folder of SHARD.json, each [[offset, bytes, row, crop], ...]
FRESH = "fresh"  # the names of folders in which a version is begun start so
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO)  # of disks that have none
CHANGED = "the folder at the URL has changed while this command ran: start the command again"
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
    sizes = shard_sizes(str(folder))
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
    tags = before.get("tags", {}) if all((known / name).is_file() for name in SMALL) else {}
    with fresh_folder(home) as fresh:
        try:
            now = {name: fetch(f"{url}/{name}", fresh / name, SMALL[name], tag=tags.get(name, "")) for name in SMALL}
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
                describe_shards(fresh)
            except InputError as error:
                raise InputError(f"{url}: {error}") from None
            try:
                fresh.rename(folder)
            except OSError:  # on a disk without locks another process was first: it has made the same
                if not folder.is_dir():
                    raise
    return folder, {name: tags[name] if tag is None else tag for name, tag in now.items()}


@contextlib.contextmanager
def fresh_folder(home: Path) -> Iterator[Path]:
    """A new folder beside the versions, of this process alone, that is removed unless it was renamed. So are those
    which killed processes left: those of a day ago, since on a disk without locks a younger one may be in use."""
    for left in home.glob(f"{FRESH}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)
    try:
        fresh = Path(tempfile.mkdtemp(prefix=f"{FRESH}-", dir=home))
        fresh.chmod(0o777 & ~UMASK)  # mkdtemp's are readable only by their owner
    except OSError as error:
        raise unwritable(home, error) from None
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def describe_shards(folder):
    """Write what index.csv says of each shard: its size to sizes.json, its photos to members/. Raises InputError."""
    index = read_index(folder)
    for name, members in members_of(index).items():
        write_plain(Path(folder) / MEMBERS / f"{name}.json", members)
    write_plain(Path(folder) / SIZES, sizes_of(index))


def write_plain(path, content):
    """Write JSON atomically, without fsync: what a power cut damages is made again."""
    with atomic_write(path, sync=False, every_rank=True) as partial:
        partial.write_text(json.dumps(content), encoding="utf-8")


def described(folder, name):
    """The content of a file of `describe_shards`, made again where it can't be read. Raises InputError."""
    path = Path(folder) / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        describe_shards(folder)
        return json.loads(path.read_text(encoding="utf-8"))


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
        refuse_other_version(url, folder)

        def check(partial):
            members = described(folder, f"{MEMBERS}/{name}.json")
            crop = misplaced(partial, members)
            refuse_changed(url, folder, waits, stop)
            if crop is not None:
                raise FetchError(f"{url}/{name}: {crop} isn't where index.csv has it: {CHANGED}; where this line comes "
                                 "again, copy the whole folder to the URL anew")  # fmt: skip

        fetch(f"{url}/{name}", shard, size, exact=True, waits=waits, stop=stop, check=check)


def refuse_other_version(url, folder):
    """Raise FetchError where a command that began later has found another version at the URL; -> tags of this one."""
    source = read_source(Path(folder).parent)
    if source.get("version") != os.path.basename(folder):
        raise FetchError(f"{url}: {CHANGED}")
    return source["tags"]


def refuse_changed(url, folder, waits, stop):
    """Raise FetchError where one of the small files at the URL is no longer that of this version. A server that gives
    them no tags is not asked."""
    tags = refuse_other_version(url, folder)
    with tempfile.TemporaryDirectory(prefix=f"{FRESH}-", dir=Path(folder).parent) as fresh:
        for name in filter(tags.get, SMALL):
            now = Path(fresh) / name
            tag = fetch(f"{url}/{name}", now, SMALL[name], tag=tags[name], waits=waits, stop=stop)
            if tag is not None and now.read_bytes() != (Path(folder) / name).read_bytes():
                raise FetchError(f"{url}: {CHANGED}")


@functools.lru_cache(8)
def shard_sizes(folder):
    """{shard: bytes} of a copy."""
    return described(folder, SIZES)


@contextlib.contextmanager
def waiting_lock(path: Path, stop: threading.Event | None = None) -> Iterator[bool]:
    """Hold a lock while the block runs, however long another process or thread holds it; False where `stop` came
    first. On a disk without locks nothing is locked: then two may fetch the same file, and each puts it there whole."""
    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path.parent, error) from None
    try:
        while not lock.is_locked and not (stop and stop.is_set()):
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(timeout=1, poll_interval=0.05)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise unwritable(path.parent, error) from None
    try:
        yield not (stop and stop.is_set())
    finally:
        if lock.is_locked:  # while it is held: who waits for it sees that it is gone, and makes a new one
            with contextlib.suppress(OSError):
                path.unlink()
        lock.release()


def unwritable(folder, error):
    """The InputError for an OSError of the cache's folder."""
    what = error.strerror or error
    return InputError(f"{folder}: can't be written to ({what}): name another folder in XDG_CACHE_HOME")


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
