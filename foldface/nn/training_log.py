"""What training says of itself: what an epoch came to, the columns of log.csv, whether the score still improves."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from foldface import metrics
from foldface.task import Task

if TYPE_CHECKING:
    import torch

    from foldface.data.loader import SeededBatchSampler


class EpochStats(NamedTuple):
    """What an epoch's steps came to."""

    train_loss: float
    """mean over the photos"""
    answers: "torch.Tensor"
    """what each training photo was answered with: (n,) float32 on the CPU, NaN where it was not drawn, or was mixed"""
    speed: dict[str, float]
    """columns of speed.csv: seconds, photos_per_second, waited (share of the seconds without photos), memory_gb"""


POINTS = 4  # parts of an epoch, at whose ends a tracker hears the loss


class EpochBar(tqdm):
    """The progress bar of an epoch. It also tells a tracker the loss within the epoch, a few times."""

    def __init__(self, learner: Any, sampler: "SeededBatchSampler", title: str, listen: Callable | None):
        """learner: the Learner whose epoch it is. listen: called with {"batch_loss": mean over the photos since the
        last call} and the number of batches of all epochs; None = it is not called."""
        super().__init__(total=sampler.count, initial=learner.seen, desc=title, unit="photo", leave=False, disable=None)
        self.learner, self.listen, self.before = learner, listen, learner.epoch * len(sampler)
        self.marks = {len(sampler) * k // POINTS for k in range(1, POINTS)} if listen else ()
        self.heard = learner.loss, learner.seen

    def step(self, photos: int, total: "torch.Tensor") -> None:
        """A batch is done. photos: in it; total: loss summed over this process's photos of the epoch, a scalar."""
        self.update(photos)
        learner = self.learner
        if not self.disable and learner.step % 20 == 0:  # rarely, since .item() waits for the GPU
            best = {} if learner.best_score is None else {learner.task.score: f"{learner.best_score:.3f}"}
            self.set_postfix(loss=f"{total.item() / learner.seen:.3f}", **best)
        if learner.step in self.marks:
            loss, seen = self.heard
            self.heard = total.item(), learner.seen
            mean = (self.heard[0] - loss) / (learner.seen - seen) * learner.accelerator.num_processes
            self.listen({"batch_loss": mean}, self.before + learner.step)


class Validation(NamedTuple):
    """What an epoch's model answers to the validation photos, and how good that is."""

    answers: "torch.Tensor"
    """(n, width) float32, as heads.Heads.answers"""
    scores: dict[str, float]
    """{column of log.csv: value}"""


LOG_COLUMNS = ["epoch", "lr", "train_loss", "val_loss"]  # and the scores of the task, see log_columns


def log_columns(task: Task) -> list[str]:
    """The columns of log.csv: the validation scores by their names, those of the training photos with train_ before."""
    return [*LOG_COLUMNS, *metrics.score_names(task), *(f"train_{name}" for name in metrics.training_names(task))]


def stalled(log: list[dict], patience: int, task: Task) -> bool:
    """Has the score not improved for `patience` epochs? log: rows of log.csv."""
    if not patience or len(log) <= patience:
        return False
    values = [metrics.worth(task, row[task.score]) for row in log]
    return max(values[-patience:]) <= max(values[:-patience])
