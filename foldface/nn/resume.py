"""What a stopped run needs to go on as if it had never stopped: every random state, and a stop between two steps."""

import contextlib
import hashlib
import random
import signal
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch

from foldface import cli, runs
from foldface.data import shards
from foldface.runtime import Stopped
from foldface.settings import Config, as_dict, flatten


def load_tensors(path: Path | str) -> Any:
    """What torch.save wrote, of tensors and plain values alone, on the CPU: no pickle runs code. A file takes no more
    memory than it is large: torch would unpack a compressed one, whatever it grows to. Raises ValueError for that, and
    what torch.load raises."""
    refuse_compressed(path)
    return torch.load(path, "cpu", weights_only=True)


def refuse_compressed(path: Path | str) -> None:
    """Raise ValueError for an archive with a compressed part, which could grow to any size: neither torch.save nor
    np.savez writes one."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            packed = [entry.filename for entry in file.infolist() if entry.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"{packed[0]} is compressed")


def belongs(config: Config, fold: int, rows: pd.DataFrame) -> dict:
    """What a fold's state hangs on: {"fold", "rows" (a digest of which photos with which labels), "order" (of the
    shards that they lie in, "" = in files), "settings" (those that may not change in a begun run; of data paths the
    rows say more)}. rows: DataFrame of training rows; where their files lie is not part of it."""
    frame = rows.drop(columns=["photo", "file"], errors="ignore").reset_index(drop=True)
    words = frame.select_dtypes(exclude=["number", "bool"]).columns
    frame = frame.astype(dict.fromkeys(words, str))
    digest = hashlib.sha1(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes()).hexdigest()
    values = flatten(as_dict(config))
    values = {key: repr(value) for key, value in values.items() if not key.startswith((*cli.FREE, *runs.DATA_PATHS))}
    places = shards.places(rows["file"]) if "file" in rows else None
    order = "" if places is None else hashlib.sha1(np.stack(places).tobytes()).hexdigest()
    return {"fold": fold, "rows": digest, "order": order, "settings": values}


def refuse_other_state(now: dict, before: dict) -> None:
    """Raise ValueError where a state (before: its `belongs`) is of another fold, other rows or other settings than this
    fit (now): to go on from another fold's would be to validate on people who were trained on."""
    for name, value in now.items():
        if name == "settings":
            changed = [key for key in value if key in before[name] and before[name][key] != value[key]]
            if changed:
                raise ValueError(f"it was saved with other settings: {', '.join(changed)}")
        elif name == "order":
            if before.get(name, "") != value:  # states of earlier versions: in files
                raise ValueError("its photos lay in other shards, or in files: name the data.crops that it began with")
        elif before[name] != value:
            what = f"it is of fold {before[name]}" if name == "fold" else "it was trained on other photos or labels"
            raise ValueError(what)


def random_states() -> dict:
    """The state of every source of random numbers of this process, as what torch.load(weights_only=True) takes."""
    numpy = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy, "python": random.getstate()}


def set_random_states(states: dict) -> None:
    """Back to what random_states() gave."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    inner = states["numpy"]["state"]
    np.random.set_state(states["numpy"] | {"state": inner | {"key": np.array(inner["key"], np.uint32)}})
    random.setstate(states["python"])


class StopRequest:
    """Was a stop asked for, and by which signal?"""

    def __init__(self):
        self.asked, self.number = False, signal.SIGINT

    def end(self) -> NoReturn:
        """Raise Stopped."""
        raise Stopped(self.number)


@contextlib.contextmanager
def stopping_between_steps() -> Iterator[StopRequest]:
    """Within the block Ctrl-C and SIGTERM only set `asked` of what this gives; a second Ctrl-C interrupts at once.

    `stop.end()` then raises Stopped. An interrupt in mid-step would leave a model that has taken a step which nobody
    counted.
    """
    stop = StopRequest()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def ask(number, _):
        stop.asked, stop.number = True, number
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread:
        for number in numbers:
            signal.signal(number, ask)
    try:
        yield stop
    finally:
        if main_thread:
            for number in numbers:
                signal.signal(number, before[number])
