"""Visitors' photos: where they lie, how long, how many, and the middleware that limits requests."""

import asyncio
import contextlib
import contextvars
import errno
import ipaddress
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import traceback
import types
from pathlib import Path
from urllib.parse import urlsplit

from foldface.files import try_lock

FILES = 32  # photos of one request
FORGOTTEN = 300  # seconds after which an upload that nobody asked about is deleted
STALLED = 60  # seconds after which an upload that stopped arriving is deleted, and a late body refused
FRAME = 2_000_000  # bytes of a camera's frame, as it is sent
SMALL = 100_000  # bytes of any other request's body; 32 names of uploads take 30,000
FREE = 8_000_000  # bytes that uploads leave free where they lie


# The doors of Gradio that the page and gradio_client use: methods, path, bytes of a body. All others are shut, and so
# is what a later Gradio opens.
DOORS = (
    ("GET HEAD", r"/", 0),
    ("GET", r"/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)", 0),
    ("GET", r"/(static|assets|svelte)/.+", 0),
    ("GET", r"/gradio_api/(info|startup-events|upload_progress|queue/data)", 0),
    ("GET", r"/gradio_api/(heartbeat|call/answer)/\w+", 0),
    ("GET HEAD", r"/gradio_api/file=(?![a-zA-Z]+:|//).+", 0),
    ("POST", r"/gradio_api/upload", 0),  # see UploadQuotaMiddleware: as many bytes as the desk has room for
    ("POST", r"/gradio_api/call/answer", SMALL),
    ("POST", r"/gradio_api/queue/join", FRAME),
    ("POST", r"/gradio_api/stream/\w+", FRAME),
    ("POST", r"/gradio_api/(stream/\w+/close|cancel|reset)", SMALL),
)
POLICY = b"img-src 'self' data: blob:; object-src 'none'"  # no picture from elsewhere, whatever a text names


# ---------------------------------------------------------------------------------- what visitors send is forgotten


def hold_folder(folder: Path) -> int | None:
    """Lock a folder: a descriptor to keep open, or None if another process holds the lock or there are no locks.

    The lock ends with its process, even if that is killed.
    """
    if os.name == "nt":  # a folder can't be opened
        return None
    handle = os.open(folder, os.O_RDONLY)
    if try_lock(handle):
        return handle
    os.close(handle)
    return None


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


class UploadDir:
    """A folder for what arrives, of this process alone, in memory where there is such a place; emptied all the time."""

    def __init__(self, upload_bytes=20_000_000):
        """upload_bytes: the largest file. A request may bring FILES of it, and the desk hold four such requests, if the
        disk has room."""
        self.request, self.reserved = FILES * upload_bytes, 0
        place = roomy_place([Path("/dev/shm"), Path(tempfile.gettempdir())], self.request)
        for old in place.glob("foldface-*"):  # of demos that were killed: nobody holds them
            with contextlib.suppress(OSError):
                if (handle := hold_folder(old)) is not None:
                    shutil.rmtree(old, ignore_errors=True)
                    os.close(handle)
        made = Path(tempfile.mkdtemp(prefix="new-foldface-", dir=place)).resolve()
        self.lock = hold_folder(made)  # before it has the name that others clear up
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


class UploadQuotaMiddleware:
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
