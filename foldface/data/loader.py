"""Load batches of photos: worker processes, a cache of decoded photos, a seeded order."""

import math
import mmap
import multiprocessing
import random
import signal
import sys
import threading

import cv2
import numpy as np
import pandas as pd
import torch

from foldface import devices
from foldface.data import augment as augment_module
from foldface.data.photos import PhotoError, cut_box, read_photo
from foldface.files import InputError
from foldface.runtime import cores, no_processes

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixel_scale(net) -> list[tuple[float, float, float]]:
    """Mean and standard deviation of the pixels, shares of white, that a timm model's weights were trained with."""
    return [net.pretrained_cfg.get(key, usual) for key, usual in zip(("mean", "std"), IMAGENET, strict=True)]


def normalize(images, mean, std):
    """(n, h, w, 3) uint8 tensor -> (n, 3, h, w) float32 in channels_last order, as Normalize(mean, std) would."""

    mean, std = (devices.constant(tuple(values), images.device) * 255 for values in (mean, std))
    return images.float().sub_(mean).div_(std).permute(0, 3, 1, 2)


# --------------------------------------------------------------------------------------------------- batches


def side_of(augment: str, size: int) -> int:
    """The `side` for photos.decode: the image size, or 0 (full size) where data.augment crops the photo."""
    return 0 if augment == "diary" else size


class PhotoDataset:
    """A torch map-style dataset of photo files.

    The key of an item is (index, seed). Only the seed decides its augmentation, so that neither the number of workers
    nor an interruption changes it.
    """

    def __init__(self, rows, augment, size, training, erasing=0.0, fit="stretch", memory_gb=0.0, flip=None):
        """rows: DataFrame with file (a path, "" = none) and, for boxes, x1, y1, x2, y2 in pixels (NaN = the whole
        photo); memory_gb: size of the cache of resized photos, which are then decoded only once; the rest as in
        augment.shape and augment.variation."""
        self.files = rows["file"].to_numpy(str)
        self.boxes = rows[["x1", "y1", "x2", "y2"]].to_numpy(float) if "x1" in rows else None
        self.size = size
        self.side = 0 if self.boxes is not None else side_of(augment, size)  # boxes are cut out of the full size
        self.shape = augment_module.shape(augment, size, fit)
        self.vary = augment_module.variation(augment, erasing, flip) if training else None
        self.kept = self.there = np.zeros(0, np.uint8)
        count = min(len(rows), int(memory_gb * 1e9 / (3 * size * size))) if shared_by_fork() else 0
        try:
            if count:  # shared by all workers; pages are allocated when they are written
                kept = np.frombuffer(mmap.mmap(-1, count * 3 * size * size), np.uint8).reshape(count, size, size, 3)
                self.kept, self.there = kept, np.frombuffer(mmap.mmap(-1, count), np.uint8)
        except OSError as error:
            what = f"data.memory_gb: {count} photos don't fit into memory ({error.strerror})"
            print(f"warning: {what}: they are decoded in each epoch", file=sys.stderr)

    def read(self, index):
        """A photo after augment.shape, (size, size, 3) uint8, decoded or from the cache. Raises PhotoError."""
        if index < len(self.there) and self.there[index]:
            return self.kept[index]
        photo = read_photo(self.files[index], self.side)
        found = self.shape(image=cut_box(photo, None if self.boxes is None else self.boxes[index]))["image"]
        if index < len(self.there):
            self.kept[index] = found
            self.there[index] = 1  # after the pixels: another worker may read it
        return found

    def __getitem__(self, key):
        """(index, (size, size, 3) uint8, ""), or (index, zeros, why the photo can't be read)."""
        index, seed = key
        try:
            image = self.read(index)
        except PhotoError as error:
            return index, np.zeros((self.size, self.size, 3), np.uint8), str(error)
        if self.vary is not None:
            # one generator for all steps: set_random_seed would give each step its own, with equal numbers
            self.vary.set_random_state(np.random.default_rng(seed), random.Random(seed))
            image = self.vary(image=image.copy())["image"]
        return index, image, ""


def shared_by_fork():
    """True where worker processes inherit this process's memory: not on Windows and macOS."""
    return multiprocessing.get_start_method() == "fork"


class SeededBatchSampler:
    """Batches of (index, seed) keys for one epoch: shuffled by (seed, epoch) in training, else in order.

    weights: (count,) probabilities of an epoch's draws with replacement; rank_slice: (k, n), so that process k of n
    gets every n-th photo of each batch, from the k-th on.
    """

    def __init__(self, count, batch_size, shuffle=False, seed=0, rank_slice=(0, 1), weights=None):
        self.count, self.shuffle, self.seed, self.rank_slice, self.weights = count, shuffle, seed, rank_slice, weights
        self.epoch, self.start = 0, 0  # start: batches of this epoch that are already done
        ends = [*range(batch_size, count, batch_size), count]
        if shuffle and len(ends) > 1 and ends[-1] - ends[-2] < 2 * rank_slice[1]:
            del ends[-2]  # too few photos for batch norm join the batch before
        self.spans = list(zip([0, *ends], ends, strict=False))

    def __len__(self):
        return len(self.spans)

    @property
    def most(self):
        """Photos in the largest slice of a batch."""
        first, every = self.rank_slice
        return max((len(range(start + first, end, every)) for start, end in self.spans), default=0)

    def go_to(self, epoch, step=0):
        """Start the next iteration at this epoch's batch `step`."""
        self.epoch, self.start = epoch, step

    def size(self, step):
        """Photos in a batch of the epoch, of all processes together."""
        start, end = self.spans[step]
        return end - start

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.count) if self.shuffle else np.arange(self.count)
        if self.weights is not None:
            order = rng.choice(self.count, self.count, p=self.weights)
        seeds, (first, every) = rng.integers(2**31, size=self.count), self.rank_slice
        for start, end in self.spans[self.start :]:
            part = slice(start + first, end, every)
            keys = list(zip(order[part].tolist(), seeds[part].tolist(), strict=True))
            if keys:
                yield keys


def make(photos, batches, workers):
    """A PhotoLoader of a PhotoDataset in the order of a SeededBatchSampler.

    workers: None = one a core, at most eight. Where processes can't share locks there are none, with a warning.
    """
    workers = cores(most=8) if workers is None else workers
    why = no_processes() if workers else ""
    if why:
        print(f"warning: {why}: photos are read by one process, which is slower", file=sys.stderr)
    return PhotoLoader(photos, batches, 0 if why else workers)


def make_both(config, train_rows, valid_rows, seed, accelerator):
    """The PhotoLoaders of the training rows (shuffled, augmented) and of the validation rows (as they are): of several
    processes each is given its slice of every batch."""
    data, train = config.data, config.train
    rank_slice = accelerator.process_index, accelerator.num_processes
    if len(train_rows) < 2 * accelerator.num_processes:
        raise InputError(f"{len(train_rows)} photos are too few for {accelerator.num_processes} processes")
    weights = balanced(train_rows) if train.sampler == "balanced" else None
    batches = SeededBatchSampler(len(train_rows), train.batch_size, True, seed, rank_slice=rank_slice, weights=weights)
    memory = data.memory_gb / accelerator.num_processes
    photos = PhotoDataset(
        train_rows, data.augment, data.image_size, True, data.random_erasing, data.resize_mode, memory, data.flip
    )
    train_loader = make(photos, batches, data.workers)
    memory -= photos.kept.nbytes / 1e9
    photos = PhotoDataset(valid_rows, data.augment, data.image_size, False, 0.0, data.resize_mode, memory)
    batches = SeededBatchSampler(len(valid_rows), 2 * train.batch_size, rank_slice=rank_slice)
    return train_loader, make(photos, batches, data.workers)


def balanced(rows):
    """Probability of each training photo to be drawn (n,): every class as likely, in it every person, of them every
    photo."""
    person = pd.factorize(rows["id"])[0]
    class_people = rows.assign(person=person).groupby("label")["person"].nunique()
    photos = rows.groupby([rows["label"], person])["label"].transform("size")
    return (1 / (len(class_people) * rows["label"].map(class_people) * photos)).to_numpy(float)


class WorkerLost(InputError):
    """A process that reads photos was killed."""


class PhotoLoader:
    """Iterates over (indices (b,) int64, images (b, h, w, 3) uint8, errors [b]) of a PhotoDataset; its worker processes
    start once."""

    def __init__(self, photos, batches, workers):
        self.dataset, self.batch_sampler, self.num_workers = photos, batches, workers
        self.ring = SharedBatchBuffers(workers, batches.most, photos.size)
        self.pin = torch.cuda.is_available()
        self.source = torch.utils.data.DataLoader(
            photos,
            batch_sampler=batches,
            collate_fn=self.ring.put,
            num_workers=workers,
            prefetch_factor=SharedBatchBuffers.AHEAD if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=quiet_worker,
            generator=torch.Generator(),  # its own generator, or a resumed run would draw other dropout
        )

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        """Raises WorkerLost, between two batches, if a worker was killed."""
        try:
            batches = iter(self.source)
            # torch's own handler would raise at any place when a worker is killed
            if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for indices, place, errors in batches:
                images = self.ring.take(place)
                yield torch.as_tensor(indices), images.pin_memory() if self.pin else images, errors
        except RuntimeError as error:
            if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
                raise
            raise WorkerLost(
                "a process that reads photos was killed, as the system does when memory runs out: the same command "
                f"goes on; --data.workers {self.num_workers // 2} takes less memory"
            ) from None


class SharedBatchBuffers:
    """Where processes are forked: shared memory into which each worker writes its batches in turn.

    torch's own way, a new file in /dev/shm for each tensor, takes as long as a small batch itself, and fills a
    container's 64 MB; it is used where processes are not forked. A worker has at most AHEAD batches that wait or are in
    work, and one that is copied.
    """

    AHEAD = 2  # as in torch

    def __init__(self, workers, most, size):
        """most: photos in the largest batch."""
        self.turn, self.places = 0, None
        if workers and most and shared_by_fork():
            shape = workers, self.AHEAD + 1, most, size, size, 3
            self.places = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)

    def put(self, items):
        """The collate_fn: items -> (indices, images or their place in the shared memory, errors)."""
        indices, images, errors = zip(*items, strict=True)
        worker = torch.utils.data.get_worker_info()
        if worker is None or self.places is None:
            return torch.tensor(indices), torch.from_numpy(np.stack(images)), list(errors)
        place = worker.id, self.turn % (self.AHEAD + 1), slice(len(images))
        np.stack(images, out=self.places[place])
        self.turn += 1
        return np.array(indices), place, list(errors)

    def take(self, place):
        """The images of `put`: copied from their place, which is used again."""
        return torch.from_numpy(self.places[place].copy()) if isinstance(place, tuple) else place


def quiet_worker(_):
    """One thread a worker: the workers themselves are the parallelism. Ctrl-C is the parent's to answer."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
