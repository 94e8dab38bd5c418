"""Further columns of the tables of photos, such as a patient or a camera, for the photos of our predictions."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from foldface.data import tables
from foldface.files import InputError, read_csv
from foldface.settings import Config


def training_table(config: Config) -> tuple[Path | None, pd.DataFrame]:
    """(the table of data.train, its cells as text); (None, an empty DataFrame) where the layout has no table."""
    data = config.data
    if data.layout == "competition":
        path = Path(data.train) / "train.csv"
        return path, read_csv(path, ["path"], "data.train should be the folder that holds train.csv")
    if data.layout == "table":
        return Path(data.train), tables.read_table(data.train, [], "layout table wants a CSV file")
    return None, pd.DataFrame()


def training_cells(config: Config, names: list[str], photos: Sequence[str]) -> pd.DataFrame:
    """The columns `names` of the table of data.train as text, a row each of `photos`, (n,) ImageIDs.

    Raises InputError where the layout has no table, the table no such column, or no row for a photo.
    """
    path, frame = training_table(config)
    refuse_missing(names, path, frame, f"data.layout {config.data.layout} has no table")
    if config.data.layout == "competition":
        of_row, of_photo = frame["path"], [os.path.dirname(name) for name in photos]
    else:
        labels = [name for head in config.predicted.heads for name in head.table_columns]
        column = tables.Photos(path, frame, config.data, labels).column
        of_row, of_photo = tables.ids_of(frame, config.data, column), list(photos)
    place = pd.Index(of_row.drop_duplicates()).get_indexer(of_photo)
    if (place < 0).any():
        lost = photos[int((place < 0).argmax())]
        raise InputError(f"{path}: has no row of {lost}, which was trained on: give the table that the run had")
    return frame.loc[~of_row.duplicated(), names].iloc[place].reset_index(drop=True)


def eval_cells(config: Config, names: list[str]) -> pd.DataFrame:
    """The columns `names` of the table of data.eval as text, a row each in its order. Raises InputError as above."""
    path, frame = eval_table(config)
    refuse_missing(names, path, frame, f"data.eval {config.data.eval}: is no table and has no info.csv")
    return frame[names].reset_index(drop=True)


def eval_table(config: Config) -> tuple[Path | None, pd.DataFrame]:
    """(the table of data.eval, its cells as text); (None, an empty DataFrame) where there is none."""
    path = Path(config.data.eval)
    if path.suffix.lower() in tables.TABLES:
        return path, tables.read_table(path, [])
    if (path / "info.csv").is_file():
        return path / "info.csv", read_csv(path / "info.csv", ["ImageID"])
    return None, pd.DataFrame()


def refuse_missing(names, path, frame, without):
    lost = [name for name in names if name not in frame]
    if lost:
        what = f"{path}: has no column" if path else f"{without} that could have the column"
        raise InputError(f"{what} {lost[0]}" + (f"; it has {', '.join(frame.columns)}" if path else ""))
