"""Check that training is deterministic: take the same steps twice and print the first tensor that differs.

    python -m tools.check_repeat --steps 20 --config recipes/people_small.json --data.train DIR --data.crops DIR

Writes nothing. Exit 1 if anything differs.
"""

import hashlib
import itertools
import sys
import tempfile
from dataclasses import replace

import loss
import model
from dataset import prepare
from foldface import cli, devices, runs
from foldface.cli import run_main
from foldface.data import loader
from foldface.data.drawn_masks import drawer
from foldface.data.folds import split
from foldface.data.leaks import start_run
from foldface.nn import averaging, optim
from foldface.nn.heads import Heads
from foldface.nn.learner import Learner


def check(config, steps):
    """Take `steps` steps of fold 0 twice and compare them bit by bit; print the first difference and exit 1."""
    with tempfile.TemporaryDirectory() as folder:
        if config.model.init_from_run:  # a name means a run beside this one
            config = replace(config, model=replace(config.model, init_from_run=str(start_run(config).absolute())))
        config = replace(config, run=folder)
        rows, _ = split(prepare(config), 0)
        accelerator = devices.make_accelerator(config)
        first, second = (trace(rows, config, steps, accelerator) for _ in range(2))
    for (step, what, digest), (_, _, other) in zip(first, second, strict=True):
        if digest != other:
            print(f"not the same: the first difference is {what} at step {step}")
            sys.exit(1)
    print(f"{min(steps, first[-1][0])} steps, twice: the same to the last bit ({len(first)} tensors compared)")


def trace(rows, config, steps, accelerator):
    """[(step, name, digest)] of all tensors of the first steps, in the order in which they are computed."""
    seen, step = [], 0

    def note(what, tensor):
        seen.append((step, what, hashlib.sha1(tensor.detach().cpu().float().numpy().tobytes()).hexdigest()))

    batches = loader.SeededBatchSampler(
        len(rows), config.train.batch_size, shuffle=True, seed=runs.fold_seed(config, 0)
    )
    data = config.data
    shown = {"flip": data.flip, "draw_mask": drawer(config, rows, model.read_crop_settings(config))}
    photos = loader.PhotoDataset(
        rows, data.augment, data.image_size, True, data.random_erasing, data.resize_mode, **shown
    )
    feed = loader.make(photos, batches, config.data.workers)
    epochs = max(config.train.epochs, -(-steps // len(batches)))  # the schedule must be long enough
    config = replace(config, train=replace(config.train, epochs=epochs))
    heads = Heads(config.predicted, config.model.heads)
    net = model.make(config, heads.size, 0, accelerator)
    criterion, targets = loss.make(heads, rows, config.loss)
    average = averaging.make_average(net, config.train)
    parameters = optim.parameter_groups(net, config.train)
    optimizer = optim.make_optimizer(parameters, config.train, fused=accelerator.scaler is None)
    scheduler = optim.make_course(optimizer, config.train, len(batches), 0)
    mixup = loss.make_mixup(config.train)
    learner = Learner(net, criterion, targets, optimizer, scheduler, config, accelerator, average, mixup)

    def note_gradient(name, weight):
        scaler = accelerator.scaler  # fp16: without the loss scale
        note(f"the gradient of {name}", weight.grad if scaler is None else weight.grad / scaler.get_scale())

    for name, weight in learner.module.named_parameters():
        note(f"the initial {name}", weight)
        weight.register_post_accumulate_grad_hook(lambda w, name=name: note_gradient(name, w))
    for name, layer in learner.module.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _, __, out, name=name: note(f"the output of layer {name}", out))
    learner.set_train_mode()
    for epoch in itertools.count(1):
        batches.go_to(epoch)
        for indices, batch, _ in feed:
            step += 1
            note("the batch: which photos it holds", indices)
            note("the augmentation: the photos' pixels", batch)
            note("the loss", learner.train_step(indices, batch, len(indices)))
            for name, weight in learner.module.named_parameters():
                note(f"the optimizer's update of {name}", weight)
            if step == steps:
                accelerator.free_memory()
                return seen


USED = ("task", "data", "crop", "model", "loss", "train")  # --help shows these groups of settings
FLAGS = {"--steps": {"type": int, "default": 20, "metavar": "N", "help": "steps to take twice"}}


def main(argv: list[str] | None = None) -> None:
    config = cli.read(__doc__, FLAGS, argv, USED)
    check(config, config.steps)


if __name__ == "__main__":
    run_main(main)
