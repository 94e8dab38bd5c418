"""Shards: crops in tar files, which webdataset reads too, and an index that says where in them each one lies.

A photo in a shard has a name like that of a file: SHARD.tar?OFFSET+BYTES. read_photo takes it wherever it takes a path.
"""

import contextlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from foldface.data import remote

WINDOW = 8  # shards among whose photos an epoch's order is drawn: the shuffle buffer
OPEN = 64  # shards that a process holds open
MEMBER = re.compile(r"(.+\.tar)\?(\d+)\+(\d+)", re.DOTALL)


def member(shard: Path | str, offset: int | str, size: int | str) -> str:
    """The name of the `size` bytes from `offset` on in a shard."""
    return f"{shard}?{offset}+{size}"


def parsed(name: str | os.PathLike) -> tuple[str, int, int] | None:
    """(shard, offset, bytes) of a `member`; None for the path of a file."""
    name = os.fspath(name)
    found = MEMBER.fullmatch(name) if ".tar?" in name else None
    return (found[1], int(found[2]), int(found[3])) if found else None


def file_of(name: str) -> str:
    """The file in which a photo lies: its shard, or itself."""
    found = parsed(name)
    return found[0] if found else name


def is_there(name: str) -> bool:
    """Can a photo be read, as far as its file tells? A shard of a URL is fetched when it is."""
    file = file_of(name)
    return os.path.isfile(file) or remote.is_remote(file)


class Shards:
    """Shards that this process holds open, the last OPEN of them."""

    def __init__(self):
        self.lock = threading.Lock()
        self.files = {}
        self.asked = {}  # shards of the last two windows that the system was asked to read ahead

    def opened(self, shard: str) -> io.FileIO:
        """A shard as an open file, of a URL fetched first; one that is dropped here is closed when nobody reads it any
        more."""
        with self.lock:
            if shard in self.files:
                return self.files[shard]
        remote.ensure(shard)
        with self.lock:
            if shard not in self.files:
                while len(self.files) >= OPEN:
                    del self.files[next(iter(self.files))]
                self.files[shard] = open(shard, "rb", buffering=0)  # noqa: SIM115
            return self.files[shard]

    def read(self, shard: str, offset: int, size: int) -> np.ndarray:
        """The bytes of a member, (size,) uint8. Raises OSError, and FetchError where its shard can't be fetched; fewer
        bytes where the shard ends early."""
        file = self.opened(shard)
        if hasattr(os, "pread"):
            data = os.pread(file.fileno(), size, offset)
        else:  # Windows
            with self.lock:
                file.seek(offset)
                data = file.read(size)
        return np.frombuffer(data, np.uint8)

    def read_ahead(self, name: str) -> None:
        """Ask the system to read the whole shard of a member, in sequence and in the background, once a window."""
        found = parsed(name)
        if found is None or found[0] in self.asked or not hasattr(os, "posix_fadvise"):
            return
        while len(self.asked) >= 2 * WINDOW:
            del self.asked[next(iter(self.asked))]
        self.asked[found[0]] = True
        os.posix_fadvise(self.opened(found[0]).fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


SHARDS = Shards()


def places(files: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """(number of the shard (n,), position among all photos in the order in which they are stored (n,)); None where the
    photos lie in files."""
    found = [parsed(file) for file in files]
    if not any(found):
        return None
    _, shard = numbered(found)
    offset = np.array([one[1] if one else 0 for one in found])
    order = np.lexsort((offset, shard))
    place = np.empty(len(found), np.int64)
    place[order] = np.arange(len(found))
    return shard, place


def numbered(found: Sequence[tuple | None]) -> tuple[list[str], np.ndarray]:
    """(the shards, sorted; the number of each photo's among them (n,), -1 for a file) of what `parsed` gives."""
    names = sorted({one[0] for one in found if one})
    number = {name: k for k, name in enumerate(names)}
    return names, np.array([number[one[0]] if one else -1 for one in found])


class FetchAhead:
    """Fetches the shards of a URL in the background before their photos are read; does nothing for other photos."""

    def __init__(self, files: Sequence[str]) -> None:
        """files: of all photos (n,), as read_photo takes them."""
        first = parsed(next(filter(None, files), ""))  # all of a folder lie in shards, or none
        self.names, self.number = [], np.zeros(0, int)
        if first and remote.is_remote(first[0]):
            self.names, self.number = numbered([parsed(file) for file in files])

    @contextlib.contextmanager
    def following(self, upcoming: Callable[[], np.ndarray]) -> Iterator[Callable[[np.ndarray], None]]:
        """While the block runs, stay WINDOW shards ahead of the photos that were read; yields what is called with
        their indices. upcoming: gives the indices of all photos to read, in order."""
        if not self.names:
            yield lambda indices: None
            return
        used, first = np.unique(self.number[upcoming()], return_index=True)
        used = used[np.argsort(first)]
        used = used[used >= 0]
        place = np.full(len(self.names) + 1, -1)  # the last: of photos in files
        place[used] = np.arange(len(used))
        with remote.Background([self.names[k] for k in used]) as background:
            background.go_to(WINDOW)
            yield lambda indices: background.go_to(place[self.number[indices]].max(initial=-1) + 1 + WINDOW)


def shuffled(shard: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order of photos (n,) that reads shard after shard: shards in random order, and WINDOW of them at a time the
    photos of all in random order. shard: (n,) the number of each photo's shard."""
    by_shard = np.argsort(shard, kind="stable")
    names, starts = np.unique(shard[by_shard], return_index=True)
    parts = np.split(by_shard, starts[1:])
    drawn = rng.permutation(len(names))
    windows = [drawn[at : at + WINDOW] for at in range(0, len(drawn), WINDOW)]
    return np.concatenate([rng.permutation(np.concatenate([parts[k] for k in window])) for window in windows])


def lost(files: Sequence[str]) -> list[str]:
    """Those members whose shard is missing, or too short to hold them; one of a URL may be missing yet."""
    sizes, found = {}, []
    for name in files:
        one = parsed(name)
        if one is None:
            continue
        if one[0] not in sizes:
            missing = float("inf") if remote.is_remote(one[0]) else -1
            sizes[one[0]] = os.path.getsize(one[0]) if os.path.isfile(one[0]) else missing
        if one[1] + one[2] > sizes[one[0]]:
            found.append(name)
    return found
