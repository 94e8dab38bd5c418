"""review.png: a contact sheet of the photos whose crop a person should check."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from foldface.data.photos import PhotoError, read_photo
from foldface.faces import detect
from foldface.faces.manifest import CORNERS
from foldface.files import atomic_write

N_UNCERTAIN = 40  # least certain photos on the sheet
TILE, COLUMNS, PAGE = 160, 16, 320  # pixels of a tile; tiles of a row and of a page


# ------------------------------------------------------------------------------------------------ the contact sheet


def doubtful(manifest, detectors):
    """Manifest rows to check: those that the first two detectors missed, then the least certain ones."""
    missed = ~manifest["detector"].isin(detect.of_detectors(detectors[:2]))
    sure = manifest[~missed]
    least = sure["detector"].map(lambda name: detect.detector(name).least_score).astype(float)
    certainty = (sure["score"].astype(float) - least) / (1 - least)  # each detector has its own scale
    return pd.concat([manifest[missed], sure.loc[certainty.sort_values(kind="stable").index[:N_UNCERTAIN]]])


def remove_review(folder: Path) -> None:
    """Remove the contact sheets of an earlier start."""
    for path in Path(folder).glob("review*.png"):
        path.unlink()


def review(folder: Path, manifest: pd.DataFrame, detectors: Sequence[str]) -> None:
    """Write the doubtful photos with their boxes to review.png, and review-2.png, ... if there are many."""
    rows = doubtful(manifest, detectors)
    font, height = ImageFont.load_default(11), TILE + 30
    pages = [rows.iloc[at : at + PAGE] for at in range(0, len(rows), PAGE)] or [rows]
    bar = tqdm(total=len(rows), desc="review.png", unit="photo", leave=False, disable=None)
    for number, page in reversed(list(enumerate(pages, start=1))):  # review.png last: it marks the end
        sheet = Image.new("RGB", (COLUMNS * TILE, max(1, math.ceil(len(page) / COLUMNS)) * height), "white")
        draw = ImageDraw.Draw(sheet)
        for k, (line, row) in enumerate(page.iterrows()):
            left, top = k % COLUMNS * TILE, k // COLUMNS * height
            tile = thumbnail(row, crop_square=row["crop"] != "")
            sheet.paste(Image.fromarray(tile), (left + (TILE - tile.shape[1]) // 2, top))
            found = f"{row['detector']} {row['score'][:4]}" if row["detector"] else row["status"]
            name = "/".join(row["photo"].split("/")[-2:]).encode("ascii", "replace").decode()
            draw.text((left + 3, top + TILE), f"{found[:26]}  row {line + 2}", "black", font)
            draw.text((left + 3, top + TILE + 13), name[-26:], "grey", font)
            bar.update()
        name = f"review-{number}.png" if number > 1 else "review.png"
        with atomic_write(Path(folder) / name, sync=False) as partial:
            sheet.save(partial, "PNG")
    bar.close()


def thumbnail(row, crop_square):
    """A manifest row's photo with its box drawn, (h, w, 3) uint8 of TILE pixels at most; grey if it can't be read."""

    try:
        image = read_photo(row["photo"])
    except PhotoError:
        return np.full((TILE, TILE - 4, 3), 200, np.uint8)
    scale = (TILE - 4) / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if crop_square:
        x1, y1, x2, y2 = (round(float(row[key]) * scale) for key in CORNERS)
        cv2.rectangle(small, (x1, y1), (x2, y2), (255, 200, 0), 2)
    return small
