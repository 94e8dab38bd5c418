"""data.corrections: labels of rows as a CSV corrects them."""

import re

import pandas as pd

from foldface.files import InputError, read_csv
from foldface.head import YES_NO, Head
from foldface.task import Task


def correct(rows: pd.DataFrame, path: str, task: Task) -> pd.DataFrame:
    """Apply the corrections of a CSV (photo or id, column, value) to the rows and print how many took effect."""
    frame = read_csv(path, ["column", "value"])
    keys = [key for key in ("photo", "id") if key in frame.columns]
    if not keys:
        raise InputError(f"{path}: has neither a column photo nor id; it has {', '.join(frame.columns)}")
    rows, touched, seen = rows.copy(), 0, {}
    columns = list(dict.fromkeys(name for head in task.heads for name in names_of(head)))
    for line, row in enumerate(frame.to_dict("records"), start=2):
        key = next((key for key in keys if row[key]), None)
        if key is None:
            raise InputError(f"{path}, row {line}: names neither a photo nor an id")
        name = row[key]
        column = "id" if key == "id" else "ImageID"
        wanted = rows[column] == name
        if not wanted.any():
            others = rows[column][rows[column].str.fullmatch(rf"extra\d+/{re.escape(name)}")]
            raise InputError(
                f"{path}, row {line}: there is no {key} '{name}' among the rows to train on"
                + (f"; data.extra has {others.iloc[0]}" if len(others) else "")
            )
        if key == "photo" and row.get("id") and row["id"] not in set(rows["id"][wanted]):
            raise InputError(
                f"{path}, row {line}: photo '{name}' is of id '{rows['id'][wanted].iloc[0]}', not '{row['id']}'"
            )
        if row["column"] not in columns:
            raise InputError(f"{path}, row {line}: column is '{row['column']}', should be one of {', '.join(columns)}")
        value, earlier = seen.setdefault((key, name, row["column"]), (row["value"], line))
        if value != row["value"]:
            raise InputError(
                f"{path}, row {line}: {row['column']} of {key} '{name}' is '{row['value']}', by row {earlier} '{value}'"
            )
        for head in (head for head in task.heads if row["column"] in names_of(head)):
            before = rows.loc[wanted, head.key]
            value, reason = corrected(head, row["column"], row["value"], before)
            if reason:
                raise InputError(f"{path}, row {line}: {reason}")
            touched += int((before != value).sum())
            rows.loc[wanted, head.key] = value
    print(f"corrections: {len(frame)} rows of {path} changed {touched} labels")
    return rows


def names_of(head: Head) -> tuple[str, ...]:
    """What a correction may call a head: its column; of several labels a photo also each label, or these alone where
    the table has a column for each."""
    if head.kind != "multilabel":
        return (head.column,)
    return tuple(head.classes) if head.table_columns != (head.column,) else (head.column, *head.classes)


def corrected(head: Head, column: str, text: str, before: pd.Series) -> tuple[object, str]:
    """The values of rows of a head after a correction, and "" or what is wrong with it. before: their values now."""
    if head.kind != "multilabel":
        return head.parse(text)
    if column not in head.classes:
        return head.read({column: text})
    yes, bit = YES_NO.get(text.lower()), 1 << head.classes.index(column)
    if yes is None:
        return None, f"{column} is '{text}', should be 1 or 0, yes or no"
    return (before | bit if yes else before & ~bit), ""
