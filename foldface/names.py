"""Names as a reader understands them: which spellings are one name, their order, which file a table means.

Two names can look the same and differ in their bytes: Unicode writes é in two ways (NFC, NFD) and 1 in full width, a
spreadsheet writes 1.0 for 1 and TRUE for True, a camera writes IMG_1.JPG where a table says img_1.jpg.
"""

import collections
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal

import numpy as np

from foldface.files import InputError

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


def shown(text: str) -> str:
    """A text as a reader sees it: one Unicode form (NFKC), no invisible characters, no spaces at the ends."""
    if text.isascii():
        return " ".join(text.split())  # NFKC changes nothing; nearly all of millions of names are ASCII
    visible = (sign for sign in unicodedata.normalize("NFKC", text) if unicodedata.category(sign) != "Cf")
    return " ".join("".join(visible).replace("\u2212", "-").split())


def folded(text: str) -> str:
    """`shown` without letter case. (NFKC again: some letters fold to two characters.)"""
    if text.isascii():
        return shown(text).lower()
    return unicodedata.normalize("NFKC", shown(text).casefold())


def number_of(text: str) -> Decimal | None:
    """The value of a name that is a number, such as 10, -3 or 0.50, else None. 2e5 is a name, not a number."""
    text = shown(text)
    return Decimal(text) if NUMBER.fullmatch(text) else None


def meaning(text: str) -> str:
    """The same text for names of one meaning: 1, 1.0 and 01; TRUE and True; é in both Unicode forms.

    Names that differ only in letter case have different meanings: the letters a and A may be two classes.
    """
    value = number_of(text)
    if value is not None:
        return f"{value.normalize() + 0:f}"  # + 0 turns -0 into 0
    text = shown(text)
    return text.lower() if text.lower() in ("true", "false") else text


def ordered(names: Iterable[str]) -> list[str]:
    """Sort names: by value if all are numbers (2 before 10), else as text."""
    names = list(names)
    values = {name: number_of(name) for name in names}
    if None in values.values():
        return sorted(names)
    return sorted(names, key=lambda name: (values[name], name))


def classes_of(counts: Mapping[str, int], what: str) -> tuple[list[str], list[str]]:
    """(the classes of a table's names, sorted; a line for each class with several spellings).

    counts: how often each name occurs; the most frequent spelling names the class. what: the head, for the messages.
    Raises InputError for names that differ only in letter case: only the user knows whether Cat and cat are one class.
    """
    spelled = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        spelled.setdefault(meaning(name), []).append(name)
    merged = [
        f"{what}: {', '.join(f'{name!r} ({counts[name]})' for name in same)} are one class, {same[0]!r}"
        for same in spelled.values()
        if len(same) > 1
    ]
    found, cases = ordered(same[0] for same in spelled.values()), {}
    for name in found:
        other = cases.setdefault(folded(name), name)
        if other is not name:
            raise InputError(
                f"{what}: the classes {other!r} ({counts[other]}) and {name!r} ({counts[name]}) differ in letter case "
                f"only: rename one, or list the classes in task.heads: {other!r} makes them one class, both names two"
            )
    return found, merged


def one_spelling(texts: Sequence[str]) -> dict[str, str]:
    """{spelling: the first spelling} of different texts that are the same to a reader, without letter case.

    Numbers stay as they are written: 000600 is not 600.
    """
    key = np.fromiter((hash(folded(text)) for text in texts), np.int64, len(texts))  # 8 bytes for each of millions
    value, count = np.unique(key, return_counts=True)
    first, changed = {}, {}
    for k in np.flatnonzero(np.isin(key, value[count > 1])):
        kept = first.setdefault(folded(texts[k]), texts[k])
        if kept is not texts[k]:
            changed[texts[k]] = kept
    return changed


class Finder:
    """Find files that a table names, where the disk has another Unicode form or letter case of the name.

    others: (name in the table, name on the disk) of all files that were found this way.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root, self.others, self.listings = str(root), [], {}

    def find(self, name: str, there: Callable[[str], bool] = os.path.isfile) -> list[str]:
        """The paths that a name may mean: [the name] if it exists, else all on the disk that look the same to a reader.

        there: tests whether a path counts as existing.
        """
        if there(os.path.join(self.root, name)):
            return [name]
        found = ["/" if name.startswith("/") else ""]
        for part in (part for part in name.split("/") if part not in ("", ".")):
            found = [os.path.join(home, real) for home in found for real in self.alike(home, part)]
        found = [one for one in found if there(os.path.join(self.root, one))]
        if len(found) == 1:
            self.others.append((name, found[0]))
        return found

    def alike(self, home: str, part: str) -> list[str]:
        """The names in a folder that look like `part` to a reader; only [part] if it is one of them."""
        if home not in self.listings:
            try:
                content = os.listdir(os.path.join(self.root, home))
            except (OSError, ValueError):  # no folder, or no path: a NUL in it
                content = []
            by_key = {}
            for real in sorted(content):
                by_key.setdefault(folded(real), []).append(real)
            self.listings[home] = by_key
        same = self.listings[home].get(folded(part), [])
        return [part] if part in same else same

    def report(self, table: str | os.PathLike) -> None:
        """Print how many names of the table have another spelling on the disk."""
        if self.others:
            asked, real = self.others[0]
            print(
                f"{table}: {len(self.others)} names have another letter case or Unicode form on the disk "
                f"and were found: {asked!a} is {real!a}"
            )


def spellings(classes: Sequence[str]) -> dict[str, int]:
    """{spelling: class index}: each class as it is written, by its meaning, and by that without its letter case, where
    that means one class alone. What is written exactly so goes before what only means it."""
    found = {name: index for index, name in enumerate(classes)}
    for form in (meaning, lambda name: folded(meaning(name))):
        forms = list(map(form, classes))
        count = collections.Counter(forms)
        for index, text in enumerate(forms):
            if count[text] == 1:
                found.setdefault(text, index)
    return found


def index_in(known: Mapping[str, int], text: str) -> int | None:
    """The class index that a text means, whatever its spelling; None if it means none. known: of `spellings`."""
    return next((known[one] for one in (text, meaning(text), folded(meaning(text))) if one in known), None)


def one_of(names: Iterable[str], most: int = 8) -> str:
    """ "one of a, b, c", in words that fit a line."""
    names = list(names)
    more = f" (and {len(names) - most} more)" if len(names) > most else ""
    return ("one of " if len(names) > 2 else "") + (" or " if len(names) == 2 else ", ").join(names[:most]) + more
