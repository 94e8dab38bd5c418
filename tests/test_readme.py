"""README.md and docs/: what they tell a reader to type can be typed."""

import re

import pytest
from helpers import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SOURCES = sorted(
    path
    for folder in ("", "foldface", "tools", "demo")
    for path in (ROOT / folder).glob("**/*.py" if folder else "*.py")
)


def expanded(word):
    """The words that a shell makes of braces: a{b,c} is ab and ac."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", word)
    if not found:
        return [word]
    return [one for part in found[1].split(",") for one in expanded(word[: found.start()] + part + word[found.end() :])]


@pytest.mark.parametrize("page", PAGES + SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_that_is_named_is_there(page):
    text = page.read_text()
    words = re.findall(r"recipes/[^\s`'\"]+\.json\}?", text)
    words = [one for word in words for part in expanded(word) for one in part.split("+") if one.startswith("recipes/")]
    assert [word for word in words if not list(ROOT.glob(word))] == []
