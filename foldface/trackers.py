"""The trackers of foldface/tracking.py, each through accelerate's class for it (accelerate.tracking)."""

import contextlib
import importlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from accelerate import tracking as accelerates
from torch.utils.tensorboard import summary

from foldface import tracking
from foldface.files import InputError, read_json, write_json
from foldface.predictions import fold_name
from foldface.runtime import is_main_process
from foldface.settings import Config, as_dict, flatten
from foldface.tracking import Tracker

PROJECT = "foldface"


def package(name: str) -> ModuleType:
    """A tracker's package, which is optional; tracking.refuse_missing has made sure that it is there."""
    return importlib.import_module(name)


def flat_settings(config: Config, fold: int) -> dict:
    """All settings by their dotted names, with the fold: numbers and text, of lists and null their JSON."""
    flat = flatten(as_dict(config)) | {"fold": fold}
    return {
        name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value) for name, value in flat.items()
    }


@contextlib.contextmanager
def opened(config: Config, fold: int) -> Iterator[Tracker]:
    """Yield the fold's Tracker, which does nothing where log is none and on other ranks than 0.

    Raises InputError if a tracker refuses, as W&B does without an account.
    """
    names = tracking.chosen(config) if is_main_process() else []
    tracker = tracking.Several(start(config, fold, names)) if names else tracking.NONE
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close(failed=False)


def start(config: Config, fold: int, names: list[str]) -> list[Tracker]:
    """Open the trackers of these names for a fold. Raises InputError, with none left open, where one refuses."""
    kinds, opened = {kind.name: kind for kind in (TensorBoard, Wandb, Trackio, MLflow)}, []
    try:
        for name in names:
            opened.append(kinds[name](config, fold))
    except BaseException:
        for tracker in opened:
            tracker.close(failed=True)
        raise
    return opened


class ResumableTracker(Tracker):
    """A tracker that goes on in the run that it began before an interruption. `arrived`: the last step that it has."""

    active = True

    def __init__(self, config: Config, fold: int):
        self.folder, self.group = Path(config.run) / fold_name(fold), Path(config.run).resolve().name
        self.path = self.folder / f"{self.name}.json"
        self.state = read_json(self.path, "remove it") if self.path.is_file() else {}
        self.arrived = self.step = self.state.get("step", 0)
        self.settings = flat_settings(config, fold)
        self.open(config)

    def keep(self, **state) -> None:
        """Put this into the state of the tracker's run, and write it."""
        self.state |= state
        write_json(self.path, self.state)

    def log(self, values: dict, step: int) -> None:
        if step > self.arrived:
            self.step = self.arrived = step
            self.send({name: value if name == "epoch" else float(value) for name, value in values.items()}, step)

    def send(self, values: dict, step: int) -> None:
        """Hand a point to accelerate's tracker."""
        self.inner.log(values, step=step)

    def close(self, failed: bool) -> None:
        self.finish(failed)  # only now all has been written
        self.keep(step=self.step)

    def finish(self, failed: bool) -> None:
        """Close the tracker's run."""
        self.inner.finish()


class TensorBoard(ResumableTracker):
    """Events in the fold's folder."""

    name = "tensorboard"

    def open(self, config: Config) -> None:
        # TensorBoard drops what was logged after the last step that is known to have arrived
        purge = self.arrived + 1 if self.state else None
        self.inner = accelerates.TensorBoardTracker(self.folder.name, config.run, purge_step=purge)
        self.inner.start()
        if not self.state:  # accelerate's own way writes the settings into a further run
            for one in summary.hparams(self.settings, {f"oof/{config.predicted.score}": None}):
                self.inner.writer.file_writer.add_summary(one)
            self.keep(step=0)

    def send(self, values, step):
        super().send(values, step)  # it is flushed there
        self.keep(step=step)

    def conclude(self, scores: dict, pictures: dict) -> None:
        self.inner.log(scores, step=self.step)
        self.inner.log_images({k: np.stack(v) for k, v in pictures.items()}, step=self.step, dataformats="NHWC")


class Wandb(ResumableTracker):
    """A run of Weights & Biases."""

    name = "wandb"

    def open(self, config: Config) -> None:
        names = {"group": self.group, "name": f"{self.group}/{self.folder.name}", "config": self.settings}
        where = os.environ.get("WANDB_DIR", config.run)
        self.inner = accelerates.WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT), id=self.state.get("id"), resume="allow", dir=where, **names
        )
        try:
            self.inner.start()
        except package("wandb").errors.Error as error:
            raise InputError(
                f"log is wandb, and W&B refuses: {error}. Run `wandb login`, set WANDB_MODE=offline, or --log none"
            ) from None
        self.keep(id=self.inner.run.id)
        self.arrived = max(self.arrived, self.inner.run.step - 1)  # a resumed W&B run has its next step here

    def send(self, values, step):
        self.inner.log(values, step=step, commit=True)  # without commit it arrives with the next point

    def conclude(self, scores: dict, pictures: dict) -> None:
        self.inner.log_images(pictures)
        self.inner.run.summary.update(scores)

    def finish(self, failed):
        self.inner.run.finish(exit_code=int(failed))


class Trackio(ResumableTracker):
    """A run of Trackio, in a folder of this machine unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say otherwise."""

    name = "trackio"

    def open(self, config: Config) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(Path(config.run).resolve() / "trackio"))  # it is read at the import
        names = {"group": self.group, "name": f"{self.group}/{self.folder.name}", "config": self.settings}
        self.inner = accelerates.TrackioTracker(
            PROJECT, resume="allow" if self.state else "never", auto_log_cpu=False, auto_log_gpu=False, **names
        )
        self.inner.start()
        if self.state:
            self.arrived = self.inner.run._next_step - 1  # what a kill lost is sent again
        self.keep(id=self.inner.run.id)

    def conclude(self, scores: dict, pictures: dict) -> None:
        image = package("trackio").Image
        shown = {f"{name}/{k}": image(one) for name, found in pictures.items() for k, one in enumerate(found)}
        self.inner.log(scores | shown, step=self.step)


class MLflow(ResumableTracker):
    """A run of MLflow, in a file of SQLite unless MLFLOW_TRACKING_URI says otherwise."""

    name = "mlflow"

    def open(self, config: Config) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow, artifacts = package("mlflow"), None
        logging.getLogger("alembic").setLevel(logging.WARNING)  # a line for each table that it makes
        if "MLFLOW_TRACKING_URI" not in os.environ:
            home = Path(config.run).resolve()
            mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")
            artifacts = (home / "mlflow").as_uri()
        self.inner = accelerates.MLflowTracker(
            self.group, artifacts, self.state.get("id"), run_name=f"{self.group}/{self.folder.name}"
        )
        try:
            self.inner.start()
        except mlflow.exceptions.MlflowException as error:
            raise InputError(f"log is mlflow, and MLflow refuses: {error}: mend it, or --log none") from None
        run = self.inner.active_run.info.run_id
        if not self.state:
            self.inner.store_init_configuration(self.settings)
        self.keep(id=run)
        history = [mlflow.MlflowClient().get_metric_history(run, name) for name in ("epoch", "batch_loss")]
        self.arrived = max((point.step for points in history for point in points), default=0)

    def conclude(self, scores: dict, pictures: dict) -> None:
        self.inner.log(scores, step=self.step)
        for name, found in pictures.items():
            for k, picture in enumerate(found):
                package("mlflow").log_image(picture, f"{name}/{k}.png")

    def finish(self, failed):
        package("mlflow").end_run("FAILED" if failed else "FINISHED")
