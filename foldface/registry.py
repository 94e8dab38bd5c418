"""What is chosen by its name: losses, augmentations, detectors, scores, layouts, splitters; ours and a user's alike.

    @register("loss", "focal")
    def focal(log_probabilities, target, config): ...

A file of the user's that the setting plugins names registers in the same way (docs/extending.md). Backbones have timm's
own registry: timm.models.register_model.
"""

import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from foldface.files import InputError

# The names of ours, so that --help and a wrong name need not import what they stand for (torch, cv2); a test holds
# that they are those that register.
SCORES = ("roc_auc", "average_precision", "log_loss")
SCORES += ("cohen_kappa", "cohen_kappa_linear", "cohen_kappa_quadratic")
BUILT_IN = {
    "loss": ("cross_entropy", "neighbour", "focal", "f1", "asymmetric"),
    "augment": ("none", "light", "strong", "diary", "trash", "shapes", "randaugment", "trivialaugment", "resized_crop"),
    "detector": ("retinaface", "facenet", "yunet", "person", "centre"),
    "score": ("f1", "accuracy", "mae", "within", *SCORES),
    "layout": ("competition", "aaf", "utkface", "folder", "boxes", "table"),
    "splitter": ("pandas_streaming", "sklearn", "iterative"),
}
WORDS = {"augment": "augmentation"}  # a kind as it is called in a sentence
REGISTERED: dict[str, dict[str, object]] = {kind: {} for kind in BUILT_IN}
PLUGINS: dict[str, str] = {}  # {module: file} of the user's files that were imported


def register(kind: str, name: str) -> Callable:
    """A decorator that gives a function or class a name of a kind (BUILT_IN). Raises InputError for a name that is
    taken: what a run's settings say must mean one thing."""
    if kind not in REGISTERED:
        raise InputError(f"register({kind!r}, {name!r}): there is no such kind; there are {', '.join(REGISTERED)}")

    def decorate(made):
        of_user = made.__module__ in PLUGINS
        if name in REGISTERED[kind] or (of_user and name in BUILT_IN[kind]):
            where = f"{PLUGINS[made.__module__]}: " if of_user else ""
            raise InputError(f"{where}the {WORDS.get(kind, kind)} {name} is there already: choose another name")
        REGISTERED[kind][name] = made
        return made

    return decorate


def names(kind: str) -> list[str]:
    """The names of a kind, ours first."""
    return list(dict.fromkeys((*BUILT_IN[kind], *REGISTERED[kind])))


def refuse_unknown(kind: str, name: str, setting: str, more: Sequence[str] = (), others: str = "") -> None:
    """Raise InputError for a name that is none of a kind, with the names that there are. more: further names, of a
    library; others: what they are, in words."""
    known, word = names(kind), WORDS.get(kind, kind)
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *more], n=1)
        raise InputError(
            f"{setting} {name}: there is no such {word}; "
            + (f"did you mean {near[0]}? " if near else "")
            + f"There are {', '.join(known)}{', ' + others if others else ''}; for one of your own name its file: "
            "--plugins FILE.py"
        )


def lookup(kind: str, name: str) -> object:
    """What is registered by a name. The module that has ours is imported by whoever looks one up."""
    refuse_unknown(kind, name, WORDS.get(kind, kind))
    return REGISTERED[kind][name]


def load(paths: Sequence[str]) -> None:
    """Import the user's files, each once. Its folder joins Python's path, where processes that are spawned find it too.

    Raises InputError for a file that is missing, is not Python or has a name that another module has.
    """
    for path in paths:
        file, name = Path(path).resolve(), Path(path).stem
        if not file.is_file() or file.suffix != ".py" or not re.fullmatch(r"[\w-]+", name):
            raise InputError(f"plugins: {path}: should be a Python file, such as mine.py")
        if str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))
        found = importlib.util.find_spec(name)
        if found is None or not found.origin or Path(found.origin).resolve() != file:
            raise InputError(f"plugins: {path}: there is another module called {name}: rename the file")
        PLUGINS[name] = str(file)
        try:
            importlib.import_module(name)
        except (SyntaxError, ImportError) as error:
            raise InputError(f"plugins: {path}: can't be imported: {error}") from None
