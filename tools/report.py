"""The page of a run: scores, confusions, mistakes, costs.

python -m tools.report --run runs/NAME
"""

from pathlib import Path

import dataset
from foldface import predictions, runs
from foldface.cli import run_main
from foldface.files import read_csv
from foldface.report.training import write

USED = ("task", "data", "inference")  # --help shows these groups of settings


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, argv=argv, used=USED)
    output = runs.output_folder(config)
    read_csv(Path(config.run) / "oof.csv", predictions.OOF_COLUMNS, "train first")
    rows, _ = dataset.training_rows(config.without_pseudo())
    write(config, rows, output)
    print(f"{output}/report.html")


if __name__ == "__main__":
    run_main(main)
