"""HTML pages that stand alone: text, tables, charts and thumbnails in one file that needs no network.

Photos are embedded as small JPEGs, charts as SVG. A page fetches nothing and runs no script. It begins with what a
reader wants to know first (`lead`), and links the other pages that lie beside it.
"""

import base64
import html
import re
from pathlib import Path

import jinja2
import numpy as np

from foldface.data.photos import PhotoError, cv2, read_photo
from foldface.files import InputError, atomic_write, read_json, write_json

MAX_NARROW = 10  # classes of a matrix that a phone can show
MAX_COLUMNS = 4  # columns of a wide Markdown table that stand beside its first
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def text(words: str, note: bool = False) -> str:
    """A paragraph; a note is grey."""
    return f'<p class="note">{html.escape(words)}</p>' if note else f"<p>{html.escape(words)}</p>"


class Name(str):
    """A file's name or path: a line may break after a /, and what is too long is cut at its end."""


def words_of(value) -> str:
    """A cell or a line of a caption as HTML: floats with three decimals, a Name unbroken."""
    if isinstance(value, Name):
        parts = re.split(r"(?<=/)", value)
        spans = "<wbr>".join(f'<span class="name">{html.escape(part)}</span>' for part in parts if part)
        return f'<span title="{html.escape(value, quote=True)}">{spans}</span>'
    return html.escape(f"{value:.3f}" if isinstance(value, float) else str(value))


def table(header: list, rows: list[list]) -> str:
    """A table of cells: strings, or numbers, of which floats get three decimals."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{words_of(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def columns(lines: str) -> str:
    """A table that was made for a terminal, its columns two blanks or more apart; as it is where they are not."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines.splitlines()]
    width = max(map(len, cells), default=0)
    if any(len(row) not in (width, width - 1) for row in cells):
        return f"<pre>{html.escape(lines)}</pre>"
    header, *rows = [[""] * (width - len(row)) + row for row in cells]
    return table(header, rows)


def matrix(names: list[str], counts: np.ndarray, title: str) -> str:
    """A confusion matrix as a table, a row a true class: colours are shares of the row, numbers are photos.

    counts: (k, k) int. Where the window is narrow one of many classes is not shown: see `confused`.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    head = "".join(f'<th scope="col"><span>{html.escape(name)}</span></th>' for name in names)
    body = ""
    for name, row, share in zip(names, counts, shares, strict=True):
        cells = "".join(
            f'<td style="--s:{part:.2f}"{" title=" + chr(34) + f"{part:.0%}" + chr(34) if count else ""}>'
            f"{int(count) or ''}</td>"
            for count, part in zip(row, share, strict=True)
        )
        body += f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>'
    wide = " wide" if len(names) > MAX_NARROW else ""
    caption = f"<caption>{html.escape(title)}: a row a true class, a column an answer</caption>"
    return f'<div class="scroll{wide}"><table class="matrix">{caption}<tr><td></td>{head}</tr>{body}</table></div>'


def command(line: str, why: str = "") -> str:
    """A command to be copied, and what it is for."""
    return f"<p><code>{html.escape(line)}</code>{'<br>' * bool(why)}{html.escape(why)}</p>"


def anchors(paths: list[str]) -> str:
    """Links to pages that lie below this one."""
    found = [(html.escape(path, quote=True), html.escape(path)) for path in paths]
    links = [f'<a href="{where}">{words}</a>' for where, words in found]
    return f"<p>{' '.join(links)}</p>"


def of_markdown(page: str) -> list[str]:
    """The tables and paragraphs of a Markdown page as pieces of HTML; a wide table as several below one another."""
    pieces = []
    for block in page.strip().split("\n\n"):
        lines = block.splitlines()
        if lines[0].startswith("|"):
            lines = [line.strip().strip("|") for line in lines if "|---" not in line]
            header, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
            for first in range(1, len(header), MAX_COLUMNS):  # a phone shows so many beside the first
                part = slice(first, first + MAX_COLUMNS)
                pieces.append(table([header[0], *header[part]], [[row[0], *row[part]] for row in rows]))
        else:
            pieces.append(text(" ".join(lines)))
    return pieces


def code_list(lines: list[str]) -> str:
    """Short lines of code, as many in a row as fit."""
    return f"<p>{' '.join(f'<code>{html.escape(line)}</code>' for line in lines)}</p>"


def big(value: str, words: str) -> str:
    """A figure that the eye falls on, and what it is."""
    return f'<p class="big"><strong>{html.escape(value)}</strong> {html.escape(words)}</p>'


def lead(parts: list[tuple[str, list[str]]]) -> str:
    """The first screen: [(question, [pieces that answer it])], beside one another where there is room."""
    found = "".join(f"<div><h3>{html.escape(name)}</h3>{''.join(pieces)}</div>" for name, pieces in parts if pieces)
    return f'<section class="lead">{found}</section>'


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


def thumbnail(image: np.ndarray, side: int = 150, quality: int = 80, alt: str = "a photo") -> str:
    """A photo (h, w, 3) uint8 RGB as an <img> of at most `side` pixels a side that holds its own bytes."""
    small = shrink(image, side)
    _, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    height, width = small.shape[:2]
    source = base64.b64encode(data.tobytes()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{source}" width="{width}" height="{height}" '
        f'alt="{html.escape(alt, quote=True)}" />'
    )


def gallery(photos: list[tuple]) -> str:
    """Thumbnails with captions; the reason stands in the place of a photo that can't be read.

    photos: [(path or (h, w, 3) uint8 RGB, or a list of those for a figure of several, [lines of the caption])].
    """
    found = []
    for shown, lines in photos:
        several = shown if isinstance(shown, list) else [shown]
        alt = ", ".join(map(str, lines))
        images = "".join(picture(photo, alt if not k else f"map over it: {alt}") for k, photo in enumerate(several))
        kind = ' class="row"' if len(several) > 1 else ""
        found.append(f"<figure{kind}>{images}<figcaption>{'<br>'.join(map(words_of, lines))}</figcaption></figure>")
    return f'<div class="gallery">{"".join(found)}</div>'


def picture(photo: str | np.ndarray, alt: str) -> str:
    """A photo, by its path or its pixels, as a thumbnail, or why it can't be read."""
    try:
        return thumbnail(read_photo(photo) if isinstance(photo, str) else photo, alt=alt)
    except PhotoError as error:
        return text(f"can't be read: {error}", note=True)


# the pages of a run by their file names, as links name them
PAGES = {
    "report.html": "Scores",
    "eda.html": "Data",
    "clean.html": "Labels to check",
    "explain.html": "Where it looks",
    "compare.html": "Comparison",
}
LINKS = re.compile(r"<!-- pages -->.*?<!-- /pages -->", re.DOTALL)


def write(path: Path, title: str, intro: str, sections: list[tuple[str, list[str]]], lead: str = "") -> None:
    """Write a page atomically, and link it with those that lie beside it.

    sections: [(heading, [pieces of HTML made here])]; empty ones are left out. lead: the first screen, of `lead`.
    """
    sections = [(heading, "".join(pieces)) for heading, pieces in sections if pieces]
    page = TEMPLATES.get_template("page.html.jinja").render(title=title, intro=intro, sections=sections, lead=lead)
    replace(path, page)
    there = [name for name in PAGES if (path.parent / name).is_file()]
    for name in there:
        beside = path.parent / name
        old = beside.read_text(encoding="utf-8", errors="replace")
        new = LINKS.sub(lambda _, name=name: links(there, name), old, count=1)
        if new != old:
            replace(beside, new)


def links(there: list[str], own: str) -> str:
    """The links of the page `own` to the pages that are there."""
    shown = [
        f'<a href="{name}">{PAGES[name]}</a>' if name != own else f"<strong>{PAGES[name]}</strong>" for name in there
    ]
    return f"<!-- pages -->{' '.join(shown) if len(there) > 1 else ''}<!-- /pages -->"


def replace(path: Path, page: str) -> None:
    """Write a page's file atomically."""
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")


def write_report(path: Path, title: str, intro: str, sections: list[tuple[str, list[str]]], lead: str = "") -> None:
    """`write` a page, and keep what it is made of in a .json beside it, so that `add_section` can write it again."""
    write_json(path.with_suffix(".json"), {"title": title, "intro": intro, "sections": sections, "lead": lead})
    write(path, title, intro, sections, lead)


def add_section(path: Path, heading: str, pieces: list[str], new_path: Path | None = None) -> None:
    """Add a section to a page of `write_report`, in the place of one of the same heading, or else at the end.

    The page is written to new_path, if that is given. Raises InputError where the .json beside `path` is missing, as
    it is in runs of earlier versions, or holds no page.
    """
    content, remedy = path.with_suffix(".json"), "python -m tools.report writes the page again"
    page = read_json(content, remedy)
    try:
        sections = dict(page["sections"]) | {heading: pieces}
        new_path = new_path or path
        write_report(new_path, page["title"], page["intro"], list(sections.items()), page.get("lead", ""))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{content}: holds no page: {remedy}") from None
