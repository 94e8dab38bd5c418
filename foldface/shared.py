"""Photos that are answered together: the photos of one person, say, have one gender and age (data.eval_group).

The heads of data.eval_group_heads get the mean of the group's probabilities, the same for all of its photos; the other
heads keep each photo's own. Whether that pays is measured out of fold. Needs no torch.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from foldface.data import columns
from foldface.data.layouts import groups_by_name
from foldface.files import InputError, is_csv, read_csv
from foldface.settings import Config
from foldface.task import Task

PERSONS = "same_person.csv"  # in a run's folder: who is who, as tools.same_person found it
FORBIDDEN = "a competition may forbid to use other photos of its test set for an answer: read its rules"


class Groups(NamedTuple):
    """Which photos are answered together, and which heads: `code` (n,) int, the group of each photo."""

    task: Task
    heads: tuple[str, ...]
    code: np.ndarray

    @property
    def all_heads(self) -> bool:
        return len(self.heads) == len(self.task.answered)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean over each photo's group. values: (n, ...) float; returns the same shape."""
        flat = values.reshape(len(values), -1)
        size = self.code.max() + 1
        ones = coo_array((np.ones(len(values)), (self.code, np.arange(len(values)))), (size, len(values))).tocsr()
        return ((ones @ flat) / np.bincount(self.code)[:, None])[self.code].reshape(values.shape)

    def share(self, votes: np.ndarray) -> np.ndarray:
        """Probabilities or votes (n, k), or numbers (n,), of which the shared heads are those of the photo's group.

        Of the other heads each photo keeps its own, whatever the shared ones are: so all photos of a group have one
        answer of the shared heads. A photo that is alone in its group keeps all as it is.
        """
        if self.all_heads:
            return self.mean(votes)
        joint = votes.reshape(len(votes), *self.task.shape)
        shared = [place for place, head in enumerate(self.task.answered, 1) if head.name in self.heads]
        other = [place for place in range(1, joint.ndim) if place not in shared]
        theirs, own = self.mean(joint.sum(tuple(other), keepdims=True)), joint.sum(tuple(shared), keepdims=True)
        total = joint.sum(tuple(range(1, joint.ndim)), keepdims=True)
        alone = np.bincount(self.code)[self.code] == 1
        return np.where(alone[:, None], votes, (theirs * own / np.maximum(total, 1e-300)).reshape(votes.shape))

    def share_numbers(self, values: np.ndarray) -> np.ndarray:
        """What stands behind a head of numbers, (n, columns): the mean over the group if that head is shared."""
        return self.mean(values) if self.task.number and self.task.number.name in self.heads else values

    def units(self, people: np.ndarray) -> np.ndarray:
        """What intervals are over: people (n,) and groups, joined where they share a photo: (n,) str."""
        person = np.unique(people, return_inverse=True)[1]
        size = person.max() + 1
        edges = (np.ones(len(person)), (person, size + self.code))
        graph = coo_array(edges, (size + self.code.max() + 1,) * 2)
        return connected_components(graph, directed=False)[1][person].astype(str)


def heads_of(config: Config) -> tuple[str, ...]:
    """The heads that data.eval_group_heads names, in the task's order. Raises InputError for others."""
    task, wanted = config.predicted, config.data.eval_group_heads
    names = [head.name for head in task.answered]
    strange = [name for name in wanted if name not in names]
    if strange:
        raise InputError(f"data.eval_group_heads: {strange[0]} makes no part of the answer: name {', '.join(names)}")
    return tuple(name for name in names if name in (wanted or names))


def codes(cells) -> np.ndarray:
    """Cells of a column (n,) -> the group of each photo; one without a cell is a group of its own."""
    cells = np.asarray(cells, object)
    named = [("", number) if not str(cell).strip() else (str(cell), -1) for number, cell in enumerate(cells)]
    return pd.factorize(pd.Series(named, dtype=object))[0]


def from_file(path: str, photos: np.ndarray, side: str) -> np.ndarray | None:
    """The column person of a CSV for photos (n,) ImageIDs, (n,) str; None where it has no row of that side.

    side: "train" or "eval", as in the file's column `set`; without that column its rows are of both. Raises InputError
    where the file can't be read, or some photos have no row.
    """
    frame = read_csv(path, ["ImageID", "person"], "python -m tools.same_person writes such a file")
    if "set" in frame:
        strange = frame[~frame["set"].isin(["train", "eval"])]
        if len(strange):
            row = int(strange.index[0])
            raise InputError(f"{path}, row {row + 2}: set is '{frame['set'][row]}', should be train or eval")
        frame = frame[frame["set"] == side]
    frame = frame.drop_duplicates(["ImageID", "person"])
    double = frame["ImageID"].duplicated()
    if double.any():
        row = int(frame.index[double][0])
        raise InputError(f"{path}, row {row + 2}: {frame['ImageID'][row]} has another person in a row above")
    person = frame.set_index("ImageID")["person"].reindex(photos)
    lost = person.isna().to_numpy()
    if lost.all() and side == "train":
        return None
    if lost.any():
        raise InputError(
            f"{path}: has no row of {photos[int(lost.argmax())]} (set {side}), nor of {lost.sum() - 1} more photos: "
            "run python -m tools.same_person again"
        )
    return person.to_numpy(object)


def asked(config: Config, rows: pd.DataFrame) -> Groups:
    """The groups of the photos to answer for, `rows` of dataset.eval_rows. Raises InputError where nothing tells them
    apart."""
    group = config.data.eval_group
    if is_csv(group):
        return Groups(config.predicted, heads_of(config), codes(from_file(group, rows["ImageID"].to_numpy(), "eval")))
    path, frame = columns.eval_table(config)
    if group in frame:
        cells = frame[group]
    else:
        cells = groups_by_name(group, rows["ImageID"], "data.eval_group")
        if not any(cells):
            where = f"{path} has no column of that name; it has {', '.join(frame.columns)}" if path else "no table"
            raise InputError(f"data.eval_group {group}: {where}; nor does it match the photos' names")
    return Groups(config.predicted, heads_of(config), codes(cells))


def known(config: Config, photos: np.ndarray, people: np.ndarray) -> Groups:
    """The groups of the photos of oof.csv: (n,) ImageIDs and ids. Where neither the table of data.train nor the names
    tell them, photos of one id count as a group, which is said."""
    group = config.data.eval_group
    if is_csv(group):
        cells = from_file(group, photos, "train")
        if cells is None:
            print(f"data.eval_group {group}: has no photos of oof.csv: measured over its ids, so without the errors of "
                  "who is who")  # fmt: skip
            cells = people
        return Groups(config.predicted, heads_of(config), codes(cells))
    path, frame = columns.training_table(config)
    if group in frame:
        cells = columns.training_cells(config, [group], photos)[group]
    else:
        cells = groups_by_name(group, photos, "data.eval_group")
        if not any(cells):
            print(f"data.eval_group {group}: {path or config.data.train} has none such: measured over its ids")
            cells = people
    return Groups(config.predicted, heads_of(config), codes(cells))
