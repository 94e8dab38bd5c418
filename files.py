"""Tables and files: read with one clear line when something is wrong, written whole or not at all.

Imports neither torch nor pandas by itself, so that every script can say what is wrong within a moment.
"""

import collections
import contextlib
import csv
import ctypes
import json
import os
import sys
import time
from pathlib import Path

STARTED = time.monotonic()  # this process, but for Python itself
FIRST = os.environ.get("RANK", "0") == "0"  # of several processes of one run, the first alone writes and speaks


class InputError(Exception):
    """Something that the person at the keyboard can mend: what, in which file and row, what to do. One line."""


def guarded(main):
    """Run a script's main(): an InputError ends as one line on stderr and exit 2, Ctrl-C as exit 130.

    A bug is not caught: it keeps its traceback.
    """
    # OpenMP's threads spin for milliseconds before they sleep; beside another busy process, as on a laptop, that made
    # a training step 1.6 times as long (at ten times this count 2.3 times; alone it gained 0-8 %). torch reads this at
    # its import, which comes later.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    keep_memory()
    if not FIRST:
        os.environ["TQDM_DISABLE"] = "1"
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open as long as the process is)
    try:
        main()
    except InputError as error:
        who = "" if FIRST else f"process {os.environ['RANK']}: "
        print(f"{who}error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `| head` closed the pipe: not our business, and not worth a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def keep_memory():
    """Let glibc keep memory that was freed (mallopt(3)); elsewhere do nothing.

    It gives large blocks back to the system at once: a training step on the CPU spent a third of its time on having
    the same pages anew.
    """
    trim_threshold, mmap_threshold, gigabyte = -1, -3, 2**30
    with contextlib.suppress(OSError, AttributeError):  # no glibc: macOS, Windows, musl
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, gigabyte)
        libc.mallopt(trim_threshold, 2 * gigabyte - 1)


@contextlib.contextmanager
def replacing(path, sync=True):
    """Give a temporary path beside `path`; what was written there takes its place when the block ends well.

    A reader sees the old file or the new one, never half of one; a failed write leaves the old one whole. Without
    `sync` that holds for killed processes but not for a machine that loses power: for what is quickly made again.
    Raises InputError when the disk is full or the folder can't be written to. In other processes than the first of a
    run what is written goes nowhere.
    """
    if not FIRST:
        yield Path(os.devnull)
        return
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")  # one name: what a kill leaves is overwritten, not collected
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
            f"{path}: can't be written ({cause.strerror or cause}); the file that was there before is untouched"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder):
    """Hold `folder` (made if need be) for this process while the block runs; raise InputError if another one does.

    The lock ends with the process, however that ends. Where file locks are not to be had nothing is held.
    """
    if not FIRST:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is writing there now: wait for it, or stop it") from None
        except OSError:  # a network disk without locks
            pass
        yield
    finally:
        os.close(handle)


def write_json(path, content):
    """Write `content` as indented JSON, atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path, remedy):
    """The content of a JSON file; `remedy` says what to do when it isn't there or isn't JSON (InputError)."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: {remedy}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read as JSON ({error}): {remedy}") from None


def write_csv(path, frame):
    """Write a DataFrame as CSV (UTF-8, LF, six decimals, no index), atomically."""
    with replacing(path) as partial:
        frame.to_csv(partial, index=False, float_format="%.6f", lineterminator="\n", quoting=csv.QUOTE_MINIMAL)


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
