"""The stages of tools.benchmark: each makes our way and its peer's, as functions that return photos/s."""

import copy
import dataclasses
import tempfile
import time

import timm
import torch
import torchvision.transforms as T
from facenet_pytorch import MTCNN
from PIL import Image

import dataset as dataset_module
import face_crop
import loss as loss_module
import model
from foldface import devices
from foldface.data import loader as loader_module
from foldface.faces import manifest
from foldface.files import InputError
from foldface.nn import averaging, batchnorm, heads, learner, onnx, optim, predicting
from foldface.nn.heads import Heads
from foldface.runtime import cores
from foldface.settings import put

FOLDS = 5  # models to predict with
PHOTOS, QUICK_PHOTOS = 6000, 2000  # of a loader's epoch
SECONDS, QUICK_SECONDS = 10, 3  # that a round of a loader takes at least


class Seconds:
    """Measures the seconds of a `with` block: .passed."""

    def __enter__(self):
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_):
        self.passed = time.perf_counter() - self.start


def sample_rows(config, crops: bool, count: int):
    """`count` rows of the training photos with their files, crops or whole photos."""
    rows, _ = dataset_module.training_rows(config)
    rows = manifest.with_files(rows, config.data.crops if crops else "")
    return rows.sample(count, random_state=config.seed, replace=len(rows) < count).reset_index(drop=True)


def steady_rate(batches, seconds: float) -> float:
    """Photos/s of an iterable of batches (b, ...), over the whole epochs that take at least `seconds`.

    Run an epoch before: only the first one starts workers and fills caches.
    """
    count = 0
    with Seconds() as taken:
        while not count or time.perf_counter() - taken.start < seconds:
            count += sum(len(batch) for batch in batches)
    return count / taken.passed


def marginal_rate(act, rows, few: int) -> float:
    """Photos/s of act(rows) without its start-up: the seconds of act(rows[:few]) are subtracted."""
    with Seconds() as start:
        act(rows[:few])
    with Seconds() as whole:
        act(rows)
    return (len(rows) - few) / (whole.passed - start.passed)


# ------------------------------------------------------------------------------------------------------- stages
# Each returns (ours, peer), two functions without arguments that return photos/s. The setup before is not timed.


class OurBatches:
    """An epoch of our training loader as a model's inputs: (b, 3, s, s) float32."""

    def __init__(self, rows, size, batch, workers, memory_gb):
        photos = loader_module.PhotoDataset(rows, "light", size, True, memory_gb=memory_gb)
        self.feed = loader_module.make(
            photos, loader_module.SeededBatchSampler(len(rows), batch, shuffle=True), workers
        )

    def __iter__(self):
        for _, photos, errors in self.feed:
            if any(errors):
                raise InputError(f"a photo can't be read: {max(errors)}")
            yield loader_module.normalize(photos, *loader_module.IMAGENET)


def loader_sides(config, kept, peer):
    """Two iterables of the same photos with the same size and augmentation, ours and the peer's: (b, 3, s, s) float32.

    kept: on both sides photos are decoded before, in memory; else both decode each time. peer: torchvision or timm.
    """

    data, batch, size = config.data, 64, config.data.image_size
    rows = sample_rows(config, True, QUICK_PHOTOS if config.quick else PHOTOS)
    ours = OurBatches(rows, size, batch, data.workers, 1000.0 if kept else 0.0)
    square = T.Resize((size, size))

    def open_photo(file):
        return Image.open(file).convert("RGB")

    class PeerDataset(torch.utils.data.Dataset):
        transform, held = None, [square(open_photo(file)) for file in rows["file"]] if kept else None

        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            return self.transform(self.held[index] if kept else open_photo(rows["file"][index])), 0

    options = {
        "batch_size": batch,
        "num_workers": ours.feed.num_workers,
        "persistent_workers": ours.feed.num_workers > 0,
    }
    mean, std = loader_module.IMAGENET
    if peer == "timm":
        light = {"scale": (0.85, 1.0), "hflip": 0.5, "color_jitter": (0.2, 0.2, 0.0), "interpolation": "bilinear"}
        peer_loader = timm.data.create_loader(
            PeerDataset(),
            (3, size, size),
            is_training=True,
            use_prefetcher=False,
            mean=mean,
            std=std,
            **light,
            **options,
        )
    else:
        affine = T.RandomAffine(8, translate=(0.04, 0.04), scale=(0.92, 1.08))
        vary = [T.RandomHorizontalFlip(), T.RandomApply([affine], 0.8), T.RandomApply([T.ColorJitter(0.2, 0.2)], 0.5)]
        dataset = PeerDataset()
        dataset.transform = T.Compose([*([] if kept else [square]), *vary, T.ToTensor(), T.Normalize(mean, std)])
        peer_loader = torch.utils.data.DataLoader(dataset, shuffle=True, **options)
    return ours, PhotosOf(peer_loader)


class PhotosOf:
    """Only the photos of a DataLoader of (photos, labels)."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return (photos for photos, _ in self.loader)


def loader(config, folder, kept=False, peer="torchvision"):
    sides = loader_sides(config, kept, peer)
    for side in sides:
        for _ in side:  # start the workers, and fill our cache
            pass
    seconds = QUICK_SECONDS if config.quick else SECONDS
    return tuple(lambda side=side: steady_rate(side, seconds) for side in sides)


def crop(config, folder):

    chosen = copy.deepcopy(config)
    photos = face_crop.plan(chosen)["photo"].sample(80 if config.quick else 150, random_state=0, replace=True)
    detector = MTCNN(keep_all=True)

    def ours():  # with the start of its processes, its hashes and its contact sheet
        with tempfile.TemporaryDirectory(dir=folder) as place, Seconds() as taken:
            put(chosen, "data.crops", f"{place}/crops")
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

    chosen, batch = copy.deepcopy(config), config.train.batch_size
    dataset_module.infer_classes(chosen)
    steps = 80 if config.quick else 120
    course = dataclasses.replace(chosen.train, epochs=100 * chosen.train.epochs)  # no round may finish it
    chosen = dataclasses.replace(chosen, train=course)
    rows = sample_rows(chosen, True, steps * batch)
    rows = rows.assign(label=rows["target"])
    data = chosen.data
    shown = data.random_erasing, data.resize_mode, data.memory_gb, data.flip
    photos = loader_module.PhotoDataset(rows, data.augment, data.image_size, True, *shown)
    batches = loader_module.SeededBatchSampler(len(rows), batch, shuffle=True)
    feed = loader_module.make(photos, batches, data.workers)
    accelerator, read = devices.make_accelerator(chosen), Heads(chosen.predicted, chosen.model.heads)
    net = model.make(chosen, read.size, 0, accelerator)
    criterion, targets = loss_module.make(read, rows, chosen.loss)
    average, mixup = averaging.make_average(net, course), loss_module.make_mixup(course)
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


def predict_folds(config, folder, backend):
    """Five models of one run on disk, predicted with in one pass, or by a timm loop for each fold."""

    chosen, data = copy.deepcopy(config), config.data
    dataset_module.infer_classes(chosen)
    count = 512 if config.quick else 2100
    rows = sample_rows(chosen, True, count)
    read = heads.Heads(chosen.predicted, chosen.model.heads)
    about = {
        "backbone": chosen.model.backbone,
        "image_size": data.image_size,
        "augment": data.augment,
        "fit": data.resize_mode,
    }
    nets, paths = {}, {}
    for fold in range(FOLDS):
        torch.manual_seed(fold)
        how = chosen.model
        net = model.build(how.backbone, read.size, how.pretrained, data.image_size, beside=how.beside).eval()
        about |= {key: list(net.pretrained_cfg[key]) for key in ("mean", "std")} | {"prior": [0.0] * read.width}
        nets[fold], paths[fold] = net, folder / f"fold{fold}" / "best.safetensors"
        if not paths[fold].is_file():
            model.save(paths[fold], net, about)
    abouts = dict.fromkeys(nets, about)
    plain = {fold: copy.deepcopy(net) for fold, net in nets.items()}
    folded = {fold: net.to(memory_format=torch.channels_last) for fold, net in nets.items()}
    if backend == "onnx":
        for net in folded.values():
            batchnorm.fold_batch_norm(net)
        folded = onnx.export_folds(folded, abouts, paths, folder)
    few = 2 * chosen.inference.batch_size  # a batch for each of two workers
    if count <= few:
        raise InputError(f"inference.batch_size {chosen.inference.batch_size} is too large for {count} photos")
    shape = timm.data.create_transform(
        (3, data.image_size, data.image_size), mean=about["mean"], std=about["std"], crop_pct=1.0
    )

    class PeerPhotos(torch.utils.data.Dataset):
        def __init__(self, some):
            self.files = some["file"].tolist()

        def __len__(self):
            return len(self.files)

        def __getitem__(self, index):
            return shape(Image.open(self.files[index]).convert("RGB"))

    def ours(some):
        predicting.predict(folded, abouts, read, some, chosen)

    def peer(some):
        workers = data.workers if data.workers is not None else cores(most=8)
        with torch.inference_mode():
            for net in plain.values():
                feed = torch.utils.data.DataLoader(PeerPhotos(some), chosen.inference.batch_size, num_workers=workers)
                for batch in feed:
                    net(batch).softmax(1).numpy()

    return lambda: marginal_rate(ours, rows, few), lambda: marginal_rate(peer, rows, few)


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
        lambda config, folder: predict_folds(config, folder, "torch"),
    ),
    "onnx": (
        "the same on onnxruntime, beside a timm loop a fold",
        lambda config, folder: predict_folds(config, folder, "onnx"),
    ),
}
