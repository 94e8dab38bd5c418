"""The notebook of a kit: five cells that write submission.csv on a machine without internet, as Kaggle's are."""

import json
from typing import NamedTuple

# A folder below /kaggle/input is named by the owner of a data set, or not, and with or without "competitions": so the
# kit and the competition's files are looked for.
KIT = '''
# 1. The kit (code, weights, packages) lies somewhere below INPUT. Nothing here needs the internet.
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

INPUT, WORKING, KIT = Path("/kaggle/input"), Path.cwd(), None


def folder_with(*names):
    """The first folder below INPUT, the upper ones first, that holds all of these."""
    level = [INPUT]
    for _ in range(5):
        for folder in level:
            if all((folder / name).exists() for name in names):
                return folder
        level = [Path(entry) for folder in level for entry in os.scandir(folder) if entry.is_dir()]
        level = sorted(folder for folder in level if folder != KIT)
    raise FileNotFoundError(f"no folder below {INPUT} holds {', '.join(names)}: add it to the notebook's input")


def run(*words):
    """Run a Python module of the kit: its lines appear here, and where it fails the notebook stops."""
    command, paths = [sys.executable, "-m", *map(str, words)], os.environ | {"PYTHONPATH": str(KIT / "code")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=WORKING, env=paths, **pipes) as child:
        for line in child.stdout:
            print(line, end="")
    if child.returncode:
        raise RuntimeError(f"{words[0]}: failed, see above")


KIT = folder_with("kit.json")
run("pip", "install", "--quiet", "--no-index", "--no-deps", "--find-links", KIT / "wheels", "--requirement",
    KIT / "requirements.txt")
'''
DATA = """
# 2. The competition's files, and the settings that say where they lie
DATA = folder_with({markers})
settings = json.loads((KIT / "settings.json").read_text())
for name in {below}:
    settings["data"][name] = str(DATA / settings["data"][name])
{more}(WORKING / "settings.json").write_text(json.dumps(settings, indent=2))
print(f"{{DATA}} answered by {{KIT}}")
"""
PLUGINS = 'settings["plugins"] = [str(KIT / path) for path in settings["plugins"]]\n'
CROPS = {
    "made here": 'settings["data"]["crops"] = tempfile.mkdtemp()  # not of the notebook\'s output\n',
    "in the kit": 'settings["data"]["crops"] = str(KIT / "crops")\n',
    "": "",
}
ANSWER = """
# 3. {title}
{crop}for name in {runs}:
    run("inference", "--config", "settings.json", "--run", KIT / "runs" / name, "--output", WORKING / "answers" / name)
"""
VOTE = """
# 4. All folds{of_runs} together: submission.csv. Other words, such as --decide bias: docs/competitions.md.
run("ensemble", "--soft", "--config", "settings.json", "--runs", {answers})
"""
CHECK = """
# 5. What a server would refuse of it
run("tools.check_submission", "submission.csv", settings["data"]["sample_submission"])
"""
LOOK = """
# 5. Its first rows
print(*(WORKING / "submission.csv").read_text().splitlines()[:6], sep="\\n")
"""


class Content(NamedTuple):
    """What differs between notebooks. markers: files or folders that the competition's folder holds; below: settings
    of data that are paths below it; crops: a key of CROPS; runs: names."""

    markers: list[str]
    below: list[str]
    crops: str
    runs: list[str]
    has_plugins: bool
    has_sample: bool


def cells(content: Content) -> list[str]:
    """The source of the five cells."""
    making = content.crops == "made here"
    answers = ", ".join(f'WORKING / "answers" / {json.dumps(name)}' for name in content.runs)
    data = DATA.format(
        markers=", ".join(map(json.dumps, content.markers)),
        below=json.dumps(content.below),
        more=CROPS[content.crops] + PLUGINS * content.has_plugins,
    )
    answer = ANSWER.format(
        title="Face crops of the photos, then the answers of each fold" if making else "The answers of each fold",
        crop='run("face_crop", "--config", "settings.json", "--only", "eval")\n' if making else "",
        runs=json.dumps(content.runs),
    )
    vote = VOTE.format(of_runs=" of all runs" if len(content.runs) > 1 else "", answers=answers)
    return [source.strip("\n") for source in (KIT, data, answer, vote, CHECK if content.has_sample else LOOK)]


def notebook(content: Content) -> dict:
    """The notebook, nbformat 4.4 (later ones have ids of cells), without outputs."""
    empty = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    return {
        "cells": [empty | {"source": source.splitlines(keepends=True)} for source in cells(content)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 4,
    }
