"""Train a conditional GAN that makes pictures of every label of a task, from the photos that the task trains on.

    python -m demo.gan --run runs/trash                             writes runs/trash/gan; started again, it goes on
    python -m demo.gan --config recipes/try/gan_vanilla.json --run runs/trash --gan.minutes 30
    python -m demo.gan --run runs/trash --judge 100                 classify its pictures with the run's own folds

Each epoch writes a grid of pictures, a column a label, from the same noise; every few epochs the distance of the
pictures to the photos is measured in the features of a pretrained network. best.safetensors is the generator of the
least distance, not the last: with few photos a GAN gets worse again. The test set is never learned from.
"""

import math

from foldface import runs
from foldface.cli import run_main

USED = ("task", "data", "gan")  # --help shows these groups of settings
FLAGS = {
    "--overwrite": {"action": "store_true", "help": "start again from scratch (without it a stopped training goes on)"},
    "--judge": {
        "type": int,
        "default": 0,
        "metavar": "N",
        "help": "only classify N pictures a label with the run's folds",
    },
}


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, FLAGS, argv, USED)
    from demo.gan_training import classify_pictures, train

    if config.judge:
        classify_pictures(config, config.judge)
        return
    log = train(config, config.overwrite)
    best = min((row for row in log if math.isfinite(row["frechet"])), key=lambda row: row["frechet"])
    print(
        f"{config.run}/gan/best.safetensors: epoch {best['epoch']} of {len(log)}, distance {best['frechet']:.1f}, "
        f"kernel distance {best['kernel']:.3f}; look at {config.run}/gan/epoch{best['epoch']:04d}.png"
    )


if __name__ == "__main__":
    run_main(main)
