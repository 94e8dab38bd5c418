"""Which device computes, and in which precision: the same answer wherever it is asked."""

import numpy as np
import pytest
import torch

import model
import train
from demo import gan_training, serving
from foldface import devices
from foldface.files import InputError
from foldface.nn import gradcam, predicting
from foldface.nn.heads import Heads

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


def machine(monkeypatch, cuda=None, mps=False):
    """A machine with a GPU of this compute capability, or Apple's: as torch would say."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.slow
def test_auto_takes_the_gpu_that_is_there_and_what_is_named_is_taken(competition, monkeypatch):
    for there, expected in (({"cuda": (7, 0)}, CUDA), ({"mps": True}, MPS), ({}, CPU)):
        machine(monkeypatch, **there)
        for name, device in (("auto", expected), (expected.type, expected), ("cpu", CPU)):
            for weights in (None, {}):
                assert devices.choose_device(competition.config("--device", name), weights)[0] == device


def test_what_was_trained_in_bf16_never_answers_in_fp16(competition, monkeypatch):
    config = competition.config("--device", "cuda")
    machine(monkeypatch, cuda=(7, 0))
    assert devices.choose_device(config) == (CUDA, torch.float16)
    assert devices.choose_device(config, {"precision": "bf16"}) == (CUDA, torch.float32)
    machine(monkeypatch, cuda=(8, 0))
    assert devices.choose_device(config) == devices.choose_device(config, {"precision": "bf16"})
    assert devices.choose_device(config) == (CUDA, torch.bfloat16)


def test_a_machine_with_another_gpu_than_the_named_one_is_refused(competition, monkeypatch):
    machine(monkeypatch, cuda=(8, 0))
    with pytest.raises(InputError, match="device is mps, but torch sees no GPU of that kind"):
        devices.choose_device(competition.config("--device", "mps"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_by_all_alike(competition, monkeypatch, name):
    words = ["--task.score", "f1", "--device", name]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    trained = save_fold(competition)
    config = competition.config(*words)
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for start in (
        lambda: devices.make_accelerator(config),
        lambda: predicting.predict(*trained, competition_rows(competition), config),
        lambda: serving.Predictor(config),
        lambda: gan_training.train(config),
        lambda: gradcam.Explainer(config, model.load_folds(model.checkpoints(config.run)), [], "", ""),
    ):
        with pytest.raises(InputError, match=f"device is {name}, but torch sees no GPU of that kind"):
            start()


@pytest.mark.slow
def test_on_an_apple_gpu_all_models_answer_there(competition, monkeypatch):
    """The GPU is played: what is sent to it stays, and is counted."""
    nets, abouts, heads = save_fold(competition)
    sent, to = [], torch.nn.Module.to

    def play(honest):
        def moved(self, *where, **how):
            if MPS in where:
                sent.append(type(self))
                where = [CPU if one == MPS else one for one in where]
            return honest(self, *where, **how)

        return moved

    machine(monkeypatch, mps=True)
    monkeypatch.setattr(torch.nn.Module, "to", play(to))
    monkeypatch.setattr(torch.Tensor, "to", play(torch.Tensor.to))
    config = competition.config("--device", "mps")
    assert devices.make_accelerator(config).device.type in ("mps", "cpu")  # accelerate has its own eyes
    gradcam.Explainer(config, model.load_folds(model.checkpoints(config.run)), [], "", "")
    assert sent == [type(nets[0])]
    predicting.predict(nets, abouts, heads, competition_rows(competition), config)
    assert type(nets[0]) in sent[1:] and torch.Tensor in sent
    del sent[:]
    predicting.answer_photos(nets, abouts, heads, [np.zeros((40, 30, 3), np.uint8)], config)
    assert sent == [torch.Tensor, type(nets[0])]


@pytest.mark.parametrize(
    ("device", "capability", "amp", "expected"),
    [
        *((CPU, None, amp, there) for amp, there in (("auto", "no"), ("off", "no"), ("bf16", "bf16"))),
        *((CUDA, (7, 0), amp, there) for amp, there in (("auto", "fp16"), ("off", "no"), ("fp16", "fp16"))),
        *((CUDA, (8, 0), amp, there) for amp, there in (("auto", "bf16"), ("off", "no"), ("fp16", "fp16"))),
        *((MPS, None, amp, there) for amp, there in (("auto", "no"), ("fp16", "fp16"))),
    ],
)
def test_the_precision_of_training_is_the_devices(monkeypatch, device, capability, amp, expected):
    machine(monkeypatch, cuda=capability)
    assert devices.training_precision(device, amp) == expected


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(InputError, match=r"train\.amp fp16 needs a GPU"):
        devices.training_precision(CPU, "fp16")


@pytest.mark.parametrize(
    ("device", "capability", "amp", "trained", "expected"),
    [
        (CUDA, (8, 0), "auto", "bf16", "bf16"),
        (CUDA, (8, 0), "auto", "fp16", "fp16"),  # trained on a V100
        (CUDA, (8, 0), "auto", "no", "no"),
        (CUDA, (7, 0), "auto", "bf16", "no"),  # never in fp16 what was trained in bf16, whose numbers reach further
        (CUDA, (8, 0), "off", "bf16", "no"),
        (CUDA, (7, 0), "auto", None, "fp16"),  # weights of before they said
        (CPU, None, "auto", "bf16", "no"),
        (CPU, None, "bf16", "bf16", "bf16"),
        (CPU, None, "fp16", "fp16", "no"),
        (CPU, None, "fp16", None, "no"),
    ],
)
def test_answers_come_in_the_precision_of_training_where_the_device_has_it(
    monkeypatch, device, capability, amp, trained, expected
):
    machine(monkeypatch, cuda=capability)
    assert devices.answering_precision(device, amp, trained) == expected


@pytest.mark.slow
@pytest.mark.parametrize("how", ["file", "photo"])
def test_what_was_trained_in_bf16_answers_in_bf16(competition, how):
    """On a CPU, where bf16 was asked for by name."""
    nets, abouts, heads = save_fold(competition, precision="bf16")
    types_seen = []
    for net in nets.values():
        net.get_classifier().register_forward_hook(lambda _, __, out: types_seen.append(out.dtype))
    for amp in ("bf16", "off"):
        config = competition.config("--train.amp", amp)
        if how == "file":
            found = predicting.predict(nets, abouts, heads, competition_rows(competition), config)[0][0]
        else:
            found = predicting.answer_photos(nets, abouts, heads, [np.zeros((40, 30, 3), np.uint8)], config)
        assert found.dtype == np.float32 and np.allclose(found.sum(1), 1, atol=1e-5)
    assert types_seen == [torch.bfloat16, torch.float32]


@pytest.mark.slow
def test_a_weights_file_says_in_which_precision_it_was_trained(competition):
    config = competition.config("--train.epochs", 1)
    train.train_folds(config, [0])
    about = model.load(competition.root / "run" / "fold0" / "best.safetensors")[2]
    assert about["precision"] == "no"


def save_fold(competition, precision="no"):
    """A run with one fold of random weights; as inference.load_folds gives it."""
    import dataset

    config = competition.config()
    task = config.predicted
    heads = Heads(task, "multi")
    rows, _ = dataset.training_rows(config)
    net = model.build("test_resnet", heads.size, False, 32)
    about = model.describe(config, heads, net, precision, 0, rows)
    path = competition.root / "run" / "fold0" / "best.safetensors"
    model.save(path, net, about)
    return model.load_folds({0: path})


def competition_rows(competition):
    """The photos to answer for."""
    import dataset
    from foldface.faces import manifest

    return manifest.with_files(dataset.eval_rows(competition.config()), "")
