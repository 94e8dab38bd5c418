"""A demo in the browser: a trained run answers for a visitor's photos, from a file or the camera, and makes pictures.

    python -m demo.app --run runs/trash                       http://127.0.0.1:7860, for this computer alone
    python -m demo.app --run runs/first --folds 0 --share     one fold, and a public address for three days

What a visitor sends is looked at and forgotten: its file is deleted before the answer leaves, answers travel inside the
page, and nothing is written into a log. The same answers come by Gradio's API:

    from gradio_client import Client, handle_file
    Client("http://127.0.0.1:7860").predict([handle_file("a.jpg")], api_name="/answer")
"""

import html
import logging
import math
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from urllib.parse import urlsplit

from demo import uploads
from demo.cards import STYLE, as_csv, bars, card, data_url, encoded, read_advice, save_link
from demo.uploads import (
    FRAME,
    UploadDir,
    UploadQuotaMiddleware,
    camera_field,
    file_field,
    no_memory_of_visitors,
    no_text_of_visitors,
    one_folder_an_upload,
    own_hosts,
)
from foldface import runs
from foldface.cli import run_main
from foldface.files import InputError
from foldface.nn import devices

WAITING = 64  # requests that wait; more are told to come back
FILMING = 8  # cameras at a time
LIVE = 1.0  # seconds between two looks at a camera
EXAMPLES = 6


# ---------------------------------------------------------------------------------------------------- the page


class Demo:
    """What the page's buttons do."""

    def __init__(self, config, answerer, desk):
        from demo import gan_networks

        self.answerer, self.desk, self.limit = answerer, desk, int(config.app.upload_mb * 1e6)
        self.advice = read_advice(config.app.advice, answerer.task)
        path = Path(config.run) / "gan" / "best.safetensors"
        self.maker, self.made = gan_networks.load(path) if path.is_file() else (None, None)
        if self.maker is not None:
            self.maker.to(devices.choose(config))

    def look(self, path, heat=False):
        """The answer for an uploaded file, which is deleted; a sentence where it can't be read."""
        from demo import serving
        from foldface.data.photos import PhotoError

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
        rows = [(Path(path).name, self.look(path, heat)) for path in paths[: uploads.FILES]]
        for path in paths[uploads.FILES :]:
            self.desk.forget(path)
        page = "".join(card(name, found, self.advice) for name, found in rows)
        if len(paths) > uploads.FILES:
            page = f"<p>{len(paths)} files: the first {uploads.FILES} are answered for.</p>" + page
        if rows:
            content = as_csv(self.answerer.task, rows)
            page = save_link("answers.csv", "text/csv", content, "Save answers.csv") + page
        return page, None

    def api(self, photos: list):
        """Answers for uploaded photos: a list of {file, label, probability, number, heads, said}."""
        answers = []
        for path in photos[: uploads.FILES]:
            name = Path(path).name
            found = self.look(path)
            keys = ("label", "probability", "number", "heads", "said")
            answers.append({"file": name} | {key: found.get(key) for key in keys})
        for path in photos[uploads.FILES :]:
            self.desk.forget(path)
        return answers

    def still(self, path, heat):
        """The answer for a photo that the camera took."""
        return (card("", self.look(path, heat), self.advice), None) if path else ("", None)

    def live(self, frame):
        """The answer for a frame of the camera, a data: address, which never was a file."""
        from demo import serving
        from foldface.data.photos import PhotoError

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

        from demo import gan_networks
        from foldface.data.photos import cv2

        if label not in self.made["classes"] or not math.isfinite(seed or 0):
            return card("", {"said": "There is no such picture."}, {}), 0  # the page itself asks for none
        seed = int(seed or 0) % 2**31
        kind = torch.tensor([self.made["classes"].index(label)])
        small = gan_networks.chosen(self.maker, kind, seed)[0]
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


def examples(config, answerer):
    """[(photo, word)] to try: the photos that --examples names, else drawn people for a run on faces or ages. Nobody's
    photo is shown to others unless it is named. Raises InputError where a named one can't be read."""
    import numpy as np

    from foldface.data.photos import PhotoError, is_photo, read_photo

    if config.examples:
        from demo.serving import boxed

        named = [Path(name) for name in config.examples]
        paths = [path for name in named for path in (sorted(name.iterdir()) if name.is_dir() else [name])
                 if not name.is_dir() or is_photo(path.name)]  # fmt: skip
        try:
            return [(boxed(read_photo(path), None), path.stem) for path in paths[:EXAMPLES]]
        except PhotoError as error:
            raise InputError(f"--examples: {error}") from None
    if not answerer.wants_faces and answerer.task.number is None:
        return []
    from tools.camera import take_photos
    from tools.portrait import invent

    found = []
    for number in range(3):
        person = invent(np.random.default_rng([7, number]), number % 2, (22, 45, 60)[number])
        for stem, _, photo, _ in take_photos(person, (config.seed, 9, number)):
            if stem in ("mask1", "incorrect_mask", "normal")[number]:
                found.append((photo[..., ::-1], stem))
    return found


def build(config, answerer, desk):
    """The page, a gradio.Blocks. All but filming goes through one queue: one request is answered at a time."""
    import gradio as gr

    demo, task = Demo(config, answerer, desk), answerer.task
    one = {"concurrency_limit": 1, "concurrency_id": "model"}
    hidden = {"api_visibility": "private"}
    shown = examples(config, answerer)
    title = f"{Path(config.run).name}: " + (
        f"{task.answered[0].name}" if task.numeric else ", ".join(head.name for head in task.answered)
    )
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}\nPhotos are looked at and forgotten: nothing that you send is kept.")
        with gr.Tab("Upload"):
            files = file_field(label=f"Photos, {uploads.FILES} at most", file_count="multiple")
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
                gr.Markdown(f"No pictures are learned yet: `python -m demo.gan --run {config.run}`")
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


def start(config, desk):
    """Load, warm up and serve; returns the running gradio.Blocks."""
    os.environ["GRADIO_TEMP_DIR"], os.environ["GRADIO_ANALYTICS_ENABLED"] = str(desk.folder), "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    began = time.perf_counter()
    from demo import serving

    answerer = serving.Predictor(config, config.folds)
    import gradio as gr
    from starlette.middleware import Middleware

    one_folder_an_upload()
    no_memory_of_visitors()
    no_text_of_visitors()
    hosts = own_hosts(config.app.host, config.app.root_url)
    page = build(config, answerer, desk)
    desk.keep_what_is_there()
    page.launch(
        server_name=config.app.host or "127.0.0.1",
        server_port=config.app.port or None,
        share=config.share,
        max_file_size=int(config.app.upload_mb * 1e6),
        prevent_thread_lock=True,
        quiet=True,
        css=STYLE,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # none from the network
        footer_links=["api"],
        ssr_mode=False,
        root_path=config.app.root_url or None,
        run_history=False,  # it lists and makes buckets with the operator's token
        mcp_server=False,
        enable_monitoring=False,
        app_kwargs={"middleware": [Middleware(UploadQuotaMiddleware, desk=desk, hosts=hosts)], "openapi_url": None},
        state_session_capacity=200,
    )
    desk.watch()
    everywhere = f", and at every other address of this computer ({page.server_name})" if "*" in hosts else ""
    seconds = time.perf_counter() - began
    print(f"{config.run}: {page.local_url}{everywhere} ({seconds:.1f} s; Ctrl-C ends it)", flush=True)
    if page.share_url:
        hosts.add(urlsplit(page.share_url).hostname)
        print(f"for everybody: {page.share_url}", flush=True)
    return page


def main():
    config = runs.read_for_run(__doc__, FLAGS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the desk is cleared then, too
    warnings.simplefilter("ignore")  # libraries warn with what a visitor sent
    logging.disable(logging.CRITICAL)
    desk = UploadDir(int(config.app.upload_mb * 1e6))
    try:
        page = start(config, desk)
        page.block_thread()
    except OSError as error:
        if "port" not in str(error):
            raise
        raise InputError(f"app.port {config.app.port}: {error}") from None
    finally:
        desk.close()
    sys.exit(0)


if __name__ == "__main__":
    run_main(main)
