"""A competition's folder as it is unpacked: train.csv, test.csv, sample_submission.csv, photos below it.

    python train_kfold.py --data.train DIR --task.heads '[{"name": "label"}]'

Needs no more settings of the data: what is not given is found in the folder, and said in a line.
"""

import re
from collections.abc import Collection
from pathlib import Path

from foldface.files import InputError
from foldface.settings import Config, put

TABLES = (".csv", ".tsv")
SAMPLE = re.compile(r"sample[_ -]?sub\w*|sample", re.IGNORECASE)
TRAIN = re.compile(r"train|train[_ -]?(labels?|set|data|info|meta\w*)|labels?", re.IGNORECASE)
TEST = re.compile(r"(test|eval)([_ -]?(set|data|info|images|meta\w*))?", re.IGNORECASE)


def fill_in(config: Config, given: Collection[str]) -> str:
    """Set what the folder or table of data.train says, where it is not given: data.layout, data.train (its table),
    data.eval, data.sample_submission and data.crops (none). given: dotted names. Returns what to say, "" if nothing.

    Raises InputError for a folder with several tables that may be the one to train on.
    """
    data, home = config.data, Path(config.data.train)
    chosen = data.layout == "table" and "data.layout" in given
    if "data.train" not in given or not (chosen or (data.layout == "competition" and "data.layout" not in given)):
        return ""
    if home.is_dir():
        table = the_table(home, chosen)
    else:
        table = home if home.suffix.lower() in TABLES and home.is_file() else None
    if table is None:
        return ""
    found, beside = {"data.layout": "table", "data.train": str(table), "data.crops": ""}, tables_in(table.parent)
    sample = next((path for path in beside if SAMPLE.fullmatch(path.stem)), None)
    test = next((path for path in beside if TEST.fullmatch(path.stem)), None) or sample
    if test is None:
        test = next(
            (path for path in sorted(table.parent.glob("*")) if path.is_dir() and TEST.fullmatch(path.name)), ""
        )
    found |= {"data.eval": str(test), "data.sample_submission": str(sample or "")}
    if not test:
        del found["data.eval"]
    for key, value in found.items():
        if key == "data.train" or key not in given:
            put(config, key, value)
    if chosen and home.is_file():
        return ""
    said = [f"{table.parent}: trains on {table.name}, answers for {Path(config.data.eval).name or 'nothing'}"]
    if config.data.sample_submission:
        said.append(f"as {Path(config.data.sample_submission).name} has it")
    return ", ".join([*said, f"on {config.data.crops or 'whole photos'}"])


def tables_in(folder):
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in TABLES and path.is_file())


def the_table(home, wanted):
    """The table of a folder to train on; None where the folder is the mask competition's, or has none and none is
    `wanted`."""
    tables = [path for path in tables_in(home) if TRAIN.fullmatch(path.stem)]
    tables = [path for path in tables if path.stem.lower() == "train"] or tables
    if len(tables) > 1:
        names = " and ".join(path.name for path in tables[:2])
        raise InputError(f"{home}: {names} may be the table to train on: name one in data.train")
    if not tables:
        if wanted:
            raise InputError(f"{home}: holds no train.csv: name the table to train on in data.train")
        return None
    with open(tables[0], encoding="utf-8-sig", errors="replace") as file:
        header = [name.strip(' \r\n"') for name in re.split("[,;\t]", file.readline(10_000))]
    images = home / "images"
    of_people = "path" in header or (images.is_dir() and any(path.is_dir() for path in images.iterdir()))
    return None if of_people and not wanted else tables[0]
