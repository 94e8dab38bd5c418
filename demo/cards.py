"""The HTML of the demo's answers, one card a photo, and the CSV to save."""

import base64
import html
import io

import pandas as pd

from demo.words import of_answer, of_classes, of_head, say
from foldface.data.photos import cv2
from foldface.files import InputError, read_json

STYLE = """
.card { display: flex; flex-wrap: wrap; gap: 1rem; margin: .8rem 0; padding: .8rem; border: 1px solid #8884; }
.card { border-radius: 8px; } .card img { max-width: 100%; height: auto; border-radius: 4px; }
.card > div { flex: 1 1 16rem; min-width: 0; overflow-wrap: anywhere; }
.card > .photos { flex: 0 1 auto; max-width: 30rem; } .card h4 { margin: .5rem 0 .2rem; }
.bar { display: grid; grid-template-columns: 7rem 1fr 3.2rem; gap: .5rem; align-items: center; margin: .15rem 0; }
.bar { font-size: .9rem; } .bar i { display: block; height: .8rem; background: #4a7fc1; border-radius: 3px; }
.bar b { font-weight: 400; text-align: right; font-variant-numeric: tabular-nums; }
.card > .photos > img { max-height: 45vh; width: auto; } .caption-label { white-space: normal; max-width: 100%; }
body:has(.answer .card) .files, body:has(.answer .card) .files button { height: 6.5rem !important; min-height: 0; }
.card summary { cursor: pointer; padding: .3rem 0; text-decoration: underline; } .card details p { font-size: .85rem; }
.dark .tab-container button.selected { color: #93c5fd; }
a.save { display: inline-block; padding: .4rem .9rem; border: 1px solid #8888; border-radius: 6px; margin: .4rem 0; }
"""


# -------------------------------------------------------------------------------------------------- as HTML


def data_url(kind: str, content: bytes) -> str:
    """Bytes as a data: URL, so that nothing is stored to be shown or saved."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def encode_image(image, ending: str) -> bytes:
    """(h, w, 3) uint8 RGB as the bytes of a ".jpg" or ".png" file."""
    return cv2.imencode(ending, image[..., ::-1])[1].tobytes()


def bars(heads: dict[str, dict[str, float]], ordered=(), tongue: str = "en") -> str:
    """Labelled bars of the eight most probable classes of each head, the surest first; of `ordered` heads, such as
    ages, in the order of their classes. heads: {name: {class: probability}}."""
    parts = []
    for name, shares in heads.items():
        rows, words = sorted(shares.items(), key=lambda item: -item[1])[:8], of_classes(tongue, shares)
        rows = [row for row in shares.items() if row in rows] if name in ordered else rows
        parts.append(f"<h4>{html.escape(of_head(tongue, name))}</h4>" if len(heads) > 1 else "")
        parts += [
            f'<div class="bar"><span>{html.escape(words[label])}</span><span><i style="width:{share:.1%}"></i></span>'
            f"<b>{share:.0%}</b></div>"
            for label, share in rows
        ]
    return "".join(parts)


def card(name: str, found: dict, advice: dict[str, str], tongue: str = "en", opened: bool = True) -> str:
    """The answer for one photo. found: from serving.Predictor.answer, or only {"said"}; advice: {label: HTML}; opened:
    show the heat map at once, else when it is asked for."""
    shown = ""
    if "shown" in found:
        shown = (
            f'<div class="photos">{picture(found["shown"], say(tongue, "photo"))}{heat_of(found, tongue, opened)}</div>'
        )
    title = f"<h4>{html.escape(name)}</h4>" if name else ""
    sentence = f"<p><strong>{html.escape(of_answer(tongue, found))}</strong></p>"
    asked = found.get("labels", [found.get("label")])  # of several labels a photo, the advice for each
    details = bars(found.get("heads", {}), found.get("ordered", ()), tongue) + "".join(
        advice.get(one, "") for one in asked
    )
    return f'<div class="card">{shown}<div>{title}{sentence}{details}</div></div>'


def picture(image, alt: str) -> str:
    """An image (h, w, 3) uint8 as an <img> that holds its own bytes."""
    return f'<img alt="{html.escape(alt, quote=True)}" src="{data_url("image/jpeg", encode_image(image, ".jpg"))}" />'


def heat_of(found: dict, tongue: str, opened: bool) -> str:
    """The heat map of an answer, folded unless `opened`; nothing where there is none."""
    if found.get("heat") is None:
        return ""
    map_ = picture(found["heat"], say(tongue, "map"))
    summary, note = (html.escape(say(tongue, key)) for key in ("where", "where_note"))
    return f"<details{' open' * opened}><summary>{summary}</summary>{map_}<p>{note}</p></details>"


def save_link(name: str, kind: str, content: bytes, words: str) -> str:
    """A link that saves a file on the visitor's computer."""
    href = data_url(kind, content)
    return f'<a class="save" download="{html.escape(name, quote=True)}" href="{href}">{html.escape(words)}</a>'


def as_csv(task, rows: list[tuple[str, dict]]) -> bytes:
    """The answers as a CSV file: file, answer, probability, the class of each head, or of several labels a photo the
    probability of each, and the sentence.

    rows: [(file name, answer of serving.Predictor)].
    """
    lines = []
    for name, found in rows:
        label = found.get("label", "")
        label = label if task.numeric else safe_cell(label)
        line = {"file": safe_cell(name), "answer": label, "probability": found.get("probability")}
        for head in task.answered if not task.numeric else []:
            shares = found.get("heads", {}).get(head.name)
            if task.multilabel:
                line |= {f"p {name}": (shares or {}).get(name) for name in task.classes}
                continue
            line[head.name] = safe_cell(max(shares, key=shares.get)) if shares else ""
        lines.append(line | {"said": found["said"] if task.numeric else safe_cell(found["said"])})
    out = io.StringIO()
    pd.DataFrame(lines).to_csv(out, index=False, float_format="%.4f")
    return out.getvalue().encode("utf-8-sig")


def safe_cell(name: str) -> str:
    """The name of a file or class, with a ' before it where a spreadsheet would read it as a formula."""
    formula = name.lstrip().startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20")) or name.startswith(("\t", "\r", "\n"))
    return "'" + name if formula else name


def read_advice(path: str, task) -> dict[str, str]:
    """Read a JSON file of {label: Markdown} as {label: HTML}; HTML in it is shown as text.

    A file may serve several runs: labels that this run doesn't have are ignored, and its classes without advice are
    printed. Raises InputError where no label is a class of this run.
    """
    if not path:
        return {}
    from markdown_it import MarkdownIt

    content = read_json(path, "it should hold {label: Markdown}")
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        raise InputError(f"{path}: should hold {{label: Markdown}}")
    known = [] if task.numeric else [name for name in content if name in task.classes]
    if content and not known:
        raise InputError(f"{path}: {next(iter(content))} is no class of this run: {', '.join(task.classes)}")
    without = [name for name in task.classes if name not in known] if known else []
    if without:
        print(f"{path}: has no advice for {', '.join(without)}")
    page = MarkdownIt("commonmark", {"html": False})
    # every visitor's browser would fetch a picture's URL: show its text instead
    page.add_render_rule("image", lambda _, tokens, place, *__: html.escape(tokens[place].content))
    return {label: page.render(content[label]) for label in known}
