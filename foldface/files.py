"""Tables and files: read with one clear line when something is wrong, written whole or not at all.

Imports neither torch nor pandas by itself, so that every script can say what is wrong within a moment.
"""

import collections
import contextlib
import csv
import errno
import functools
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from foldface.runtime import end_with_parent, is_main_process

PREFIX, SUFFIX = ".foldface-", ".partial"  # of the names of temporary files
DAY = 24 * 3600
UMASK = os.umask(0o077)  # there is no way to read it without setting it
os.umask(UMASK)


class InputError(Exception):
    """Something that the person at the keyboard can mend: what, in which file and row, what to do. One line."""


def run_command(command):
    """Run a command to its end and return its exit status. Stopped while it runs, stop it too, and wait for its end.

    command: list of words. The command saves before it ends, so that the same command goes on; it is stopped as well
    where this process is killed and can't pass anything on (Linux).
    """
    with subprocess.Popen(command, preexec_fn=end_with_parent if sys.platform == "linux" else None) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise


CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # and halves of characters


def visible(text: str) -> str:
    """Text with what a terminal would obey (control codes, changes of direction) escaped: names come from strangers."""
    return CONTROL.sub(lambda code: code[0].encode("unicode_escape").decode(), text)


@functools.lru_cache(None)
def warn_once(line: str) -> None:
    """Print a warning to stderr, the first time that it is asked for."""
    if is_main_process():
        print(f"warning: {visible(line)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def atomic_write(path, sync=True):
    """Give a temporary path beside `path`; what was written there takes its place when the block ends well.

    A reader sees the old file or the new one, never half of one; a failed write leaves the old one whole. Without
    `sync` that holds for killed processes but not for a machine that loses power: for what is quickly made again.
    The temporary file is new (O_EXCL), has a random name of its own for each writer and is locked while it is written
    to, so that no link of that name is followed and writers don't share one. Where `path` itself is a link, the link is
    replaced; the file that it leads to stays as it is.
    Raises InputError when the disk is full or the folder can't be written to. In other processes than the first of a
    run, what is written is discarded.
    """
    if not is_main_process():
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
            with contextlib.suppress(OSError):  # it would hide the error above, which says what to do
                partial.unlink(missing_ok=True)
            os.close(handle)


def temporary(folder):
    """Make a new empty file in `folder`, which must exist: (its path, its open and locked descriptor)."""
    while True:
        handle, name = tempfile.mkstemp(SUFFIX, PREFIX, folder)
        if hasattr(os, "fchmod"):
            os.fchmod(handle, 0o666 & ~UMASK)  # mkstemp's files are for their owner alone
        if try_lock(handle) is not False and os.path.exists(name):
            return Path(name), handle
        os.close(handle)  # another process swept it up before it was locked


def try_lock(handle: int) -> bool | None:
    """Lock an open file or folder, without waiting, until its descriptor is closed or the process ends.

    Returns True; False where another process holds the lock; None where there are no locks: on some network disks, and
    on Windows, where a locked file could not be written to by another descriptor.
    """
    import filelock

    if os.name == "nt":
        return None
    try:
        return filelock.lock_descriptor(handle, blocking=False)
    except OSError:
        return None


@functools.cache  # once in each process: a folder of 10,000 crops is not listed for each of them
def sweep(folder):
    """Remove the temporary files that killed processes left in `folder`: those of `atomic_write` that no process holds;
    where there are no locks, those older than a day."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            ours = entry.name.startswith(PREFIX) and entry.name.endswith(SUFFIX)
            if ours and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):  # its writer has just moved it
                    handle = os.open(entry, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
                    free = try_lock(handle)
                    if free or (free is None and time.time() - entry.stat().st_mtime > DAY):
                        os.unlink(entry)
                    os.close(handle)


def reason_of(error):
    """An OSError in a few words."""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return f"{error.filename or 'its place'} is not a folder"
    return error.strerror or str(error)


def refuse_unwritable(folder, remedy="choose another folder"):
    """Raise InputError where nothing can be written into `folder`, which need not exist yet; leave no trace there.

    For the start of long work, so that it isn't lost at its end.
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
    """Is there something, if only a link that leads nowhere? Raises OSError where it can't be, such as for a name that
    is too long or that lies below a file."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def folder_lock(folder, name="", wait=0.0):
    """Hold `folder` (made if need be), or what is called `name` in it, for this process while the block runs.

    Raises InputError if another process holds it, and still does after `wait` seconds; and where the folder can't be
    written to. The lock ends with the process, however that ends; its file is removed at the end. On a disk without
    locks nothing is held, and that is said.
    """
    if not is_main_process():
        yield
        return
    import filelock

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
    """The stat of a regular file, links followed. Raises OSError for all else: opening a FIFO waits for ever, and a
    device never ends."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return found


def write_json(path, content):
    """Write `content` as indented JSON, atomically."""
    with atomic_write(path) as partial:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path, remedy):
    """The content of a JSON file; `remedy` says what to do when it isn't there or isn't JSON (InputError)."""
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


def write_csv(path, frame):
    """Write a DataFrame as CSV (UTF-8, LF, six decimals, no index), atomically."""
    with atomic_write(path) as partial:
        how = {"float_format": "%.6f", "lineterminator": "\n", "quoting": csv.QUOTE_MINIMAL}
        frame.to_csv(partial, index=False, errors="backslashreplace", **how)  # names of files may be no UTF-8


def read_csv(path, columns, remedy="", numbers=()):
    """A CSV as a DataFrame of stripped strings, whatever its line ends, with or without a byte-order mark.

    columns: names that must be there. numbers: names that are read as float32 where they are there; all else stays
    as it is written: 000600 is not 600.
    Raises InputError that names the file, the missing column and the columns that are there instead.
    """
    import pandas as pd

    def read(numbers):
        return pd.read_csv(
            path,
            dtype=collections.defaultdict(lambda: str, dict.fromkeys(numbers, "float32")),
            keep_default_na=False,
            na_values={name: ["", "nan", "NaN"] for name in numbers},
            encoding="utf-8-sig",
            skipinitialspace=True,
            index_col=False,  # a comma too many at the end of each row doesn't make the first column an index
        )

    try:
        try:
            frame = read(numbers)
        except ValueError:  # text where numbers should be, or worse, which will be so again
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
    """A column of text as float32. Raises InputError that names the row of what is no number."""
    import pandas as pd

    missing = words.isin(["", "nan", "NaN"])
    found = pd.to_numeric(words.where(~missing), errors="coerce")
    bad = found.isna() & ~missing
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise InputError(f"{path}, row {row + 2}: {words.name} is '{words.iloc[row]}', which is no number")
    return found.astype("float32")
