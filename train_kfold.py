"""All folds, each by train.fit, and what they say of people they have not seen.

    python train_kfold.py --config args.json
    python train_kfold.py --train.only_folds []            deal people into folds, show what each holds, stop
    python train_kfold.py --train.only_folds [0,1]         these two here, the others on another machine
    python train_kfold.py --train.final                    and then one fit on all photos: runs/NAME/final

Finished folds are skipped, a stopped one goes on where it was. Writes runs/NAME/fold*/ as train.py does, oof.csv
(a row for every training photo, by the model that did not see its person) and metrics.json.
"""

import dataset
import train
from dataset import prepare
from foldface import cli, runs
from foldface.cli import run_main
from foldface.files import refuse_unwritable


def main(argv: list[str] | None = None) -> None:
    config = cli.read(__doc__, train.FLAGS, argv, train.USED)
    folds = range(config.train.folds) if config.train.only_folds is None else config.train.only_folds
    if not list(folds):
        refuse_unwritable(config.run, "name another --run")
        dataset.infer_classes(config)
        with runs.beginning(config, config.overwrite):
            prepare(config)
            runs.save(config)
        print(f"dealt: {config.run}/folds.csv")
        return
    train.train_folds(config, folds, config.overwrite)
    print(f"next: {runs.next_command(config)}")


if __name__ == "__main__":
    run_main(main)
