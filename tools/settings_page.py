"""Print the page of all settings, group by group, from their declaration in foldface/settings.py.

python -m tools.settings_page > docs/settings.md
"""

import dataclasses
import json

import docstring_parser

from foldface.settings import GROUPS, BesideConfig, Config, ExtraConfig, HeadConfig
from foldface.usage import type_in_words


def table_of(kind, prefix, heading):
    """The Markdown table of a dataclass's settings, group fields left out."""
    meanings = {one.arg_name: one.description for one in docstring_parser.parse_from_object(kind).params}
    lines = [f"## {heading}", "", " ".join(kind.__doc__.split()), "", "| setting | type | default | what it is |"]
    lines.append("|---|---|---|---|")
    for field in dataclasses.fields(kind):
        if field.name in GROUPS and kind is Config:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        shown = "" if default is dataclasses.MISSING else f"`{json.dumps(default, default=dataclasses.asdict)}`"
        shown = "the mask task" if prefix + field.name == "task.heads" else shown
        meaning = " ".join(meanings[field.name].split()).replace("|", "\\|")
        kinds = type_in_words(field.type, "`{}`", " \\| ")
        lines.append(f"| `{prefix}{field.name}` | {kinds} | {shown} | {meaning} |")
    return lines


ABOUT = """# All settings

Written by `python -m tools.settings_page > docs/settings.md` from foldface/settings.py; a test holds it to that.

Each stands in a JSON file by its group, `{"train": {"epochs": 3}}`, or on the command line by its dotted name,
`--train.epochs 3`. The order, the later one wins: the defaults below, `args.json`, what a run says of its answers (for
a script that follows a run), the files of `--config` in their order, the command line. A script's `--help` shows the
settings that it uses; it reads the others too, since scripts share their files. An old name is refused, with the new
one.
"""


def main():
    """Print docs/settings.md."""
    lines = [ABOUT, *table_of(Config, "", "No group")]
    for name, kind in GROUPS.items():
        lines += ["", *table_of(kind, f"{name}.", f"`{name}`")]
    lines += [
        "",
        *table_of(HeadConfig, "", "A head of `task.heads`"),
        "",
        *table_of(ExtraConfig, "", "A set of `data.extra`"),
        "",
        *table_of(BesideConfig, "", "A network of `model.beside`"),
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
