"""Several processes that share the work of one command: torchrun or accelerate launch starts them.

    torchrun --nproc_per_node 8 -- inference.py --run runs/mine
    accelerate launch --multi_gpu --num_processes 8 inference.py --run runs/mine

Every process runs the whole script. It takes its share of the jobs (Ranks.share), and rank 0 alone writes the result.
devices.join_ranks makes a Ranks; nothing here imports torch.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from foldface.files import InputError

LATE = 120  # seconds that a network disk may take to show a file that another machine has written


@dataclass(frozen=True)
class Ranks:
    """The processes of this command: this one is number `index` of `count`. All of them call wait, gather and
    broadcast. These raise InputError where another process has ended before its work was done."""

    index: int = 0
    count: int = 1
    distributed: ModuleType | None = None  # torch.distributed, where there are several

    def share(self, jobs: Sequence) -> Sequence:
        """The jobs that this process does: every count-th."""
        return jobs[self.index :: self.count]

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.distributed:
            with lost_processes():
                self.distributed.barrier()

    def gather(self, found: Sequence) -> list:
        """What all processes made of their shares (`share`), in the order of the jobs, in each of them."""
        if not self.distributed:
            return list(found)
        parts = [None] * self.count
        with lost_processes():
            self.distributed.all_gather_object(parts, list(found))
        total = sum(map(len, parts))
        return [parts[k % self.count][k // self.count] for k in range(total)]

    def broadcast(self, value: Any) -> Any:
        """What rank 0 gave, in each process."""
        if not self.distributed:
            return value
        values = [value]
        with lost_processes():
            self.distributed.broadcast_object_list(values)
        return values[0]


ALONE = Ranks()


def several() -> bool:
    """True if this process is one of several of a command."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextlib.contextmanager
def lost_processes() -> Iterator[None]:
    """Raise InputError where torch.distributed fails, as it does when another process was killed."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            "another process of this command ended before its work was done: the same command goes on where they were, "
            f"with as many processes or others ({str(error).splitlines()[0][:120]})"
        ) from None
