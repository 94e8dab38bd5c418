"""Load batches of photos: worker processes, a cache of decoded photos, a seeded order.

The path of a photo, from its file to the network:

    PhotoDataset.read         photos.read_photo decodes the file, cut_box cuts a box out, augment.shape resizes it
    PhotoDataset.__getitem__  drawn_masks draws another mask, augment.variation augments it, in training alone: the same
    PhotoLoader               worker processes make batches: (b, size, size, 3) uint8
    normalize                 on the device: (b, 3, size, size) float32
"""

import math
import mmap
import multiprocessing
import random
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from foldface import devices
from foldface.data import augment as augment_module
from foldface.data import shards
from foldface.data.drawn_masks import MaskDrawer
from foldface.data.photos import PhotoError, cut_box, read_photo
from foldface.files import InputError, warn_once
from foldface.runtime import cores, no_processes
from foldface.settings import Config

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixel_scale(net: torch.nn.Module) -> list[tuple[float, float, float]]:
    """[mean, standard deviation] of the pixels, RGB from 0 to 1, that a timm model's weights were trained with."""
    return [net.pretrained_cfg.get(key, usual) for key, usual in zip(("mean", "std"), IMAGENET, strict=True)]


def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(n, h, w, 3) uint8 -> (n, 3, h, w) float32 in channels_last order, (pixel / 255 - mean) / std."""
    mean = devices.constant(tuple(mean), images.device) * 255
    std = devices.constant(tuple(std), images.device) * 255
    return images.float().sub_(mean).div_(std).permute(0, 3, 1, 2)


# --------------------------------------------------------------------------------------------------- batches


def side_of(augment: str, size: int) -> int:
    """The `side` for photos.decode: the image size, or 0 (full size) if data.augment itself crops the photo."""
    return 0 if augment == "diary" else size


class PhotoDataset:
    """A torch map-style dataset of photo files.

    The key of an item is (index, seed). Only the seed decides its augmentation, so that neither the number of workers
    nor an interruption changes it.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        augment: str,
        size: int,
        training: bool,
        erasing: float = 0.0,
        fit: str = "stretch",
        memory_gb: float = 0.0,
        flip: float | None = None,
        draw_mask: MaskDrawer | None = None,
    ) -> None:
        """rows: file (a path, "" = none) and, for boxes, x1, y1, x2, y2 in pixels (NaN = the whole photo); augment:
        data.augment, applied only if `training`; size: pixels a side; erasing: data.random_erasing; fit:
        data.resize_mode; memory_gb: size of the cache of resized photos, which are then decoded only once; flip:
        data.flip; draw_mask: of data.draw_masks, applied only if `training`."""
        self.files = rows["file"].to_numpy(str)
        self.training = training
        self.boxes = rows[["x1", "y1", "x2", "y2"]].to_numpy(float) if "x1" in rows else None
        self.size = size
        self.side = 0 if self.boxes is not None else side_of(augment, size)  # boxes are cut out of the full size
        self.shape = augment_module.shape(augment, size, fit)
        self.vary = augment_module.variation(augment, erasing, flip) if training else None
        self.draw_mask = draw_mask if training else None
        self.kept = np.zeros(0, np.uint8)  # the cache: (count, size, size, 3)
        self.there = np.zeros(0, np.uint8)  # (count,): 1 if a photo is in the cache
        count = min(len(rows), int(memory_gb * 1e9 / (3 * size * size))) if shared_by_fork() else 0
        try:
            if count:  # shared by all workers; pages are allocated when they are written
                kept = np.frombuffer(mmap.mmap(-1, count * 3 * size * size), np.uint8).reshape(count, size, size, 3)
                self.kept, self.there = kept, np.frombuffer(mmap.mmap(-1, count), np.uint8)
        except OSError as error:
            what = f"data.memory_gb: {count} photos don't fit into memory ({error.strerror})"
            print(f"warning: {what}: they are decoded in each epoch", file=sys.stderr)

    def read(self, index: int) -> np.ndarray:
        """A photo after augment.shape, (size, size, 3) uint8, decoded or from the cache. Raises PhotoError."""
        if index < len(self.there) and self.there[index]:
            return self.kept[index]
        if self.training:  # an epoch takes all photos of a shard, one soon after another
            shards.SHARDS.read_ahead(self.files[index])
        photo = read_photo(self.files[index], self.side)
        if self.boxes is not None:
            photo = cut_box(photo, self.boxes[index])
        found = self.shape(image=photo)["image"]
        if index < len(self.there):
            self.kept[index] = found
            self.there[index] = 1  # after the pixels: another worker may read it
        return found

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, np.ndarray, str]:
        """(index, seed) -> (index, (size, size, 3) uint8, ""), or (index, zeros, why the photo can't be read)."""
        index, seed = key
        try:
            image = self.read(index)
        except PhotoError as error:
            return index, np.zeros((self.size, self.size, 3), np.uint8), str(error)
        if self.draw_mask is not None:
            image = self.draw_mask(image, index, seed)
        if self.vary is not None:
            # one generator for all steps: set_random_seed would give each step its own, with equal numbers
            self.vary.set_random_state(np.random.default_rng(seed), random.Random(seed))
            image = self.vary(image=image.copy())["image"]
        return index, image, ""


def shared_by_fork() -> bool:
    """True where worker processes inherit this process's memory: not on Windows and macOS."""
    return multiprocessing.get_start_method() == "fork"


class SeededBatchSampler:
    """Batches of (index, seed) keys for one epoch: shuffled by (seed, epoch) in training, else in order.

    count: photos; batch_size: photos of all processes together; rank_slice (k, n): this is process k of n and gets
    every n-th photo of each batch, from the k-th on; weights: None, or (count,) probabilities, by which an epoch's
    photos are drawn with replacement; places: of shards.places where the photos lie in shards, which are then read one
    after another.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank_slice: tuple[int, int] = (0, 1),
        weights: np.ndarray | None = None,
        places: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.places = places
        self.count = count
        self.shuffle = shuffle
        self.seed = seed
        self.rank_slice = rank_slice
        self.weights = weights
        self.epoch = 0
        ends = [*range(batch_size, count, batch_size), count]
        if shuffle and len(ends) > 1 and ends[-1] - ends[-2] < 2 * rank_slice[1]:
            del ends[-2]  # a last batch too small for batch norm joins the one before it
        self.spans = list(zip([0, *ends], ends, strict=False))
        self.steps = range(len(self.spans))  # the batches of the next iteration

    def __len__(self):
        return len(self.spans)

    @property
    def most(self) -> int:
        """Photos in this process's slice of the largest batch."""
        first, every = self.rank_slice
        return max((len(range(start + first, end, every)) for start, end in self.spans), default=0)

    def go_to(self, epoch: int, step: int = 0) -> None:
        """Start the next iteration at this epoch's batch `step`."""
        self.epoch, self.steps = epoch, range(step, len(self.spans))

    def take(self, steps: Sequence[int]) -> None:
        """The next iteration loads these batches of the epoch alone."""
        self.steps = steps

    def size(self, step: int) -> int:
        """Photos in batch `step` of the epoch, of all processes together."""
        start, end = self.spans[step]
        return end - start

    def order(self) -> tuple[np.ndarray, np.random.Generator]:
        """The order of the epoch's photos, (count,) int, and what their seeds are drawn by next."""
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.places is not None:
            shard, place = self.places
            order = shards.shuffled(shard, rng) if self.shuffle else np.argsort(place)
        else:
            order = rng.permutation(self.count) if self.shuffle else np.arange(self.count)
        if self.weights is not None:
            order = rng.choice(self.count, self.count, p=self.weights)
        return order, rng

    def upcoming(self) -> np.ndarray:
        """The photos of the next iteration in their order, those of all processes, (n,) int."""
        order, _ = self.order()
        return np.concatenate([order[slice(*self.spans[step])] for step in self.steps] or [order[:0]])

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, rng = self.order()
        seeds = rng.integers(2**31, size=self.count)
        first, every = self.rank_slice
        for start, end in (self.spans[step] for step in self.steps):
            part = slice(start + first, end, every)
            keys = list(zip(order[part].tolist(), seeds[part].tolist(), strict=True))
            if keys:
                yield keys


def make(photos: PhotoDataset, batches: SeededBatchSampler, workers: int | None) -> "PhotoLoader":
    """A PhotoLoader of these photos in these batches.

    workers: None = one per core, at most eight. If processes can't share locks here, none, with a warning.
    """
    workers = cores(most=8) if workers is None else workers
    why = no_processes() if workers else ""
    if why:
        print(f"warning: {why}: photos are read by one process, which is slower", file=sys.stderr)
    return PhotoLoader(photos, batches, 0 if why else workers)


def make_both(
    config: Config,
    train_rows: pd.DataFrame,
    valid_rows: pd.DataFrame | None,
    seed: int,
    accelerator: Accelerator,
    draw_mask: MaskDrawer | None = None,
) -> tuple["PhotoLoader", "PhotoLoader | None"]:
    """The loaders of the training rows (shuffled, augmented) and of the validation rows (in order, not augmented), if
    there are any.

    With several processes each loads its slice of every batch. Raises InputError if there are too few rows for that.
    """
    data, train = config.data, config.train
    rank_slice = accelerator.process_index, accelerator.num_processes
    if len(train_rows) < 2 * accelerator.num_processes:
        raise InputError(f"{len(train_rows)} photos are too few for {accelerator.num_processes} processes")
    weights = balanced(train_rows) if train.sampler == "balanced" else None
    places = shards.places(train_rows["file"])
    if places is not None and weights is not None:
        warn_once(
            f"{data.crops}: train.sampler balanced draws from all shards at once, so they are not read one after "
            "another: slow on a network disk; --train.sampler all reads each shard once an epoch"
        )
    train_batches = SeededBatchSampler(
        len(train_rows), train.batch_size, shuffle=True, seed=seed, rank_slice=rank_slice, weights=weights,
        places=places,
    )  # fmt: skip
    memory = data.memory_gb / accelerator.num_processes
    train_photos = PhotoDataset(
        train_rows,
        data.augment,
        data.image_size,
        training=True,
        erasing=data.random_erasing,
        fit=data.resize_mode,
        memory_gb=memory,
        flip=data.flip,
        draw_mask=draw_mask,
    )
    train_loader = make(train_photos, train_batches, data.workers)
    if valid_rows is None:
        return train_loader, None
    places = shards.places(valid_rows["file"])
    valid_batches = SeededBatchSampler(len(valid_rows), 2 * train.batch_size, rank_slice=rank_slice, places=places)
    memory -= train_photos.kept.nbytes / 1e9  # the training photos come first
    valid_photos = PhotoDataset(
        valid_rows, data.augment, data.image_size, training=False, fit=data.resize_mode, memory_gb=memory
    )
    return train_loader, make(valid_photos, valid_batches, data.workers)


def balanced(rows: pd.DataFrame) -> np.ndarray:
    """Probability (n,) to draw each training photo: equal for classes, in a class for people, of a person for photos.

    rows: label and id.
    """
    person = pd.factorize(rows["id"])[0]
    class_people = rows.assign(person=person).groupby("label")["person"].nunique()
    photos = rows.groupby([rows["label"], person])["label"].transform("size")
    return (1 / (len(class_people) * rows["label"].map(class_people) * photos)).to_numpy(float)


class LoadingStopped(InputError):
    """A process that reads photos was killed, or a shard can't be fetched."""


class PhotoLoader:
    """Iterates over the batches of a PhotoDataset: indices (b,) int64, images (b, size, size, 3) uint8, and errors, b
    strings, "" = the photo was read. Its worker processes start once and serve all epochs."""

    def __init__(self, photos: PhotoDataset, batches: SeededBatchSampler, workers: int) -> None:
        self.dataset = photos
        self.batch_sampler = batches
        self.num_workers = workers
        self.ring = SharedBatchBuffers(workers, batches.most, photos.size)
        self.ahead = shards.FetchAhead(photos.files)
        self.pin = torch.cuda.is_available()
        self.source = torch.utils.data.DataLoader(
            photos,
            batch_sampler=batches,
            collate_fn=self.ring.put,
            num_workers=workers,
            prefetch_factor=SharedBatchBuffers.AHEAD if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=quiet_worker,
            generator=torch.Generator(),  # torch's global one would shift dropout in a resumed run
        )

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[str]]]:
        """Raises LoadingStopped, between two batches."""
        try:
            batches = iter(self.source)
            # without this torch's handler would raise in the middle of a step when a worker is killed
            if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with self.ahead.following(self.batch_sampler.upcoming) as was_read:  # its threads begin after the workers
                for indices, place, errors in batches:
                    was_read(np.asarray(indices))
                    images = self.ring.take(place)
                    yield torch.as_tensor(indices), images.pin_memory() if self.pin else images, errors
        except InputError as error:  # a worker's comes with its traceback before it
            raise LoadingStopped(re.split(r"\n[\w.]+Error: ", str(error))[-1].strip()) from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
                raise
            raise LoadingStopped(
                "a process that reads photos was killed, as the system does when memory runs out: the same command "
                f"goes on; --data.workers {self.num_workers // 2} takes less memory"
            ) from None


class SharedBatchBuffers:
    """Shared memory in which each worker has AHEAD + 1 places for batches, used in turn; only if processes are forked.

    torch's own way, a new file in /dev/shm for each tensor, takes as long as a small batch itself, and fills a
    container's 64 MB; it is used if processes are not forked. AHEAD batches of a worker are being made or wait, and one
    more is being copied by the main process.
    """

    AHEAD = 2  # as in torch

    def __init__(self, workers: int, most: int, size: int) -> None:
        """most: photos in the largest batch; size: pixels a side."""
        self.turn = 0  # batches that this worker has written
        self.places = None  # (workers, AHEAD + 1, most, size, size, 3) uint8
        if workers and most and shared_by_fork():
            shape = workers, self.AHEAD + 1, most, size, size, 3
            self.places = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)

    def put(self, items: list) -> tuple:
        """The collate_fn, in a worker: items -> (indices, images or their place in the shared memory, errors)."""
        indices, images, errors = zip(*items, strict=True)
        worker = torch.utils.data.get_worker_info()
        if worker is None or self.places is None:
            return torch.tensor(indices), torch.from_numpy(np.stack(images)), list(errors)
        place = worker.id, self.turn % (self.AHEAD + 1), slice(len(images))
        np.stack(images, out=self.places[place])
        self.turn += 1
        return np.array(indices), place, list(errors)

    def take(self, place: tuple | torch.Tensor) -> torch.Tensor:
        """In the main process: the images of `put`, copied out of their place, which is then free again."""
        return torch.from_numpy(self.places[place].copy()) if isinstance(place, tuple) else place


def quiet_worker(_: int) -> None:
    """Use one thread per worker, since there are many workers; leave Ctrl-C to the main process."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def refuse_unreadable(errors: list[str], indices: torch.Tensor, files: np.ndarray) -> None:
    """Raise InputError if a photo that was readable when training began no longer is."""
    for error, index in zip(errors, indices.tolist(), strict=True):
        if error:
            raise InputError(f"{files[index]}: can't be read any more ({error}); start again to leave it out")
