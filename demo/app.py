"""Serve a trained run in the browser: it classifies photos from files or the camera, and makes pictures with its GAN.

    python -m demo.app --run runs/trash                       http://127.0.0.1:7860, only for this computer
    python -m demo.app --run runs/first --folds 0 --share     one fold, and a public URL for three days

Nothing that a visitor sends is kept: a file is deleted before its answer is sent, answers are part of the page, and no
log is written. The same answers are available through Gradio's API:

    from gradio_client import Client, handle_file
    Client("http://127.0.0.1:7860").predict([handle_file("a.jpg")], api_name="/answer")
"""

import logging
import os
import signal
import sys
import warnings

from demo.uploads import UploadDir
from foldface import runs
from foldface.cli import run_main
from foldface.files import InputError

USED = ("task", "data", "inference", "app")  # --help shows these groups of settings
FLAGS = {
    "--folds": {"type": int, "nargs": "+", "default": [], "help": "folds to average (default: all)"},
    "--examples": {
        "nargs": "+",
        "default": [],
        "metavar": "FILE",
        "help": "photos, or folders of photos, that every visitor sees and may try",
    },
    "--share": {
        "action": "store_true",
        "help": "open a public URL through Gradio's tunnel, which all photos then pass through",
    },
}


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, FLAGS, argv, USED)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that uploads are deleted then, too
    warnings.simplefilter("ignore")  # warnings of libraries may quote what a visitor sent
    logging.disable(logging.CRITICAL)
    upload_dir = UploadDir(int(config.app.upload_mb * 1e6))
    os.environ["GRADIO_ANALYTICS_ENABLED"], os.environ["HF_HUB_DISABLE_TELEMETRY"] = "False", "1"
    try:
        from demo.page import start  # Gradio reads the environment when it is imported

        page = start(config, upload_dir)
        page.block_thread()
    except OSError as error:
        if "port" not in str(error):
            raise
        raise InputError(f"app.port {config.app.port}: {error}") from None
    finally:
        upload_dir.close()
    sys.exit(0)


if __name__ == "__main__":
    run_main(main)
