"""URLs of folders of shards (data.crops): which are taken, and where on this machine their copies lie.

    https://HOST/PATH/shards   ->   ~/.cache/foldface/crops/DIGEST OF THE URL/

XDG_CACHE_HOME names another place than ~/.cache. Nothing of a run or a URL decides where that is.
"""

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from foldface.files import InputError

# scheme: the package that reads it. pipe: and the others of webdataset are shell commands there, and none here.
SCHEMES = {"http": "requests", "https": "requests", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
SCHEMES |= {"az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}
URL = re.compile(r"(pipe|file):|([a-z][a-z0-9+.-]+)(?:://|::)", re.IGNORECASE)  # C:\crops and a:b are paths
CONTAINERS = ("hf", "az", "abfs")  # where an @ in the host's place divides other names: a revision, a container
SOURCE = "source.json"  # in the folder of a copy: what it is a copy of


def scheme_of(value: object) -> str:
    """The scheme of a URL in small letters, "" for a path."""
    found = URL.match(value) if isinstance(value, str) else None
    return (found[1] or found[2]).lower() if found else ""


def shown(url: str) -> str:
    """A URL as a message may print it: without what may be a name, a password or a key."""
    url = re.sub(r"^([^/@]*?:/*).*@", r"\1...@", url, flags=re.DOTALL)
    return re.sub(r"\?.*", "?...", url, flags=re.DOTALL)


def holds_password(url: str, scheme: str) -> bool:
    """True where a name or password stands before the host, also in a URL that urlsplit does not take."""
    place = re.search(r"//([^/?#]*)", url)
    userinfo, at, _ = place[1].rpartition("@") if place else ("", "", "")
    return at != "" and (scheme not in CONTAINERS or ":" in userinfo)


def refuse_bad_url(value: str, key: str) -> None:
    """Raise InputError where a setting `key` is a URL that is not taken; paths are not looked at.

    No message prints a name or password, since it goes to terminals and logs.
    """
    scheme, taken = scheme_of(value), ", ".join(SCHEMES)
    if not scheme:
        return
    printed = shown(value)
    if holds_password(value, scheme):
        raise InputError(f"{key} {printed}: holds a name or password, which would stand in args.json: leave them out: "
                         "https takes them from ~/.netrc, a bucket's package from where it looks for them")  # fmt: skip
    if scheme == "pipe":
        raise InputError(f"{key} {printed}: is a command, and none is run: name a folder, or a URL of {taken}")
    if scheme == "file":
        raise InputError(f"{key} {printed}: name the folder itself, without file:")
    if scheme not in SCHEMES or "::" in value:
        raise InputError(f"{key} {printed}: such URLs are not taken: name a folder, or a URL of {taken}")
    try:
        parts = urlsplit(value)
        host = parts.hostname if parts.port != 0 else ""  # .port raises ValueError where it is no number
    except ValueError:
        host = ""
    if not host:
        raise InputError(f"{key} {printed}: names no host, or a port that is none")
    if re.search(r"[?#{}\s]", value) or value.rstrip("/").endswith((".tar", ".csv")):
        raise InputError(f"{key} {printed}: name the folder of the shards, the one that holds index.csv, and no more")


def cache_root() -> Path:
    """The folder of all copies. Its user's environment decides where it is."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return Path(home if os.path.isabs(home) else os.path.expanduser("~/.cache")) / "foldface" / "crops"


def home_of(url: str) -> Path:
    """The folder of the copies of a URL, which need not exist."""
    return cache_root() / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:32]


def never_fetched(value: object) -> bool:
    """True for a URL of which there is no copy here: its user has not named it yet. A run's args.json may be a
    stranger's, so it opens no connection to such a host."""
    return scheme_of(value) != "" and not (home_of(value) / SOURCE).is_file()
