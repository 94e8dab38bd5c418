"""The page of the demo: its controls and what answers them; the server that it is sent by."""

import html
import math
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import gradio as gr
import numpy as np
import torch
from starlette.middleware import Middleware

from demo import gan_networks, serving, uploads
from demo.cards import STYLE, as_csv, bars, card, data_url, encode_image, read_advice, save_link
from demo.gradio_changes import (
    camera_field,
    disable_session_memory,
    disable_tracebacks,
    file_field,
    separate_upload_folders,
)
from demo.uploads import MAX_FRAME_BYTES, UploadQuotaMiddleware, own_hosts
from demo.words import LANGUAGES, STEMS, language, of_classes, say
from foldface import devices
from foldface.data.photos import PhotoError, is_photo, read_photo
from foldface.files import InputError, quoted
from tools.camera import take_photos
from tools.portrait import invent

MAX_QUEUE = 64  # waiting requests; further ones are refused
MAX_CAMERAS = 8  # live at the same time
LIVE_SECONDS = 1.0  # between two frames of a camera
MAX_EXAMPLES = 6
MAX_FOLDED = 4  # files of a request whose heat maps are made unasked, to be opened
INTO_VIEW = "() => document.querySelector('.answer').scrollIntoView({behavior: 'smooth', block: 'nearest'})"


class Demo:
    """The handlers of the page's controls."""

    def __init__(self, config, predictor, upload_dir):
        self.predictor, self.upload_dir, self.limit = predictor, upload_dir, int(config.app.upload_mb * 1e6)
        self.advice = read_advice(config.app.advice, predictor.task)
        path = Path(config.run) / "gan" / "best.safetensors"
        self.generator, self.gan_about = gan_networks.load(path) if path.is_file() else (None, None)
        if self.generator is not None:
            self.generator.to(devices.choose_device(config, {})[0])

    def answer_file(self, path, heat=False, tongue="en"):
        """Answer for an uploaded file and delete it. Only {"said"}, a sentence, where it can't be read."""
        if not self.upload_dir.holds(path):
            return {"said": say(tongue, "not_sent")}
        try:
            sides = 0, self.predictor.side
            photo, reduced = (serving.read_visitor_photo(Path(path), self.limit, side) for side in sides)
        except PhotoError as error:
            return {"said": say(tongue, "bad_file", why=error)}
        finally:
            self.upload_dir.delete(path)
        return self.predictor.answer(photo, heat, reduced)

    def upload(self, paths, heat, request: gr.Request = None):
        """Answer for uploaded files: (HTML, None, which empties the file field). The heat maps of a few are there to be
        opened, since the photos are gone; of many they are computed where they were asked for."""
        paths, tongue = paths or [], tongue_of(request)
        wanted = heat or len(paths) <= MAX_FOLDED
        rows = [(Path(path).name, self.answer_file(path, wanted, tongue)) for path in paths[: uploads.MAX_FILES]]
        for path in paths[uploads.MAX_FILES :]:
            self.upload_dir.delete(path)
        page = "".join(card(name, found, self.advice, tongue, heat) for name, found in rows)
        if len(paths) > uploads.MAX_FILES:
            page = f"<p>{say(tongue, 'too_many', count=len(paths), most=uploads.MAX_FILES)}</p>" + page
        if rows:
            content = as_csv(self.predictor.task, rows)
            page += save_link("answers.csv", "text/csv", content, say(tongue, "save_csv"))
        return page, None

    def api(self, photos: list):
        """Answer for uploaded photos: a list of {file, label, probability, number, heads, said}."""
        answers = []
        for path in photos[: uploads.MAX_FILES]:
            name = Path(path).name
            found = self.answer_file(path)
            keys = ("label", "probability", "number", "heads", "said")
            answers.append({"file": name} | {key: found.get(key) for key in keys})
        for path in photos[uploads.MAX_FILES :]:
            self.upload_dir.delete(path)
        return answers

    def still(self, path, heat, request: gr.Request = None):
        """Answer for a photo taken with the camera: (HTML, None, which empties the field)."""
        tongue = tongue_of(request)
        return (card("", self.answer_file(path, True, tongue), self.advice, tongue, heat), None) if path else ("", None)

    def live(self, frame, request: gr.Request = None):
        """Answer for a frame of the camera, a data: URL that is never written to a file."""
        tongue = tongue_of(request)
        if not frame:
            return ""
        try:
            most = min(self.limit, MAX_FRAME_BYTES)
            photo, reduced = (serving.read_frame(frame, most, side) for side in (0, self.predictor.side))
        except PhotoError as error:
            return card("", {"said": say(tongue, "bad_frame", why=error)}, {})
        return card("", self.predictor.answer(photo, reduced=reduced), self.advice, tongue)

    def make(self, label, seed, request: gr.Request = None):
        """Make a picture of a label: (HTML with the picture, the run's own answer and a link to save it, next seed)."""
        tongue = tongue_of(request)
        if label not in self.gan_about["classes"] or not math.isfinite(seed or 0):
            return card("", {"said": say(tongue, "no_picture")}, {}), 0  # the page itself never asks for one
        seed = int(seed or 0) % 2**31
        kind = torch.tensor([self.gan_about["classes"].index(label)])
        small = gan_networks.chosen(self.generator, kind, seed)[0]
        large = cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC)
        content = encode_image(large, ".png")
        found = {"said": say(tongue, "number", label=label, seed=seed)}
        if not self.predictor.needs_faces:
            found |= {key: self.predictor.answer(small)[key] for key in ("heads", "ordered")}
        words = f"<p>{html.escape(say(tongue, 'classifier'))}</p>" if "heads" in found else ""
        save = save_link(f"{label}-{seed}.png".replace(" ", "-"), "image/png", content, say(tongue, "save_picture"))
        words += bars(found.get("heads", {}), found.get("ordered", ()), tongue)
        return (
            f'<div class="card"><div class="photos"><img alt="{html.escape(label)}" width="256" height="256" '
            f'src="{data_url("image/png", content)}" /><br>{save}</div>'
            f"<div><p><strong>{html.escape(found['said'])}</strong></p>{words}</div></div>",
            seed + 1,
        )


def examples(config, predictor):
    """[(photo, caption)] for visitors to try: the photos of --examples, else drawn people for a run on faces or ages.

    A real photo is only shown to visitors if --examples names it. Raises InputError where one can't be read.
    """
    if config.examples:
        named = [Path(name) for name in config.examples]
        paths = [path for name in named for path in (sorted(name.iterdir()) if name.is_dir() else [name])
                 if not name.is_dir() or is_photo(path.name)]  # fmt: skip
        try:
            return [(serving.draw_box(read_photo(path), None), path.stem) for path in paths[:MAX_EXAMPLES]]
        except PhotoError as error:
            raise InputError(f"--examples: {error}") from None
    if not predictor.needs_faces and predictor.task.number is None:
        return []
    found = []
    for number in range(3):
        person = invent(np.random.default_rng([7, number]), number % 2, (22, 45, 60)[number])
        for stem, _, photo, _ in take_photos(person, (config.seed, 9, number)):
            if stem in ("mask1", "incorrect_mask", "normal")[number]:
                found.append((photo[..., ::-1], of_classes("en", STEMS.values())[STEMS[stem]]))
    return found


def tongue_of(request) -> str:
    """The language that a visitor's browser asks for."""
    return language(request.headers.get("accept-language") if request else None)


def fixed_words(config) -> gr.I18n:
    """The words of the page's fixed parts, of which the browser takes those of its language."""
    values = {"most": uploads.MAX_FILES, "command": f"python -m demo.gan --run {quoted(config.run)}"}
    keys = (
        "kept",
        "upload",
        "photos",
        "heat",
        "examples",
        "webcam",
        "still",
        "live",
        "make",
        "no_gan",
        "label",
        "seed",
    )
    found = {tongue: {key: say(tongue, key, **values) for key in (*keys, "make_it")} for tongue in LANGUAGES}
    return gr.I18n(**found)


def build(config, predictor, upload_dir, translated):
    """Build the page, a gradio.Blocks, whose fixed words are `translated`.

    One queue answers one request at a time; live cameras are outside of it.
    """
    demo, task = Demo(config, predictor, upload_dir), predictor.task
    one = {"concurrency_limit": 1, "concurrency_id": "model"}
    hidden = {"api_visibility": "private"}
    shown = examples(config, predictor)
    title = f"{Path(config.run).name}: " + (
        f"{task.answered[0].name}" if task.numeric else ", ".join(head.name for head in task.answered)
    )
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}")
        gr.Markdown(translated("kept"))
        with gr.Tab(translated("upload")):
            files = file_field(label=translated("photos"), file_count="multiple", elem_classes="files")
            heat = gr.Checkbox(label=translated("heat"))
            answer = gr.HTML(elem_classes="answer")
            if shown:
                gallery = gr.Gallery(
                    shown, label=translated("examples"), columns=3, height=240, object_fit="contain",
                    allow_preview=False, format="jpeg",
                )  # fmt: skip
            sent = files.upload(demo.upload, [files, heat], [answer, files], **one, **hidden)
            sent.then(None, js=INTO_VIEW)
            if shown:

                def example(heat, event: gr.SelectData, request: gr.Request = None):
                    (photo, word), tongue = shown[event.index], tongue_of(request)
                    title = say(tongue, "example", word=word)
                    return card(title, predictor.answer(photo, True), demo.advice, tongue, heat)

                chosen = gallery.select(example, [heat], [answer], **one, **hidden)
                chosen.then(None, js=INTO_VIEW)
        with gr.Tab(translated("webcam")), gr.Row():
            with gr.Column():
                camera = camera_field(label=translated("still"))
                still = gr.HTML()
                camera.input(demo.still, [camera, heat], [still, camera], **one, **hidden)
            with gr.Column():
                stream = camera_field(streaming=True, label=translated("live"))
                live = gr.HTML()
                # a live camera holds its place in a queue: it gets a queue of its own, so that nothing waits for it
                stream.stream(
                    demo.live, [stream], [live],
                    stream_every=LIVE_SECONDS, time_limit=120, concurrency_limit=MAX_CAMERAS, **hidden,
                )  # fmt: skip
        if not task.multilabel:  # for which there is no generator
            with gr.Tab(translated("make")):
                if demo.generator is None:
                    gr.Markdown(translated("no_gan"))
                else:
                    label = gr.Radio(
                        demo.gan_about["classes"], value=demo.gan_about["classes"][0], label=translated("label")
                    )
                    seed = gr.Number(0, label=translated("seed"), precision=0)
                    made = gr.HTML()
                    button = gr.Button(translated("make_it"), variant="primary")
                    button.click(demo.make, [label, seed], [made, seed], **one, **hidden)

        def answer_api(photos: list[gr.FileData]) -> list:
            """Answer for uploaded photos: a list of {file, label, probability, number, heads, said}."""
            named = [photo.get("path") if isinstance(photo, dict) else None for photo in photos]
            return demo.api([str(path or "") for path in named])

        gr.api(answer_api, api_name="answer", **one)
    return page.queue(max_size=MAX_QUEUE)


def readable_theme() -> gr.themes.Base:
    """Gradio's theme with no font from the network, and colours of text that have a contrast of 4.5 at least."""
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return theme.set(
        color_accent="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
    )


def start(config, upload_dir):
    """Load the run, warm it up and serve; returns the running gradio.Blocks."""
    os.environ["GRADIO_TEMP_DIR"] = str(upload_dir.folder)
    began = time.perf_counter()
    predictor = serving.Predictor(config, config.folds)
    separate_upload_folders()
    disable_session_memory()
    disable_tracebacks()
    hosts = own_hosts(config.app.host, config.app.root_url)
    translated = fixed_words(config)
    page = build(config, predictor, upload_dir, translated)
    upload_dir.keep_existing()
    quota = Middleware(UploadQuotaMiddleware, upload_dir=upload_dir, hosts=hosts)
    page.launch(
        server_name=config.app.host or "127.0.0.1",
        server_port=config.app.port or None,
        share=config.share,
        max_file_size=int(config.app.upload_mb * 1e6),
        prevent_thread_lock=True,
        quiet=True,
        css=STYLE,
        i18n=translated,
        theme=readable_theme(),
        footer_links=["api"],
        ssr_mode=False,
        root_path=config.app.root_url or None,
        run_history=False,  # it would list and make buckets with the operator's token
        mcp_server=False,
        enable_monitoring=False,
        app_kwargs={"middleware": [quota], "openapi_url": None},
        state_session_capacity=200,
    )
    upload_dir.watch()
    everywhere = f", and at every other address of this computer ({page.server_name})" if "*" in hosts else ""
    seconds = time.perf_counter() - began
    print(f"{config.run}: {page.local_url}{everywhere} ({seconds:.1f} s; Ctrl-C ends it)", flush=True)
    if page.share_url:
        hosts.add(urlsplit(page.share_url).hostname)
        print(f"public: {page.share_url}", flush=True)
    return page
