"""Crops in shards at a URL: what holds for a local folder holds, and nothing that a server or a run says is trusted."""

import collections
import contextlib
import errno
import http.server
import importlib.util
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from helpers import ROOT, at_step, fill_up, torchrun, write_photo
from safetensors.torch import load_file

import face_crop
import inference
import train
from foldface import cli, runs, urls
from foldface.data import fetch, loader, remote, shards
from foldface.data.shard_index import read_index
from foldface.faces import manifest, pack
from foldface.files import InputError, write_csv, write_json
from foldface.nn import predicting
from foldface.settings import as_dict

CROPS = ["--crop.detectors", "[centre]", "--crop.workers", 1, "--crop.size", 48]
SMALL = ["index.csv", "manifest.csv", "crop.json"]


class Server(http.server.ThreadingHTTPServer):
    """A server of a folder on this computer. `asked` counts the requests of each name; `answers` holds what it does
    instead with the next ones: a status, a place to redirect to, or a function of the bytes that gives others, or an
    iterator of parts. `logins` holds the names and passwords that came."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked, self.answers, self.logins = folder, collections.Counter(), {}, set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/shards"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.server.asked[name] += 1
        self.server.logins.add(self.headers["Authorization"])
        instead = self.server.answers.get(name, [])
        act = instead.pop(0) if instead else 200
        path = self.server.folder / name
        tag = f'"{path.stat().st_mtime_ns}"' if path.is_file() else ""
        if isinstance(act, str):
            self.send_response(302)
            self.send_header("Location", act)
        elif act in (200, 304) or callable(act):
            code = 404 if not tag else 304 if self.headers["If-None-Match"] == tag else 200
            self.send_response(code)
            self.send_header("ETag", tag)
            act = (act if callable(act) else bytes)(path.read_bytes()) if code == 200 else b""
        else:
            self.send_response(act)
        data = act if isinstance(act, bytes) else b""
        parts = act if isinstance(act, collections.abc.Iterator) else iter([data])
        if parts is not act:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who gets too many bytes hangs up
            for part in parts:
                self.wfile.write(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """A function that serves a folder of shards; the copies go to a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    remote.opened.cache_clear()
    servers = []

    def start(folder):
        servers.append(Server(folder))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return servers[-1]

    yield start
    remote.opened.cache_clear()
    for one in servers:
        one.shutdown()
        one.server_close()


def drawn_shards(root, people=12, size=4):
    """A folder of shards of drawn crops, two a person, `size` a shard; -> (its path, the crops' names)."""
    crops = root / "crops"
    names = [f"train/{k // 2:03d}/{k % 2}.jpg" for k in range(2 * people)]
    for seed, name in enumerate(names):
        write_photo(crops / name, seed)
    write_csv(crops / "manifest.csv", pd.DataFrame({"photo": names, "crop": names}))
    write_json(crops / "crop.json", {"size": 30})
    rows = pd.DataFrame({"crop": names, "group": "fold0", "person": [name.split("/")[1] for name in names]})
    return pack.pack(crops, rows, size, 0), names


@pytest.fixture
def drawn(tmp_path):
    return drawn_shards(tmp_path)


@pytest.fixture
def server(drawn, serve):
    return serve(drawn[0])


def open_again(url):
    """What a command that starts later opens."""
    remote.opened.cache_clear()
    return remote.crop_folder(url)


def shard_requests(server):
    return {name: count for name, count in server.asked.items() if name.endswith(".tar")}


def tars(folder):
    return sorted(path.name for path in folder.glob("*.tar"))


# ------------------------------------------------------------------------------------------------------- the same


def test_a_url_gives_the_folders_bytes_in_the_folders_order_and_asks_for_each_shard_once(drawn, server, capsys):
    folder, names = drawn
    copy = remote.crop_folder(server.url + "/")
    assert f"0 of {len(tars(folder))} shards" in capsys.readouterr().out and not tars(copy)
    there, here = manifest.files_of(copy, names), manifest.files_of(folder, names)
    assert not shards.lost(there) and all(map(shards.is_there, there))
    with ThreadPoolExecutor(8) as pool:  # all want the same shards at once
        seen = list(pool.map(lambda name: shards.SHARDS.read(*shards.parsed(name)).tobytes(), there * 2))
    assert seen == [shards.SHARDS.read(*shards.parsed(name)).tobytes() for name in here * 2]
    assert all((one == two).all() for one, two in zip(shards.places(there), shards.places(here), strict=True))
    assert shard_requests(server) == dict.fromkeys(tars(folder), 1)
    asked = server.asked["index.csv"]
    assert asked == 1 + len(tars(folder))  # when it is opened, and with each shard whether it is still the same
    assert open_again(server.url) == copy and server.asked["index.csv"] == asked + 1
    shards.Shards().read(*shards.parsed(there[0]))
    assert shard_requests(server) == dict.fromkeys(tars(folder), 1)


@pytest.mark.slow
def test_workers_load_a_urls_epoch_as_the_folders_and_share_what_is_fetched(tmp_path, serve):
    folder, names = drawn_shards(tmp_path, people=60)
    server = serve(folder)
    epochs = []
    for place in (folder, remote.crop_folder(server.url)):
        files = manifest.files_of(place, names)
        photos = loader.PhotoDataset(pd.DataFrame({"file": files}), "light", 32, True)
        batches = loader.SeededBatchSampler(len(files), 8, shuffle=True, seed=1, places=shards.places(files))
        feed = loader.make(photos, batches, 2)
        for epoch in (0, 1):
            batches.go_to(epoch)
            epochs.append([(indices.tolist(), images.numpy().tobytes(), errors) for indices, images, errors in feed])
    assert epochs[:2] == epochs[2:] and epochs[0] != epochs[1]
    assert shard_requests(server) == dict.fromkeys(tars(folder), 1)


def test_shards_are_fetched_a_window_before_they_are_read_and_no_further(tmp_path, serve):
    folder, names = drawn_shards(tmp_path, people=60)
    server = serve(folder)
    files = manifest.files_of(remote.crop_folder(server.url), names)
    number = shards.numbered(list(map(shards.parsed, files)))[1]
    order = shards.shuffled(number, np.random.default_rng(0))

    def settled(count):
        end = time.monotonic() + 60
        while len(shard_requests(server)) < count and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        return len(shard_requests(server)) == count

    with shards.FetchAhead(files).following(lambda: order) as was_read:
        assert settled(shards.WINDOW)
        first = [k for k in order if number[k] == number[order[0]]]
        was_read(np.array(first))
        assert settled(shards.WINDOW + 1)
        was_read(order[:40])
        assert settled(len({*number[order[:40]]}) + shards.WINDOW)
    assert len(tars(folder)) > 2 * shards.WINDOW + 8


@pytest.fixture
def packed(competition, serve, capsys):
    """A competition whose crops lie in shards of 20: (competition, the folder, its server)."""
    crops = competition.root / "crops"
    competition.run(face_crop, *CROPS, "--data.crops", crops, "--crop.shards", 20)
    capsys.readouterr()
    return competition, crops / "shards", serve(crops / "shards")


def weights_of(run):
    return load_file(run / "fold0" / "best.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_a_run_from_a_url_has_the_folders_weights_and_answers_and_goes_on_from_either(packed, tmp_path):
    competition, folder, server = packed
    here, there = competition.root / "run", tmp_path / "there"
    words = [*CROPS, "--data.augment", "light", "--model.dropout", 0.3, "--data.crops"]
    train.train_folds(competition.config(*words, folder), [0])
    train.train_folds(competition.config(*words, server.url, "--run", there), [0])
    assert same(weights_of(here), weights_of(there))
    assert json.loads((there / "args.json").read_text())["data"]["crops"] == server.url
    competition.run(inference, *CROPS, "--data.crops", folder)
    inference.main(["--run", str(there), "--device", "cpu", "--data.workers", "0"])  # its user has fetched it before
    assert (there / "fold0.csv").read_bytes() == (here / "fold0.csv").read_bytes()
    assert set(shard_requests(server).values()) == {1}
    for number, (begun, after) in enumerate([(folder, server.url), (server.url, folder)]):
        stopped = [*words[:-1], "--run", tmp_path / f"stopped{number}", "--data.crops"]
        with at_step(5), pytest.raises(KeyboardInterrupt):
            train.train_folds(competition.config(*stopped, begun), [0])
        train.train_folds(competition.config(*stopped, after), [0])
        assert same(weights_of(here), weights_of(tmp_path / f"stopped{number}"))


@pytest.mark.slow
def test_two_processes_with_workers_ask_for_each_shard_once(packed, tmp_path):
    competition, _, server = packed
    config = competition.config(*CROPS, "--data.crops", server.url, "--train.only_folds", "[0]", "--data.workers", 2)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(as_dict(config)))
    done = torchrun(2, "--", ROOT / "train_kfold.py", "--config", path)
    assert done.returncode == 0, done.stderr
    found = shard_requests(server)
    assert found and set(found.values()) == {1} and not any(name.startswith("eval") for name in found)


def test_a_stopped_prediction_goes_on_whatever_was_fetched_meanwhile(drawn, server, tmp_path):
    rows = pd.DataFrame({"file": manifest.files_of(remote.crop_folder(server.url), drawn[1])})
    (tmp_path / "weights").write_bytes(b"w")
    before = predicting.key_of({0: tmp_path / "weights"}, rows, cli.read("", argv=[]))
    for file in rows["file"]:
        remote.ensure(shards.file_of(file))
    assert predicting.key_of({0: tmp_path / "weights"}, rows, cli.read("", argv=[])) == before


# ------------------------------------------------------------------------------------------------------- what breaks


def wanted(server, names):
    """The path of the first shard, not there yet."""
    return shards.file_of(manifest.files_of(remote.crop_folder(server.url), names)[0])


NO_WAITS = (0, 0, 0)
BROKEN = {
    "a busy server": ([500, 503], 3, ""),
    "a cut answer": ([lambda data: data[:700]], 2, ""),
    "never whole": ([lambda data: data[:700]] * 9, 4, r"it ends after 700 of \d+ bytes"),
    "never well": ([500] * 9, 4, "the server answers 500"),
    "not there": ([404], 1, "the server answers 404"),
    "not allowed": ([403], 1, "the server answers 403"),
    "too long": ([lambda data: data + b"x"], 1, r"it is larger than \d+ bytes, as index.csv has it"),
    "a local file": (["file:///etc/passwd"], 1, "redirects to file:///etc/passwd, which is not http or https"),
    "in a circle": (["fold0-000000.tar"] * 9, 6, "redirects more than 5 times"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_download_that_breaks_is_tried_again_and_then_one_line(drawn, server, case):
    answers, tries, line = BROKEN[case]
    shard = wanted(server, drawn[1])
    name = os.path.basename(shard)
    server.answers[name] = [one.replace("fold0-000000.tar", name) if isinstance(one, str) else one for one in answers]
    if line:
        with pytest.raises(fetch.FetchError, match=line) as caught:
            remote.ensure(shard, NO_WAITS)
        assert str(caught.value).startswith(f"{server.url}/{name}: can't be fetched (")
        assert str(caught.value).endswith("the same command goes on where it was")
        assert os.listdir(os.path.dirname(shard)).count(name) == 0
        server.answers.clear()
        remote.ensure(shard, NO_WAITS)
    else:
        remote.ensure(shard, NO_WAITS)
        assert server.asked[name] == tries
    if line:
        assert server.asked[name] == tries + 1
    with open(shard, "rb") as file:
        assert file.read() == (drawn[0] / name).read_bytes()
    assert not [left for left in os.listdir(os.path.dirname(shard)) if left.endswith((".partial", ".lock"))]


def test_a_redirect_to_another_server_is_followed(drawn, server, serve):
    shard = wanted(server, drawn[1])
    name, other = os.path.basename(shard), serve(drawn[0])
    server.answers[name] = [f"{other.url}/{name}"]
    remote.ensure(shard)
    assert (server.asked[name], other.asked[name]) == (1, 1)


def test_another_host_gets_no_name_and_password_by_a_redirect(drawn, server, serve, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text(
        "machine 127.0.0.1 login me password own\nmachine localhost login me password secret\n"
    )
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    shard = wanted(server, drawn[1])
    name, other = os.path.basename(shard), serve(drawn[0])
    there = other.url.replace("127.0.0.1", "localhost")
    server.answers[name] = [f"{there}/{name}"]
    other.answers[name] = [f"{there}/{name}"]
    remote.ensure(shard)
    assert server.logins == {"Basic bWU6b3du"} and other.logins == {None}
    server.answers[name] = [f"{server.url}/{name}"]
    os.unlink(shard)
    remote.ensure(shard)
    assert server.logins == {"Basic bWU6b3du"}


def test_a_server_that_is_gone_is_one_line_that_names_the_copy_of_before(drawn, server, monkeypatch):
    copy = remote.crop_folder(server.url)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match=rf"index.csv: can't be fetched \(.*--data.crops {copy} is the copy of before"):
        open_again(server.url)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loader_stops_with_the_line_alone(drawn, server, workers):
    files = manifest.files_of(remote.crop_folder(server.url), drawn[1])
    server.answers = {name: [404] * 99 for name in tars(drawn[0])}
    photos = loader.PhotoDataset(pd.DataFrame({"file": files}), "none", 32, True)
    feed = loader.make(photos, loader.SeededBatchSampler(len(files), 8), workers)
    with pytest.raises(loader.LoadingStopped) as caught:
        list(feed)
    assert str(caught.value).startswith(f"{server.url}/fold0-0000") and "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_a_missing_shard_is_no_unreadable_photo_and_the_same_command_goes_on(packed):
    competition, folder, server = packed
    words = ["--data.crops", server.url, *CROPS, "--train.epochs", 1, "--data.flip", 0.5]
    server.answers = {name: [404, 404] for name in tars(folder) if name.startswith("fold1-")}  # fold 0 is left out
    with pytest.raises(InputError, match=r"fold1-00000\d.tar: can't be fetched \(the server answers 404"):
        competition.run(train, *words)
    server.answers = {}
    competition.run(train, *words)
    words[1], whole = folder, competition.root / "whole"
    competition.run(train, *words, "--run", whole)
    assert same(weights_of(competition.root / "run"), weights_of(whole))
    words[1] = server.url
    server.answers = {"eval-000000.tar": [404, 404]}  # in the background, and to who reads it
    with pytest.raises(InputError, match=r"eval-000000.tar: can't be fetched \(the server answers 404"):
        competition.run(inference, *words)
    assert not (competition.root / "run" / "fold0.csv").exists()
    server.answers = {}
    competition.run(inference, *words)
    assert len(pd.read_csv(competition.root / "run" / "fold0.csv")) == len(competition.images)


def test_a_damaged_copy_is_fetched_again_and_a_finished_one_is_not(drawn, server):
    shard = wanted(server, drawn[1])
    remote.ensure(shard)
    os.truncate(shard, 700)
    open_again(server.url)
    remote.ensure(shard)
    assert server.asked[os.path.basename(shard)] == 2
    with open(shard, "rb") as file:
        assert file.read() == (drawn[0] / os.path.basename(shard)).read_bytes()


def test_a_changed_index_begins_another_copy_and_leaves_the_one_in_use(drawn, server, capsys):
    folder, names = drawn
    before = wanted(server, names)
    remote.ensure(before)
    with open(before, "rb") as file:
        old = file.read()
    capsys.readouterr()
    write_photo(folder.parent / names[0], 1000, size=(90, 90))
    shutil.rmtree(folder)
    rows = pd.DataFrame({"crop": names, "group": "fold0", "person": [name.split("/")[1] for name in names]})
    pack.pack(folder.parent, rows, 4, 0)
    after = open_again(server.url)
    assert "has changed, all is fetched anew" in capsys.readouterr().err
    assert str(after) != os.path.dirname(before) and not tars(after)
    for name, file in zip(names, manifest.files_of(after, names), strict=True):
        assert shards.SHARDS.read(*shards.parsed(file)).tobytes() == (folder.parent / name).read_bytes()
    with open(before, "rb") as file:
        assert file.read() == old


def packed_again(folder, names, first=1000):
    """Other photos under the same names, packed into the folder as a publisher does; the tar files' sizes stay."""
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.tar")}
    for seed, name in enumerate(names, start=first):
        write_photo(folder.parent / name, seed)
    shutil.rmtree(folder)
    rows = pd.DataFrame({"crop": names, "group": "fold0", "person": [name.split("/")[1] for name in names]})
    pack.pack(folder.parent, rows, 4, 0)
    assert sizes == {path.name: path.stat().st_size for path in folder.glob("*.tar")}


def test_no_shard_of_a_later_version_comes_under_the_index_of_a_command_that_runs(drawn, server):
    folder, names = drawn
    files = manifest.files_of(remote.crop_folder(server.url), names)
    first, *others = sorted({shards.file_of(file) for file in files})
    remote.ensure(first)
    packed_again(folder, names)
    for shard in others:
        with pytest.raises(fetch.FetchError, match=f"^{server.url}: the folder at the URL has changed while"):
            remote.ensure(shard, NO_WAITS)
    assert tars(Path(first).parent) == [os.path.basename(first)]
    again = manifest.files_of(open_again(server.url), names)
    with pytest.raises(
        fetch.FetchError,
        match=f"^{server.url}: the folder at the URL has changed while this command ran: start the command again",
    ):
        remote.ensure(others[0])  # of the command that goes on with the version of before
    for name, file in zip(names, again, strict=True):
        assert shards.SHARDS.read(*shards.parsed(file)).tobytes() == (folder.parent / name).read_bytes()


def test_a_shard_of_another_version_than_the_index_at_the_url_is_refused(drawn, server):
    folder, names = drawn
    index = read_index(folder)
    shard = os.path.join(remote.crop_folder(server.url), index["shard"].iloc[0])
    name, size = os.path.basename(shard), int(index["bytes"].iloc[0])
    old = {path.name: (path.read_bytes(), path.stat()) for path in folder.iterdir()}
    packed_again(folder, names)
    for small in SMALL:  # they come last, and have not come yet
        (folder / small).write_bytes(old[small][0])
        os.utime(folder / small, ns=(0, old[small][1].st_mtime_ns))
    with pytest.raises(fetch.FetchError, match=rf"{name}: train/0\d\d/\d.jpg isn't where index.csv has it"):
        remote.ensure(shard, NO_WAITS)
    (folder / name).write_bytes(bytes(len(old[name][0])))  # no header at all
    with pytest.raises(fetch.FetchError, match=r"isn't where index.csv has it"):
        remote.ensure(shard, NO_WAITS)
    (folder / name).write_bytes(pack.header("another.jpg", 0, size) + old[name][0][512:])
    with pytest.raises(fetch.FetchError, match=r"isn't where index.csv has it"):
        remote.ensure(shard, NO_WAITS)
    assert not os.path.exists(shard)
    (folder / name).write_bytes(old[name][0])
    remote.ensure(shard)


@pytest.mark.parametrize("small", SMALL)
def test_a_shard_comes_only_while_the_small_files_are_the_same(drawn, server, small):
    folder, names = drawn
    one, other = sorted({shards.file_of(file) for file in manifest.files_of(remote.crop_folder(server.url), names)})[:2]
    os.utime(folder / small)  # another tag of the same content
    remote.ensure(one)
    (folder / small).write_bytes((folder / small).read_bytes() + b"\n")
    with pytest.raises(fetch.FetchError, match="the folder at the URL has changed while this command ran"):
        remote.ensure(other)
    assert not os.path.exists(other)


def test_long_names_of_crops_are_found_in_their_shards(tmp_path, serve):
    crops = tmp_path / "crops"
    names = ["a" * 120 + ".jpg", "b" * 90 + "/" + "c" * 90 + ".jpg", "höhe/é.jpg", "d" * 120 + ".jpg"]
    for seed, name in enumerate(names):
        write_photo(crops / name, seed)
    write_csv(crops / "manifest.csv", pd.DataFrame({"photo": names, "crop": names}))
    write_json(crops / "crop.json", {"size": 30})
    rows = pd.DataFrame({"crop": names, "group": "fold0", "person": names})
    server = serve(pack.pack(crops, rows, 2, 0))
    for name, file in zip(names, manifest.files_of(remote.crop_folder(server.url), names), strict=True):
        assert shards.SHARDS.read(*shards.parsed(file)).tobytes() == (crops / name).read_bytes()


def test_a_stop_is_seen_while_a_slow_server_sends(drawn, server):
    shard, ended = wanted(server, drawn[1]), threading.Event()

    def slowly(data):
        for at in range(0, len(data), 100):
            yield data[at : at + 100]
            if ended.wait(0.5):
                return

    server.answers[os.path.basename(shard)] = [slowly]
    with remote.Background([shard]) as background:
        background.go_to(1)
        time.sleep(0.3)
        begun = time.monotonic()
    assert time.monotonic() - begun < 5 and not os.path.exists(shard)
    ended.set()


def test_no_try_follows_a_stop(drawn, server, tmp_path):
    stop = threading.Event()

    def stopped(data):
        stop.set()
        return b""

    server.answers["crop.json"] = [stopped]
    with pytest.raises(fetch.FetchError, match="stopped"):
        fetch.fetch(f"{server.url}/crop.json", tmp_path / "crop.json", 100, exact=True, waits=NO_WAITS, stop=stop)
    assert server.asked["crop.json"] == 1


def test_a_server_that_sends_nearly_nothing_is_a_broken_try(drawn, server, monkeypatch):
    shard, real = wanted(server, drawn[1]), time.monotonic

    def slowly(data):
        for at in range(50):
            yield data[at : at + 1]
            time.sleep(0.02)

    name = os.path.basename(shard)
    server.answers[name] = [slowly] * 4
    monkeypatch.setattr(time, "monotonic", lambda: real() * 1000)  # so each byte takes 20 seconds
    with pytest.raises(fetch.FetchError, match="the server sends less than 1000 bytes a second"):
        remote.ensure(shard, NO_WAITS)
    assert server.asked[name] == 4
    remote.ensure(shard, NO_WAITS)


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b'{"fold0'])
def test_what_a_power_cut_leaves_of_an_indexs_digest_is_made_again(drawn, server, damage):
    folder, names = drawn
    shard = wanted(server, names)
    version = Path(shard).parent
    for path in (version / "sizes.json", *version.glob("members/*")):
        path.write_bytes(damage)
    remote.shard_sizes.cache_clear()
    assert open_again(server.url) == version
    remote.ensure(shard)
    with open(shard, "rb") as file:
        assert file.read() == (folder / os.path.basename(shard)).read_bytes()


def test_two_processes_on_a_disk_without_locks_open_a_url_at_once(server):
    home = urls.home_of(server.url)
    home.mkdir(parents=True)
    other_is_done = threading.Event()

    def slowly(data):
        other_is_done.wait(10)
        return data

    server.answers["crop.json"] = [slowly]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(remote.with_small_files, server.url, home, {})
        while not server.asked["crop.json"]:
            time.sleep(0.01)
        second = remote.with_small_files(server.url, home, {})
        other_is_done.set()
        found = [first.result(), second]
    assert found[0] == found[1] and {path.name for path in home.iterdir()} == {found[0][0].name}
    assert (found[0][0].stat().st_mode & 0o777) == (home.stat().st_mode & 0o777)


def test_what_a_killed_process_has_begun_is_removed_a_day_later(server):
    home = urls.home_of(server.url)
    for name in ("fresh", "fresh-old", "fresh-young"):
        write_json(home / name / "index.csv", {})
        if name != "fresh-young":
            os.utime(home / name, (time.time() - 90000,) * 2)
    remote.crop_folder(server.url)
    assert [path.name for path in home.glob("fresh*")] == ["fresh-young"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux's /proc")
def test_a_cache_that_cannot_be_made_is_one_line(server, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nope")
    with pytest.raises(
        InputError, match=r"^/proc/nope/.* can't be written to .*: name another folder in XDG_CACHE_HOME"
    ):
        open_again(server.url)


def test_a_disk_without_locks_passes_and_one_that_cannot_be_written_to_is_one_line(drawn, server, monkeypatch):
    shard = wanted(server, drawn[1])

    def refuse(number):
        def acquire(*_, **__):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(filelock.FileLock, "acquire", acquire)

    for number in (errno.EROFS, errno.ENOENT, errno.ENOSPC, errno.EACCES):
        refuse(number)
        with pytest.raises(InputError, match=f"can't be written to .{os.strerror(number)}.: name another folder"):
            open_again(server.url)
        with pytest.raises(InputError, match=os.strerror(number)):
            remote.ensure(shard)
    refuse(errno.ENOLCK)
    open_again(server.url)
    remote.ensure(shard)
    assert os.path.isfile(shard)


def test_a_full_disk_is_one_line_and_leaves_no_part(drawn, server, small_disk, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk(tmp_path / "small", 200)))
    shard = wanted(server, drawn[1])
    fill_up(tmp_path / "small")
    with pytest.raises(InputError, match="the disk is full: fold0-"):
        remote.ensure(shard)
    assert not tars(Path(shard).parent)
    os.unlink(tmp_path / "small" / "filler")
    remote.ensure(shard)


# ------------------------------------------------------------------------------------------------------- who is trusted

HOSTILE = {
    "a folder above": {"shard": "../evil.tar"},
    "another folder": {"shard": "/etc/evil.tar"},
    "a folder above on Windows": {"shard": "..\\evil.tar"},
    "another disk": {"shard": "C:evil.tar"},
    "the folder above": {"shard": ".."},
    "no tar file": {"shard": "source.json"},
    "a query": {"shard": "a?b.tar"},
    "another host": {"shard": "@host.tar"},
    "a negative place": {"offset": "-512"},
    "no number": {"bytes": "many"},
    "a number without end": {"bytes": "9" * 5000},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_names_and_numbers_of_an_index_are_data(drawn, server, case, tmp_path):
    folder, names = drawn
    index = pd.read_csv(folder / "index.csv", dtype=str)
    for column, value in HOSTILE[case].items():
        index.loc[3, column] = value
    write_csv(folder / "index.csv", index)
    for place in (folder, server.url):
        with pytest.raises(InputError, match=r"index.csv, row 5: is not as face_crop.py writes it"):
            manifest.files_of(remote.crop_folder(place), names)
    assert not shard_requests(server) and not list((tmp_path / "cache").rglob("*.tar"))


REFUSED = {
    "pipe:curl http://127.0.0.1/a": "is a command, and none is run",
    "PIPE:touch stolen": "is a command, and none is run",
    "file:///etc": "name the folder itself, without file:",
    "file:crops": "name the folder itself, without file:",
    "sftp://host/shards": "such URLs are not taken",
    "memory://shards": "such URLs are not taken",
    "simplecache::https://host/shards": "such URLs are not taken",
    "https://host/shards::http://other/shards": "such URLs are not taken",
    "https:///shards": "names no host",
    "https://[host/shards": "names no host",
    "https://host/shards?key=1": "name the folder of the shards",
    "https://host/fold0-{000000..000009}.tar": "name the folder of the shards",
    "https://host/fold0-000000.tar": "name the folder of the shards",
}


@pytest.mark.parametrize("value", REFUSED)
def test_what_is_no_url_of_a_folder_is_refused_in_one_line(value, tmp_path):
    for name, words in (("a", ["--data.crops", value]), ("b", ["--config", str(tmp_path / "mine.json")])):
        (tmp_path / "mine.json").write_text(json.dumps({"data": {"crops": value}}))
        with pytest.raises(InputError, match=REFUSED[value]):
            cli.read("", argv=words), name


WITH_PASSWORD = (
    *(
        "https://me:secret@host/shards",
        "https://secret@host/shards",
        "https://me:secret@/shards",
        "HTTPS://me:secret@h/s",
    ),
    *("ftp://me:secret@host/shards", "sftp://me:secret@host/shards", "https://me:se[secret@host/shards"),
    *("https://me:secret@host::x/", "https://host/x::https://me:secret@host/", "simplecache::https://me:secret@host/x"),
    *(
        "s3://KEY:secret@bucket/shards",
        "s3://secret@bucket/shards",
        "gs://me:secret@bucket/x",
        "hf://me:secret@datasets/x",
    ),
    *("abfs://me:secret@account/x", "pipe:curl https://me:secret@host/x", "https://me:secret@host:port/shards"),
    *(
        "https://me:1/secret@host/{0..9}",
        "https://me:x?secret@host/x",
        "https://me:x#secret@host/x",
        "file://me:secret@host",
    ),
    *("https://me:@secret@host/shards", "https://host/shards?key=secret", "https://me:sec\nret/secret@host/shards"),
)


@pytest.mark.parametrize("value", WITH_PASSWORD)
def test_a_password_in_a_url_is_refused_and_not_printed(value):
    with pytest.raises(InputError, match=r"data.crops .*://|data.crops pipe:|data.crops simplecache:") as caught:
        cli.read("", argv=["--data.crops", value])
    assert "secret" not in str(caught.value) and "KEY" not in str(caught.value)
    assert "me:" not in str(caught.value).replace("name:", "")


@pytest.mark.parametrize("value", ["hf://datasets/a/b@main/shards", "hf://a@main/shards", "abfs://box@account/shards",
                                   "https://host/@a/shards", "az://box@account/s"])  # fmt: skip
def test_an_at_that_divides_no_password_from_a_host_is_taken(value):
    assert cli.read("", argv=["--data.crops", value]).data.crops == value


@pytest.mark.parametrize("path", ["crops", "C:\\crops", "C:/crops", "old:crops", "/data/a:b/crops"])
def test_a_path_with_a_colon_is_a_path(path):
    assert cli.read("", argv=["--data.crops", path]).data.crops == path and urls.scheme_of(path) == ""


def test_a_strangers_run_opens_no_connection_and_ones_own_goes_on(server, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    config = cli.read("", argv=["--data.crops", server.url, "--run", str(run)])
    (run / "args.json").write_text(json.dumps(as_dict(config)))
    (run / "data.json").write_text("{}")
    stranger = runs.read_for_run("", argv=["--run", str(run)])
    assert stranger.data.crops == cli.read("", argv=[]).data.crops
    assert f'names --data.crops "{server.url}": not taken from a run' in capsys.readouterr().err
    with pytest.raises(InputError, match="nothing is fetched because a run names it"):
        cli.read("", argv=["--config", str(run / "args.json")])
    assert cli.read("", argv=["--config", str(run / "args.json"), "--data.crops", ""]).data.crops == ""
    assert not server.asked
    remote.crop_folder(server.url)
    assert runs.read_for_run("", argv=["--run", str(run)]).data.crops == server.url
    assert cli.read("", argv=["--config", str(run / "args.json")]).data.crops == server.url


def test_a_folder_that_says_it_is_a_urls_copy_makes_nobody_fetch(drawn, server, tmp_path):
    home = tmp_path / "stranger" / urls.home_of(server.url).name
    shutil.copytree(drawn[0], home / "version")
    (home / "source.json").write_text(json.dumps({"url": server.url, "version": "version", "tags": {}}))
    mine = urls.cache_root() / ("0" * 32)  # in the right place, but not that of this URL
    shutil.copytree(home, mine)
    for folder in (home / "version", mine / "version"):
        write_json(folder / "sizes.json", {path.name: path.stat().st_size for path in folder.glob("*.tar")})
        files = manifest.files_of(folder, drawn[1])
        shard = shards.file_of(files[0])
        os.unlink(shard)
        assert shards.lost(files) and not shards.is_there(files[0])
        remote.ensure(shard)
        assert not os.path.exists(shard)
    assert not server.asked


def test_what_writes_crops_takes_no_url():
    with pytest.raises(InputError, match="https://host/shards: is a URL: name the folder that the crops go to"):
        face_crop.main(["--data.crops", "https://host/shards"])


# ------------------------------------------------------------------------------------------------------- buckets


class Bucket(MemoryFileSystem):
    """Stands in for s3fs: a bucket in this process's memory."""

    protocol = "s3"
    store, pseudo_dirs, listing, cachable = {}, [""], {}, False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("s3://").strip("/")

    def info(self, path, **_):
        """As of s3fs and others: from a listing of before, where there is one."""
        if path not in self.listing:
            self.listing[path] = super().info(path)
        return self.listing[path]

    def invalidate_cache(self, path=None):
        self.listing.clear()


@pytest.fixture
def bucket(drawn, serve, monkeypatch):
    monkeypatch.setitem(_registry, "s3", Bucket)
    for path in drawn[0].iterdir():
        with Bucket().open(f"s3://mine/shards/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    yield "s3://mine/shards"
    Bucket.store.clear()
    Bucket.listing.clear()


def test_a_bucket_is_read_as_a_server_is(drawn, bucket):
    folder, names = drawn
    copy = remote.crop_folder(bucket)
    for one, other in zip(manifest.files_of(copy, names), manifest.files_of(folder, names), strict=True):
        found = shards.SHARDS.read(*shards.parsed(one)).tobytes()
        assert found == shards.SHARDS.read(*shards.parsed(other)).tobytes()
    assert open_again(bucket) == copy
    Bucket().rm("s3://mine/shards/index.csv")
    with pytest.raises(InputError, match=r"s3://mine/shards/index.csv: can't be fetched \(no such file\)"):
        open_again(bucket)


def test_a_bucket_that_changes_while_a_command_reads_it_stops_the_command(drawn, bucket):
    one, other = sorted({shards.file_of(file) for file in manifest.files_of(remote.crop_folder(bucket), drawn[1])})[:2]
    remote.ensure(one)
    with Bucket().open(f"{bucket}/crop.json", "wb") as file:
        file.write(b'{"size": 31}')
    with pytest.raises(fetch.FetchError, match=f"^{bucket}: the folder at the URL has changed while this command ran"):
        remote.ensure(other)


def test_a_package_that_is_missing_is_named(serve):
    missing = [scheme for scheme, name in urls.SCHEMES.items() if importlib.util.find_spec(name) is None]
    for scheme in missing:
        package = urls.SCHEMES[scheme]
        with pytest.raises(InputError, match=f"needs the package {package}: pip install {package}"):
            remote.crop_folder(f"{scheme}://mine/shards")
    assert not {"http", "https"} & set(missing)


def test_the_size_of_a_tar_file_is_what_its_index_says(drawn):
    folder, _ = drawn
    index = read_index(folder)
    found = remote.sizes_of(index)
    assert found == {path.name: path.stat().st_size for path in folder.glob("*.tar")}
