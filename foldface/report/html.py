"""HTML pages that stand alone: text, tables, charts and thumbnails in one file that needs no network.

Photos are embedded as small JPEGs, charts as SVG. A page fetches nothing and runs no script.
"""

import base64
import html
from pathlib import Path

import jinja2
import numpy as np

from foldface.data.photos import PhotoError, cv2, read_photo
from foldface.files import InputError, atomic_write, read_json, write_json

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def text(words: str, note: bool = False) -> str:
    """A paragraph; a note is grey."""
    return f'<p class="note">{html.escape(words)}</p>' if note else f"<p>{html.escape(words)}</p>"


def table(header: list, rows: list[list]) -> str:
    """A table of cells: strings, or numbers, of which floats get three decimals."""

    def cell(value):
        return html.escape(f"{value:.3f}" if isinstance(value, float) else str(value))

    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def side_by_side(*drawn: str) -> str:
    """Charts beside one another, as many as fit."""
    return f'<div class="charts">{"".join(drawn)}</div>'


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """A photo (h, w, 3) uint8 with at most `side` pixels on its longer side and at least one on the other."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def thumbnail(image: np.ndarray, side: int = 150, quality: int = 80) -> str:
    """A photo (h, w, 3) uint8 RGB as an <img> of at most `side` pixels a side that holds its own bytes."""
    small = shrink(image, side)
    _, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    height, width = small.shape[:2]
    source = base64.b64encode(data.tobytes()).decode()
    return f'<img src="data:image/jpeg;base64,{source}" width="{width}" height="{height}" alt="" />'


def gallery(photos: list[tuple[str | np.ndarray, list]]) -> str:
    """Thumbnails with captions; the reason stands in the place of a photo that can't be read.

    photos: [(path or (h, w, 3) uint8 RGB, [lines of the caption])].
    """
    found = []
    for photo, lines in photos:
        try:
            image = thumbnail(read_photo(photo) if isinstance(photo, str) else photo)
        except PhotoError as error:
            image = text(f"can't be read: {error}", note=True)
        caption = "<br>".join(html.escape(str(line)) for line in lines)
        found.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="gallery">{"".join(found)}</div>'


def write(path: Path, title: str, intro: str, sections: list[tuple[str, list[str]]]) -> None:
    """Write a page atomically. sections: [(heading, [pieces of HTML made here])]; empty ones are left out."""
    sections = [(heading, "".join(pieces)) for heading, pieces in sections if pieces]
    page = TEMPLATES.get_template("page.html.jinja").render(title=title, intro=intro, sections=sections)
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")


def write_report(path: Path, title: str, intro: str, sections: list[tuple[str, list[str]]]) -> None:
    """`write` a page, and keep what it is made of in a .json beside it, so that `add_section` can write it again."""
    write_json(path.with_suffix(".json"), {"title": title, "intro": intro, "sections": sections})
    write(path, title, intro, sections)


def add_section(path: Path, heading: str, pieces: list[str], new_path: Path | None = None) -> None:
    """Add a section to a page of `write_report`, in the place of one of the same heading, or else at the end.

    The page is written to new_path, if that is given. Raises InputError where the .json beside `path` is missing, as
    it is in runs of earlier versions, or holds no page.
    """
    content, remedy = path.with_suffix(".json"), "python -m tools.report writes the page again"
    page = read_json(content, remedy)
    try:
        sections = dict(page["sections"]) | {heading: pieces}
        write_report(new_path or path, page["title"], page["intro"], list(sections.items()))
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{content}: holds no page: {remedy}") from None
