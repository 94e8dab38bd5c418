"""Fields of single heads on a command line: --task.heads.age.learn ordinal."""

import json
import re
from collections.abc import Iterable, Sequence

from foldface.files import InputError


def split_heads(words: Iterable[str]) -> tuple[dict[str, dict], list[str]]:
    """({head: {field: value}} of all --task.heads.NAME.FIELD, the other words)."""
    changes, rest, words = {}, [], iter(words)
    for word in words:
        match = re.fullmatch(r"--task\.heads\.([^=]+)\.(\w+)(?:=(.*))?", word, re.DOTALL)
        if not match:
            rest.append(word)
            continue
        name, field, text = match.groups()
        text = next(words, "") if text is None else text
        try:
            value = text if field in ("column", "unit", "learn") else json.loads(text)
        except ValueError:
            value = text  # whether that can be is for the parser to say
        changes.setdefault(name, {})[field] = value
    return changes, rest


def heads_among(words: Sequence[str]) -> list[dict]:
    """The value of --task.heads among words of a command line, [] without one. Raises InputError if it is no list."""
    for number, word in enumerate(words):
        if word.split("=")[0] == "--task.heads":
            text = word.partition("=")[2] or "".join(words[number + 1 : number + 2])
            try:
                return list(json.loads(text))
            except (ValueError, TypeError):
                raise InputError(f"--task.heads {text}: is no list of heads in JSON") from None
    return []
