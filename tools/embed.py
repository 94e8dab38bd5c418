"""What a run's networks see of each photo, as numbers that ensemble.py --stack learns from.

    python -m tools.embed --run runs/first
    python ensemble.py --stack --embeddings --run runs/first

An embedding is what goes into the network's classifier. A photo that was trained on has that of the fold that did not
see it; a photo to answer for, which no fold saw, the mean of all folds. Folds are networks of their own, and the first
number of one is not the first of another: each fold's embeddings are turned (principal components, then orthogonal
Procrustes) so that those of the photos to answer for, which all folds look at, come to lie where fold 0 has them. How
well they do is printed.

Writes oof_embedding.csv (the photos of oof.csv) and embedding.csv (those of data.eval): ImageID, e0, e1, ...
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.linalg import orthogonal_procrustes
from tqdm import tqdm

import dataset
from foldface import devices, predictions, runs
from foldface.cli import run_main
from foldface.data import layouts, loader
from foldface.faces import manifest
from foldface.files import InputError, quoted, write_csv
from foldface.nn.predicting import refuse_other_crops, views_of
from foldface.stack import EMBEDDINGS
from model import checkpoints, load_folds


def features_of(net, about, rows, config) -> tuple[np.ndarray, np.ndarray]:
    """What goes into a network's classifier, (n, d) float32, the mean over the views of inference.flip and
    inference.crops; and (n,) bool, which photos can be read. rows: DataFrame of n photos with their `file`."""
    device, kind = devices.choose_device(config, about)
    seen, net = [], net.to(device)
    hook = net.get_classifier().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1).float()))
    photos = loader.PhotoDataset(rows, about["augment"], about["image_size"], False, fit=about["fit"])
    batches = loader.SeededBatchSampler(len(rows), config.inference.batch_size)
    found, readable = [None] * len(rows), np.ones(len(rows), bool)
    with torch.inference_mode(), tqdm(total=len(rows), desc="embedding", unit="photo", disable=None) as bar:
        for indices, batch, errors in loader.make(photos, batches, config.data.workers):
            inputs = loader.normalize(batch.to(device), about["mean"], about["std"])
            with devices.autocast(device, kind):
                for view in views_of(inputs, config.inference):
                    net(view)
            for place, values, error in zip(
                indices.tolist(), torch.stack(seen).mean(0).cpu().numpy(), errors, strict=True
            ):
                found[place], readable[place] = values, not error
            seen.clear()
            bar.update(len(indices))
    hook.remove()
    return np.stack(found), readable


def components(features: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean (d,), the first `size` principal axes (d, size)) of features (n, d)."""
    mean = features.mean(0)
    return mean, np.linalg.svd(features - mean, full_matrices=False)[2][:size].T


def aligned(asked: dict[int, np.ndarray], own: dict[int, np.ndarray], size: int):
    """Bring the folds' embeddings into the space of the first fold.

    asked: {fold: (N, d)} of photos that all folds look at; own: {fold: (n, d)} of others. Returns the same, (N, size)
    and (n, size), and {fold: the share of the first fold's variance that this fold's explain there}.
    """
    first, turned, others, explained = None, {}, {}, {}
    for fold, features in asked.items():
        mean, axes = components(features, size)
        found = (features - mean) @ axes
        first = found if first is None else first
        turn = orthogonal_procrustes(found, first)[0]
        turned[fold], others[fold] = found @ turn, (own[fold] - mean) @ axes @ turn
        explained[fold] = 1 - ((turned[fold] - first) ** 2).sum() / max((first**2).sum(), 1e-12)
    return turned, others, explained


USED = ("data", "inference")  # --help shows these groups of settings
FLAGS = {"--dims": {"type": int, "default": 32, "help": "numbers a photo at most"}}


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, FLAGS, argv, USED)
    if config.dims < 1:
        raise InputError(f"--dims {config.dims}: at least 1")
    paths, output = checkpoints(config.run), runs.output_folder(config)
    nets, abouts, heads = load_folds(paths)
    oof = predictions.read_oof(heads.task, Path(config.run) / "oof.csv")
    refuse_other_crops(abouts[min(abouts)]["crops"], config.data.crops)
    rows, _ = dataset.training_rows(config)
    rows = manifest.with_files(rows[rows["source"] == "train"].reset_index(drop=True), config.data.crops)
    place = pd.Index(rows["ImageID"]).get_indexer(oof["ImageID"])
    if (place < 0).any():
        lost = oof["ImageID"].iloc[int((place < 0).argmax())]
        raise InputError(
            f"{config.data.train}: has no {lost}, which {config.run}/oof.csv has: the run had other photos"
        )
    rows = rows.iloc[place].reset_index(drop=True)
    asked = manifest.with_files(dataset.eval_rows(config), config.data.crops)
    kept = ["file", *layouts.BOX] if "x1" in rows else ["file"]
    lost = sorted(set(oof["fold"]) - set(nets))
    if lost:
        raise InputError(
            f"{config.run}: oof.csv has fold {lost[0]}, of which there are no weights: train that fold again"
        )
    here = {fold: np.flatnonzero(oof["fold"] == fold) for fold in nets if (oof["fold"] == fold).any()}
    theirs, own, read = {}, {}, np.ones(len(asked), bool)
    for fold, at in here.items():
        theirs[fold], ok = features_of(nets[fold], abouts[fold], asked[kept], config)
        own[fold], read = features_of(nets[fold], abouts[fold], rows[kept].iloc[at], config)[0], read & ok
    if read.sum() < 2:
        raise InputError(f"{config.data.eval}: fewer than two photos can be read; the folds are compared by them")
    size = min(config.dims, int(read.sum()) - 1, min(features.shape[1] for features in own.values()))
    turned, own, explained = aligned({fold: found[read] for fold, found in theirs.items()}, own, size)
    columns = [f"e{k}" for k in range(size)]
    trained = np.empty((len(rows), size))
    for fold, at in here.items():
        trained[at] = own[fold]
    mean = np.zeros((len(asked), size))  # of a photo that can't be read: the mean of all
    mean[read] = np.mean(list(turned.values()), 0)
    for name, photos, values in zip(EMBEDDINGS, (rows, asked), (trained, mean), strict=True):
        frame = pd.DataFrame(values, columns=columns)
        frame.insert(0, "ImageID", photos["ImageID"].to_numpy())
        write_csv(output / name, frame)
    for fold, share in explained.items():
        print(f"fold {fold}: explains {share:.0%} of fold {min(here)}'s embeddings of the photos to answer for")
    print(f"{len(rows)} + {len(asked)} photos, {size} numbers each: {output}/{EMBEDDINGS[0]}, {EMBEDDINGS[1]}; "
          f"next: python ensemble.py --stack --embeddings --run {quoted(output)}")  # fmt: skip


if __name__ == "__main__":
    run_main(main)
