"""The demo: what a visitor sends is answered, or refused in a sentence, and forgotten."""

import base64
import copy
import csv
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import bad_photos
import numpy as np
import pandas as pd
import pytest
from helpers import MASK, ROOT, write_photo

from demo import cards, page, serving, uploads, words
from foldface import registry
from foldface.data.photos import PhotoError, cv2, read_photo
from foldface.faces import detect
from foldface.files import InputError

pytest.importorskip("gradio")


def left(desk):
    """The files on the desk that aren't the demo's own."""
    return [path for path in desk.folder.rglob("*") if path.is_file() and path not in desk.kept]


@pytest.mark.slow
def test_the_interface_answers_and_forgets(served, tmp_path):
    from gradio_client import Client, handle_file

    url, desk, _, answerer, _ = served
    write_photo(tmp_path / "a.jpg", 1, (120, 90))
    client = Client(url, verbose=False)
    for _ in range(2):  # the same photo again, though its file is gone
        answers = client.predict([handle_file(str(tmp_path / "a.jpg"))] * 2, api_name="/answer")
        direct = answerer.answer(read_photo(tmp_path / "a.jpg"), reduced=read_photo(tmp_path / "a.jpg", answerer.side))
        assert [one["label"] for one in answers] == [direct["label"]] * 2 and direct["label"] in MASK.classes
        assert sum(answers[0]["heads"]["gender"].values()) == pytest.approx(1, abs=1e-4)
        assert not left(desk)


@pytest.mark.slow
def test_bad_uploads_are_each_a_sentence_and_none_stays(served, tmp_path):
    from gradio_client import Client, handle_file

    url, desk, *_ = served
    kinds = [name for name in bad_photos.UNREADABLE if name not in bad_photos.NO_FILES]
    photo = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    bad_photos.write(tmp_path, photo, kinds)
    (tmp_path / "script.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    (tmp_path / "..%2f..%2fpasswd.jpg").write_bytes(b"x")
    client = Client(url, verbose=False)
    for name in [*kinds, "script.svg", "..%2f..%2fpasswd.jpg"]:
        answer = client.predict([handle_file(str(tmp_path / name))], api_name="/answer")[0]
        assert answer["label"] == "" or answer["label"] is None, name
        assert answer["said"].startswith("This file can't be classified: "), name
        assert not left(desk), name


def test_a_request_reads_and_deletes_nothing_but_what_was_sent(served, tmp_path):
    import httpx

    url, *_ = served
    write_photo(tmp_path / "mine.jpg", 1)
    for told in ({}, {"meta": {"_type": "gradio.FileData"}}):
        sent = {"data": [[{"path": str(tmp_path / "mine.jpg")} | told]]}
        event = httpx.post(url + "gradio_api/call/answer", json=sent).json()["event_id"]
        answer = httpx.get(f"{url}gradio_api/call/answer/{event}", timeout=120).text
        assert "sure" not in answer and ("was not uploaded" in answer or "error" in answer)
    assert (tmp_path / "mine.jpg").is_file()


@pytest.mark.slow
def test_a_demo_that_was_killed_leaves_nothing_for_long(tmp_path):
    import subprocess
    import sys

    code = "import os, signal; from demo import uploads; d = uploads.UploadDir()\n"
    code += "print(d.folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    left_over = Path(done.stdout.strip())
    assert left_over.is_dir()
    first = uploads.UploadDir()
    second = uploads.UploadDir()
    assert not left_over.exists() and first.folder.is_dir() and second.folder.is_dir()  # those in use stay
    first.close(), second.close()
    assert not first.folder.exists() and not second.folder.exists()


def test_a_file_that_is_too_large_is_refused_at_the_door(served, tmp_path):
    import httpx

    url, desk, *_ = served
    sent = httpx.post(url + "gradio_api/upload", files={"files": ("big.jpg", bytes(3_000_000))})
    assert sent.status_code == 413 and "maximum allowed size" in sent.text
    assert not left(desk)


def test_uploads_can_not_fill_the_desk(served, monkeypatch):
    import httpx

    url, desk, config, *_ = served
    door = url + "gradio_api/upload"
    limit = int(config.app.upload_mb * 1e6)

    def pieces():
        yield b"--x\r\n"

    assert httpx.post(door, content=pieces()).status_code == 411
    many = [("files", (f"{k}.jpg", bytes(limit - 1000))) for k in range(uploads.MAX_FILES + 2)]
    assert httpx.post(door, files=many).status_code == 413
    with open(desk.folder / "others", "wb") as file:
        file.truncate(4 * uploads.MAX_FILES * limit)  # no disk is taken: the file is a hole
    answer = httpx.post(door, files={"files": ("a.jpg", b"small")})
    assert answer.status_code == 507 and "try again" in answer.json()["detail"]
    (desk.folder / "others").unlink()
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda _: SimpleNamespace(free=uploads.MIN_FREE_BYTES))
    assert httpx.post(door, files={"files": ("a.jpg", b"small")}).status_code == 507
    assert not left(desk) and not desk.reserved


def test_uploads_under_way_count(served):
    """Five visitors who say that they send 30 MB each, and don't, leave no room for a sixth; when they go there is."""
    import socket
    import time

    import httpx

    url, desk, *_ = served
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    size = desk.request - 1000
    words = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size}\r\n"
    words += "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    visitors = []
    for _ in range(4):
        visitors.append(socket.create_connection((host, int(port))))
        visitors[-1].sendall(words.encode())
    until(lambda: desk.reserved > 4 * size - 1000)
    big = {"files": ("a.jpg", bytes(900_000))}
    assert httpx.post(url + "gradio_api/upload", files=big).status_code == 507
    for visitor in visitors:
        visitor.close()
    until(lambda: desk.reserved == 0)
    assert httpx.post(url + "gradio_api/upload", files=big).status_code == 200
    time.sleep(0.1)
    desk.sweep(age=0)
    assert not left(desk)


def until(true, seconds=60):
    """Wait until something is true."""
    import time

    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_small_dev_shm_is_not_filled(tmp_path, monkeypatch, capsys):
    small, large, closed = (tmp_path / name for name in ("shm", "tmp", "closed"))
    small.mkdir(), large.mkdir()
    free = {small: 64_000_000, large: 10**10}
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda place: SimpleNamespace(free=free[place]))
    assert uploads.choose_place([small, large], 640_000_000) == large
    assert f"uploads are kept in {large} until they are answered: {small} has 64 MB free" in capsys.readouterr().out
    assert uploads.choose_place([small, large], 1_000_000) == small and not capsys.readouterr().out
    assert uploads.choose_place([closed, small], 640_000_000) == small


def test_a_full_disk_in_mid_upload_is_a_sentence(served, monkeypatch, capfd):
    import errno

    import httpx
    from gradio import route_utils

    async def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(route_utils.GradioUploadFile, "write", full)
    answer = httpx.post(served[0] + "gradio_api/upload", files={"files": ("a.jpg", b"x" * 1000)})
    assert answer.status_code == 507 and "try again in a few minutes" in answer.json()["detail"]
    assert "Traceback" not in capfd.readouterr().err and not served[1].reserved and not left(served[1])


def every_route(app_of_gradio):
    """(method, path) of every route that the installed Gradio has."""

    def walk(routes, prefix=""):
        for route in routes:
            inner = getattr(route, "original_router", None) or getattr(route, "router", None)
            if inner is not None:
                yield from walk(inner.routes, prefix)
            elif hasattr(route, "path"):
                for method in getattr(route, "methods", None) or {"GET"}:
                    yield method, prefix + route.path

    return sorted(set(walk(app_of_gradio.routes)))


OPEN = {
    "GET /", "HEAD /", "GET /config", "GET /config/", "GET /theme.css", "GET /favicon.ico", "GET /robots.txt",
    "GET /manifest.json", "GET /static/{path:path}", "GET /assets/{path:path}", "GET /svelte/{path:path}",
    "GET /gradio_api/info", "GET /gradio_api/info/", "GET /gradio_api/startup-events",
    "GET /gradio_api/upload_progress", "GET /gradio_api/queue/data", "GET /gradio_api/heartbeat/{session_hash}",
    "GET /gradio_api/call/{api_name}/{event_id}", "GET /gradio_api/file={path_or_url:path}",
    "HEAD /gradio_api/file={path_or_url:path}", "POST /gradio_api/upload", "POST /gradio_api/call/{api_name}",
    "POST /gradio_api/call/{api_name}/", "POST /gradio_api/queue/join", "POST /gradio_api/stream/{event_id}",
    "POST /gradio_api/stream/{event_id}/close", "POST /gradio_api/cancel", "POST /gradio_api/reset",
    "POST /gradio_api/reset/",
}  # fmt: skip


def test_only_listed_doors_are_open_of_all_that_this_gradio_has(served):
    import asyncio

    url = served[0]
    found = every_route(served[4].app)
    assert len(found) > 60 and ("POST", "/gradio_api/vibe-edit") in found
    reached = []

    async def gradio(scope, receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    gate, opened = uploads.UploadQuotaMiddleware(gradio, served[1], {"localhost"}), set()
    for method, path in found:
        asked = re.sub(r"\{api_name\}", "answer", path)
        asked = re.sub(r"\{[^}]*\}", "x1", asked)
        headers = [(b"host", b"localhost:1"), (b"content-length", b"0")]
        scope = {"type": "http", "method": method, "path": asked, "headers": headers}
        answers = []

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message, answers=answers):
            answers.append(message)

        reached.clear()
        asyncio.run(gate(scope, receive, send))
        assert bool(reached) == (answers[0]["status"] == 200) and answers[0]["status"] in (200, 404)
        if reached:
            opened.add(f"{method} {path}")
    assert opened == OPEN
    import httpx

    for path in ("run-history/buckets", "runs", "vibe-code", "file=https://example.org/", "file=//example.org/"):
        answer = httpx.get(f"{url}gradio_api/{path}")
        assert answer.status_code == 404 and answer.json() == {"detail": "There is nothing here."}, path
    assert httpx.get(url + "config").json().get("run_history") is False


@pytest.mark.parametrize(
    ("host", "names", "others"),
    [
        ("127.0.0.1", ["localhost", "LOCALHOST:80", "127.0.0.1:7860", "[::1]:7860"], ["evil.org", "10.0.0.5", "", "*"]),
        ("0.0.0.0", ["localhost", "10.0.0.5:7860", "[fe80::1]"], ["evil.org", "localhost.evil.org", "*"]),
        ("demo.lan", ["demo.lan:80", "localhost"], ["evil.org", "demo.lan.evil.org"]),
    ],
)
def test_a_strange_host_is_refused(host, names, others):
    gate = uploads.UploadQuotaMiddleware(None, None, uploads.own_hosts(host))
    for name in names:
        gate.refuse_host({b"host": name.encode()})
    for name in others:
        with pytest.raises(uploads.Refused):
            gate.refuse_host({b"host": name.encode()})


def test_a_page_whose_name_was_pointed_here_reads_nothing(served):
    import httpx

    for path in ("", "config", "gradio_api/info"):
        answer = httpx.get(served[0] + path, headers={"Host": "rebound.evil.org"})
        assert answer.status_code == 421 and "host name" in answer.json()["detail"]
    answer = httpx.get(served[0] + "config", headers={"X-Forwarded-Host": "demo.org", "X-Forwarded-Proto": "https"})
    assert answer.status_code == 200 and answer.json()["root"] == "https://demo.org"  # a proxy that rewrites Host
    assert "demo.org" in uploads.own_hosts("127.0.0.1", "https://demo.org/faces")


def test_bodies_have_limits_by_what_they_say_and_by_what_they_are(served, capfd):
    import httpx

    url = served[0] + "gradio_api/"
    secret = b"s3cr3t-of-a-visitor" * 60_000

    def pieces():
        for _ in range(10):
            yield secret

    for door in ("call/answer", "queue/join", "stream/abc", "cancel", "reset", "stream/abc/close"):
        answer = httpx.post(url + door, content=pieces())
        assert answer.status_code == 413 and answer.json()["detail"].startswith("At most "), door
        answer = httpx.post(url + door, content=secret * 3)
        assert answer.status_code == 413, door
    said = capfd.readouterr()
    assert not said.out and not said.err


HOSTILE = [
    b"", b"{", b"[]", b"null", b'"TEXT"', b'{"data": "TEXT"}', b'{"data": [["TEXT"]]}',
    b'{"data": [[{"path": "TEXT"}]]}',
    b'{"data": [{"TEXT": 1}]}', b'{"data": [[{"path": "TEXT", "meta": {"_type": "gradio.FileData"}}]]}',
    b'{"data": ["TEXT", "TEXT", "TEXT"], "session_hash": "TEXT", "fn_index": 0}',
    b'{"data": [{"url": "TEXT", "path": "TEXT"}], "session_hash": "TEXT", "fn_index": 3}',
    b'{"data": [["TEXT"], "TEXT"], "session_hash": "TEXT", "fn_index": 1, "event_data": "TEXT"}',
    b'{"data": [], "session_hash": "TEXT", "fn_index": 99}', b'{"data": [], "session_hash": ["TEXT"]}',
    b'{"data": [1e999, NaN], "session_hash": "TEXT", "fn_index": 2}', b"[" * 50_000, b"\xff\xfeTEXT",
    b'{"session_hash": "TEXT", "fn_index": "TEXT", "event_id": "TEXT"}',
]  # fmt: skip


@pytest.mark.slow
def test_hostile_bodies_leave_no_text_and_no_traceback(served, capfd):
    import time

    import httpx

    url = served[0] + "gradio_api/"
    with httpx.Client(timeout=120) as client:
        for door in ("call/answer", "queue/join", "stream/abc", "stream/abc/close", "cancel", "reset", "upload"):
            for body in HOSTILE:
                for kind in ("application/json", "multipart/form-data; boundary=x", "text/plain"):
                    answer = client.post(url + door, content=body.replace(b"TEXT", b"s3cr3t"),
                                         headers={"Content-Type": kind})  # fmt: skip
                    assert answer.status_code < 600, (door, body[:50])
        part = b'--x\r\nContent-Disposition: form-data; name="s3cr3t"\r\n\r\ns3cr3t\r\n--x--\r\n'
        client.post(url + "upload?upload_id=s3cr3t", content=part,
                    headers={"Content-Type": "multipart/form-data; boundary=x"})  # fmt: skip
    time.sleep(2)  # what was queued is answered
    said = capfd.readouterr()
    assert "s3cr3t" not in said.out + said.err and "Traceback" not in said.err, said.err[:2000]
    served[1].sweep(age=0)
    assert not left(served[1])


def test_pictures_from_elsewhere_are_not_fetched(served, tmp_path):
    import httpx

    policy = httpx.get(served[0]).headers["content-security-policy"]
    assert "img-src 'self' data: blob:" in policy
    path = tmp_path / "advice.json"
    path.write_text(json.dumps({MASK.classes[0]: "![seen](https://tracker.evil.org/1.png) and [more](https://a.org)"}))
    told = cards.read_advice(str(path), MASK)[MASK.classes[0]]
    assert "<img" not in told and "tracker" not in told and "seen and" in told and 'href="https://a.org"' in told


def test_class_names_are_no_formulas_in_answers_csv():
    head = SimpleNamespace(name="kind")
    task = SimpleNamespace(answered=[head], numeric=False, multilabel=False)
    for evil in ("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "  =1", "\uff1d1"):
        found = {"label": evil, "probability": 1.0, "heads": {"kind": {evil: 1.0}}, "said": f"{evil}, 100% sure."}
        text = cards.as_csv(task, [(evil, found)]).decode("utf-8-sig")
        row = next(csv.DictReader(io.StringIO(text)))
        assert row["answer"] == row["kind"] == row["file"] == "'" + evil and row["said"].startswith("'")
    number = cards.as_csv(
        SimpleNamespace(answered=[head], numeric=True, multilabel=False),
        [("a", {"label": "-3", "said": "-3 degrees."})],
    )
    assert b",-3," in number


@pytest.mark.slow
def test_no_photo_of_mine_is_shown_unless_it_is_named(served, tmp_path):
    config, answerer = served[2], served[3]
    write_photo(tmp_path / "mine" / "cat.jpg", 1)
    (tmp_path / "mine" / "notes.txt").write_text("x")
    plain = SimpleNamespace(needs_faces=False, task=SimpleNamespace(number=None))
    words = vars(config)
    assert page.examples(SimpleNamespace(**words), plain) == []
    assert len(page.examples(SimpleNamespace(**words), answerer)) == 3  # drawn people
    named = page.examples(SimpleNamespace(**words | {"examples": [str(tmp_path / "mine")]}), plain)
    assert [word for _, word in named] == ["cat"]
    with pytest.raises(InputError, match="--examples"):
        page.examples(SimpleNamespace(**words | {"examples": [str(tmp_path / "mine" / "notes.txt")]}), plain)


@pytest.mark.slow
def test_eight_cameras_at_once_and_an_upload_beside_them(served, tmp_path):
    import threading

    from gradio_client import Client, handle_file

    write_photo(tmp_path / "a.jpg", 1, (120, 90))
    frame = cards.data_url("image/jpeg", cards.encode_image(np.zeros((480, 640, 3), np.uint8), ".jpg"))
    url, pages, answers = served[0], [], []
    demo = page.Demo(served[2], served[3], served[1])

    def film():
        for _ in range(5):
            pages.append(demo.live(frame))

    cameras = [threading.Thread(target=film) for _ in range(page.MAX_CAMERAS)]
    for one in cameras:
        one.start()
    answers = Client(url, verbose=False).predict([handle_file(str(tmp_path / "a.jpg"))], api_name="/answer")
    for one in cameras:
        one.join()
    assert len(pages) == 5 * page.MAX_CAMERAS and all("sure" in page for page in pages) and answers[0]["label"]


def test_what_is_printed_is_what_is_bound(served, capsys):
    assert "*" not in uploads.own_hosts("127.0.0.1") and "*" in uploads.own_hosts("0.0.0.0")
    assert served[4].server_name == "127.0.0.1" and f"127.0.0.1:{served[4].server_port}" in served[0]


def test_doors_that_nobody_uses_are_shut_and_nonsense_is_a_sentence(served, capfd):
    import httpx

    url = served[0]
    for name in ("process_recording", "deep_link"):
        assert httpx.post(f"{url}gradio_api/{name}").status_code == 404
    sent = {"data": [[5, {"path": 7}, {}, None]]}
    event = httpx.post(url + "gradio_api/call/answer", json=sent).json()["event_id"]
    answer = httpx.get(f"{url}gradio_api/call/answer/{event}", timeout=120).text
    assert "event: error" in answer or answer.count("was not uploaded") == 4
    assert "Traceback" not in capfd.readouterr().err


def test_two_visitors_with_the_same_photo_do_not_share_a_file(served):
    import httpx

    url, desk, *_ = served
    paths = [httpx.post(url + "gradio_api/upload", files={"files": ("a.jpg", b"same")}).json()[0] for _ in range(2)]
    assert paths[0] != paths[1] and len(left(desk)) == 2
    desk.sweep(age=60)
    assert len(left(desk)) == 2  # somebody may still ask about them
    desk.sweep(age=0)
    assert not left(desk)


def test_the_page_asks_no_other_host_for_anything(served):
    import httpx

    page = httpx.get(served[0]).text
    hosts = set(re.findall(r"""(?:src|href)=["']?(https?://[^/"' >]+)""", page))
    assert hosts <= {served[0].rstrip("/")}, hosts


@pytest.mark.slow
def test_no_session_remembers_what_was_sent(served, tmp_path):
    import gc

    from gradio import state_holder
    from gradio_client import Client, handle_file

    write_photo(tmp_path / "jane_doe.jpg", 5)
    Client(served[0], verbose=False).predict([handle_file(str(tmp_path / "jane_doe.jpg"))], api_name="/answer")
    states = [one for one in gc.get_objects() if isinstance(one, state_holder.SessionState)]
    assert states and not any("jane_doe" in str(vars(one)) for one in states)


# ------------------------------------------------------------------------------------------------ without a server


@pytest.fixture
def demo(served, tmp_path):
    _, _, config, answerer, _ = served
    desk = uploads.UploadDir()
    yield page.Demo(config, answerer, desk), desk
    desk.close()


def sent(desk, name, seed=1):
    path = desk.folder / f"upload{seed}" / name
    write_photo(path, seed, (50, 40))
    return str(path)


@pytest.mark.slow
def test_answers_are_saved_by_the_visitor_from_within_the_page(demo):
    demo, desk = demo
    (desk.folder / "x").mkdir()
    (desk.folder / "x" / "=cmd.jpg").write_bytes(b"no photo")
    page, field = demo.upload([sent(desk, "a.jpg"), str(desk.folder / "x" / "=cmd.jpg")], True)
    assert field is None and not left(desk) and page.count('class="card"') == 2
    assert "src=" in page and not re.search(r'(?:src|href)="(?!data:)', page) and page.count("<img") == 2  # and heat
    name, content = re.search(r'download="([^"]+)" href="data:text/csv;base64,([^"]+)"', page).groups()
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(content).decode("utf-8-sig"))))
    assert name == "answers.csv" and [row["file"] for row in rows] == ["a.jpg", "'=cmd.jpg"]
    assert rows[0]["answer"] in MASK.classes and rows[1]["answer"] == "" and "can't be classified" in rows[1]["said"]
    assert rows[0]["gender"] in ("male", "female")


def test_a_heat_map_can_be_opened_after_the_answer_and_the_photo_is_gone(demo):
    demo, desk = demo
    page, _ = demo.upload([sent(desk, "a.jpg")], False)
    assert "<details><summary>Where the model looks</summary><img" in page and not left(desk)
    page, _ = demo.upload([sent(desk, "a.jpg")], True)
    assert "<details open>" in page
    page, _ = demo.upload([sent(desk, f"{k}.jpg", k) for k in range(5)], False)  # of many only where it was asked for
    assert "<details" not in page and page.count("<img") == 5


class Browser:
    """A request of a browser with these languages."""

    def __init__(self, languages):
        self.headers = {"accept-language": languages}


def test_answers_are_in_the_words_of_people_and_the_language_of_the_browser(demo):
    demo, desk = demo
    page, _ = demo.upload([sent(desk, "a.jpg")], False, Browser("fr, ko-KR;q=0.8, en;q=0.5"))
    assert "확신도" in page and "모델이 보는 곳" in page and "마스크" in page and "sure" not in page
    english, _ = demo.upload([sent(desk, "a.jpg")], False, Browser("en"))
    assert "mask worn wrongly" in english and "incorrect" not in english.split("Save answers")[0]
    ages = re.findall(r"<span>(under 30|30 to 59|60 or older)</span>", english)
    assert ages == ["under 30", "30 to 59", "60 or older"]  # in their order, whatever is surest
    content = base64.b64decode(re.search(r"data:text/csv;base64,([^\"]+)", page)[1]).decode("utf-8-sig")
    row = next(csv.DictReader(io.StringIO(content)))
    assert row["answer"] in MASK.classes and "sure" in row["said"]  # the file holds the run's own names


def test_languages_are_chosen_as_a_browser_asks_and_every_sentence_is_in_both():
    assert [words.language(asked) for asked in ("ko", "de, en;q=0.9, ko;q=0.1", "", None, "x;q=a", "ja")] == [
        "ko", "en", "en", "en", "en", "en"
    ]  # fmt: skip
    english, korean = words.WORDS["en"], words.WORDS["ko"]
    assert english.keys() == korean.keys()
    places = {key: sorted(re.findall(r"\{\w+\}", text)) for key, text in english.items()}
    assert places == {key: sorted(re.findall(r"\{\w+\}", text)) for key, text in korean.items()}
    assert words.of_classes("ko", ["cat", "dog"]) == {"cat": "cat", "dog": "dog"}
    assert words.of_answer("ko", {"no_face": True, "said": ""}).startswith("이 사진에서 얼굴을 찾지 못해")


def test_more_files_than_are_taken_are_said_and_deleted(demo):
    demo, desk = demo
    page, _ = demo.upload([sent(desk, "a.jpg", seed) for seed in range(uploads.MAX_FILES + 2)], False)
    assert "34 files: only the first 32 are classified" in page and page.count('class="card"') == 32 and not left(desk)


def test_the_camera_is_answered_still_and_live(demo):
    demo, desk = demo
    page, field = demo.still(sent(desk, "still.webp"), False)
    assert "sure" in page and field is None and not left(desk)
    frame = cards.data_url("image/jpeg", cards.encode_image(np.zeros((48, 64, 3), np.uint8), ".jpg"))
    assert "sure" in demo.live(frame) and demo.live(None) == ""
    grey = cv2.imencode(".png", np.zeros((48, 64), np.uint8))[1].tobytes()
    assert "sure" in demo.live(cards.data_url("image/png", grey))
    for bad in ("data:image/png;base64,AAAA", "http://127.0.0.1/a.png", "/etc/passwd", "data:image/png;base64,%%"):
        assert "This frame can" in demo.live(bad) and "sure" not in demo.live(bad)
    large = cards.data_url("image/png", bad_photos.bomb(8000, 8000))
    assert "8000 x 8000 pixels are more" in demo.live(large)


@pytest.mark.slow
def test_a_picture_of_every_label_can_be_made_and_saved(demo):
    demo, _ = demo
    seen = set()
    for label in MASK.classes:
        page, seed = demo.make(label, 3)
        name, content = re.search(r'download="([^"]+)" href="data:image/png;base64,([^"]+)"', page).groups()
        assert name.endswith("-3.png") and seed == 4
        seen.add(content)
    assert len(seen) == len(MASK.classes) and demo.make(MASK.classes[0], 3)[0] == demo.make(MASK.classes[0], 3)[0]


def test_a_picture_that_is_not_on_the_page_is_a_sentence(demo):
    page, _ = demo
    for label, seed in (("<b>", 1), (page.gan_about["classes"][0], float("inf"))):
        assert "no such picture" in page.make(label, seed)[0]


def test_names_and_labels_are_text_never_html():
    found = {"said": "<b>x</b>", "heads": {"kind": {"<script>": 1.0}}}
    page = cards.card("<img src=x onerror=1>", found, {})
    assert "<script>" not in page and "<b>x" not in page and "<img" not in page
    assert 'download="&quot;&gt;"' in cards.save_link('">', "text/csv", b"", "Save")


def test_advice_is_markdown_without_html_and_only_for_labels_that_are(tmp_path, capsys):
    path = tmp_path / "advice.json"
    path.write_text(json.dumps({MASK.classes[0]: "**Good.** <script>alert(1)</script>"}))
    told = cards.read_advice(str(path), MASK)
    assert "<strong>Good.</strong>" in told[MASK.classes[0]] and "<script>" not in told[MASK.classes[0]]
    path.write_text(json.dumps({MASK.classes[0]: "x", "cat": "y"}))  # one file may serve several runs
    assert list(cards.read_advice(str(path), MASK)) == [MASK.classes[0]]
    without = capsys.readouterr().out
    assert "has no advice for " in without and MASK.classes[1] in without and MASK.classes[0] not in without
    for content, word in (({"cat": "x"}, "cat is no class"), (["x"], "should hold"), ({MASK.classes[0]: 1}, "should")):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=word):
            cards.read_advice(str(path), MASK)


@pytest.mark.parametrize("language", ["en", "ko"])
def test_every_kind_of_trash_has_advice(language):
    home = ROOT
    content = json.loads((home / "demo" / "advice" / f"trash.{language}.json").read_text())
    six = {"cardboard", "glass", "metal", "paper", "plastic", "trash"}
    twelve = six - {"glass"} | {"battery", "biological", "brown-glass", "clothes", "green-glass", "shoes"}
    assert set(content) == six | twelve | {"white-glass"}
    assert all(len(text) > 40 for text in content.values())


def bomb_of(folder, width, height):
    (folder / "large.png").write_bytes(bad_photos.bomb(width, height))
    return folder / "large.png"


def test_a_visitors_photo_has_limits(tmp_path):
    write_photo(tmp_path / "a.png", 0, (300, 300))
    assert serving.read_visitor_photo(tmp_path / "a.png", 10**6).shape == (300, 300, 3)
    with pytest.raises(PhotoError, match="MB are more than"):
        serving.read_visitor_photo(tmp_path / "a.png", 1000)
    (tmp_path / "bomb.png").write_bytes(bad_photos.bomb(9000, 9000))
    with pytest.raises(PhotoError, match="9000 x 9000 pixels are more"):
        serving.read_visitor_photo(tmp_path / "bomb.png", 10**6)
    with pytest.raises(PhotoError, match="too many pixels"):
        serving.read_visitor_photo(bomb_of(tmp_path, 60_000, 60_000), 10**6)
    write_photo(tmp_path / "strip.png", 0, (2, 900))
    with pytest.raises(PhotoError, match="too small or too narrow"):
        serving.read_visitor_photo(tmp_path / "strip.png", 10**6)
    write_photo(tmp_path / "a.hdr", 0, (300, 300))  # a kind that says no size
    with pytest.raises(PhotoError, match="not readable"):
        serving.read_visitor_photo(tmp_path / "a.hdr", 10**6)
    with pytest.raises(PhotoError, match="did not arrive"):
        serving.read_visitor_photo(tmp_path / "none.png", 10**6)


def test_a_fold_that_is_not_there_is_refused(served):
    with pytest.raises(InputError, match="has the folds 0"):
        serving.Predictor(served[2], [3])


FACE = np.array([10, 10, 40, 50, 0.9, 20, 20, 30, 20], float)


def finding(count, face=FACE):
    """The name of a detector that finds a face so many times, in photos of 80 x 60 and larger ones."""

    class Finding(detect.Detector):
        long_sides = (512,)

        def find(self, images):
            return [np.tile(face, (count, 1)) for _ in images]

    name = f"finding{count}x{int(face[2])}"
    registry.register("detector", name)(Finding)
    return name


def with_crops(answerer, **crops):
    """The demo's Predictor as a run of such face crops has it."""
    mine = copy.copy(answerer)
    mine.crops = {"size": 32, "margin": 0.25, "align": False} | crops
    return mine


def test_faces_are_boxed_counted_and_missed_in_words(served, own_registry):
    photo = np.random.default_rng(0).integers(0, 255, (80, 60, 3), dtype=np.uint8)
    for count, word in ((1, "sure"), (8, "8 faces were found"), (0, "No face was found")):
        answerer = with_crops(served[3], detectors=[finding(count)])
        found = answerer.answer(photo)
        assert word in found["said"] and bool(found["label"]) == bool(count)
        assert ((found["shown"] == (255, 200, 0)).all(2).sum() > 50) == bool(count)  # the box


@pytest.mark.parametrize("faces", [False, True], ids=["whole photos", "face crops"])
def test_the_demo_prepares_photos_as_inference_does(served, tmp_path, own_registry, faces):
    from foldface.faces import crops
    from foldface.nn import predicting

    config, answerer = served[2:4]
    noise = np.random.default_rng(0).integers(0, 255, (300, 240, 3), dtype=np.uint8)  # the worst to decode smaller
    cv2.imwrite(str(tmp_path / "a.jpg"), noise)
    file = tmp_path / "a.jpg"
    if faces:
        face = np.array([10, 10, 200, 250, 0.9, 60, 60, 120, 60], float)
        answerer = with_crops(answerer, detectors=[finding(1, face)], size=128)
        crops.write_crop(tmp_path / "crop.jpg", crops.crop_square(read_photo(file), face, 128, 0.25, False))
        file = tmp_path / "crop.jpg"
    rows = pd.DataFrame({"file": [str(file)]})
    told, _ = predicting.predict(answerer.nets, answerer.abouts, answerer.heads, rows, config)
    (tmp_path / "sent.jpg").write_bytes((tmp_path / "a.jpg").read_bytes())
    desk = SimpleNamespace(holds=lambda _: True, delete=lambda _: None)
    visited = SimpleNamespace(upload_dir=desk, limit=10**6, predictor=answerer)
    found = page.Demo.answer_file(visited, str(tmp_path / "sent.jpg"))
    for name, shares in MASK.by_head(told[0][:, : MASK.size]).items():
        assert list(found["heads"][name].values()) == pytest.approx(shares[0].tolist(), abs=1e-6)


def test_the_sweep_spares_what_the_demo_brought(tmp_path):
    desk = uploads.UploadDir()
    (desk.folder / "example.jpg").write_bytes(b"x")
    desk.keep_existing()
    (desk.folder / "visitor").mkdir()
    (desk.folder / "visitor" / "a.jpg").write_bytes(b"x")
    (tmp_path / "mine.jpg").write_bytes(b"x")
    desk.delete(tmp_path / "mine.jpg")  # not on the desk
    desk.sweep(age=0)
    assert (tmp_path / "mine.jpg").exists() and [path.name for path in desk.folder.rglob("*")] == ["example.jpg"]
    desk.close()
    assert not desk.folder.exists()


@pytest.mark.slow
def test_the_desk_is_measured_while_others_come_and_go():
    import threading

    desk, over = uploads.UploadDir(), threading.Event()

    def visit(number):
        while not over.is_set():
            place = desk.folder / f"visitor{number}"
            place.mkdir()
            (place / "a.jpg").write_bytes(b"1234")
            desk.delete(place / "a.jpg")

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(4)]
    try:
        for one in visitors:
            one.start()
        sizes = [desk.size() for _ in range(1500)]  # rglob failed here
        desk.sweep()
    finally:
        over.set()
        for one in visitors:
            one.join()
        desk.close()
    assert 0 <= min(sizes) <= max(sizes) <= 16
