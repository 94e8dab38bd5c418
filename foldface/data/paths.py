"""Where photos lie: what a table may name, where its photos are, and the photos below a folder.

A path that leads out of the data's folder is refused: tables and folders come from anywhere.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from foldface.data.photos import is_photo
from foldface.data.problems import Problems
from foldface.files import InputError
from foldface.names import Finder, one_of

HALF = re.compile("[\ud800-\udfff]")  # how Python keeps bytes of a name that are no UTF-8


class Fence:
    """What a table may name: photos below its own folder, links followed, or below a folder that data.roots allows."""

    def __init__(self, root: Path | str, allowed: Sequence[str]) -> None:
        self.root, self.homes = str(root), {}
        self.roots = tuple(os.path.join(os.path.realpath(folder), "") for folder in (root, *allowed))

    def refuses(self, path: str) -> str:
        """Why a path from a table, relative to the root, is refused; "" if it isn't."""
        if "\0" in path:
            return "holds a NUL"
        if HALF.search(path):
            return "is not UTF-8: rename it"
        if max(len(part.encode()) for part in path.split("/")) > 255 or len(path.encode()) > 4000:
            return "is longer than a file's name can be"
        if ".." in path.replace("\\", "/").split("/"):
            return f"leaves the folder {self.root}"
        whole = os.path.join(self.root, path)
        home, name = os.path.split(whole)
        if home not in self.homes:  # a folder's links are followed once, not once a photo
            self.homes[home] = os.path.realpath(home)
        real = os.path.realpath(whole) if os.path.islink(whole) else os.path.join(self.homes[home], name)
        if os.path.join(real, "").startswith(self.roots):
            return ""
        return f"leaves the folder {self.root}" + (
            "; data.roots can allow where it lies" if os.path.exists(whole) else ""
        )


def located(
    finder: Finder, fence: Fence, column: str, name: str, there: Callable[[str], bool] = os.path.isfile
) -> tuple[str, str]:
    """What a table's cell names below a folder, as it is called on the disk, though it may not exist: (name, ""), or
    (name, why it is refused)."""
    if astray := fence.refuses(name):
        return name, f"{column} '{name}' {astray}"
    found = finder.find(name, there)
    if len(found) > 1:
        return name, f"{column} '{name}' may be {one_of(found)}: write it as it is on the disk"
    real = found[0] if found else name
    astray = fence.refuses(real) if real != name else ""
    return real, f"{column} '{name}' {astray}" if astray else ""


def photo_root(home: Path, names: Iterable[str]) -> Path:
    """Where the photos that a table in `home` names lie: there, or below images/, as the first that exists says."""
    for name in names:
        for root in (home, home / "images"):
            if name and os.path.isfile(root / name):
                return root
    return home


def photos_below(
    folder: Path | str, roots: Sequence[str], problems: Problems, wanted: str
) -> Iterator[tuple[str, str]]:
    """Photos below a folder, sorted: yields (path below it with /, whole path). A photo is what images.is_photo says.

    Links that lead out, and names that aren't UTF-8, are problems."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; {wanted}")
    fence, passed = Fence(folder, roots), []
    met = {os.path.realpath(folder)}
    for home, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            real = os.path.realpath(os.path.join(home, name))
            reason = fence.refuses(os.path.relpath(os.path.join(home, name), folder))
            if real in met:
                reason = "is a link to a folder that was read already"
            met.add(real)
            if reason:
                problems.add(Path(home) / name, None, reason)
                folders.remove(name)
        for name in sorted(n for n in names if not n.startswith(".")):
            whole = os.path.join(home, name)
            below = os.path.relpath(whole, folder)
            if not is_photo(whole):
                passed.append(below)
            elif reason := fence.refuses(below):
                problems.add(whole, None, reason)
            else:
                yield Path(below).as_posix(), whole
    if passed:
        what = "are no photos by their names and first bytes and passed over"
        print(f"{folder}: {len(passed)} files {what}, such as {passed[0]}")
