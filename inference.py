"""Predict every photo of data.eval with each fold of a run, in the order of info.csv, or of a folder's sorted paths.

    python inference.py --run runs/sample
    python inference.py --run runs/try --data.eval DIR --data.crops DIR --inference.flip true
    python inference.py --run runs/trash --data.eval FOLDER        photos, or class folders, which ensemble.py scores
    torchrun --nproc_per_node 8 -- inference.py --run runs/sample      eight GPUs share the photos, to the same files

Writes runs/NAME/fold{k}.csv for each trained fold, and final.csv for the final fit (train.final). --output FOLDER
writes into that folder instead, with copies of the run's files that other scripts read, so that FOLDER can be their
--run. How photos are prepared is read from the weights, not from the settings. For a photo that can't be read the
answer is the class frequencies of the training photos; it gives a warning, and a row in unreadable.csv beside the
predictions.
"""

import os
import shutil
from pathlib import Path

import pandas as pd

import dataset
from foldface import predictions, runs, submission
from foldface.cli import run_main
from foldface.data.shards import is_there
from foldface.faces import manifest
from foldface.files import atomic_write, folder_lock, quoted, warn_once, write_csv
from foldface.runtime import is_main_process

# files of a run that other scripts read beside its predictions
CARRIED = ("folds.csv", "oof.csv", "oof_*.csv", "metrics.json", "data.json", "report.html", "report.json")
CARRIED += ("embedding.csv",)


def carry(run: str | Path, output: Path) -> None:
    """Copy the files CARRIED of a run into the folder `output`, so that other scripts can use it as their --run."""
    for path in sorted(path for pattern in CARRIED for path in Path(run).glob(pattern)):
        with atomic_write(output / path.name) as partial:
            shutil.copyfile(path, partial)


USED = ("task", "data", "inference")  # --help shows these groups of settings


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, argv=argv, used=USED)
    from foldface import devices
    from foldface.nn import predicting, progress
    from model import checkpoints, load_folds

    ranks = devices.join_ranks(config)
    paths = checkpoints(config.run) | runs.final_checkpoint(config.run)
    output = runs.output_folder(config)
    rows = dataset.eval_rows(config)
    nets, abouts, heads = load_folds(paths)
    task = heads.task
    submission.form_for(config, task, rows)  # refuse now what ensemble.py would refuse later
    trained_crops = abouts[min(abouts)]["crops"]  # load_folds made sure that all folds agree
    predicting.refuse_other_crops(trained_crops, config.data.crops)
    rows = manifest.with_files(rows, config.data.crops)
    if config.inference.backend == "onnx":
        from foldface.nn import onnx

        nets = onnx.export_folds(nets, abouts, paths, output, ranks)

    kept = output / "inference.npz"  # predictions so far: a stopped inference resumes from it
    if not any(map(is_there, rows["file"])):
        predicting.refuse_unreadable(config, rows, "there is no such file")
    with folder_lock(output):
        key = predicting.key_of(paths, rows, config)
        found, reasons = predicting.predict(nets, abouts, heads, rows, config, kept, key, ranks)
    if not is_main_process():
        return  # rank 0 has all answers
    bad = reasons != ""
    if bad.all():
        predicting.refuse_unreadable(config, rows, reasons[0])
    report = output / "unreadable.csv"
    if bad.any():
        write_csv(report, pd.DataFrame({"ImageID": rows["ImageID"][bad], "reason": reasons[bad]}))
        warn_once(
            f"{int(bad.sum())} of {len(rows)} photos can't be read and get the training labels' shares: "
            f"{rows['photo'][bad].iloc[0]}; all of them: {report}"
        )
    elif report.is_file():
        os.remove(report)

    names = rows[["ImageID"]]
    for fold, answers in found.items():
        if heads.in_numbers:
            path = output / f"{predictions.fold_name(fold)}_{task.number.key}.csv"
            write_csv(path, predictions.with_numbers(task, names, answers))
        write_csv(output / f"{predictions.fold_name(fold)}.csv", predictions.with_answers(task, names, answers))
    progress.forget(kept)
    if output.resolve() != Path(config.run).resolve():
        carry(config.run, output)
    runs.remember(config, "data.eval")  # ensemble.py and pseudo_label.py answer for the same photos
    final = f" and the final fit: {output}/final.csv," if predictions.FINAL in found else ":"
    folds = len(found) - (predictions.FINAL in found)
    print(
        f"{len(rows)} photos, {folds} folds{final} {output}/fold*.csv; next: "
        f"python ensemble.py --soft --runs {quoted(output)}"
    )


if __name__ == "__main__":
    run_main(main)
