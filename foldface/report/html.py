"""HTML pages that stand alone: text, tables, charts and thumbnails in one file that opens anywhere, without a network.

Photos are embedded as small JPEGs, charts as SVG. Nothing is fetched, no script runs.
"""

import base64
import contextlib
import html
import io

from foldface.files import atomic_write

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; padding: 1rem;
max-width: 76rem; }
h1 { font-size: 1.5rem; margin: .5rem 0 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; border-top: 1px solid #ddd;
padding-top: 1rem; } h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
h1, h2, p, nav { overflow-wrap: anywhere; } p { margin: .4rem 0; max-width: 52rem; } .note { color: #666; }
.scroll { overflow-x: auto; max-width: 100%; min-width: 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; border-bottom: 1px solid #bbb; }
.charts { display: flex; flex-wrap: wrap; gap: .6rem; } svg, img { max-width: 100%; height: auto; }
.gallery { display: flex; flex-wrap: wrap; gap: .6rem; } figure { margin: 0; width: 9.5rem; }
figure img { width: 100%; display: block; background: #eee; } figcaption { font-size: .75rem; line-height: 1.3;
overflow-wrap: anywhere; } pre { font-size: .85rem; overflow-x: auto; } nav a { margin-right: .8rem; color: #245; }
"""
NOTHING = "data:,"  # an icon that no browser has to ask for


def text(words, note=False):
    """A paragraph."""
    return f'<p class="note">{html.escape(words)}</p>' if note else f"<p>{html.escape(words)}</p>"


def table(header, rows):
    """A table of cells: strings, or numbers, which get three decimals if they are floats."""

    def cell(value):
        return html.escape(f"{value:.3f}" if isinstance(value, float) else str(value))

    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


@contextlib.contextmanager
def figure(draw, width, height, columns=1):
    """A figure of matplotlib (inches), drawn by a function that is given its axes, or `columns` of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # the same chart, the same bytes; a $ in a class's name is a $
    with matplotlib.rc_context({"svg.hashsalt": "foldface", "font.size": 9, "text.parse_math": False}):
        made, axes = pyplot.subplots(1, columns, figsize=(width, height))
        draw(axes)
        for one in made.axes:
            one.spines[["top", "right"]].set_visible(False)
        made.tight_layout()
        yield made
    pyplot.close(made)


def chart(draw, width=5.2, height=3.2, columns=1):
    """A chart as SVG. draw: a function that is given matplotlib's axes, or `columns` of them beside one another."""
    file = io.StringIO()
    with figure(draw, width, height, columns) as made:
        made.savefig(file, format="svg", metadata={"Date": None})
    drawn = file.getvalue()
    return drawn[drawn.index("<svg") :]


def picture(draw, width=5.2, height=3.2):
    """The same chart as a picture: (h, w, 3) uint8 RGB, 100 pixels an inch."""
    import numpy as np

    with figure(draw, width, height) as made:
        made.set_dpi(100)
        made.canvas.draw()
        return np.asarray(made.canvas.buffer_rgba())[..., :3].copy()


def charts(*drawn):
    """Charts beside one another, as many as fit."""
    return f'<div class="charts">{"".join(drawn)}</div>'


def shrunk(image, side):
    """A photo (h, w, 3) whose longer side is `side` pixels at most, neither less than one: strips exist."""
    from foldface.data.photos import cv2

    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def thumbnail(image, side=150, quality=80):
    """A photo (h, w, 3) uint8 RGB as an <img> of at most `side` pixels, its bytes within it."""
    from foldface.data.photos import cv2

    small = shrunk(image, side)
    _, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    height, width = small.shape[:2]
    source = base64.b64encode(data.tobytes()).decode()
    return f'<img src="data:image/jpeg;base64,{source}" width="{width}" height="{height}" alt="" />'


def gallery(photos):
    """Thumbnails with captions. photos: [(path or (h, w, 3) uint8 RGB, [lines of the caption])]; what can't be read
    says so in its place."""
    from foldface.data.photos import PhotoError, read_photo

    found = []
    for photo, lines in photos:
        try:
            image = thumbnail(read_photo(photo) if isinstance(photo, str) else photo)
        except PhotoError as error:
            image = text(f"can't be read: {error}", note=True)
        caption = "<br>".join(html.escape(str(line)) for line in lines)
        found.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="gallery">{"".join(found)}</div>'


def section(number, heading, pieces):
    """One section, between comments by which `add` finds it again."""
    content = f'<h2 id="s{number}">{html.escape(heading)}</h2>{"".join(pieces)}'
    return f"<!--section {html.escape(heading)}-->{content}<!--end-->"


def write(path, title, intro, sections):
    """Write a page atomically. sections: [(heading, [pieces of HTML made here])]; empty ones are left out."""
    sections = [(heading, pieces) for heading, pieces in sections if pieces]
    links = "".join(f'<a href="#s{k}">{html.escape(heading)}</a>' for k, (heading, _) in enumerate(sections))
    parts = "".join(section(k, heading, pieces) for k, (heading, pieces) in enumerate(sections))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="{NOTHING}"><title>{html.escape(title)}</title><style>{STYLE}</style></head><body>'
        f"<h1>{html.escape(title)}</h1>{text(intro, note=True)}<nav>{links}</nav>{parts}</body></html>\n"
    )
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")


def add(path, heading, pieces, new_path=None):
    """Put a section at the end of a page that `write` wrote, or in the place of the one of that heading; a page that
    isn't there stays away. The page is written to new_path, if that is given."""
    if not path.is_file():
        return
    page = path.read_text(encoding="utf-8")
    start, new = page.find(f"<!--section {html.escape(heading)}-->"), section("x", heading, pieces)
    if start >= 0:
        end = page.index("<!--end-->", start) + len("<!--end-->")
        page = page[:start] + new + page[end:]
    else:
        page = page.replace("</body>", new + "</body>")
        page = page.replace("</nav>", f'<a href="#sx">{html.escape(heading)}</a></nav>')
    with atomic_write(new_path or path) as partial:
        partial.write_text(page, encoding="utf-8")
