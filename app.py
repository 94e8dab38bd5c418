"""A demo in the browser: a trained run answers for a visitor's photos, from a file or the camera, and makes pictures.

    python app.py --run runs/trash                       http://127.0.0.1:7860, for this computer alone
    python app.py --run runs/first --folds 0 --share     one fold, and a public address for three days

What a visitor sends is looked at and forgotten: its file is deleted before the answer leaves, answers travel inside the
page, and nothing is written into a log. The same answers come by Gradio's API:

    from gradio_client import Client, handle_file
    Client("http://127.0.0.1:7860").predict([handle_file("a.jpg")], api_name="/answer")
"""

import asyncio
import base64
import contextlib
import contextvars
import errno
import html
import io
import ipaddress
import logging
import math
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
from pathlib import Path
from urllib.parse import urlsplit

import args
import devices
from files import InputError, guarded, read_json

FILES = 32  # photos of one request
WAITING = 64  # requests that wait; more are told to come back
FORGOTTEN = 300  # seconds after which an upload that nobody asked about is deleted
STALLED = 60  # seconds after which an upload that stopped arriving is deleted, and a late body refused
FRAME = 2_000_000  # bytes of a camera's frame, as it is sent
SMALL = 100_000  # bytes of any other request's body; 32 names of uploads take 30,000
FREE = 8_000_000  # bytes that uploads leave free where they lie
FILMING = 8  # cameras at a time
LIVE = 1.0  # seconds between two looks at a camera
EXAMPLES = 6
STYLE = """
.card { display: flex; flex-wrap: wrap; gap: 1rem; margin: .8rem 0; padding: .8rem; border: 1px solid #8884; }
.card { border-radius: 8px; } .card img { max-width: 100%; height: auto; border-radius: 4px; }
.card > div { flex: 1 1 16rem; min-width: 0; overflow-wrap: anywhere; }
.card > .photos { flex: 0 1 auto; max-width: 30rem; } .card h4 { margin: .5rem 0 .2rem; }
.bar { display: grid; grid-template-columns: 7rem 1fr 3.2rem; gap: .5rem; align-items: center; margin: .15rem 0; }
.bar { font-size: .9rem; } .bar i { display: block; height: .8rem; background: #4a7fc1; border-radius: 3px; }
.bar b { font-weight: 400; text-align: right; font-variant-numeric: tabular-nums; }
a.save { display: inline-block; padding: .4rem .9rem; border: 1px solid #8888; border-radius: 6px; margin: .4rem 0; }
"""


# The doors of Gradio that the page and gradio_client use: methods, path, bytes of a body. All others are shut, and so
# is what a later Gradio opens.
DOORS = (
    ("GET HEAD", r"/", 0),
    ("GET", r"/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)", 0),
    ("GET", r"/(static|assets|svelte)/.+", 0),
    ("GET", r"/gradio_api/(info|startup-events|upload_progress|queue/data)", 0),
    ("GET", r"/gradio_api/(heartbeat|call/answer)/\w+", 0),
    ("GET HEAD", r"/gradio_api/file=(?![a-zA-Z]+:|//).+", 0),
    ("POST", r"/gradio_api/upload", 0),  # see Gate: as many bytes as the desk has room for
    ("POST", r"/gradio_api/call/answer", SMALL),
    ("POST", r"/gradio_api/queue/join", FRAME),
    ("POST", r"/gradio_api/stream/\w+", FRAME),
    ("POST", r"/gradio_api/(stream/\w+/close|cancel|reset)", SMALL),
)
POLICY = b"img-src 'self' data: blob:; object-src 'none'"  # no picture from elsewhere, whatever a text names


# -------------------------------------------------------------------------------------------------- as HTML


def data_url(kind, content):
    """Bytes inside an address: nothing has to be stored to be shown or saved."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def encoded(image, ending):
    """(h, w, 3) uint8 RGB as the bytes of a file, ".jpg" or ".png"."""
    from images import cv2

    return cv2.imencode(ending, image[..., ::-1])[1].tobytes()


def bars(heads):
    """Labelled bars of each head's classes, the likeliest first; of many the first eight."""
    parts = []
    for name, shares in heads.items():
        rows = sorted(shares.items(), key=lambda item: -item[1])[:8]
        parts.append(f"<h4>{html.escape(name)}</h4>" if len(heads) > 1 else "")
        parts += [
            f'<div class="bar"><span>{html.escape(label)}</span><span><i style="width:{share:.1%}"></i></span>'
            f"<b>{share:.0%}</b></div>"
            for label, share in rows
        ]
    return "".join(parts)


def card(name, found, advice):
    """One photo's answer. found: of serving.Answerer.answer, or {"said"} alone; advice: {label: HTML}."""
    shown = ""
    if "shown" in found:
        shown = "".join(
            f'<img alt="{alt}" src="{data_url("image/jpeg", encoded(found[key], ".jpg"))}" />'
            for key, alt in (("shown", "the photo"), ("heat", "what it looks at"))
            if found.get(key) is not None
        )
        shown = f'<div class="photos">{shown}</div>'
    title = f"<h4>{html.escape(name)}</h4>" if name else ""
    said = f"<p><strong>{html.escape(found['said'])}</strong></p>"
    told = bars(found.get("heads", {})) + advice.get(found.get("label"), "")
    return f'<div class="card">{shown}<div>{title}{said}{told}</div></div>'


def save_link(name, kind, content, words):
    """A link that puts a file on the visitor's computer."""
    href = data_url(kind, content)
    return f'<a class="save" download="{html.escape(name, quote=True)}" href="{href}">{html.escape(words)}</a>'


def as_csv(task, rows):
    """The answers as a CSV's bytes: file, answer, probability, what was said, and each head's class.

    rows: [(file name, found)].
    """
    import pandas as pd

    lines = []
    for name, found in rows:
        label = found.get("label", "")
        label = label if task.numeric else safe_cell(label)
        line = {"file": safe_cell(name), "answer": label, "probability": found.get("probability")}
        for head in task.answered if not task.numeric else []:
            shares = found.get("heads", {}).get(head.name)
            line[head.name] = safe_cell(max(shares, key=shares.get)) if shares else ""
        lines.append(line | {"said": found["said"] if task.numeric else safe_cell(found["said"])})
    out = io.StringIO()
    pd.DataFrame(lines).to_csv(out, index=False, float_format="%.4f")
    return out.getvalue().encode("utf-8-sig")


def safe_cell(name):
    """A name of a file or class that no spreadsheet takes for a formula."""
    formula = name.lstrip().startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20")) or name.startswith(("\t", "\r", "\n"))
    return "'" + name if formula else name


def read_advice(path, task):
    """{label: HTML} of a JSON of label -> Markdown (HTML in it is shown as text).

    A file may serve several runs: labels that this one doesn't have are left out, and classes without advice are
    listed. InputError where it has advice for none of them."""
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
    # a picture's address would be asked by every visitor's browser: its words stand there instead
    page.add_render_rule("image", lambda _, tokens, place, *__: html.escape(tokens[place].content))
    return {label: page.render(content[label]) for label in known}


# ---------------------------------------------------------------------------------- what visitors send is forgotten


def held(folder):
    """Take the lock of a folder: a descriptor to keep open, or None if another process has it or there are no locks.
    The lock ends with its process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def roomy_place(places, needed):
    """The first folder that can be written to and has `needed` bytes free, else the one that has most. What is not the
    first is said: Docker gives /dev/shm 64 MB."""
    there = [place for place in places if os.access(place, os.W_OK)]
    free = {place: shutil.disk_usage(place).free for place in there}
    chosen = next((place for place in there if free[place] >= needed + FREE), max(free, key=free.get))
    if chosen != places[0]:
        room = f"has {free[places[0]] / 1e6:.0f} MB free" if places[0] in free else "can't be written to"
        print(f"uploads lie in {chosen} until they are answered: {places[0]} {room}")
    return chosen


class Desk:
    """A folder for what arrives, of this process alone, in memory where there is such a place; emptied all the time."""

    def __init__(self, upload_bytes=20_000_000):
        """upload_bytes: the largest file. A request may bring FILES of it, and the desk hold four such requests, if the
        disk has room."""
        self.request, self.reserved = FILES * upload_bytes, 0
        place = roomy_place([Path("/dev/shm"), Path(tempfile.gettempdir())], self.request)
        for old in place.glob("foldface-*"):  # of demos that were killed: nobody holds them
            with contextlib.suppress(OSError):
                if (handle := held(old)) is not None:
                    shutil.rmtree(old, ignore_errors=True)
                    os.close(handle)
        made = Path(tempfile.mkdtemp(prefix="new-foldface-", dir=place)).resolve()
        self.lock = held(made)  # before it has the name that others clear up
        self.folder = made.rename(made.with_name(made.name.removeprefix("new-")))
        self.kept, self.over = set(), threading.Event()

    def holds(self, path):
        """Is this a file that a visitor sent? A request may name any path of this computer."""
        path = Path(path).resolve()
        return self.folder in path.parents and path not in self.kept

    def there(self):
        """Paths of all files and folders on the desk, what lies in a folder before the folder. (Not by rglob: it fails
        where a folder is deleted while it looks.)"""
        for folder, folders, files in os.walk(self.folder, topdown=False):
            yield from (Path(folder, name) for name in [*files, *folders])

    def keep_what_is_there(self):
        """The demo's own files (its examples), written before the first visitor, stay."""
        self.kept = set(self.there())

    def forget(self, path):
        """Delete an uploaded file and the folder made for it."""
        path = Path(path).resolve()
        if self.holds(path):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()

    def size(self):
        """Bytes of what visitors sent and is still there."""
        total = 0
        for path in self.there():
            with contextlib.suppress(OSError):  # gone since it was listed
                total += path.stat().st_size if path not in self.kept and path.is_file() else 0
        return total

    def reserve(self, size):
        """Set `size` bytes aside for an upload that is about to arrive, if there is room; returns whether there is."""
        room = 4 * self.request - self.size()
        room = min(room, shutil.disk_usage(self.folder).free - FREE) - self.reserved
        if size > room:
            return False
        self.reserved += size
        return True

    def release(self, size):
        """Give back what was set aside: it has arrived and counts by itself now, or it never will."""
        self.reserved -= size

    def sweep(self, age=FORGOTTEN):
        """Delete what arrived `age` seconds ago and was not asked about, and what stopped arriving STALLED ago."""
        for path in self.there():
            with contextlib.suppress(OSError):
                arriving = path.parent == self.folder and path.is_file()  # it gets a folder once it is whole
                limit = min(age, STALLED) if arriving else age
                if path not in self.kept and time.time() - path.stat().st_mtime >= limit:
                    path.rmdir() if path.is_dir() else path.unlink()

    def watch(self):
        """Sweep from now on, in a thread."""

        def run():
            while not self.over.wait(5):
                self.sweep()

        threading.Thread(target=run, daemon=True).start()

    def close(self):
        self.over.set()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


ARRIVING = contextvars.ContextVar("files of the upload that is being read")


def one_folder_an_upload():
    """Give each upload a folder of its own. Gradio names it by the content, so that two visitors who send the same
    photo would share one file, and the first to be answered would delete it under the second."""
    from gradio import route_utils

    class Upload(route_utils.GradioUploadFile):
        def __init__(self, *words, **named):
            super().__init__(*words, **named)
            self.sha.update(os.urandom(16))
            ARRIVING.get().append(self.file.name)

    route_utils.GradioUploadFile = Upload


def file_field(**words):
    """Gradio's File, without the empty file that it leaves beside each upload."""
    import gradio as gr

    field = gr.File(**words)
    field._process_single_file = lambda file: file.path
    return field


def camera_field(**words):
    """Gradio's Image as a camera. Gradio would decode photos itself, without our limits: it gives a still's path, or
    a frame's data: address, and we decode."""
    import gradio as gr

    field = gr.Image(sources=["webcam"], type="filepath", **words)
    field.preprocess = lambda sent: sent and ((sent.url if words.get("streaming") else sent.path) or None)
    return field


def no_memory_of_visitors():
    """Gradio keeps every session's inputs and answers, photos and names in them, to make links to them: it shall not.
    Nor shall it fetch addresses that a request names."""
    from gradio import processing_utils, state_holder

    state_holder.SessionState._update_value_in_config = lambda *_: None

    async def refuse(*_, **__):
        raise ValueError("photos are sent, not fetched")

    processing_utils.async_ssrf_protected_download = refuse


def say_error():
    """Say on stderr which kind of error a request met and where, not its message: that may hold a visitor's text."""
    error = sys.exc_info()[1]
    steps = [f"{Path(step.filename).name}:{step.lineno}" for step in traceback.extract_tb(error.__traceback__)]
    print(f"a request failed: {type(error).__name__} at {' > '.join(steps[-6:])}", file=sys.stderr, flush=True)


def no_text_of_visitors():
    """Gradio prints tracebacks of requests that fail, with what visitors sent in them."""
    from gradio import queueing, route_utils, routes

    quiet = types.SimpleNamespace(print_exc=say_error)
    queueing.traceback = routes.traceback = route_utils.traceback = quiet


def own_hosts(host, url=""):
    """Names that a browser may call this demo by, when it listens at `host` and a proxy serves it at `url`: a set."""
    names = {"localhost", "127.0.0.1", "::1", host.strip("[]").lower()}
    if host in ("0.0.0.0", "::", "[::]"):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower(), "*"}  # *: any address in numbers
    return names | ({urlsplit(url).hostname} if url else set())


class Refused(Exception):
    """A request that is not let in: status, sentence."""


class Gate:
    """Stands before Gradio (ASGI): doors that are not listed, strange Hosts and bodies that are too large stay out."""

    def __init__(self, app, desk, hosts):
        """hosts: a set of own_hosts, which may grow later."""
        self.app, self.desk, self.hosts = app, desk, hosts

    def refuse_host(self, headers):
        """Raise Refused for a Host that is not this demo's: a page of another site whose name was pointed to this
        computer (DNS rebinding) could read answers and send requests in a visitor's place."""
        name = headers.get(b"host", b"").decode("latin-1").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        numbers = False
        with contextlib.suppress(ValueError):
            numbers = bool(ipaddress.ip_address(name)) and "*" in self.hosts
        if not numbers and (name not in self.hosts or name == "*"):
            raise Refused(421, "This demo has another address; if this is one, start it with --app.root_url URL.")

    def limit(self, scope):
        """Bytes that the request's body may have. Raises Refused (404) for a door that is not open."""
        path = scope["path"].rstrip("/") or "/"
        for methods, pattern, most in DOORS:
            if scope["method"] in methods.split() and re.fullmatch(pattern, path):
                return most
        raise Refused(404, "There is nothing here.")

    async def __call__(self, scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def sending(message):
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY)]
            await send(message)

        try:
            await self.let_in(scope, receive, sending)
            return
        except Refused as refused:
            status, sentence = refused.args
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full:
                say_error()
            status, sentence = (507, BUSY) if full else (500, "This request can't be answered.")
        if not begun:
            from starlette.responses import JSONResponse

            await JSONResponse({"detail": sentence}, status, {"connection": "close"})(scope, receive, send)

    async def let_in(self, scope, receive, send):
        """Pass a request on to Gradio. Raises Refused."""
        headers = dict(scope["headers"])
        self.refuse_host(headers)
        most = self.limit(scope)
        said = headers.get(b"content-length", b"")
        if scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload"):
            await self.upload(scope, receive, send, said, b"transfer-encoding" in headers)
            return
        if said.isdigit() and int(said) > most:
            raise Refused(413, f"At most {most / 1e6:g} MB.")
        if scope["method"] == "POST":
            receive = replayed(await whole(receive, most), receive)
        await self.app(scope, receive, send)

    async def upload(self, scope, receive, send, said, chunked):
        """Let an upload in: room for it is set aside before it arrives."""
        if chunked or not said.isdigit():
            raise Refused(411, "An upload says how large it is (Content-Length).")
        left, ends = int(said), time.monotonic() + FORGOTTEN
        if left > self.desk.request + 1_000_000:
            raise Refused(413, f"At most {FILES} files of {self.desk.request / FILES / 1e6:g} MB a request.")
        if not self.desk.reserve(left):
            raise Refused(507, BUSY)

        async def counted():
            nonlocal left
            wait = min(STALLED, ends - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), max(wait, 0))
            except TimeoutError:
                raise Refused(408, "This upload took too long.") from None
            size = len(message.get("body", b""))
            if size > left:
                raise Refused(413, "This upload is larger than it says.")
            left -= size
            self.desk.release(size)
            return message

        ARRIVING.set(files := [])
        try:
            await self.app(scope, counted, send)
        except BaseException:  # what has arrived of it is no use
            for name in files:
                Path(name).unlink(missing_ok=True)
            raise
        finally:
            self.desk.release(left)


BUSY = "Too many photos at once: come back in a few minutes."


async def whole(receive, most):
    """A request's body. Raises Refused where it is longer than `most` bytes, whatever it says, or does not arrive."""
    parts, size, more = [], 0, True
    try:
        async with asyncio.timeout(STALLED):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "This request ended early.")
                parts.append(message.get("body", b""))
                size, more = size + len(parts[-1]), message.get("more_body", False)
                if size > most:
                    raise Refused(413, f"At most {most / 1e6:g} MB.")
    except TimeoutError:
        raise Refused(408, "This request took too long.") from None
    return b"".join(parts)


def replayed(body, receive):
    """A `receive` that gives a body that was read already, then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again():
        return waiting.pop() if waiting else await receive()

    return again


# ---------------------------------------------------------------------------------------------------- the page


class Demo:
    """What the page's buttons do."""

    def __init__(self, settings, answerer, desk):
        import generator

        self.answerer, self.desk, self.limit = answerer, desk, int(settings.app.upload_mb * 1e6)
        self.advice = read_advice(settings.app.advice, answerer.task)
        path = Path(settings.run) / "gan" / "best.safetensors"
        self.maker, self.made = generator.load(path) if path.is_file() else (None, None)
        if self.maker is not None:
            self.maker.to(devices.choose(settings))

    def look(self, path, heat=False):
        """The answer for an uploaded file, which is deleted; a sentence where it can't be read."""
        import serving
        from images import PhotoError

        if not self.desk.holds(path):
            return {"said": "This file can't be answered for: it was not sent."}
        try:
            sides = 0, self.answerer.side
            photo, reduced = (serving.read_visitor_photo(Path(path), self.limit, side) for side in sides)
        except PhotoError as error:
            return {"said": f"This file can't be answered for: {error}."}
        finally:
            self.desk.forget(path)
        return self.answerer.answer(photo, heat, reduced)

    def upload(self, paths, heat):
        """Answers for files: (HTML, None, which empties the field)."""
        paths = paths or []
        rows = [(Path(path).name, self.look(path, heat)) for path in paths[:FILES]]
        for path in paths[FILES:]:
            self.desk.forget(path)
        page = "".join(card(name, found, self.advice) for name, found in rows)
        if len(paths) > FILES:
            page = f"<p>{len(paths)} files: the first {FILES} are answered for.</p>" + page
        if rows:
            content = as_csv(self.answerer.task, rows)
            page = save_link("answers.csv", "text/csv", content, "Save answers.csv") + page
        return page, None

    def api(self, photos: list):
        """Answers for uploaded photos: a list of {file, label, probability, number, heads, said}."""
        answers = []
        for path in photos[:FILES]:
            name = Path(path).name
            found = self.look(path)
            keys = ("label", "probability", "number", "heads", "said")
            answers.append({"file": name} | {key: found.get(key) for key in keys})
        for path in photos[FILES:]:
            self.desk.forget(path)
        return answers

    def still(self, path, heat):
        """The answer for a photo that the camera took."""
        return (card("", self.look(path, heat), self.advice), None) if path else ("", None)

    def live(self, frame):
        """The answer for a frame of the camera, a data: address, which never was a file."""
        import serving
        from images import PhotoError

        if not frame:
            return ""
        try:
            most = min(self.limit, FRAME)
            photo, reduced = (serving.read_frame(frame, most, side) for side in (0, self.answerer.side))
        except PhotoError as error:
            return card("", {"said": f"This frame can't be answered for: {error}."}, {})
        return card("", self.answerer.answer(photo, reduced=reduced), self.advice)

    def make(self, label, seed):
        """A picture of a label: HTML with the picture, what the run itself makes of it, and a link to save it."""
        import torch

        import generator
        from images import cv2

        if label not in self.made["classes"] or not math.isfinite(seed or 0):
            return card("", {"said": "There is no such picture."}, {}), 0  # the page itself asks for none
        seed = int(seed or 0) % 2**31
        kind = torch.tensor([self.made["classes"].index(label)])
        small = generator.chosen(self.maker, kind, seed)[0]
        large = cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC)
        content = encoded(large, ".png")
        found = {"said": f"{label}, number {seed}"}
        if not self.answerer.wants_faces:
            found["heads"] = self.answerer.answer(small)["heads"]
        words = "" if "heads" not in found else "<p>What the classifier makes of it:</p>" + bars(found["heads"])
        return (
            f'<div class="card"><div class="photos"><img alt="{html.escape(label)}" width="256" height="256" '
            f'src="{data_url("image/png", content)}" /><br>'
            f"{save_link(f'{label}-{seed}.png'.replace(' ', '-'), 'image/png', content, 'Save the picture')}</div>"
            f"<div><p><strong>{html.escape(found['said'])}</strong></p>{words}</div></div>",
            seed + 1,
        )


def examples(settings, answerer):
    """[(photo, word)] to try: the photos that --examples names, else drawn people for a run on faces or ages. Nobody's
    photo is shown to others unless it is named. Raises InputError where a named one can't be read."""
    import numpy as np

    from images import PhotoError, is_photo, read_photo

    if settings.examples:
        from serving import boxed

        named = [Path(name) for name in settings.examples]
        paths = [path for name in named for path in (sorted(name.iterdir()) if name.is_dir() else [name])
                 if not name.is_dir() or is_photo(path.name)]  # fmt: skip
        try:
            return [(boxed(read_photo(path), None), path.stem) for path in paths[:EXAMPLES]]
        except PhotoError as error:
            raise InputError(f"--examples: {error}") from None
    if not answerer.wants_faces and answerer.task.number is None:
        return []
    from sample_data import invent, photos

    found = []
    for number in range(3):
        person = invent(np.random.default_rng([7, number]), number % 2, (22, 45, 60)[number])
        for stem, _, photo, _ in photos(person, (settings.seed, 9, number)):
            if stem in ("mask1", "incorrect_mask", "normal")[number]:
                found.append((photo[..., ::-1], stem))
    return found


def build(settings, answerer, desk):
    """The page, a gradio.Blocks. All but filming goes through one queue: one request is answered at a time."""
    import gradio as gr

    demo, task = Demo(settings, answerer, desk), answerer.task
    one = {"concurrency_limit": 1, "concurrency_id": "model"}
    hidden = {"api_visibility": "private"}
    shown = examples(settings, answerer)
    title = f"{Path(settings.run).name}: " + (
        f"{task.answered[0].name}" if task.numeric else ", ".join(head.name for head in task.answered)
    )
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}\nPhotos are looked at and forgotten: nothing that you send is kept.")
        with gr.Tab("Upload"):
            files = file_field(label=f"Photos, {FILES} at most", file_count="multiple")
            heat = gr.Checkbox(label="Show what it looks at (Grad-CAM)")
            if shown:
                gallery = gr.Gallery(
                    shown, label="Or try one of these", columns=6, height=170, allow_preview=False, format="jpeg"
                )
            answer = gr.HTML()
            files.upload(demo.upload, [files, heat], [answer, files], **one, **hidden)
            if shown:

                def example(heat, event: gr.SelectData):
                    photo, word = shown[event.index]
                    return card(f"example: {word}", answerer.answer(photo, heat), demo.advice)

                gallery.select(example, [heat], [answer], **one, **hidden)
        with gr.Tab("Webcam"), gr.Row():
            with gr.Column():
                camera = camera_field(label="Still")
                still = gr.HTML()
                camera.input(demo.still, [camera, heat], [still, camera], **one, **hidden)
            with gr.Column():
                stream = camera_field(streaming=True, label="Live")
                live = gr.HTML()
                # a camera holds its place for as long as it films: it must not be the place that all others wait for
                stream.stream(
                    demo.live, [stream], [live],
                    stream_every=LIVE, time_limit=120, concurrency_limit=FILMING, **hidden,
                )  # fmt: skip
        with gr.Tab("Make a picture"):
            if demo.maker is None:
                gr.Markdown(f"No pictures are learned yet: `python gan.py --run {settings.run}`")
            else:
                label = gr.Radio(demo.made["classes"], value=demo.made["classes"][0], label="Of what?")
                seed = gr.Number(0, label="Number: the same number, the same picture", precision=0)
                made = gr.HTML()
                gr.Button("Make it", variant="primary").click(demo.make, [label, seed], [made, seed], **one, **hidden)

        def answer_api(photos: list[gr.FileData]) -> list:
            """Answers for uploaded photos: a list of {file, label, probability, number, heads, said}."""
            named = [photo.get("path") if isinstance(photo, dict) else None for photo in photos]
            return demo.api([str(path or "") for path in named])

        gr.api(answer_api, api_name="answer", **one)
    return page.queue(max_size=WAITING)


FLAGS = {
    "--folds": {"type": int, "nargs": "+", "default": [], "help": "folds that answer (default: all)"},
    "--examples": {
        "nargs": "+",
        "default": [],
        "metavar": "FILE",
        "help": "photos, or a folder of them, that every visitor may try and see",
    },
    "--share": {"action": "store_true", "help": "a public address by Gradio's tunnel; photos then pass through it"},
}


def start(settings, desk):
    """Load, warm up and serve; returns the running gradio.Blocks."""
    os.environ["GRADIO_TEMP_DIR"], os.environ["GRADIO_ANALYTICS_ENABLED"] = str(desk.folder), "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    began = time.perf_counter()
    import serving

    answerer = serving.Answerer(settings, settings.folds)
    import gradio as gr
    from starlette.middleware import Middleware

    one_folder_an_upload()
    no_memory_of_visitors()
    no_text_of_visitors()
    hosts = own_hosts(settings.app.host, settings.app.root_url)
    page = build(settings, answerer, desk)
    desk.keep_what_is_there()
    page.launch(
        server_name=settings.app.host or "127.0.0.1",
        server_port=settings.app.port or None,
        share=settings.share,
        max_file_size=int(settings.app.upload_mb * 1e6),
        prevent_thread_lock=True,
        quiet=True,
        css=STYLE,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # none from the network
        footer_links=["api"],
        ssr_mode=False,
        root_path=settings.app.root_url or None,
        run_history=False,  # it lists and makes buckets with the operator's token
        mcp_server=False,
        enable_monitoring=False,
        app_kwargs={"middleware": [Middleware(Gate, desk=desk, hosts=hosts)], "openapi_url": None},
        state_session_capacity=200,
    )
    desk.watch()
    everywhere = f", and at every other address of this computer ({page.server_name})" if "*" in hosts else ""
    seconds = time.perf_counter() - began
    print(f"{settings.run}: {page.local_url}{everywhere} ({seconds:.1f} s; Ctrl-C ends it)", flush=True)
    if page.share_url:
        hosts.add(urlsplit(page.share_url).hostname)
        print(f"for everybody: {page.share_url}", flush=True)
    return page


def main():
    settings = args.read_for_run(__doc__, FLAGS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the desk is cleared then, too
    warnings.simplefilter("ignore")  # libraries warn with what a visitor sent
    logging.disable(logging.CRITICAL)
    desk = Desk(int(settings.app.upload_mb * 1e6))
    try:
        page = start(settings, desk)
        page.block_thread()
    except OSError as error:
        if "port" not in str(error):
            raise
        raise InputError(f"app.port {settings.app.port}: {error}") from None
    finally:
        desk.close()
    sys.exit(0)


if __name__ == "__main__":
    guarded(main)
