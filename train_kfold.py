"""All folds, each by train.fit, and what they say of people they have not seen.

    python train_kfold.py --config args.json
    python train_kfold.py --train.only_folds []            deal people into folds, show what each holds, stop
    python train_kfold.py --train.only_folds [0,1]         these two here, the others on another machine

Finished folds are skipped, a stopped one goes on where it was. Writes runs/NAME/fold*/ as train.py does, oof.csv
(a row for every training photo, by the model that did not see its person) and metrics.json.
"""

import dataset
import train
from dataset import prepare
from foldface import cli, runs
from foldface.cli import guarded
from foldface.files import refuse_unwritable


def main():
    settings = cli.read(__doc__, train.FLAGS)
    folds = range(settings.train.folds) if settings.train.only_folds is None else settings.train.only_folds
    if not list(folds):
        refuse_unwritable(settings.run, "name another --run")
        dataset.settle(settings)
        with train.beginning(settings, settings.overwrite):
            prepare(settings)
            runs.save(settings)
        print(f"dealt: {settings.run}/folds.csv")
        return
    train.train_folds(settings, folds, settings.overwrite)
    print(f"next: python inference.py --run {settings.run}")


if __name__ == "__main__":
    guarded(main)
