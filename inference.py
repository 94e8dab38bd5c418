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
from foldface import predictions, runs, submission
from foldface.cli import run_main
from foldface.data import layouts
from foldface.faces import manifest
from foldface.files import atomic_write, folder_lock, warn_once, write_csv

# files of a run that other scripts read beside its predictions
CARRIED = ("folds.csv", "oof.csv", "oof_*.csv", "metrics.json", "data.json", "report.html", "report.json")


def carry(run, output):
    """Copy what other scripts read beside predictions from a run into the folder `output`, so that it does for them
    what the run's folder does."""
    for path in sorted(path for pattern in CARRIED for path in Path(run).glob(pattern)):
        with atomic_write(output / path.name) as partial:
            shutil.copyfile(path, partial)


USED = ("task", "data", "inference")  # --help shows these groups of settings


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, argv=argv, used=USED)
    from foldface.nn.predicting import key_of, predict, refuse_other_crops, refuse_unreadable
    from model import checkpoints, load_folds

    paths, output = checkpoints(config.run), runs.output_folder(config)
    rows = dataset.eval_rows(config)
    nets, abouts, heads = load_folds(paths)
    submission.form_for(config, heads.task, rows)  # what ensemble.py would refuse is refused before the work
    refuse_other_crops(next(iter(abouts.values()))["crops"], config.data.crops)
    rows = manifest.with_files(rows, config.data.crops)
    if config.inference.backend == "onnx":
        from foldface.nn import onnx

        nets = onnx.export_folds(nets, abouts, paths, output)
    files, kept = rows["file"].to_numpy(str), output / "inference.npz"
    if not any(map(os.path.isfile, files)):  # before minutes are spent
        refuse_unreadable(config, rows, "there is no such file")
    boxes = rows[layouts.BOX].to_numpy().tolist() if "x1" in rows else []
    with folder_lock(output):
        found, reasons = predict(nets, abouts, heads, rows, config, kept, key_of(paths, files, config, boxes))
    bad = reasons != ""
    if bad.all():
        refuse_unreadable(config, rows, reasons[0])
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
    for fold, answers in found.items():
        if heads.in_numbers:
            path = output / f"fold{fold}_{task.number.key}.csv"
            write_csv(path, predictions.with_numbers(task, names, answers))
        write_csv(output / f"fold{fold}.csv", predictions.with_answers(task, names, answers))
    kept.unlink(missing_ok=True)
    if output.resolve() != Path(config.run).resolve():
        carry(config.run, output)
    runs.remember(config, "data.eval")  # ensemble.py and pseudo_label.py answer for the same photos
    print(
        f"{len(rows)} photos, {len(found)} folds: {output}/fold*.csv; next: python ensemble.py --soft --runs {output}"
    )


if __name__ == "__main__":
    run_main(main)
