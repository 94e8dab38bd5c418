"""The page of a run: scores, confusions, mistakes, costs.

python -m tools.report --run runs/NAME
"""

from pathlib import Path

import dataset
from foldface import predictions, runs
from foldface.cli import guarded
from foldface.files import read_csv
from foldface.report.training import write


def main():
    settings = runs.read_for_run(__doc__)
    output = runs.output_folder(settings)
    read_csv(Path(settings.run) / "oof.csv", predictions.OOF_COLUMNS, "train first")
    rows, _ = dataset.training_rows(settings.without_pseudo())
    write(settings, rows, output)
    print(f"{output}/report.html")


if __name__ == "__main__":
    guarded(main)
