"""What --help shows, and which setting was meant by a word that is none.

python train.py --help              a line for each setting that the script uses: name, default, meaning
python train.py --help train        all that is known of a group; --help train.lr: of one setting; --help all: of all
"""

import dataclasses
import difflib
import json
import os
import re
import shutil
import sys
import textwrap
import typing
from pathlib import Path

import docstring_parser

from foldface.files import InputError
from foldface.settings import (
    GROUPS,
    MOVED_TO_HEADS,
    REMOVED,
    RENAMED_KEYS,
    BesideConfig,
    Config,
    ExtraConfig,
    HeadConfig,
    as_dict,
    flatten,
)

NO_GROUP = "all"  # what --help calls the settings that are in no group, and all settings together
LEAST_WIDTH = 100  # columns of a line of --help in a pipe
MOST_OF_DEFAULT = 16  # columns of a default in the overview
STYLES = {"heading": 1, "name": 36, "value": 32}  # bold, cyan, green: ANSI codes of a terminal
NAMES = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
# what other programs call a setting, and what Hydra's and timm's users type
ALIASES = {
    "b": "train.batch_size",
    "bs": "train.batch_size",
    "batch": "train.batch_size",
    "c": "config",
    "d": "data.train",
    "data_dir": "data.train",
    "e": "train.epochs",
    "gpu": "device",
    "img_size": "data.image_size",
    "input_size": "data.image_size",
    "j": "data.workers",
    "learning_rate": "train.lr",
    "m": "model.backbone",
    "model": "model.backbone",
    "num_workers": "data.workers",
    "o": "run",
    "opt": "train.optimizer",
    "sched": "train.scheduler",
    "wd": "train.weight_decay",
}


# ---------------------------------------------------------------------------------------------- what is known of a type


def type_in_words(kind: object, mark: str = "{}", between: str = ", ") -> str:
    """A setting's type in words: "int > 0 or null", or its choices.

    mark: how a choice is written, such as "`{}`"; between: what stands between two choices.
    """
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return between.join(mark.format(value) for value in inner)
    if typing.get_origin(kind) is list:
        return f"list of {type_in_words(inner[0], mark, between)}"
    if choices_of(kind) and typing.get_origin(kind) is typing.Union:
        return f"{type_in_words(inner[0], mark, between)} or a name of your own (docs/extending.md)"
    if inner:
        return " or ".join(type_in_words(one, mark, between) for one in inner)
    if hasattr(kind, "_restrictions"):
        limits = " and ".join(f"{NAMES[sign.__name__]} {limit}" for sign, limit in kind._restrictions)
        return f"{kind._type.__name__} {limits}"
    names = {type(None): "null", bool: "true or false", str: "text"}
    names |= {HeadConfig: "head", ExtraConfig: "set of photos", BesideConfig: "network"}
    return names.get(kind) or kind.__name__


def choices_of(kind) -> tuple:
    """The values that a setting's type names, () if it names none; a name of the user's own may stand beside them."""
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    inner = typing.get_args(kind)
    if inner[1:] == (str,) and typing.get_origin(inner[0]) is typing.Literal:
        return typing.get_args(inner[0])
    return ()


def types() -> dict[str, object]:
    """{dotted name: type} of all settings."""
    found = {field.name: field.type for field in dataclasses.fields(Config) if field.name not in GROUPS}
    for group, kind in GROUPS.items():
        found |= {f"{group}.{field.name}": field.type for field in dataclasses.fields(kind)}
    return found


def meanings() -> dict[str, str]:
    """{dotted name: what it is, in one line} of all settings."""
    found = {}
    for prefix, kind in (("", Config), *((f"{group}.", kind) for group, kind in GROUPS.items())):
        for param in docstring_parser.parse_from_object(kind).params:
            found[prefix + param.arg_name] = " ".join((param.description or "").split())
    return found


# ------------------------------------------------------------------------------------------------------------- --help


def show_help(doc: str, flags: dict, used: tuple, about: list[str]) -> None:
    """Print --help.

    doc: the script's docstring. flags: {"--soft": {argparse keywords}}. used: groups, or single settings, that the
    script uses. about: groups or settings to be explained in full, [] = an overview. Raises InputError for a name that
    is none.
    """
    groups, width = sections(used), max(shutil.get_terminal_size((LEAST_WIDTH, 0)).columns, 60)
    lines = explained(chosen(groups, about), width) if about else overview(doc or "", flags, groups, width)
    out = getattr(sys.stdout, "stream", sys.stdout)  # styles are our own here: nothing to escape
    plain = not out.isatty() or os.environ.get("NO_COLOR")
    print(re.sub("\x1b\\[\\d+m", "", "\n".join(lines)) if plain else "\n".join(lines), file=out)


def styled(text: str, style: str) -> str:
    """Text that a terminal shows in a style of STYLES."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def overview(doc: str, flags: dict, groups: dict, width: int) -> list[str]:
    """The lines of --help: the docstring, the script's flags, a line for each setting."""
    script = command_name()
    lines = [f"usage: {script} [--FLAG ...] [--config FILE ...] [--SETTING VALUE ...]", "", doc.strip("\n")]
    flags = {
        "--config": {"metavar": "FILE", "help": "JSON of settings, laid over args.json; may be given again"}
    } | flags
    flags |= {"--print_config": {"action": "store_true", "help": "print the settings of this command, and stop"}}
    left = max(len(flag_as_typed(*flag)) for flag in flags.items())
    lines += ["", styled("Flags", "heading")]
    for name, keywords in flags.items():
        first, *more = textwrap.wrap(" ".join(keywords["help"].split()), max(width - left - 4, 30))
        lines.append(f"  {styled(flag_as_typed(name, keywords).ljust(left), 'name')}  {first}")
        lines += [" " * (left + 4) + line for line in more]
    default = {name: default_in_words(name, value) for name, value in flatten(as_dict(Config())).items()}
    kinds, words, names = types(), meanings(), [name for mine in groups.values() for name in mine]
    left = max(len(name) for name in names) + 2
    middle = min(MOST_OF_DEFAULT, max(len(default[name]) for name in names))
    for heading, mine in groups.items():
        lines += ["", styled(heading, "heading")]
        for name in mine:
            value = default[name] if len(default[name]) <= middle else default[name][: middle - 1] + "…"
            first, *more = in_short(words[name], choices_of(kinds[name]), width - left - middle - 6)
            lines.append(
                f"  {styled(f'--{name}'.ljust(left), 'name')}  {styled(value.ljust(middle), 'value')}  {first}"
            )
            lines += [" " * (left + middle + 6) + line for line in more]
    several = [name.split(".")[0] for name in names if "." in name]
    example = "train" if "train" in several else (several or [NO_GROUP])[0]
    lines += ["", f"The second column is the default. All about a group or a setting: {script} --help {example}"]
    return [*lines, "All settings, those of other scripts too: docs/settings.md"]


def in_short(meaning: str, choices: tuple, room: int) -> list[str]:
    """A setting in a line: its choices, all of them, and as much of its meaning as fits."""
    lines = textwrap.wrap(" | ".join(map(str, choices)), max(room, 30)) or [""]
    before = f"{lines[-1]}: " if choices else ""
    short = textwrap.shorten(meaning, max(room - len(before), 1), placeholder=" …")
    lines[-1] = lines[-1] if choices and len(short) < 24 and short != meaning else before + short
    return lines


def explained(groups: dict, width: int) -> list[str]:
    """The lines of --help NAME: all that is known of settings."""
    kinds, words, default, lines = types(), meanings(), flatten(as_dict(Config())), []
    for heading, names in groups.items():
        lines += ["", styled(heading, "heading")]
        for name in names:
            shown = styled(default_in_words(name, default[name]), "value")
            lines.append(f"  {styled(f'--{name}', 'name')}  {type_in_words(kinds[name])}; default {shown}")
            lines += [f"      {line}" for line in textwrap.wrap(words[name], width - 6)]
    return lines[1:]


def sections(used) -> dict[str, list[str]]:
    """{heading: dotted names} of the settings that a script uses, by group."""
    names = list(types())
    found = {f"Settings that concern all ({NO_GROUP})": [name for name in names if "." not in name]}
    for group, kind in GROUPS.items():
        mine = [name for name in names if name.startswith(f"{group}.") and {group, name} & set(used)]
        if mine:
            found[f"{kind.__doc__.strip().rstrip('.')} ({group})"] = mine
    return found


def chosen(groups, about) -> dict[str, list[str]]:
    """The sections, or parts of them, that `about` names: groups, single settings, or all."""
    found = {}
    everything = sections(tuple(GROUPS))
    known = [name for names in everything.values() for name in names]
    for word in about:
        word = word.lstrip("-")
        if word == NO_GROUP:
            return groups
        mine = {head: [n for n in names if word in (n, n.split(".")[0])] for head, names in everything.items()}
        if not any(mine.values()):
            near = nearest(word, [*known, *GROUPS])
            raise InputError(
                f"--help {word}: there is no such setting or group" + (f"; did you mean {near}?" if near else "")
            )
        for head, names in mine.items():
            if names:
                found.setdefault(head, []).extend(names)
    return found


def flag_as_typed(name, keywords) -> str:
    """A flag with what is to be given after it: --runs RUNS ..., --weights {equal,search}."""
    if keywords.get("action") == "store_true":
        return name
    word = keywords.get("metavar") or name.lstrip("-").upper()
    if "choices" in keywords:
        word = "{" + ",".join(map(str, keywords["choices"])) + "}"
    return f"{name} {word}" + (" ..." if keywords.get("nargs") == "+" else "")


def default_in_words(name, value) -> str:
    """A default as it would be typed; that of the heads by its name."""
    if name == "task.heads":
        return "the mask task"
    return (value or "''") if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def command_name() -> str:
    """How the command is typed: python train.py, python -m tools.compare."""
    path = Path(sys.argv[0])
    module = path.parent.name in ("tools", "demo", "foldface")
    return f"python -m {path.parent.name}.{path.stem}" if module else f"python {path.name}"


# ------------------------------------------------------------------------------------------------- what was meant


def check_names(names: dict[str, str], known: list[str], where: str) -> None:
    """Raise InputError for the first name that is no setting, and say which one may have been meant.

    names: {name: the value beside it, "" where that is not to be shown}; where: what stands before it, a file's name or
    the -- of the command line.
    """
    dashes = "--" if where == "--" else ""
    for name, value in names.items():
        if name in RENAMED_KEYS:
            raise InputError(f"{where}{name}: is called {RENAMED_KEYS[name]} now")
        if name in MOVED_TO_HEADS:
            now = f"task.heads.NAME.{MOVED_TO_HEADS[name]}, such as task.heads.age.{MOVED_TO_HEADS[name]}"
            raise InputError(f"{where}{name}: is a field of a head now: {now}")
        if name in REMOVED:
            now = REMOVED[name] if isinstance(REMOVED[name], str) else f"it is always {REMOVED[name]}"
            raise InputError(f"{where}{name}: is no setting any more: {now}")
        if name not in known and name not in ("help", "print_config"):
            near = nearest(name, known)
            meant = f"did you mean {dashes}{near}{' ' * bool(value)}{value}?" if near else "--help lists all settings"
            raise InputError(f"{where}{name}: there is no such setting; {meant}")


def nearest(name: str, known: list[str]) -> str:
    """The setting that a wrong name most likely means, "" if none is near: epochs, train-epochs, train.epocks."""
    name = name.replace("-", "_")
    if name in ALIASES:
        return ALIASES[name]
    dotted = name.replace("_", ".", 1)  # train_epochs
    leaves = {key.rpartition(".")[2]: key for key in reversed(known)}  # --epochs was meant as --train.epochs
    if dotted in known or name in leaves:
        return dotted if dotted in known else leaves[name]
    near = difflib.get_close_matches(name, [key for key in known if key.count(".") == name.count(".")], n=1)
    near += [leaves[leaf] for leaf in difflib.get_close_matches(name.rpartition(".")[2], leaves, n=1)]
    return near[0] if near else ""


def meant_by(words: list[str], known: list[str]) -> str:
    """What to type instead of words that the parser does not recognize: data.train=x, -e 3, train.lr 0.1."""
    first, after = words[0], words[1] if len(words) > 1 else ""
    bare, _, value = first.lstrip("-").partition("=")
    near = bare if bare in known and bare not in GROUPS else nearest(bare, [key for key in known if key not in GROUPS])
    value = value or after
    if near and (first.startswith("-") or "=" in first or bare in known):
        return f"{first}: a setting is typed as --NAME VALUE: did you mean --{near}{' ' * bool(value)}{value}?"
    return f"{first}: stands alone: a setting is typed as --NAME VALUE, such as --train.epochs 3"


def types_in_words(line: str) -> str:
    """A message of the parser with types in words: "Not of type PositiveInt" -> "should be int > 0"."""
    kinds = [inner for kind in types().values() for inner in (kind, *typing.get_args(kind))]
    for kind in kinds:
        if hasattr(kind, "_restrictions"):
            line = re.sub(rf"Not of type {kind.__name__}\b", f"should be {type_in_words(kind)}", line)
    return line
