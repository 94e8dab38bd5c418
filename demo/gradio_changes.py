"""What of Gradio is changed: fields that keep no file, no memory of sessions, no traceback that quotes a visitor."""

import os
import types

import gradio as gr
from gradio import processing_utils, queueing, route_utils, routes, state_holder

from demo.uploads import ARRIVING, print_error


def separate_upload_folders():
    """Give each upload a folder of its own. Gradio names folders by the content, so that two visitors who send the same
    photo would share a file, and the first answer would delete it for the second."""

    class Upload(route_utils.GradioUploadFile):
        def __init__(self, *words, **named):
            super().__init__(*words, **named)
            self.sha.update(os.urandom(16))
            ARRIVING.get().append(self.file.name)

    route_utils.GradioUploadFile = Upload


def file_field(**words):
    """Gradio's File field, without the empty file that it writes beside each upload."""
    field = gr.File(**words)
    field._process_single_file = lambda file: file.path
    return field


def camera_field(**words):
    """Gradio's Image field as a camera, which gives a still's path or a frame's data: URL. Gradio would decode them
    without our limits."""
    field = gr.Image(sources=["webcam"], type="filepath", **words)
    field.preprocess = lambda sent: sent and ((sent.url if words.get("streaming") else sent.path) or None)
    return field


def disable_session_memory():
    """Stop Gradio from keeping every session's inputs and answers, and from fetching URLs that a request names."""
    state_holder.SessionState._update_value_in_config = lambda *_: None

    async def refuse(*_, **__):
        raise ValueError("photos must be uploaded, not linked")

    processing_utils.async_ssrf_protected_download = refuse


def disable_tracebacks():
    """Stop Gradio from printing tracebacks of failed requests, which quote what visitors sent."""
    quiet = types.SimpleNamespace(print_exc=print_error)
    queueing.traceback = routes.traceback = route_utils.traceback = quiet
