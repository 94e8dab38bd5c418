"""submission.csv as the competition's own sample has it: its columns, ids, order and kinds of values. Needs no torch.

What a column of the sample holds is found by looking at its name and its cells:

    class                 the class's index (0, 1, ...), or its name
    labels                those of a photo, by name or index, with blanks between
    probability           of one class, where there are two; or a column a class, by the class's name
    number                of a head of numbers
    a column a head       the class of each head, where several heads make the answer
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from foldface import metrics
from foldface.data.tables import form_of, read_table
from foldface.files import InputError
from foldface.names import index_in, number_of, one_of, spellings
from foldface.settings import Config
from foldface.task import Task


class Form(NamedTuple):
    """What a sample submission asks for.

    path: the sample; frame: its content, text; id_column: the column of ids; values: {column: Value}.
    """

    path: str
    frame: pd.DataFrame
    id_column: str
    values: dict

    def describe(self) -> str:
        """The form in words that fit a line."""
        parts = list(dict.fromkeys(value.said for value in self.values.values()))
        names = list(self.values)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"{self.id_column}; {shown}: {', '.join(parts[:3])}"


class Value(NamedTuple):
    """What a column holds: `of` (n,) answers and (n, k) probabilities gives its cells; said: that in words."""

    said: str
    of: object


def form_for(config: Config, task: Task, rows: pd.DataFrame) -> Form | None:
    """The Form that data.sample_submission asks for, None without one. rows: the photos to answer for. Raises
    InputError where the task's answer can't be written so, or no column names these photos."""
    path = config.data.sample_submission
    if not path:
        return None
    frame = read_table(path, [], "data.sample_submission is the competition's own")
    ids = [set(names) for names in names_of(rows)]
    id_column = next((name for name in frame.columns for known in ids if known & set(frame[name])), "")
    if not len(frame):
        raise InputError(f"{path}: has no rows: data.sample_submission should have one for each answer")
    if not id_column:
        first = frame.columns[0]
        raise InputError(
            f"{path}: none of its columns names photos of data.eval: {first} has {frame[first].iloc[0]!a}, data.eval "
            f"has {min(ids[0])!a}: name the table with these ids in data.eval, or their column in data.id_column"
        )
    columns = [name for name in frame.columns if name != id_column]
    if not columns:
        raise InputError(f"{path}: has no column beside {id_column}: data.sample_submission should show the answers")
    cells = {name: [cell for cell in dict.fromkeys(frame[name]) if cell] for name in columns}
    blank = {name for name in columns if (frame[name] == "").any()}
    return Form(str(path), frame, id_column, values_of(task, path, cells, blank))


def values_of(task, path, cells, blank=()):
    """{column: Value} of a sample's columns beside the id. cells: {column: its different cells}; blank: columns in
    which some cells are empty."""
    columns = list(cells)
    if task.numeric:
        if len(columns) > 1:
            raise InputError(f"{path}: has the columns {one_of(columns)}; the answer is one number")
        return {columns[0]: number(path, columns[0], cells[columns[0]])}
    classes = classes_named(task, columns)
    if task.multilabel and len(columns) == 1 and not classes:
        return {columns[0]: labels(task, path, columns[0], cells[columns[0]], columns[0] in blank)}
    if task.multilabel and len(classes) == len(columns) == task.size:
        whole = all(cell in ("0", "1") for of_column in cells.values() for cell in of_column)
        yes_no = whole and not metrics.of_probabilities(task)
        return {name: yes_or_no(task, k) if yes_no else probability(task, k) for name, k in classes.items()}
    if len(classes) == len(columns) == task.size:
        return {name: probability(task, k) for name, k in classes.items()}
    heads = {name: head for name in columns for head in task.answered if name in (head.name, head.column)}
    if len(task.answered) > 1 and len(heads) == len(columns):
        return {name: of_head(task, path, name, head, cells[name]) for name, head in heads.items()}
    if len(columns) == 1 and not task.multilabel:
        return {columns[0]: one_column(task, path, columns[0], cells[columns[0]], classes)}
    lost = [name for k, name in enumerate(task.classes) if k not in classes.values()]
    strange = [name for name in columns if name not in classes]
    what = f"{strange[0]} is none of the {task.size} classes" if strange else f"there is no column for {lost[0]}"
    raise InputError(f"{path}: {what}: a column a class should be called as the classes, {one_of(task.classes)}")


def classes_named(task: Task, columns: Sequence[str]) -> dict[str, int]:
    """{column: class index} of columns that are called like a class, maybe after what all of them begin with."""
    known = spellings(task.classes)
    for cut in range(min(map(len, columns))):
        if len({name[:cut] for name in columns}) > 1:
            break
        found = {name: known[name[cut:]] for name in columns if name[cut:] in known}
        if len(set(found.values())) == len(columns):
            return found
    return {name: known[name] for name in columns if name in known}


def probability(task, k):
    return Value(
        f"the probability of {task.classes[k]}"
        if task.size == 2 and not task.multilabel
        else "the probability of each class",
        lambda answer, probabilities: probabilities[:, k],
    )


def yes_or_no(task, k):
    return Value("1 or 0 for each label", lambda answer, _: task.has(answer, k).astype(int))


def labels(task, path, name, cells, may_be_empty):
    """A column of labels with blanks between: names where all are names, else indices. Where no cell of the sample is
    empty, a photo without a label has its likeliest one: servers take an empty cell for a missing answer."""
    known, words = spellings(task.classes), [word for cell in cells for word in cell.split()]
    by_name = all(index_in(known, word) is not None for word in words)
    if not by_name and not all(word.isdecimal() and int(word) < task.size for word in words):
        strange = next(word for word in words if index_in(known, word) is None)
        raise InputError(f"{path}: {name} holds {strange!a}, which is none of the labels {one_of(task.classes)}")
    written = task.classes if by_name else tuple(map(str, range(task.size)))

    def text(answer, probabilities):
        rows = task.sets(answer)
        if not may_be_empty:
            rows |= ~rows.any(1, keepdims=True) & (probabilities == probabilities.max(1, keepdims=True))
        return np.array([" ".join(one for one, on in zip(written, row, strict=True) if on) for row in rows], object)

    said = "the labels" + ("" if by_name else "' indices")
    return Value(said + ("" if may_be_empty else ", at least the likeliest"), text)


def number(path, name, cells):
    """A column of numbers: whole ones where the sample has different ones, all whole."""
    if not all(number_of(cell) is not None or is_float(cell) for cell in cells):
        raise InputError(f"{path}: {name} holds {cells[0]!a}; the answer is a number")
    if len(cells) > 1 and all(re.fullmatch(r"-?\d+", cell) for cell in cells):
        return Value("a whole number", lambda answer, _: np.rint(answer).astype(int))
    return Value("a number", lambda answer, _: np.asarray(answer, float))


def one_column(task, path, name, cells, classes):
    """The Value of the only column, `name`, with these different cells; classes: whether it is called like a class."""
    numbers = bool(cells) and all(is_float(cell) for cell in cells)
    between = numbers and all(0 <= float(cell) <= 1 for cell in cells)
    fraction = between and any(float(cell) % 1 for cell in cells)
    if task.size == 2 and between and (fraction or classes or metrics.of_probabilities(task)):
        return probability(task, classes.get(name, 1))
    return of_classes(path, name, cells, task.classes, lambda answer: answer)


def of_head(task, path, name, head, cells):
    return of_classes(path, name, cells, head.classes, lambda answer: task.decode(answer)[head.name])


def of_classes(path, name, cells, classes, part):
    """A column of classes: as names where all cells are names of classes, else as indices. part: answers (n,) -> the
    class indices (n,) of this column."""
    known = spellings(classes)
    if cells and all(index_in(known, cell) is not None for cell in cells):
        written = np.array([typed(text, cells) for text in classes])
        said = "the class" if all(number_of(one) is not None for one in classes) else "the class's name"
        return Value(said, lambda answer, _: written[part(np.asarray(answer))])
    if cells and all(re.fullmatch(r"\d+", cell) and int(cell) < len(classes) for cell in cells):
        return Value("the class's index", lambda answer, _: np.asarray(part(np.asarray(answer))))
    strange = next((cell for cell in cells if index_in(known, cell) is None), "")
    what = f"holds {strange!a}, which is none of the classes {one_of(classes)}" if cells else "is empty"
    raise InputError(f"{path}: {name} {what}: the sample should show what an answer looks like")


def typed(text, cells):
    """A class's name as a value of the kind that the cells are: whole number, number or text."""
    if all(re.fullmatch(r"-?\d+", cell) for cell in cells) and number_of(text) is not None:
        return int(number_of(text))
    return float(text) if all(is_float(cell) for cell in cells) else text


def is_float(cell):
    try:
        return np.isfinite(float(cell))
    except ValueError:
        return False


# --------------------------------------------------------------------------------------------------- the answers


def names_of(rows):
    """What photos to answer for may be called, the likeliest first: lists of (n,) str.

    rows: DataFrame of ImageID and, where their table has it, answer_id.
    """
    names = rows["ImageID"]
    base = names.str.rsplit("/", n=1).str[-1]
    stems = [column.str.replace(r"\.\w+$", "", regex=True) for column in (names, base)]
    given = [rows["answer_id"]] if "answer_id" in rows else []
    return [column.to_numpy(object) for column in (*given, names, base, *stems)]


def make(
    config: Config, task: Task, rows: pd.DataFrame, answer: np.ndarray, scores: np.ndarray | None
) -> tuple[pd.DataFrame, str, str]:
    """The submission: (DataFrame, its delimiter, what to say of it).

    rows: the n photos to answer for; answer (n,); scores (n, k) of the classes, None of a number. As
    data.sample_submission has it; else a row a photo with its ImageID, or what data.id_column calls it, and ans.
    """
    probabilities = scores
    if scores is not None and not task.multilabel:
        probabilities = scores / np.maximum(scores.sum(1, keepdims=True), 1e-300)
    form = form_for(config, task, rows)
    if form:
        frame, said = write_as(form, task, rows, answer, probabilities)
        return frame, form_of(form.path).delimiter, said
    if "answer_id" not in rows:
        return pd.DataFrame({"ImageID": rows["ImageID"], "ans": task.written(answer)}), ",", ""
    code, names = pd.factorize(rows["answer_id"])
    if len(names) < len(rows):
        answer, _ = together(task, code, answer, probabilities)
    return pd.DataFrame({config.data.id_column: names, "ans": task.written(answer)}), ",", ""


def write_as(form, task, rows, answer, probabilities):
    """The submission, a DataFrame of the form's columns and rows, and what to say of it.

    answer (n,), probabilities (n, k) or None: of the n photos of `rows`. Photos of one id are answered together, by
    their mean. Raises InputError for an id that no photo has.
    """
    wanted = form.frame[form.id_column]
    names = max(names_of(rows), key=lambda known: len(set(known) & set(wanted)))
    lost = wanted[~wanted.isin(names)]
    if len(lost):
        raise InputError(
            f"{form.path}: {len(lost)} of its {len(wanted)} ids are of no photo in data.eval, such as {lost.iloc[0]!a}"
        )
    code, found = pd.factorize(names)
    said = [form.describe()]
    if len(found) < len(names) and rows["photo"].nunique() > len(found):
        said.append(f"{len(names)} photos make {len(found)} answers, the mean of each {form.id_column}'s")
        answer, probabilities = together(task, code, answer, probabilities)
    else:
        first = np.unique(code, return_index=True)[1]
        answer, probabilities = answer[first], None if probabilities is None else probabilities[first]
    unasked = len(set(found) - set(wanted))
    said += [f"{unasked} photos that it doesn't ask for are left out"] * bool(unasked)
    at = pd.Index(found).get_indexer(wanted)
    columns = {form.id_column: wanted.to_numpy(object)}
    for name, value in form.values.items():
        columns[name] = value.of(answer[at], None if probabilities is None else probabilities[at])
    return pd.DataFrame({name: columns[name] for name in form.frame.columns}), "; ".join(said)


def together(task, code, answer, probabilities):
    """Answers and probabilities of groups: the mean over each group's photos. code: (n,) the group of each photo."""
    count = np.bincount(code)
    if task.numeric:
        return np.bincount(code, answer) / count, None
    total = np.zeros((len(count), probabilities.shape[1]))
    np.add.at(total, code, probabilities)
    mean = total / count[:, None]
    return task.decide(mean), mean
