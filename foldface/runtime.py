"""This process: rank, start, memory, cores, children."""

import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

PROCESS_START = time.monotonic()  # this process, but for Python itself


def is_main_process() -> bool:
    """True on rank 0. Only rank 0 writes files and prints."""
    return os.environ.get("RANK", "0") == "0"


class Stopped(KeyboardInterrupt):
    """A person (SIGINT, Ctrl-C) or a cluster, Docker or the system (SIGTERM) asks this process to save and end."""

    def __init__(self, number=signal.SIGINT):
        super().__init__()
        self.number = number


def end_with_parent() -> None:
    """End this child process when its parent ends, even if the parent is killed.

    For the initializer of a process pool, where a thread waits for the parent; and for the preexec_fn of a command on
    Linux, where the kernel sends SIGTERM (prctl PR_SET_PDEATHSIG), because no thread lives through exec.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        return

    def wait():
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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


def cores(most=32):
    """CPU cores that this process may use: those of its affinity, or fewer where a container's quota (cgroup v2 or v1)
    allows fewer, at least 1 and at most `most`."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(count, most, quota())))


def quota(root="/sys/fs/cgroup", own="/proc/self/cgroup"):
    """CPU seconds a second that this process's control groups, and those above them, allow; inf where none says."""
    found = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        for line in Path(own).read_text().splitlines():
            _, names, place = line.split(":", 2)
            if names and "cpu" not in names.split(","):
                continue
            home = Path(root, *([] if not names else ["cpu"]), place.strip("/"))
            for group in (home, *home.parents):
                if not group.is_relative_to(root):
                    break
                with contextlib.suppress(OSError, ValueError):  # "max", -1, or a group that isn't shown here
                    if names:
                        limit, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                    else:
                        limit, period = (group / "cpu.max").read_text().split()
                    if int(limit) > 0:
                        found.append(int(limit) / int(period))
    return min(found)
