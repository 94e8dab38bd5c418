"""What is around the code: dependencies are declared alike, the checks of CI are those of `make test`."""

import tomllib

import yaml
from helpers import ROOT
from packaging.requirements import Requirement


def requirements(lines):
    """{name: (versions, extras)} of lines such as "numpy>=2,<3"."""
    found = [Requirement(line) for line in lines]
    assert len({one.name for one in found}) == len(found)
    return {one.name: (str(one.specifier), one.extras) for one in found}


def test_make_installs_what_pyproject_declares_extras_included():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    on_request = {"trackers", "search"}  # what make does without: their tests are skipped where they are not installed
    declared = project["dependencies"] + [line for name in extras.keys() - on_request for line in extras[name]]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert requirements(line for line in lines if line and not line.startswith("#")) == requirements(declared)
    assert extras.keys() == {"demo", "clean", "dev"} | on_request


def test_ci_runs_what_must_pass_on_the_oldest_and_the_newest_python():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert job["strategy"]["matrix"]["python"] == [oldest.removeprefix(">="), "3.13"]
    assert job["steps"][-1] == {"run": ".ci/run"}
