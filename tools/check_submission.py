"""What a competition's server would refuse of a submission, by the competition's own sample.

    python -m tools.check_submission submission.csv sample_submission.csv

Looks at columns, ids and their order, empty cells, and whether cells are of the sample's kind: whole numbers, numbers,
text. One line for each thing; exit 2 if there is any.
"""

import codecs
import re
from pathlib import Path

import numpy as np
import pandas as pd

from foldface import cli
from foldface.cli import run_main
from foldface.data.tables import form_of, read_table
from foldface.files import InputError
from foldface.names import one_of

FLAGS = {"files": {"nargs": 2, "metavar": "FILE", "help": "the submission, and the competition's sample of one"}}
WHOLE = re.compile(r"[+-]?\d+")


def problems(path: str, sample_path: str) -> list[str]:
    """What is wrong with a submission, a line each; [] if nothing is. InputError for a file that can't be read."""
    sample, frame = read_table(sample_path, []), read_table(path, [])
    found = list(of_text(path, sample_path))
    if list(frame.columns) != list(sample.columns):
        found.append(f"its columns are {', '.join(frame.columns)}; the sample's are {', '.join(sample.columns)}")
        if missing := [name for name in sample.columns if name not in frame]:
            return [*found, f"there is no column {missing[0]}"]
    found += of_ids(frame[sample.columns[0]], sample[sample.columns[0]])
    for name in sample.columns[1:]:
        found += of_cells(frame[name], sample[name])
    return [*found, *of_rows(frame, sample)]


def of_text(path, sample_path):
    """How the file is written."""
    form, wanted = form_of(path), form_of(sample_path)
    if form.delimiter != wanted.delimiter:
        yield f"its cells are parted by {form.delimiter!r}, the sample's by {wanted.delimiter!r}"
    if form.encoding != "utf-8-sig":
        yield f"it is written in {form.encoding}: write it in UTF-8"
    mark = Path(path).read_bytes().startswith(codecs.BOM_UTF8)
    if mark and not Path(sample_path).read_bytes().startswith(codecs.BOM_UTF8):
        yield "it begins with a byte-order mark, which many servers take for a part of the first column's name"


def of_ids(ids, wanted):
    """The rows: as many as the sample's, with its ids, in its order."""
    if len(ids) != len(wanted):
        yield f"it has {len(ids)} rows, the sample has {len(wanted)}"
    name, lost, more = wanted.name, sorted(set(wanted) - set(ids)), sorted(set(ids) - set(wanted))
    if lost:
        yield f"{len(lost)} ids of the sample are missing, such as {name} {lost[0]!a}"
    if more:
        yield f"{len(more)} ids are not in the sample, such as {name} {more[0]!a} in row {row_of(ids == more[0])}"
    if ids.duplicated().any() and not wanted.duplicated().any():
        first = ids[ids.duplicated()].iloc[0]
        yield f"{name} {first!a} stands there twice, in row {row_of(ids.duplicated())} again"
    if not lost and not more and len(ids) == len(wanted) and (ids != wanted).any():
        yield f"its ids have another order than the sample's from row {row_of(ids != wanted)} on"


def of_cells(cells, wanted):
    """A column's cells: none empty, and of the sample's kind."""
    name, empty = cells.name, cells.isin(["", "nan", "NaN", "None", "NA", "null"])
    if empty.any() and not (wanted == "").any():
        yield f"{name} is empty in {empty.sum()} rows, first in row {row_of(empty)}"
    numbers, expected = pd.to_numeric(cells[~empty], errors="coerce"), pd.to_numeric(wanted, errors="coerce")
    if not len(wanted) or expected.isna().any():
        kinds = set(wanted) - {""}
        if len(kinds) > 1 and expected.isna().all() and not any(" " in kind for kind in kinds):
            strange = cells[~empty & ~cells.isin(kinds)]
            if len(strange):
                yield (
                    f"{name} holds {strange.iloc[0]!a} in row {row_of(cells == strange.iloc[0])}; the sample has "
                    f"{one_of(sorted(kinds))}"
                )
        return
    bad = numbers.isna() | ~np.isfinite(numbers)
    if bad.any():
        yield f"{name} is {cells[bad.index[bad.argmax()]]!a} in row {bad.index[bad.argmax()] + 2}, which is no number"
        return
    whole = wanted.map(WHOLE.fullmatch).notna()
    fraction = ~cells[~empty].map(WHOLE.fullmatch).notna()
    if whole.all() and wanted.nunique() > 1 and fraction.any():
        row = fraction.index[fraction.argmax()]
        yield f"{name} is {cells[row]} in row {row + 2}; the sample has whole numbers"
    if expected.between(0, 1).all() and (expected % 1 > 0).any() and not numbers.between(0, 1).all():
        row = numbers.index[(~numbers.between(0, 1)).argmax()]
        yield f"{name} is {cells[row]} in row {row + 2}; the sample has probabilities, 0 to 1"


def of_rows(frame, sample):
    """Rows of probabilities that sum to one where the sample's do."""
    columns = list(sample.columns[1:])
    both = [part[columns].apply(pd.to_numeric, errors="coerce").sum(axis=1) for part in (sample, frame)]
    if len(columns) > 1 and len(sample) and (abs(both[0] - 1) < 0.01).all() and not (abs(both[1] - 1) < 0.01).all():
        row = int((abs(both[1] - 1) >= 0.01).to_numpy().argmax())
        yield f"the probabilities of row {row + 2} sum to {both[1].iloc[row]:.3f}; the sample's to 1"


def row_of(wrong):
    """The first row that is wrong, as an editor counts: the header is row 1."""
    return int(np.asarray(wrong).argmax()) + 2


def main(argv: list[str] | None = None) -> None:
    path, sample = cli.read(__doc__, FLAGS, argv, ()).files
    found = problems(path, sample)
    for line in found:
        print(f"{path}: {line}")
    if found:
        raise InputError(f"{path}: {len(found)} things that a server would refuse by {sample}")
    print(f"{path}: {len(read_table(path, []))} rows, as {sample} has them")


if __name__ == "__main__":
    run_main(main)
