"""tools.gpu_check: where there is no GPU it says so; its checks find what they are for, as far as a CPU can show it."""

import json
import re

import pytest
import torch

from foldface import cli
from foldface.files import InputError
from tools import gpu_check, gpu_checks

WORDS = ["--model.backbone", "test_resnet", "--data.image_size", 32, "--train.batch_size", 16, "--data.workers", 0]
WORDS += ["--device", "cpu", "--train.amp", "off"]


@pytest.fixture
def bench(tmp_path):
    """Drawn people and the settings of a check, on the CPU."""
    return gpu_check.make_bench(cli.read("", argv=[*map(str, WORDS)]), tmp_path, "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_is_content(capsys):
    gpu_check.main(["--only", "fp16"])
    assert "no CUDA GPU is here" in capsys.readouterr().out
    with pytest.raises(InputError, match="--only fp61: there is no such check; there are fp16, scale, bf16"):
        gpu_check.main(["--only", "fp61"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, said",
    [
        ("bf16", r"outputs within 0\.\d+ of the largest; five steps"),
        ("channels_last", r"times the photos/s of contiguous; outputs within 0\.0"),
        ("resume", r"four steps, and two, a stop and two: \d+ tensors equal to the last bit"),
        ("loader", r"\d+% of the time, \d+ photos/s with 0 workers"),
        ("bare", r"\d+ beside \d+ photos/s"),
        ("onnx", r"CPUExecutionProvider: outputs within"),
    ],
)
def test_a_check_passes_where_nothing_is_wrong(bench, accelerator, monkeypatch, name, said):
    monkeypatch.setattr(gpu_checks, "STEPS", 3)
    monkeypatch.setattr(gpu_checks, "SLOW", 0.0)  # so small a network is all overhead
    assert re.search(said, gpu_checks.CHECKS[name].run(bench, accelerator))


@pytest.mark.slow
def test_loss_scaling_is_checked_as_a_gpu_does_it(bench, scaling):
    assert gpu_checks.first_step_overflows(bench, scaling).startswith("skipped whole")
    assert gpu_checks.own_scale(bench, scaling) == "the first fold left at 8192, the second began at 65536"


@pytest.mark.slow
def test_what_is_wrong_is_found(bench, accelerator, scaling, monkeypatch):
    monkeypatch.setattr(gpu_checks.resume, "set_random_states", lambda states: None)  # dropout then drops others
    with pytest.raises(gpu_checks.Failed, match="end in different weights"):
        gpu_checks.resumed(bench, accelerator)
    monkeypatch.setattr(gpu_checks, "overflow", lambda learner, bench: gpu_checks.step(learner, bench))
    with pytest.raises(gpu_checks.Failed, match="changed weights or was counted"):
        gpu_checks.first_step_overflows(bench, scaling)


def test_what_needs_cuda_is_not_tried_elsewhere(capsys):
    config = cli.read("", argv=[*map(str, WORDS)])
    for name in ("memory", "waits", "fp16"):
        found = gpu_check.result_of(name, config)
        assert found["state"] == "not here" and json.dumps(found)
