"""Fetch one file of a URL: in sequence, never more bytes than expected, whole or not at all.

http and https are read by requests, buckets by fsspec and its packages. No shell command is made of a URL, as
webdataset makes one (curl, gsutil).
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import fsspec
import requests

from foldface.files import InputError, atomic_write
from foldface.urls import SCHEMES, scheme_of, shown

WAITS = (1.0, 4.0, 15.0)  # seconds before the second, third and fourth try
TIMEOUT = 10, 30  # seconds to connect, and without a byte
REDIRECTS = 5
CHUNK = 1 << 16  # bytes at most that are read before a stop is seen
LEAST, WINDOW = 1000, 60  # bytes a second that a server must send, over so many seconds
FOR_NOW = (408, 425, 429)  # of the answers 4xx, those that may be others later
FINAL = (FileNotFoundError, PermissionError, ValueError)  # ValueError: a URL that can be none


class FetchError(InputError):
    """A file of a URL that can't be fetched: which one, why, what to do."""


class Failed(Exception):
    """One try that failed, and why; `final`: another one would fail too."""

    def __init__(self, why: str, final: bool = False):
        super().__init__(why)
        self.final = final


class Answer(NamedTuple):
    """What a server sends: `tag` says which version of the file it is, chunks() gives its bytes."""

    tag: str
    chunks: Callable[[], Iterator[bytes]]


def fetch(
    url: str,
    path: Path | str,
    most: int,
    exact: bool = False,
    tag: str = "",
    waits: Sequence[float] = WAITS,
    stop: threading.Event | None = None,
    check: Callable[[Path], None] = lambda path: None,
) -> str | None:
    """Write the file at `url` to `path`, atomically; -> its tag, or None where it is still the version `tag`: then
    nothing is written.

    most: bytes that it may have; exact: and must have. waits: seconds between tries. stop: ends it early. check:
    is called with the whole file before it takes its name, and raises what keeps it from that. Raises FetchError where
    the last try failed, and InputError where the file can't be written.
    """
    for wait in (*waits, None):
        try:
            return attempt(url, Path(path), most, exact, tag, stop or threading.Event(), check)
        except Failed as error:
            if error.final or wait is None:
                raise FetchError(f"{url}: can't be fetched ({error}); the same command goes on where it was") from None
        if stop:
            stop.wait(wait)
        else:
            time.sleep(wait)


def attempt(url, path, most, exact, tag, stop, check):
    """One try of `fetch`. Raises Failed."""
    if stop.is_set():
        raise Failed("stopped", final=True)
    opened = over_http if scheme_of(url) in ("http", "https") else from_bucket
    with opened(url, tag) as answer:
        if answer is None:
            return None
        with atomic_write(path, every_rank=True) as partial:
            size = write_chunks(partial, paced(answer.chunks(), stop), most, exact)
            if exact and size < most:
                raise Failed(f"it ends after {size} of {most} bytes")
            check(partial)
        return answer.tag


def write_chunks(path, chunks, most, exact):
    """Write the chunks to a file; -> its bytes. Raises Failed where they are more than `most`."""
    with open(path, "wb") as file:
        for chunk in chunks:
            if file.tell() + len(chunk) > most:
                raise Failed(f"it is larger than {most} bytes, {'as index.csv has it' if exact else 'the most'}", True)
            file.write(chunk)
        return file.tell()


def paced(chunks, stop):
    """The chunks. Raises Failed at a stop, and where a server sends nearly nothing: it would hold a worker for ever."""
    begun, got = time.monotonic(), 0
    for chunk in chunks:
        if stop.is_set():
            raise Failed("stopped", final=True)
        yield chunk
        got += len(chunk)
        seconds = time.monotonic() - begun
        if seconds >= WINDOW:
            if got < LEAST * seconds:
                raise Failed(f"the server sends less than {LEAST} bytes a second")
            begun, got = time.monotonic(), 0


# ------------------------------------------------------------------------------------------------------- http


@contextlib.contextmanager
def over_http(url: str, tag: str) -> Iterator[Answer | None]:
    """The Answer of a server of http or https; None where the file is still the version `tag`. Raises Failed."""
    with requests.Session() as session:
        with failing():
            answer = follow(session, url, {"Accept-Encoding": "identity", **(json.loads(tag) if tag else {})})
        with contextlib.closing(answer):
            code = answer.status_code
            if code == 304 and tag:
                yield None
                return
            if code != 200:
                raise Failed(f"the server answers {code} {answer.reason}", 400 <= code < 500 and code not in FOR_NOW)
            yield Answer(conditions(answer.headers), lambda: guarded(pieces(answer.raw)))


def pieces(raw):
    """The bytes of an answer as they come, CHUNK at most: iter_content waits until it has as many as it was asked."""
    read = getattr(raw, "read1", raw.read)  # urllib3 1 has no read1
    while piece := read(CHUNK, decode_content=True):
        yield piece


def follow(session, url, headers):
    """The answer to a GET, after redirects to http and https; from https to https alone.

    Another host than that of `url` gets no name and password: ~/.netrc may hold some for a host that the user never
    named, and a redirect comes from a server.
    """
    begun, credentials = url, None  # None: requests takes those of ~/.netrc
    for _ in range(REDIRECTS + 1):
        answer = session.get(
            url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False, auth=credentials
        )
        if not answer.is_redirect:
            return answer
        answer.close()
        target = urljoin(url, answer.headers["location"])
        allowed = ("https",) if urlsplit(url).scheme == "https" else ("http", "https")
        if urlsplit(target).scheme not in allowed:
            raise Failed(f"the server redirects to {shown(target)}, which is not {' or '.join(allowed)}", True)
        if session.should_strip_auth(begun, target):
            credentials = without_credentials
        url = target
    raise Failed(f"the server redirects more than {REDIRECTS} times", True)


def without_credentials(request):
    """An `auth` of requests that adds none: where one is given, ~/.netrc is not read."""
    return request


def conditions(headers):
    """What to send with the next request, so that a file is sent only if it has changed: JSON, "" for none."""
    if headers.get("ETag"):
        return json.dumps({"If-None-Match": headers["ETag"]})
    if headers.get("Last-Modified"):
        return json.dumps({"If-Modified-Since": headers["Last-Modified"]})
    return ""


# ------------------------------------------------------------------------------------------------------- buckets


@contextlib.contextmanager
def from_bucket(url: str, tag: str) -> Iterator[Answer | None]:
    """The same by fsspec. Raises Failed, and InputError where the scheme's package is missing."""
    with contextlib.ExitStack() as stack:
        with failing():
            try:
                system, place = fsspec.core.url_to_fs(url)
            except ImportError as error:
                package = SCHEMES[scheme_of(url)]
                raise InputError(f"{url}: needs the package {package}: pip install {package} ({error})") from None
            system.invalidate_cache()  # a listing of before would hide that the file has changed
            now = system.ukey(place)
            file = None if tag == now else stack.enter_context(system.open(place, "rb"))
        yield file and Answer(now, lambda: guarded(iter(lambda: file.read(CHUNK), b"")))


# ------------------------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def failing():
    """Raise Failed for what goes wrong in the block: no OSError, which would be one of our own disk."""
    try:
        yield
    except (Failed, InputError):
        raise
    except Exception as error:  # each package has its own
        raise Failed(reason_of(error), isinstance(error, FINAL)) from None


def guarded(chunks):
    """The chunks, whose errors are Failed."""
    with failing():
        yield from chunks


def reason_of(error):
    """Why a connection failed, in a few words: libraries wrap the system's error several times."""
    if isinstance(error, FileNotFoundError):  # of fsspec: its text is the name alone
        return "no such file"
    inner, seen = error, {id(error)}
    while (below := inner.__cause__ or inner.__context__) and id(below) not in seen:
        inner = below
        seen.add(id(below))
    words = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return " ".join(words.split())[:160]
