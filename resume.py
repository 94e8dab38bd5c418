"""What a stopped run needs to go on as if it had never stopped: every random state, and a stop between two steps."""

import contextlib
import random
import signal
import threading
from types import SimpleNamespace

import numpy as np


def random_states():
    """The state of every source of random numbers of this process, as what torch.load(weights_only=True) takes."""
    import torch

    numpy = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy, "python": random.getstate()}


def set_random_states(states):
    """Back to what random_states() gave."""
    import torch

    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    inner = states["numpy"]["state"]
    np.random.set_state(states["numpy"] | {"state": inner | {"key": np.array(inner["key"], np.uint32)}})
    random.setstate(states["python"])


@contextlib.contextmanager
def stopping_between_steps():
    """Within the block Ctrl-C only sets `asked` of what this gives; a second one interrupts at once.

    An interrupt in mid-step would leave a model that has taken a step which nobody counted.
    """
    stop = SimpleNamespace(asked=False)
    before = signal.getsignal(signal.SIGINT)

    def ask(*_):
        stop.asked = True
        signal.signal(signal.SIGINT, before)

    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread:
        signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, before)
