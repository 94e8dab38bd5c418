"""Checkpoints -> probabilities for every photo of data.eval, in the order of info.csv, or of a folder's paths.

    python inference.py --run runs/sample
    python inference.py --run runs/try --data.eval DIR --data.crops DIR --inference.flip true
    python inference.py --run runs/trash --data.eval FOLDER        photos, or class folders, which then are scored too

Writes runs/NAME/fold{k}.csv for each fold that was trained; with --output FOLDER into that folder, together with what
other scripts read beside it, so that they take the folder for --run. How photos are prepared is read from the weights,
not from the settings. A photo that can't be read gets the training labels' shares as its probabilities, a warning, and
a row in unreadable.csv beside the predictions.
"""

import os
import shutil
from pathlib import Path

import pandas as pd

import dataset
from foldface import predictions, runs
from foldface.cli import guarded
from foldface.data import layouts
from foldface.faces import manifest
from foldface.files import alone, replacing, warn_once, write_csv

CARRIED = ("folds.csv", "oof.csv", "oof_*.csv", "metrics.json", "data.json", "report.html")  # of a run, beside answers


def carry(run, output):
    """Copy what other scripts read beside predictions from a run into the folder `output`, so that it does for them
    what the run's folder does."""
    for path in sorted(path for pattern in CARRIED for path in Path(run).glob(pattern)):
        with replacing(output / path.name) as partial:
            shutil.copyfile(path, partial)


def main():
    settings = runs.read_for_run(__doc__)
    from foldface.nn.predicting import key_of, predict, refuse_other_crops, refuse_unreadable, some_inputs
    from model import checkpoints, load_folds

    paths, output = checkpoints(settings.run), runs.output_folder(settings)
    rows = dataset.eval_rows(settings)
    nets, abouts, heads = load_folds(paths)
    refuse_other_crops(next(iter(abouts.values()))["crops"], settings.data.crops)
    rows = manifest.with_files(rows, settings.data.crops)
    if settings.inference.backend != "torch":
        from foldface.nn import onnx

        nets = onnx.exported(nets, abouts, paths, output)
        if settings.inference.backend == "int8":
            nets = onnx.quantized(nets, some_inputs(rows, next(iter(abouts.values())), 2 * onnx.CALIBRATED), heads)
    files, kept = rows["file"].to_numpy(str), output / "inference.npz"
    if not any(map(os.path.isfile, files)):  # before minutes are spent
        refuse_unreadable(settings, rows, "there is no such file")
    boxes = rows[layouts.BOX].to_numpy().tolist() if "x1" in rows else []
    with alone(output):
        found, reasons = predict(nets, abouts, heads, rows, settings, kept, key_of(paths, files, settings, boxes))
    bad = reasons != ""
    if bad.all():
        refuse_unreadable(settings, rows, reasons[0])
    report = output / "unreadable.csv"
    if bad.any():
        write_csv(report, pd.DataFrame({"ImageID": rows["ImageID"][bad], "reason": reasons[bad]}))
        warn_once(
            f"{int(bad.sum())} of {len(rows)} photos can't be read and get the training labels' shares: "
            f"{rows['photo'][bad].iloc[0]}; all of them: {report}"
        )
    elif report.is_file():
        os.remove(report)
    task, names = heads.task, rows[["ImageID"]]
    for fold, told in found.items():
        if heads.in_numbers:
            path = output / f"fold{fold}_{task.number.name}.csv"
            write_csv(path, predictions.with_numbers(task, names, told))
        write_csv(output / f"fold{fold}.csv", predictions.with_answers(task, names, told))
    kept.unlink(missing_ok=True)
    if output.resolve() != Path(settings.run).resolve():
        carry(settings.run, output)
    runs.remember(settings, "data.eval")  # ensemble.py and pseudo_label.py answer for the same photos
    print(
        f"{len(rows)} photos, {len(found)} folds: {output}/fold*.csv; next: python ensemble.py --soft --runs {output}"
    )


if __name__ == "__main__":
    guarded(main)
