"""The bench: every stage runs beside its peer, and what it writes is what it printed."""

import json
import shutil
import sys
import time

import pytest
import torch

from foldface.files import InputError
from tools import benchmark, benchmark_stages


@pytest.fixture
def small(competition, monkeypatch):
    """main() on a small competition."""
    monkeypatch.setattr(benchmark_stages, "QUICK_SECONDS", 0.2)
    monkeypatch.setattr(benchmark_stages, "QUICK_PHOTOS", 200)

    def run(*stages):
        words = ["--inference.batch_size", 64, "--rounds", 1, "--quick", "--json", competition.root / "bench.json"]
        competition.run(benchmark, *words, "--stages", *stages)
        return json.loads((competition.root / "bench.json").read_text())

    return run


@pytest.mark.slow
def test_every_stage_runs_beside_its_peer_and_the_file_holds_what_the_table_says(small, capsys):
    found = small("memory", "loader", "timm", "train", "inference", "onnx")
    assert list(found) == ["memory", "loader", "timm", "train", "inference", "onnx"]
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == [benchmark.STAGES[name][0] for name in found]
    for (_, ours, peer, ratio), value in zip(rows, found.values(), strict=True):
        assert value == pytest.approx(float(ratio.split()[0]), abs=0.006)
        assert value == pytest.approx(float(ours.split()[0]) / float(peer.split()[0]), rel=0.02)
    with pytest.raises(InputError, match="there are memory, loader, timm, crop, train, inference, onnx"):
        small("lodaer")


@pytest.mark.slow
@pytest.mark.parametrize("kept, peer", [(True, "torchvision"), (False, "torchvision"), (False, "timm")])
def test_both_sides_of_a_loader_row_do_the_same_work(competition, monkeypatch, kept, peer):
    monkeypatch.setattr(benchmark_stages, "QUICK_PHOTOS", 200)
    config = competition.config()
    config.quick = True
    sides = benchmark_stages.loader_sides(config, kept, peer)
    found = [torch.cat(list(side)) for side in sides]
    assert len(found[0]) == 200 and len(found[1]) == (192 if peer == "timm" else 200)  # timm leaves half batches out
    assert [photos.shape[1:] for photos in found] == [(3, 32, 32)] * 2
    assert [photos.dtype for photos in found] == [torch.float32] * 2
    ours, theirs = ((photos.mean().item(), photos.std().item()) for photos in found)
    assert ours == pytest.approx(theirs, abs=0.25)  # of noise, each varied by chance
    shutil.rmtree(competition.train / "images")
    for side in sides:
        if kept:
            assert sum(len(batch) for batch in side) == 200
        else:
            with pytest.raises((InputError, FileNotFoundError)):
                next(iter(side))


def test_a_round_lasts_its_seconds_and_counts_every_photo():
    seen = []

    class Feed:
        def __iter__(self):
            for _ in range(5):
                time.sleep(0.01)
                seen.append(8)
                yield torch.zeros(8)

    with benchmark_stages.Seconds() as taken:
        rate = benchmark_stages.steady_rate(Feed(), 0.3)
    assert taken.passed >= 0.3 and len(seen) % 5 == 0
    assert rate == pytest.approx(sum(seen) / taken.passed, rel=0.2)


def test_the_start_of_workers_is_no_part_of_a_rate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def act(rows):
        now[0] += 0.5 + 0.002 * len(rows)

    assert benchmark_stages.marginal_rate(act, list(range(300)), 50) == pytest.approx(500)


@pytest.mark.slow
def test_folds_and_help_are_timed(monkeypatch):
    assert 0 < benchmark.folds_seconds(300) < 20
    monkeypatch.setattr(sys, "executable", sys.executable)
    assert 0 < benchmark.help_seconds() < 60


def test_ratios_are_within_rounds():
    text = benchmark.markdown_table({"crop": [(100.0, 10.0), (50.0, 5.5), (90.0, 10.0)]})
    assert text.splitlines()[-1].endswith("| 90.0 (50.0-100.0) | 10.0 (5.5-10.0) | 9.09 (9.00-10.00) |")
