"""The folder of visitors' photos, its limits, and the middleware that refuses requests beyond them."""

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
from pathlib import Path
from urllib.parse import urlsplit

from foldface.files import try_lock

MAX_FILES = 32  # photos of one request
MAX_AGE = 300  # seconds after which an upload that was never used is deleted
STALL_TIMEOUT = 60  # seconds after which an upload that stopped arriving is deleted, and a late body refused
MAX_FRAME_BYTES = 2_000_000  # of a camera's frame, as it is sent
MAX_BODY_BYTES = 100_000  # of any other request; the names of 32 uploads take 30,000
MIN_FREE_BYTES = 8_000_000  # that uploads leave free on their disk


# Gradio's endpoints that the page and gradio_client use: methods, path, largest body in bytes. All others return 404,
# also those that a later Gradio adds.
ENDPOINTS = (
    ("GET HEAD", r"/", 0),
    ("GET", r"/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)", 0),
    ("GET", r"/(static|assets|svelte)/.+", 0),
    ("GET", r"/gradio_api/(info|startup-events|upload_progress|queue/data)", 0),
    ("GET", r"/gradio_api/(heartbeat|call/answer)/\w+", 0),
    ("GET HEAD", r"/gradio_api/file=(?![a-zA-Z]+:|//).+", 0),
    ("POST", r"/gradio_api/upload", 0),  # UploadQuotaMiddleware limits it by the room in UploadDir
    ("POST", r"/gradio_api/call/answer", MAX_BODY_BYTES),
    ("POST", r"/gradio_api/queue/join", MAX_FRAME_BYTES),
    ("POST", r"/gradio_api/stream/\w+", MAX_FRAME_BYTES),
    ("POST", r"/gradio_api/(stream/\w+/close|cancel|reset)", MAX_BODY_BYTES),
)
POLICY = b"img-src 'self' data: blob:; object-src 'none'"  # no pictures from other hosts, whatever a text links to


# ------------------------------------------------------------------------------------------------ the upload folder


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


def choose_place(places: list[Path], needed: int) -> Path:
    """The first folder that can be written to and has `needed` bytes free, else the one with the most free bytes.

    Prints a line where it is not the first: Docker gives /dev/shm only 64 MB.
    """
    there = [place for place in places if os.access(place, os.W_OK)]
    free = {place: shutil.disk_usage(place).free for place in there}
    chosen = next((place for place in there if free[place] >= needed + MIN_FREE_BYTES), max(free, key=free.get))
    if chosen != places[0]:
        room = f"has {free[places[0]] / 1e6:.0f} MB free" if places[0] in free else "can't be written to"
        print(f"uploads are kept in {chosen} until they are answered: {places[0]} {room}")
    return chosen


class UploadDir:
    """A folder for uploads that only this process uses, in memory where possible. `watch` deletes old uploads."""

    def __init__(self, upload_bytes=20_000_000):
        """upload_bytes: size of the largest file. A request holds at most MAX_FILES of it, the folder four requests."""
        self.request, self.reserved = MAX_FILES * upload_bytes, 0
        place = choose_place([Path("/dev/shm"), Path(tempfile.gettempdir())], self.request)
        for old in place.glob("foldface-*"):  # of demos that were killed: they are not locked
            with contextlib.suppress(OSError):
                if (handle := hold_folder(old)) is not None:
                    shutil.rmtree(old, ignore_errors=True)
                    os.close(handle)
        made = Path(tempfile.mkdtemp(prefix="new-foldface-", dir=place)).resolve()
        self.lock = hold_folder(made)  # before it gets a name that other processes clear up
        self.folder = made.rename(made.with_name(made.name.removeprefix("new-")))
        self.kept, self.over = set(), threading.Event()

    def holds(self, path) -> bool:
        """True for a file that a visitor sent. (A request may name any path of this computer.)"""
        path = Path(path).resolve()
        return self.folder in path.parents and path not in self.kept

    def paths(self):
        """Yield all files and folders, the content of a folder before the folder. (rglob fails where one vanishes.)"""
        for folder, folders, files in os.walk(self.folder, topdown=False):
            yield from (Path(folder, name) for name in [*files, *folders])

    def keep_existing(self):
        """Never delete what is there now: the demo's own files (its examples)."""
        self.kept = set(self.paths())

    def delete(self, path):
        """Delete an uploaded file and the folder made for it."""
        path = Path(path).resolve()
        if self.holds(path):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()

    def size(self) -> int:
        """Bytes of all uploads that are still there."""
        total = 0
        for path in self.paths():
            with contextlib.suppress(OSError):  # deleted since it was listed
                total += path.stat().st_size if path not in self.kept and path.is_file() else 0
        return total

    def reserve(self, size: int) -> bool:
        """Reserve `size` bytes for an upload that is about to arrive. False if there is no room."""
        room = 4 * self.request - self.size()
        room = min(room, shutil.disk_usage(self.folder).free - MIN_FREE_BYTES) - self.reserved
        if size > room:
            return False
        self.reserved += size
        return True

    def release(self, size):
        """Give back reserved bytes, which have arrived, and count by themselves now, or never will."""
        self.reserved -= size

    def sweep(self, age=MAX_AGE):
        """Delete uploads older than `age` seconds, and those that stopped arriving STALL_TIMEOUT seconds ago."""
        for path in self.paths():
            with contextlib.suppress(OSError):
                arriving = path.parent == self.folder and path.is_file()  # it gets a folder once it has arrived
                limit = min(age, STALL_TIMEOUT) if arriving else age
                if path not in self.kept and time.time() - path.stat().st_mtime >= limit:
                    path.rmdir() if path.is_dir() else path.unlink()

    def watch(self):
        """Start a thread that sweeps every 5 seconds."""

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


def print_error():
    """Print the type and place of the current error to stderr, without its message: it may quote a visitor's text."""
    error = sys.exc_info()[1]
    steps = [f"{Path(step.filename).name}:{step.lineno}" for step in traceback.extract_tb(error.__traceback__)]
    print(f"a request failed: {type(error).__name__} at {' > '.join(steps[-6:])}", file=sys.stderr, flush=True)


def own_hosts(host: str, url: str = "") -> set[str]:
    """Host names of this demo when it listens at `host` and a proxy serves it at `url`; * = any IP address."""
    names = {"localhost", "127.0.0.1", "::1", host.strip("[]").lower()}
    if host in ("0.0.0.0", "::", "[::]"):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower(), "*"}
    return names | ({urlsplit(url).hostname} if url else set())


class Refused(Exception):
    """A refused request: (HTTP status, sentence)."""


class UploadQuotaMiddleware:
    """ASGI middleware: upload quota and size limits; other hosts are refused; unused endpoints return 404."""

    def __init__(self, app, upload_dir, hosts):
        """hosts: a set from own_hosts; names may be added later."""
        self.app, self.upload_dir, self.hosts = app, upload_dir, hosts

    def refuse_host(self, headers):
        """Raise Refused for a Host header that is not this demo's. With DNS rebinding, a page of another site could
        otherwise read answers and send requests in a visitor's name."""
        name = headers.get(b"host", b"").decode("latin-1").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        is_address = False
        with contextlib.suppress(ValueError):
            is_address = bool(ipaddress.ip_address(name)) and "*" in self.hosts
        if not is_address and (name not in self.hosts or name == "*"):
            raise Refused(421, "This is not the demo's host name; to allow it, start the demo with --app.root_url URL.")

    def limit(self, scope) -> int:
        """The largest body of a request, in bytes. Raises Refused (404) for an endpoint that is not listed."""
        path = scope["path"].rstrip("/") or "/"
        for methods, pattern, most in ENDPOINTS:
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
            await self.forward(scope, receive, sending)
            return
        except Refused as refused:
            status, sentence = refused.args
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full:
                print_error()
            status, sentence = (507, BUSY) if full else (500, "This request can't be answered.")
        if not begun:
            from starlette.responses import JSONResponse

            await JSONResponse({"detail": sentence}, status, {"connection": "close"})(scope, receive, send)

    async def forward(self, scope, receive, send):
        """Pass a request on to Gradio. Raises Refused."""
        headers = dict(scope["headers"])
        self.refuse_host(headers)
        most = self.limit(scope)
        length = headers.get(b"content-length", b"")
        if scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload"):
            await self.upload(scope, receive, send, length, b"transfer-encoding" in headers)
            return
        if length.isdigit() and int(length) > most:
            raise Refused(413, f"At most {most / 1e6:g} MB.")
        if scope["method"] == "POST":
            receive = replay(await read_body(receive, most), receive)
        await self.app(scope, receive, send)

    async def upload(self, scope, receive, send, length, chunked):
        """Receive an upload; its bytes are reserved before it arrives."""
        if chunked or not length.isdigit():
            raise Refused(411, "An upload needs a Content-Length.")
        left, ends = int(length), time.monotonic() + MAX_AGE
        if left > self.upload_dir.request + 1_000_000:
            raise Refused(
                413, f"At most {MAX_FILES} files of {self.upload_dir.request / MAX_FILES / 1e6:g} MB a request."
            )
        if not self.upload_dir.reserve(left):
            raise Refused(507, BUSY)

        async def counted():
            nonlocal left
            wait = min(STALL_TIMEOUT, ends - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), max(wait, 0))
            except TimeoutError:
                raise Refused(408, "This upload took too long.") from None
            size = len(message.get("body", b""))
            if size > left:
                raise Refused(413, "This upload is larger than its Content-Length.")
            left -= size
            self.upload_dir.release(size)
            return message

        ARRIVING.set(files := [])
        try:
            await self.app(scope, counted, send)
        except BaseException:  # delete the part that has arrived
            for name in files:
                Path(name).unlink(missing_ok=True)
            raise
        finally:
            self.upload_dir.release(left)


BUSY = "Too many photos at once: try again in a few minutes."


async def read_body(receive, most: int) -> bytes:
    """Read a request's body. Raises Refused where it has more than `most` bytes or does not arrive in time."""
    parts, size, more = [], 0, True
    try:
        async with asyncio.timeout(STALL_TIMEOUT):
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


def replay(body: bytes, receive):
    """A `receive` that returns a body that was already read, then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again():
        return waiting.pop() if waiting else await receive()

    return again
