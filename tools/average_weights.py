"""Average the weights of a run's folds into one model (model soup; Wortsman et al. 2022).

    python -m tools.average_weights --run runs/a                     -> runs/a-soup, a run with one fold
    python inference.py --run runs/a-soup && python ensemble.py --soft --runs runs/a runs/a-soup

It predicts at the cost of one model. Most folds were trained on each person, so it has no out-of-fold predictions:
there is no oof.csv, and ensemble.py's weight search leaves it out. Folds that started from different (random) weights
can't be averaged. Batch norm's statistics are computed again from the photos that the folds were trained on.
"""

import shutil
from pathlib import Path

from tqdm import tqdm

from dataset import prepare
from foldface import runs
from foldface.cli import run_main
from foldface.data.folds import RECORD, split
from foldface.data.leaks import digest_of
from foldface.files import InputError, folder_lock, quoted, read_csv, read_json, write_csv, write_json
from foldface.settings import as_dict


def trained_on(config, folds):
    """The rows that any of these folds was trained on, without the test set and what data.only and the like left out.

    Raises InputError where the run has no folds.csv.
    """
    if not (Path(config.run) / "folds.csv").is_file():
        raise InputError(f"{config.run}: has no folds.csv, so the rows that its folds were trained on are unknown")
    rows = prepare(config)
    rows["place"] = range(len(rows))
    places = {place for fold in folds for place in split(rows, fold)[0]["place"]}
    return rows[rows["place"].isin(places)].reset_index(drop=True)


USED = ("data", "inference")  # --help shows these groups of settings


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, argv=argv, used=USED)
    import model
    from foldface.data import loader
    from foldface.nn import averaging, batchnorm

    nets, abouts, _ = model.load_folds(model.checkpoints(config.run))
    if len(nets) < 2:
        raise InputError(f"{config.run}: has one fold; an average needs two")
    net, about = averaging.mean_of(list(nets.values())), next(iter(abouts.values()))
    if not config.model.freeze_bn:
        rows = trained_on(config, nets)
        photos = loader.PhotoDataset(rows, about["augment"], about["image_size"], False, fit=about["fit"])
        batches = loader.SeededBatchSampler(len(rows), config.inference.batch_size)
        feed = tqdm(loader.make(photos, batches, config.data.workers), "batch norm", disable=None)
        inputs = (loader.normalize(part, about["mean"], about["std"]) for _, part, _ in feed)
        batchnorm.refresh_batch_norm(net, inputs, batchnorm.lowest_layers(net, config.train.freeze_layers))
    home, people = Path(f"{config.run}-soup"), Path(config.run) / "folds.csv"
    begun, own = home.exists(), Path(config.run) / "args.json"
    content = read_json(own, "train again") if own.is_file() else as_dict(config)
    with folder_lock(home):
        try:
            if people.is_file():  # trained on all people: no fold may start from it (model.init_from_run)
                write_csv(home / "folds.csv", read_csv(people, ["id", "fold"]).assign(fold=-1))
            if people.with_name(RECORD).is_file():
                record = read_json(people.with_name(RECORD), "train again")
                write_json(home / RECORD, record | {"folds": digest_of(home / "folds.csv")})
            model.save(home / "fold0" / "best.safetensors", net, about | {"fold": 0})
            write_json(home / "args.json", content | {"run": str(home)})
        except InputError:  # a full disk
            if not begun:
                shutil.rmtree(home)
            raise
    print(f"{len(nets)} folds averaged: {home}; next: python inference.py --run {quoted(home)}")


if __name__ == "__main__":
    run_main(main)
