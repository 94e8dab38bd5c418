"""README.md and docs/: what they tell a reader to type can be typed."""

import importlib
import re
import shlex
import subprocess

import pytest
from helpers import ROOT

from foldface import cli
from foldface.files import InputError

PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")])
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


def commands(page):
    """(script's module, words) of the commands in a page's indented and fenced blocks, as a shell hands them on.

    The shell runs nothing: it finds no program (PATH is empty), only its own words and a `python` that prints.
    """
    blocks, fenced = [], False
    for line in page.read_text().splitlines():
        fenced ^= line.startswith("```")
        if (fenced and not line.startswith("```")) or re.match(r" {4,}\S", line):
            blocks.append(re.split(r" {3,}", line.strip())[0])  # what follows such a gap explains the command
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if re.match(r"(python|[A-Z]+=.*)\s*", line)]
    script = 'python() { printf "%s\\0" "$@"; printf "\\n"; }\n' + "\n".join(lines)
    done = subprocess.run(
        ["/bin/bash", "-r", "-c", script], env={"PATH": "/nowhere"}, capture_output=True, text=True, cwd=ROOT
    )
    for line in done.stdout.splitlines():
        words = line.split("\0")[:-1]
        if words[:1] == ["-m"] and words[1].startswith(("tools.", "demo.")) and not words[1].startswith("tools.stress"):
            yield words[1], words[2:]  # the stress tools have argparse and few words
        elif words and words[0].endswith(".py"):
            yield words[0].removesuffix(".py"), words[1:]


TYPED = [page for page in PAGES if page.name != "extending.md"]  # test_extending.py runs what that page has
TYPED += [path for path in SOURCES if "run_main(main)" in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("page", TYPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_can_be_typed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name in ("args.json", "mine.json", "runs/search/best.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for name, words in commands(page):
        script = importlib.import_module(name)
        flags = script.train.FLAGS if name == "train_kfold" else getattr(script, "FLAGS", {})
        words = script.recipes_and_words(words)[1] if name == "tools.compare" else words
        try:
            typed = words[: words.index("--help")] if "--help" in words else words  # what follows it names settings
            cli.read("", flags, [word for word in typed if word != "..."])
        except InputError as error:
            pytest.fail(f"python {name} {shlex.join(words)}: {error}")


def test_the_house_in_contributing_shows_every_file():
    house = (ROOT / "CONTRIBUTING.md").read_text().split("## The house")[1].split("\n## ")[0]
    shown = set(re.findall(r"[a-z_0-9]+", house))
    assert [
        path
        for path in map(str, SOURCES)
        if not path.endswith("__init__.py") and path.rsplit("/")[-1][:-3] not in shown
    ] == []


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"(?m)^#+ (.*)", page.read_text())
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if not path.startswith(("http:", "https:")):
            target = (page.parent / path) if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180
    assert len((ROOT / "README.ko.md").read_text().splitlines()) <= 190  # its sentences break elsewhere


def same_in_every_language(text):
    """What a translation leaves as it is: (commands and settings, the heads of headings, links, rows of tables)."""
    blocks = [re.split(r" {2,}#", line)[0] for line in text.splitlines() if re.match(r" {4,}\S", line)]
    inline = [code for code in re.findall(r"`([^`\n]+)`", text) if not code.startswith("README")]
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "README" not in link]
    headings = [line.split(" ")[0] for line in text.splitlines() if line.startswith("#")]
    rows = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    return [line.rstrip() for line in blocks], sorted(inline), sorted(links), headings, rows


def test_the_korean_readme_has_the_same_commands_settings_headings_and_links():
    english, korean = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ko.md"))
    for one, other in zip(same_in_every_language(english), same_in_every_language(korean), strict=True):
        assert one == other
    assert "README.ko.md" in english and "README.md" in korean
    sentences = [line for line in korean.splitlines() if re.search("[\uac00-\ud7a3]", line)]
    assert len(sentences) > 80
