"""The current process: rank, start, memory, cores, children."""

import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

PROCESS_START = time.monotonic()  # without the start of Python itself


def is_main_process() -> bool:
    """True on rank 0. Only rank 0 writes files and prints."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """The number of this process among those of its command on this machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


class Stopped(KeyboardInterrupt):
    """A request to save and end: SIGINT (Ctrl-C) or SIGTERM (from a cluster, Docker or the system)."""

    def __init__(self, number: int = signal.SIGINT) -> None:
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


def keep_memory() -> None:
    """Let glibc keep freed memory (mallopt(3)); does nothing without glibc.

    By default it returns large blocks to the system at once, and a training step on the CPU spends a third of its time
    on getting the same pages again.
    """
    trim_threshold, mmap_threshold, gigabyte = -1, -3, 2**30
    with contextlib.suppress(OSError, AttributeError):  # no glibc: macOS, Windows, musl
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, gigabyte)
        libc.mallopt(trim_threshold, 2 * gigabyte - 1)


def cores(most: int = 32, root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int:
    """The number of CPU cores that this process may use, 1 to `most`: by its affinity and its container's quota (cgroup
    v2 or v1, of which `own` names the groups below `root`); several processes of one command share them."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = min(count, quota(root, own)) / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, math.ceil(min(share, most)))


def quota(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float:
    """CPU seconds a second that this process's control groups and their parents allow; inf without a limit."""
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


def no_processes() -> str:
    """Why processes can't share locks, "" if they can: a container's /dev/shm may be full or read-only."""
    try:
        multiprocessing.get_context().Lock()
    except OSError as error:
        return f"/dev/shm can't be written to ({error.strerror})"
    return ""
