"""The bench: every stage runs beside its peer, and what it writes is what it printed."""

import json
import sys

import pytest

import bench
from files import InputError


@pytest.fixture
def small(competition, monkeypatch):
    """main() on a small competition."""
    settings = competition.settings("--inference.batch_size", 64)

    def run(*stages, **flags):
        settings.rounds, settings.quick, settings.stages, settings.profile = 1, True, list(stages), False
        settings.json = str(competition.root / "bench.json")
        for name, value in flags.items():
            setattr(settings, name, value)
        monkeypatch.setattr(bench.args, "read", lambda *_: settings)
        bench.main()
        return json.loads((competition.root / "bench.json").read_text())

    return run


def test_every_stage_runs_beside_its_peer(small, capsys):
    found = small("loader", "train", "inference", "onnx")
    assert list(found) == ["loader", "train", "inference", "onnx"]
    assert all(0.01 < ratio < 1000 for ratio in found.values())
    printed = capsys.readouterr().out
    assert printed.count("| photos/s of") == 3 and "| the same on onnxruntime" in printed
    with pytest.raises(InputError, match="there are loader, crop, train, inference, onnx"):
        small("lodaer")


def test_folds_and_help_are_timed(monkeypatch):
    assert 0 < bench.folds_seconds(300) < 20
    monkeypatch.setattr(sys, "executable", sys.executable)
    assert 0 < bench.help_seconds() < 60


def test_ratios_are_within_rounds():
    text = bench.table({"crop": [(100.0, 10.0), (50.0, 5.5), (90.0, 10.0)]})
    assert text.splitlines()[-1].endswith("| 90.0 (50.0-100.0) | 10.0 (5.5-10.0) | 9.09 (9.00-10.00) |")
