"""How fast, beside how it is usually done: each stage and its peer in one run, in turn, several times.

    python -m tools.benchmark                                               on the sample data
    python -m tools.benchmark --data.train DIR --data.eval DIR --data.crops DIR --rounds 5 --json bench.json
    python -m tools.benchmark --quick                                       fewer photos and steps: about five minutes
    python -m tools.benchmark --stages loader train --config recipes/people_small.json
    python -m tools.benchmark --profile                                 where training and inference spend their time

Prints a Markdown table of medians and spreads. A ratio is ours / peer within one round: machines drift, rounds don't.

    memory       a training epoch's photos as normalised floats, flip, affine and brightness, decoded before: ours from
                 memory; a torch DataLoader with torchvision's transforms from PIL images in memory
    loader       the same, both sides decode each photo each time: ours with memory_gb 0; PIL and torchvision
    timm         the same, beside timm.data.create_loader: RandomResizedCrop, flip, brightness
    crop         face_crop.py's whole job; facenet-pytorch, photo by photo
    train        an epoch of train.py with all it does; the bare step of the same model, batch and precision on tensors
                 that lie ready, the faster of both memory formats
    inference    five folds in one pass; a timm loop a fold: each decodes with PIL and asks the model as it was trained;
                 the start of workers is taken off on both sides
    onnx         the same by inference.backend onnx
"""

import copy
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from foldface import cli
from foldface.cli import run_main
from foldface.files import InputError, refuse_unwritable, write_json
from foldface.runtime import cores
from foldface.settings import Config

PEOPLE = 1_000_000  # of the tables that folds are dealt for
FOLDS = 5  # models that answer
PHOTOS, QUICK_PHOTOS = 6000, 2000  # of a loader's epoch
SECONDS, QUICK_SECONDS = 10, 3  # that a round of a loader takes at least


class Seconds:
    """The seconds of a `with` block."""

    def __enter__(self):
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_):
        self.passed = time.perf_counter() - self.start


def rows_of(config, crops, count):
    """`count` rows of the training photos with their files: crops, or whole photos."""
    import dataset as dataset_module
    from foldface.faces import manifest

    rows, _ = dataset_module.training_rows(config)
    rows = manifest.with_files(rows, config.data.crops if crops else "")
    return rows.sample(count, random_state=config.seed, replace=len(rows) < count).reset_index(drop=True)


def steady(feed, seconds):
    """Photos/s of an iterable of batches (b, ...), over as many whole epochs as take `seconds` at least. What only the
    first epoch pays (workers start, photos are kept) is for the caller to have had."""
    count = 0
    with Seconds() as taken:
        while not count or time.perf_counter() - taken.start < seconds:
            count += sum(len(batch) for batch in feed)
    return count / taken.passed


def marginal(act, rows, few):
    """Photos/s of act(rows) without what it costs to begin: the seconds of rows[:few] are taken off."""
    with Seconds() as start:
        act(rows[:few])
    with Seconds() as whole:
        act(rows)
    return (len(rows) - few) / (whole.passed - start.passed)


# ------------------------------------------------------------------------------------------------------- stages
# Each makes (ours, peer): two functions without arguments that return photos/s. What is set up before is not timed.


class Floats:
    """An epoch's photos of our training loader as what a model takes: (b, 3, s, s) float32."""

    def __init__(self, rows, size, batch, workers, memory_gb):
        from foldface.data import loader as loader_module

        photos = loader_module.PhotoDataset(rows, "light", size, True, memory_gb=memory_gb)
        self.feed = loader_module.make(
            photos, loader_module.SeededBatchSampler(len(rows), batch, shuffle=True), workers
        )

    def __iter__(self):
        from foldface.data import loader as loader_module

        for _, photos, errors in self.feed:
            if any(errors):
                raise InputError(f"a photo can't be read: {max(errors)}")
            yield loader_module.normalize(photos, *loader_module.IMAGENET)


def loader_sides(config, kept, peer):
    """Two iterables of the same photos at the same size, varied alike: (b, 3, s, s) float32 batches of ours and of the
    peer, "torchvision" or "timm". kept: photos lie decoded in memory, on both sides; else both decode each time."""
    import timm
    import torch
    import torchvision.transforms as T
    from PIL import Image

    from foldface.data import loader as loader_module

    data, batch, size = config.data, 64, config.data.image_size
    rows = rows_of(config, True, QUICK_PHOTOS if config.quick else PHOTOS)
    ours = Floats(rows, size, batch, data.workers, 1000.0 if kept else 0.0)
    square = T.Resize((size, size))

    def opened(file):
        return Image.open(file).convert("RGB")

    class Usual(torch.utils.data.Dataset):
        transform, held = None, [square(opened(file)) for file in rows["file"]] if kept else None

        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            return self.transform(self.held[index] if kept else opened(rows["file"][index])), 0

    options = {
        "batch_size": batch,
        "num_workers": ours.feed.num_workers,
        "persistent_workers": ours.feed.num_workers > 0,
    }
    mean, std = loader_module.IMAGENET
    if peer == "timm":
        light = {"scale": (0.85, 1.0), "hflip": 0.5, "color_jitter": (0.2, 0.2, 0.0), "interpolation": "bilinear"}
        usual = timm.data.create_loader(
            Usual(), (3, size, size), is_training=True, use_prefetcher=False, mean=mean, std=std, **light, **options
        )
    else:
        affine = T.RandomAffine(8, translate=(0.04, 0.04), scale=(0.92, 1.08))
        vary = [T.RandomHorizontalFlip(), T.RandomApply([affine], 0.8), T.RandomApply([T.ColorJitter(0.2, 0.2)], 0.5)]
        dataset = Usual()
        dataset.transform = T.Compose([*([] if kept else [square]), *vary, T.ToTensor(), T.Normalize(mean, std)])
        usual = torch.utils.data.DataLoader(dataset, shuffle=True, **options)
    return ours, Firsts(usual)


class Firsts:
    """The photos of a DataLoader of (photos, labels)."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return (photos for photos, _ in self.loader)


def loader(config, folder, kept=False, peer="torchvision"):
    sides = loader_sides(config, kept, peer)
    for side in sides:
        for _ in side:  # workers start, and ours keeps what it decodes
            pass
    seconds = QUICK_SECONDS if config.quick else SECONDS
    return tuple(lambda side=side: steady(side, seconds) for side in sides)


def crop(config, folder):
    from facenet_pytorch import MTCNN
    from PIL import Image

    import face_crop

    chosen = copy.deepcopy(config)
    photos = face_crop.plan(chosen)["photo"].sample(80 if config.quick else 150, random_state=0, replace=True)
    detector = MTCNN(keep_all=True)

    def ours():  # the start of its processes, hashes and contact sheet included
        with tempfile.TemporaryDirectory(dir=folder) as place, Seconds() as taken:
            chosen.data.crops = f"{place}/crops"
            count = len(face_crop.crop_all(chosen))
        return count / taken.passed

    def peer():
        with Seconds() as taken:
            for photo in photos:
                with Image.open(photo) as image:
                    detector.detect(image.convert("RGB"))
        return len(photos) / taken.passed

    return ours, peer


def train(config, folder):
    import torch

    import dataset as dataset_module
    import loss as loss_module
    from foldface.data import loader as loader_module
    from foldface.nn import batchnorm, learner, optim
    from foldface.nn.heads import Heads
    from train import make_net

    chosen, batch = copy.deepcopy(config), config.train.batch_size
    dataset_module.infer_classes(chosen)
    steps = 80 if config.quick else 120
    course = dataclasses.replace(chosen.train, epochs=100 * chosen.train.epochs)  # no round comes to its end
    chosen = dataclasses.replace(chosen, train=course)
    rows = rows_of(chosen, True, steps * batch)
    rows = rows.assign(label=rows["target"])
    data = chosen.data
    shown = data.random_erasing, data.resize_mode, data.memory_gb, data.flip
    photos = loader_module.PhotoDataset(rows, data.augment, data.image_size, True, *shown)
    batches = loader_module.SeededBatchSampler(len(rows), batch, shuffle=True)
    feed = loader_module.make(photos, batches, data.workers)
    accelerator, read = learner.make_accelerator(chosen), Heads(chosen.predicted, chosen.model.heads, chosen.model.age)
    net = make_net(chosen, read.size, 0, accelerator)
    criterion, targets = loss_module.make(read, rows, chosen.loss)
    average, mixup = optim.make_average(net, course), loss_module.make_mixup(course)
    parameters = optim.parameter_groups(net, course)
    optimizer = optim.make_optimizer(parameters, course, fused=accelerator.scaler is None)
    scheduler = optim.make_scheduler(optimizer, course, steps)
    mine = learner.Learner(net, criterion, targets, optimizer, scheduler, chosen, accelerator, average, mixup)

    def ours():
        stats = mine.train_epoch(feed, "ours")
        mine.next_epoch()
        return stats.speed["photos_per_second"]

    def bare(order):
        net = copy.deepcopy(mine.module).to(memory_format=order)
        net.requires_grad_(True)
        optimizer = optim.make_optimizer(optim.parameter_groups(net, chosen.train), chosen.train)
        inputs = torch.randn(batch, 3, data.image_size, data.image_size).to(mine.device, memory_format=order)
        target = torch.randint(0, 2, (batch,), device=mine.device)

        def run(count):
            net.train()
            if chosen.model.freeze_bn:
                batchnorm.freeze_batch_norm(net)
            for layer in batchnorm.lowest_layers(net, chosen.train.freeze_layers):
                layer.eval().requires_grad_(False)
            with Seconds() as taken:
                for _ in range(count):
                    with mine.accelerator.autocast():
                        loss = torch.nn.functional.cross_entropy(net(inputs), target)
                    mine.accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
            return count * batch / taken.passed

        run(2)
        return run

    orders = [bare(order) for order in (torch.channels_last, torch.contiguous_format)]
    fastest = max(orders, key=lambda run: run(5))
    ours()
    return ours, lambda: fastest(steps)


def folds_asked(config, folder, backend):
    """Five models of one run on disk, and two ways to ask them: all at once, or by a timm loop a fold."""
    import timm
    import torch
    from PIL import Image

    import dataset as dataset_module
    import model
    from foldface.nn import batchnorm, heads, onnx, predicting

    chosen, data = copy.deepcopy(config), config.data
    dataset_module.infer_classes(chosen)
    count = 512 if config.quick else 2100
    rows = rows_of(chosen, True, count)
    read = heads.Heads(chosen.predicted, chosen.model.heads, chosen.model.age)
    about = {
        "backbone": chosen.model.backbone,
        "image_size": data.image_size,
        "augment": data.augment,
        "fit": data.resize_mode,
    }
    nets, paths = {}, {}
    for fold in range(FOLDS):
        torch.manual_seed(fold)
        net = model.build(chosen.model.backbone, read.size, chosen.model.pretrained, data.image_size).eval()
        about |= {key: list(net.pretrained_cfg[key]) for key in ("mean", "std")} | {"prior": [0.0] * read.width}
        nets[fold], paths[fold] = net, folder / f"fold{fold}" / "best.safetensors"
        if not paths[fold].is_file():
            model.save(paths[fold], net, about)
    abouts = dict.fromkeys(nets, about)
    plain = {fold: copy.deepcopy(net) for fold, net in nets.items()}
    asked = {fold: net.to(memory_format=torch.channels_last) for fold, net in nets.items()}
    if backend == "onnx":
        for net in asked.values():
            batchnorm.fold_batch_norm(net)
        asked = onnx.export_folds(asked, abouts, paths, folder)
    few = 2 * chosen.inference.batch_size  # a batch for each worker of two cores
    if count <= few:
        raise InputError(f"inference.batch_size {chosen.inference.batch_size} is too large for {count} photos")
    shape = timm.data.create_transform(
        (3, data.image_size, data.image_size), mean=about["mean"], std=about["std"], crop_pct=1.0
    )

    class Loop(torch.utils.data.Dataset):
        def __init__(self, some):
            self.files = some["file"].tolist()

        def __len__(self):
            return len(self.files)

        def __getitem__(self, index):
            return shape(Image.open(self.files[index]).convert("RGB"))

    def ours(some):
        predicting.predict(asked, abouts, read, some, chosen)

    def peer(some):
        workers = data.workers if data.workers is not None else cores(most=8)
        with torch.inference_mode():
            for net in plain.values():
                feed = torch.utils.data.DataLoader(Loop(some), chosen.inference.batch_size, num_workers=workers)
                for batch in feed:
                    net(batch).softmax(1).numpy()

    return lambda: marginal(ours, rows, few), lambda: marginal(peer, rows, few)


STAGES = {
    "memory": (
        "photos/s of the training loader, both from memory, beside torchvision in a DataLoader",
        lambda config, folder: loader(config, folder, kept=True),
    ),
    "loader": ("photos/s of the training loader, both decoding, beside PIL and torchvision in a DataLoader", loader),
    "timm": (
        "photos/s of the training loader, both decoding, beside timm.data.create_loader",
        lambda config, folder: loader(config, folder, peer="timm"),
    ),
    "crop": ("photos/s of face_crop.py, beside MTCNN(keep_all=True).detect", crop),
    "train": ("photos/s of a training epoch, beside the bare step", train),
    "inference": (
        "photos/s of five folds, beside a timm loop a fold",
        lambda config, folder: folds_asked(config, folder, "torch"),
    ),
    "onnx": (
        "the same on onnxruntime, beside a timm loop a fold",
        lambda config, folder: folds_asked(config, folder, "onnx"),
    ),
}


# --------------------------------------------------------------------------------------------- where the time goes


WORK = {  # what torch's profiler calls it, the first that fits
    "waiting for photos": ("DataLoader",),
    "convolutions, backward": ("convolution_backward",),
    "convolutions": ("convolution", "mkldnn", "conv2d"),
    "batch norm": ("batch_norm",),
    "activations": ("hardtanh", "relu", "clamp", "silu", "sigmoid"),
    "optimizer and clipping": ("Optimizer", "_fused_", "_foreach", "linalg_vector_norm"),
    "linear layers": ("addmm", "aten::mm", "linear"),
}


def where(act):
    """What a function spends its time on, as torch's profiler counts each operation without those inside it:
    {kind of work: share of the seconds on the main thread}, the largest first."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as seen:
        act()
    taken = dict.fromkeys([*WORK, "all else"], 0.0)
    for event in seen.key_averages():
        kind = next((kind for kind, names in WORK.items() if any(name in event.key for name in names)), "all else")
        taken[kind] += event.self_cpu_time_total
    return {kind: took / sum(taken.values()) for kind, took in sorted(taken.items(), key=lambda item: -item[1])}


def profiles(config, folder):
    """Where an epoch of training and a pass of five folds spend their time, as Markdown; the first one, which starts
    workers and decodes, is not looked at."""
    found = {}
    for name, ours in (("train", train(config, folder)[0]), ("inference", folds_asked(config, folder, "torch")[0])):
        ours()
        found[name] = where(ours)
    kinds = sorted(found["train"], key=lambda kind: -found["train"][kind])
    rows = [f"| {kind} | {found['train'][kind]:.1%} | {found['inference'][kind]:.1%} |" for kind in kinds]
    return "\n".join(["| work | a training epoch | five folds' answers |", "|---|---|---|", *rows])


# -------------------------------------------------------------------------------------------- seconds, without peers


def people_table(count, seed=0):
    """Rows as folds.py takes them, seven photos a person, of so many people that have no photos: made up."""
    rng, person = np.random.default_rng(seed), np.repeat(np.arange(count), 7)
    kind = np.tile([0, 0, 0, 0, 0, 1, 2], count)
    own = rng.integers(6, size=count)[person]
    rows = pd.DataFrame({"id": np.char.mod("%06d", np.arange(count))[person], "source": "train", "split": ""})
    return rows.assign(target=kind * 6 + own, twin=np.arange(len(rows)))


def folds_seconds(people):
    """Seconds to deal so many people, seven photos each, into five folds and write folds.csv."""
    from foldface.data import folds

    rows = people_table(people)
    with tempfile.TemporaryDirectory() as place:
        config = Config(run=place)
        with Seconds() as taken:
            folds.assign_folds(rows, config)
    return taken.passed


def help_seconds():
    with Seconds() as taken:
        subprocess.run([sys.executable, "train.py", "--help"], check=True, stdout=subprocess.DEVNULL)
    return taken.passed


# ------------------------------------------------------------------------------------------------------- the table


def spread(values, digits):
    """Median (least-most)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(found):
    """{stage: [(ours, peer)]} -> Markdown."""
    lines = ["| stage | ours | peer | ratio |", "|---|---|---|---|"]
    for name, pairs in found.items():
        ours, peers = zip(*pairs, strict=True)
        ratios = [one / other for one, other in pairs]
        lines.append(f"| {STAGES[name][0]} | {spread(ours, 1)} | {spread(peers, 1)} | {spread(ratios, 2)} |")
    return "\n".join(lines)


FLAGS = {
    "--rounds": {"type": int, "default": 3, "help": "pairs of ours and peer"},
    "--quick": {"action": "store_true", "help": "fewer photos and steps, about five minutes"},
    "--stages": {"nargs": "+", "default": [], "metavar": "STAGE", "help": f"of {', '.join(STAGES)}; default: all"},
    "--profile": {"action": "store_true", "help": "only print where training and inference spend their time"},
    "--json": {"type": str, "default": "", "help": "also write the median ratios, and the seconds, to this file"},
}


def main(argv: list[str] | None = None) -> None:
    config = cli.read(__doc__, FLAGS, argv)
    if config.profile:
        with tempfile.TemporaryDirectory() as place:
            print(profiles(config, Path(place)))
        return
    if config.json:
        refuse_unwritable(Path(config.json).parent, "name another file with --json")
    unknown = set(config.stages) - set(STAGES)
    if unknown:
        raise InputError(f"--stages {min(unknown)}: there are {', '.join(STAGES)}")
    rounds, chosen = config.rounds, config.stages or list(STAGES)
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name in chosen:
            ours, peer = STAGES[name][1](config, Path(place))
            found[name] = []
            for k in range(rounds):
                first, second = (ours, peer) if k % 2 == 0 else (peer, ours)  # neither always runs first
                one, other = first(), second()
                found[name].append((one, other) if k % 2 == 0 else (other, one))
            print(f"{name}: {spread([one / other for one, other in found[name]], 2)}", flush=True)
    result = {name: round(statistics.median(a / b for a, b in pairs), 3) for name, pairs in found.items()}
    print(table(found))
    if not config.stages:
        people = PEOPLE // 10 if config.quick else PEOPLE
        seconds = {"folds_seconds": folds_seconds(people), "help_seconds": help_seconds()}
        print(f"folds of {people:,} people, {7 * people:,} photos: {seconds['folds_seconds']:.1f} s")
        print(f"train.py --help: {seconds['help_seconds']:.1f} s")
        result |= {name: round(value, 2) for name, value in seconds.items()}
    if config.json:
        write_json(Path(config.json), result)


if __name__ == "__main__":
    run_main(main)
