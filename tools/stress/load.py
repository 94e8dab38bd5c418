"""Load the demo: 200 uploads and 200 hostile request bodies from 8 clients, then 40 uploads that are no photos.

    python -m tools.stress.load --run runs/trash PHOTO...

Starts demo.app on this computer, waits for its first answer, and prints how long requests take, the server's memory,
whether each bad upload is answered with a sentence, and how many files are left in the upload folder.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
from gradio_client import Client, handle_file

from foldface.data.photos import cv2, read_photo

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))
import bad_photos  # noqa: E402 (the tests' own, which lie where that line says)


def memory(process):
    """Resident megabytes of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def peak(process):
    """Largest resident megabytes that a process ever had."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024


def uploaded(folder):
    """All files in the server's upload folder."""
    return {path for path in folder.rglob("*") if path.is_file()}


def bad_uploads(folder, photo):
    """Write 40 files that are no photos, or damaged or oversized ones."""

    kinds = [name for name in bad_photos.UNREADABLE if name not in bad_photos.NO_FILES]
    bad_photos.write(folder, photo, kinds)
    large = np.random.default_rng(0).integers(0, 255, (6000, 4000, 3), dtype=np.uint8)
    cv2.imencode(".png", large)[1].tofile(folder / "large.png")  # 60 MB and more
    (folder / "script.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    (folder / "..%2f..%2fetc%2fpasswd.jpg").write_bytes(b"x")
    (folder / "a;rm -rf $HOME.jpg").write_bytes(b"x")
    (folder / ("long" * 50 + ".jpg")).write_bytes(b"x")
    (folder / "<img src=x onerror=alert(1)>.jpg").write_bytes(b"x")
    (folder / "=cmd|calc.jpg").write_bytes(b"x")
    found = sorted(folder.iterdir())
    whole = cv2.imencode(".jpg", photo[..., ::-1])[1].tobytes()
    for k in range(40 - len(found)):  # cut anywhere, so that the end is missing
        (folder / f"cut{k}.jpg").write_bytes(whole[: 10 + k * (len(whole) - 40) // 40])
    return sorted(folder.iterdir())


ENDPOINTS = ("call/answer", "queue/join", "stream/abc", "cancel", "reset", "run/answer", "upload", "vibe-edit")


def hostile_body(k):
    """The k-th hostile request, (endpoint, headers, body): too large, with or without a length, or nonsense."""
    endpoint, kind = ENDPOINTS[k % len(ENDPOINTS)], k // len(ENDPOINTS) % 4
    text = b"text-of-a-visitor "

    def pieces():
        for _ in range(1000):
            yield text * 10_000  # 180 MB without a Content-Length

    bodies = (text * 11_000_000, pieces(), b'{"data": [' + b"[" * 50_000, b'{"data": ["' + text * 5_000 + b'"]}')
    return endpoint, {"Content-Type": "application/json"}, bodies[kind]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("photos", nargs="+")
    words = parser.parse_args(argv)
    began = time.perf_counter()
    command = [sys.executable, "-m", "demo.app", "--run", words.run, "--app.port", "0"]
    before = set(Path("/dev/shm").glob("foldface-*"))
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    lines = []
    for line in server.stdout:
        lines.append(line)
        if "http://" in line:
            break
    else:
        raise SystemExit("".join(lines))
    url = re.search(r"http://[^ ]+", line)[0]
    folder = next(iter(set(Path("/dev/shm").glob("foldface-*")) - before))
    client = Client(url, verbose=False)
    client.predict([handle_file(words.photos[0])], api_name="/answer")
    print(f"start to first answer: {time.perf_counter() - began:.1f} s")
    own, taken, lost = uploaded(folder), [], []

    def visit(number):
        one = Client(url, verbose=False)
        for k in range(number, words.requests, words.clients):
            began = time.perf_counter()
            try:
                answer = one.predict([handle_file(words.photos[k % len(words.photos)])], api_name="/answer")
                if not answer[0]["said"]:
                    lost.append(k)
            except Exception as error:
                lost.append((k, error))
            taken.append(time.perf_counter() - began)

    def round_of_visits():
        visitors = [threading.Thread(target=visit, args=(number,)) for number in range(words.clients)]
        for one in visitors:
            one.start()
        for one in visitors:
            one.join()

    for number in range(1, words.rounds + 1):
        taken.clear()
        start, began = memory(server), time.perf_counter()
        round_of_visits()
        p50, p95 = np.quantile(taken, [0.5, 0.95])
        print(
            f"round {number}: {len(taken)} requests from {words.clients} clients, {time.perf_counter() - began:.0f} s, "
            f"{len(lost)} lost; p50 {p50:.2f} s, p95 {p95:.2f} s; memory {start:.0f} -> {memory(server):.0f} MB"
        )
    print(f"left in the upload folder: {len(uploaded(folder) - own)}")
    statuses = []

    def attack(number):
        for k in range(number, words.requests, words.clients):
            endpoint, headers, body = hostile_body(k)
            try:
                answer = httpx.post(f"{url}gradio_api/{endpoint}", headers=headers, content=body, timeout=60)
                statuses.append(answer.status_code)
            except httpx.TransportError:  # refused before the body was sent to its end
                statuses.append("closed")

    taken.clear()
    lost.clear()
    start, began = memory(server), time.perf_counter()
    attackers = [threading.Thread(target=attack, args=(number,)) for number in range(words.clients)]
    for one in attackers:
        one.start()
    round_of_visits()
    for one in attackers:
        one.join()
    counts = ", ".join(f"{kind} {statuses.count(kind)}" for kind in sorted(set(statuses), key=str))
    print(
        f"{len(statuses)} hostile bodies ({counts}) beside {len(taken)} uploads, {time.perf_counter() - began:.0f} s, "
        f"{len(lost)} uploads lost; memory {start:.0f} -> {memory(server):.0f} MB; at most {peak(server):.0f} MB"
    )
    sentences = []
    with tempfile.TemporaryDirectory() as place:
        for path in bad_uploads(Path(place), read_photo(words.photos[0])):
            try:
                answer = client.predict([handle_file(str(path))], api_name="/answer")[0]
                sentences.append(answer["said"])
            except Exception as error:  # refused: the client raises the server's sentence
                sentences.append(f"{error}".splitlines()[0])
            print(f"  {path.name[:40]!r}: {sentences[-1][:100]}")
    left = uploaded(folder) - own
    print(
        f"{len(sentences)} bad uploads: {sum(map(bool, sentences))} sentences; left in the upload folder: {len(left)}"
    )
    server.terminate()
    rest = server.stdout.read()
    print(f"the server's log after its start: {rest!r}" if rest.strip() else "the server's log after its start: empty")


if __name__ == "__main__":
    main()
