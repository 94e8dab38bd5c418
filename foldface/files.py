"""Read and write CSV and JSON files: errors in one line, writes atomic.

Imports neither torch nor pandas at its top, so that every script reports a wrong command at once.
"""

import collections
import contextlib
import csv
import errno
import functools
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import pandas as pd

from foldface.runtime import end_with_parent, is_main_process

PREFIX, SUFFIX = ".foldface-", ".partial"  # of the names of temporary files
DAY = 24 * 3600
UMASK = os.umask(0o077)  # there is no way to read it without setting it
os.umask(UMASK)


class InputError(Exception):
    """An error that the user can fix, in one line: what is wrong, in which file and row, what to do."""


def run_command(command: Sequence[str]) -> int:
    """Run a command (list of words) and return its exit status. A stop of this process stops the command too.

    The command gets SIGTERM, so that it saves and a later start goes on; on Linux also where this process is killed.
    """
    with subprocess.Popen(command, preexec_fn=end_with_parent if sys.platform == "linux" else None) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise


CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # and lone surrogates


def quoted(path: Path | str) -> str:
    """A path as it is typed at a shell: quoted where it has to be."""
    return shlex.quote(str(path))


def visible(text: str) -> str:
    """Text with control codes and changes of direction escaped, since names of files and classes may hold them."""
    return CONTROL.sub(lambda code: code[0].encode("unicode_escape").decode(), text)


@functools.lru_cache(None)
def warn_once(line: str) -> None:
    """Print a warning to stderr, once a process."""
    if is_main_process():
        print(f"warning: {visible(line)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def atomic_write(path: Path | str, sync: bool = True, every_rank: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there replaces `path` when the block ends without error.

    A reader sees the old file or the new one, never a part; a failed write leaves the old file as it was. Without
    `sync` this holds for killed processes, but not for a power cut: for files that are quickly made again.
    The temporary file is new (O_EXCL), has a random name and is locked while it is written, so that no link is followed
    and no two writers share a file. Where `path` is a link, the link is replaced; its target stays as it is.
    Raises InputError when the disk is full or the folder can't be written to. On other ranks than 0 the written file is
    discarded, unless `every_rank` writes a file of its own.
    """
    if not (every_rank or is_main_process()):
        yield Path(os.devnull)
        return
    path, partial = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        partial, handle = temporary(path.parent)
        yield partial
        if sync:
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides it
        if not isinstance(cause, OSError):
            raise
        raise InputError(
            f"{path}: can't be written ({reason_of(cause)}); the file that was there before is untouched"
        ) from error
    finally:
        if partial:
            with contextlib.suppress(OSError):  # an error here would hide the one above
                partial.unlink(missing_ok=True)
            os.close(handle)


def temporary(folder):
    """Make a new empty file in an existing folder: (its path, its open and locked descriptor)."""
    while True:
        handle, name = tempfile.mkstemp(SUFFIX, PREFIX, folder)
        if hasattr(os, "fchmod"):
            os.fchmod(handle, 0o666 & ~UMASK)  # mkstemp's files are readable only by their owner
        if try_lock(handle) is not False and os.path.exists(name):
            return Path(name), handle
        os.close(handle)  # another process removed it before it was locked


def try_lock(handle: int) -> bool | None:
    """Lock an open file or folder, without waiting, until its descriptor is closed or the process ends.

    Returns True; False where another process holds the lock; None where there are no locks: on some network disks, and
    on Windows, where a locked file could not be written to by another descriptor.
    """
    if os.name == "nt":
        return None
    try:
        return filelock.lock_descriptor(handle, blocking=False)
    except OSError:
        return None


@functools.cache  # once a process: a folder of 10,000 crops is not listed for each crop
def sweep(folder):
    """Remove temporary files of `atomic_write` that killed processes left in `folder`: those that are not locked, or,
    where there are no locks, those older than a day."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            ours = entry.name.startswith(PREFIX) and entry.name.endswith(SUFFIX)
            if ours and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):  # its writer has just renamed it
                    handle = os.open(entry, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
                    free = try_lock(handle)
                    if free or (free is None and time.time() - entry.stat().st_mtime > DAY):
                        os.unlink(entry)
                    os.close(handle)


def reason_of(error):
    """The reason of an OSError in a few words."""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return f"{error.filename or 'its place'} is not a folder"
    return error.strerror or str(error)


def refuse_unwritable(folder: Path | str, remedy: str = "choose another folder") -> None:
    """Raise InputError where `folder`, which need not exist yet, can't be written to; leaves no file there.

    Call it before long work, so that the work is not lost at its end.
    """
    if not is_main_process():
        return
    place = Path(folder)
    try:
        while not there(place):
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(place))
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
            file.flush()
    except (OSError, ValueError) as error:
        what = reason_of(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"{folder}: can't be written to ({what}): {remedy}") from None


def there(path):
    """True if the path exists, even as a broken link. Raises OSError where it can't exist, such as below a file."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def folder_lock(folder: Path | str, name: str = "", wait: float = 0.0) -> Iterator[None]:
    """Lock `folder` (made if missing), or `name` in it, for this process while the block runs.

    Raises InputError if another process still holds the lock after `wait` seconds, and where the folder can't be
    written to. The lock ends with the process, even if that is killed; its file is removed at the end. On a disk
    without locks a warning is printed and nothing is locked.
    """
    if not is_main_process():
        yield
        return
    path = Path(folder) / f".{name or 'folder'}.lock"
    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait, poll_interval=0.1)
    except filelock.Timeout:
        what = Path(folder, name)
        raise InputError(f"{what}: another process is writing there now: wait for it, or stop it") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO):
            raise InputError(f"{folder}: can't be written to ({reason_of(error)}): choose another folder") from error
        print(f"warning: {folder}: this disk has no locks: start one command at a time there", file=sys.stderr)
    try:
        yield
    finally:
        if lock.is_locked:
            path.unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone, and makes a new one
        lock.release()


def refuse_special(path: str | os.PathLike) -> os.stat_result:
    """The stat of a regular file, links followed. Raises OSError for other types: opening a FIFO would wait for ever,
    and reading a device would never end."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return found


def write_json(path: Path | str, content: object) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_write(path) as partial:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path | str, remedy: str) -> Any:
    """Read a JSON file. Raises InputError, with `remedy` (what to do), where it is missing or not JSON."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        content = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()  # UnicodeEncodeError for half a character, "\ud800"
        return content
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: {remedy}") from None
    except RecursionError:
        raise InputError(f"{path}: can't be read as JSON (nested too deep): {remedy}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read as JSON ({error}): {remedy}") from None


def write_csv(path: Path | str, frame: pd.DataFrame, delimiter: str = ",", every_rank: bool = False) -> None:
    """Write a DataFrame as CSV (UTF-8, LF, six decimals, no index), atomically. every_rank: as of atomic_write."""
    with atomic_write(path, every_rank=every_rank) as partial:
        how = {"float_format": "%.6f", "lineterminator": "\n", "quoting": csv.QUOTE_MINIMAL}
        frame.to_csv(
            partial, index=False, sep=delimiter, errors="backslashreplace", **how
        )  # names of files may be no UTF-8


def is_csv(name: object) -> bool:
    """Is it the name of a CSV file?"""
    return isinstance(name, str) and name.lower().endswith(".csv")


def read_csv(
    path: Path | str,
    columns: Sequence[str],
    remedy: str = "",
    numbers: Sequence[str] = (),
    encoding: str = "utf-8-sig",
    delimiter: str = ",",
) -> pd.DataFrame:
    """Read a CSV as a DataFrame of stripped strings, with any line ends, with or without a byte-order mark.

    columns: required names; numbers: names that are read as float32 if they exist. All other values stay text: 000600
    is not 600. encoding, delimiter: of another table than ours, see data/tables.py. Raises InputError that names the
    file, the missing column and the existing columns.
    """

    def read(numbers):
        file.seek(0)
        return pd.read_csv(
            file,  # opened here: of a name that is a URL pandas would open a connection
            dtype=collections.defaultdict(lambda: str, dict.fromkeys(numbers, "float32")),
            keep_default_na=False,
            na_values={name: ["", "nan", "NaN"] for name in numbers},
            encoding=encoding,
            sep=delimiter,
            skipinitialspace=True,
            index_col=False,  # an extra comma at the end of each row must not make the first column an index
        )

    try:
        refuse_special(path)
        with open(path, "rb") as file:
            try:
                frame = read(numbers)
            except ValueError:  # text where numbers should be; other errors occur again
                frame = read(())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{': ' + remedy if remedy else ''}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, not a CSV file") from None
    except pd.errors.EmptyDataError:
        raise InputError(f"{path}: is empty; its first line should be {','.join(columns)}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start}): save it as UTF-8 CSV") from None
    except (pd.errors.ParserError, ValueError, OSError) as error:
        raise InputError(f"{path}: can't be read as CSV ({' '.join(str(error).split())})") from None
    frame.columns = [str(name).strip() for name in frame.columns]
    if not frame.columns.is_unique:
        raise InputError(f"{path}: has the column {frame.columns[frame.columns.duplicated()][0]} twice")
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise InputError(f"{path}: has no column {', '.join(missing)}; it has {', '.join(frame.columns)}")
    for name in frame.columns:
        if frame[name].dtype == "float32":
            continue
        frame[name] = [word.strip() for word in frame[name].fillna("").tolist()]  # .str.strip() takes ten times as long
        if name in numbers:
            frame[name] = numbers_of(path, frame[name])
    return frame


def numbers_of(path, words):
    """A column of text as float32. Raises InputError that names the first row that is no number."""
    missing = words.isin(["", "nan", "NaN"])
    found = pd.to_numeric(words.where(~missing), errors="coerce")
    bad = found.isna() & ~missing
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise InputError(f"{path}, row {row + 2}: {words.name} is '{words.iloc[row]}', which is no number")
    return found.astype("float32")
