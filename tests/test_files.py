"""A file is written whole or not at all, whoever else writes there; what can't be written is said in one line."""

import os
import signal
import socketserver
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT, fill_up

from foldface import files
from foldface.files import InputError, atomic_write, folder_lock, refuse_unwritable
from foldface.runtime import cores, quota


def write(path, text):
    with atomic_write(path) as partial:
        partial.write_text(text)


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".partial")]


# ------------------------------------------------------------------------------------------------ links and writers


def test_a_link_where_the_temporary_file_would_lie_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    victim = tmp_path / "startup"
    victim.write_text("mine")
    for name in (".a.csv.partial", ".foldface-first.partial"):
        (tmp_path / "run" / name).symlink_to(victim)
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: iter(["first", "second"]))  # the attacker guessed it
    files.sweep.cache_clear()
    write(tmp_path / "run" / "a.csv", "new")
    assert victim.read_text() == "mine" and (tmp_path / "run" / "a.csv").read_text() == "new"


def test_a_link_in_the_place_of_the_file_is_replaced_and_what_it_leads_to_stays(tmp_path):
    victim, path = tmp_path / "startup", tmp_path / "a.csv"
    victim.write_text("mine")
    path.symlink_to(victim)
    write(path, "new")
    assert victim.read_text() == "mine" and path.read_text() == "new" and not path.is_symlink()


@pytest.mark.slow
def test_readers_never_see_a_broken_file_while_four_write_it(tmp_path):
    path, errors, until = tmp_path / "a.csv", [], time.monotonic() + 1.0
    write(path, "0" * 100_000)

    def writer(letter):
        try:
            while time.monotonic() < until:
                write(path, letter * 100_000)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=writer, args=(letter,)) for letter in "1234"]
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        text = path.read_text()
        assert len(text) == 100_000 and len(set(text)) == 1
    for thread in threads:
        thread.join()
    assert not errors and os.listdir(tmp_path) == ["a.csv"]


@pytest.mark.slow
def test_what_a_killed_writer_leaves_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    code = "import sys, time\nfrom foldface import files\nwith files.atomic_write(sys.argv[1]) as partial:\n"
    code += "    partial.write_text('half'); print('ready', flush=True); time.sleep(60)"
    writers = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / "a.csv"], stdout=subprocess.PIPE, cwd=ROOT)
        for _ in range(2)
    ]
    for writer in writers:
        writer.stdout.readline()
    assert len(leftovers(tmp_path)) == 2
    writers[0].send_signal(signal.SIGKILL)
    writers[0].wait()
    (tmp_path / ".other.partial").write_text("not ours")
    files.sweep.cache_clear()  # as a new process begins
    write(tmp_path / "b.csv", "new")
    assert len(leftovers(tmp_path)) == 2 and ".other.partial" in leftovers(tmp_path)
    writers[1].kill()
    writers[1].wait()


def test_a_file_has_the_permissions_that_any_new_file_has(tmp_path):
    write(tmp_path / "a.csv", "new")
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE((tmp_path / "a.csv").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


# ------------------------------------------------------------------------------------------------ what can't be written


@pytest.mark.parametrize("name", ["n" * 300, "file/a.csv", "file/deeper/a.csv", "folder"])
def test_what_can_not_be_written_is_one_line_and_leaves_nothing(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="can't be written") as error:
        write(tmp_path / name, "new")
    assert "\n" not in str(error.value) and sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_name_of_250_letters_is_written(tmp_path):
    write(tmp_path / ("n" * 250), "new")
    assert (tmp_path / ("n" * 250)).read_text() == "new"


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file_whole(tmp_path, small_disk):
    disk = small_disk(tmp_path / "disk", 256)
    write(disk / "a.csv", "old")
    fill_up(disk)
    with pytest.raises(InputError, match="No space left"):
        write(disk / "a.csv", "new" * 10_000)
    assert (disk / "a.csv").read_text() == "old" and not leftovers(disk)


@pytest.mark.slow
def test_a_read_only_folder_is_refused_before_the_work_and_after_it(tmp_path, read_only):
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "a.csv", "old")
    read_only(tmp_path / "run")
    for folder in (tmp_path / "run", tmp_path / "run" / "new" / "deeper"):
        with pytest.raises(InputError, match=r"Read-only file system.*--output"):
            refuse_unwritable(folder, "name another with --output")
    with pytest.raises(InputError, match="Read-only file system"):
        write(tmp_path / "run" / "a.csv", "new")
    with pytest.raises(InputError, match="Read-only file system"), folder_lock(tmp_path / "run" / "new"):
        pass


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_while_a_file_is_written_is_still_one_line(tmp_path, read_only):
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="Read-only file system"), atomic_write(tmp_path / "run" / "a.csv") as partial:
        partial.write_text("new")
        read_only(tmp_path / "run")


@pytest.mark.parametrize("name", ["n" * 300, "file", "file/deeper", "nowhere", "a\0b"])
def test_a_folder_that_can_not_be_is_refused_at_the_start(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="can't be written to") as error:
        refuse_unwritable(tmp_path / name)
    assert ("is not a folder" in str(error.value)) == (name in ("file", "file/deeper", "nowhere"))


def test_asking_whether_a_folder_can_be_written_to_leaves_no_trace(tmp_path):
    refuse_unwritable(tmp_path)
    refuse_unwritable(tmp_path / "new" / "deeper")
    assert not os.listdir(tmp_path)


# ------------------------------------------------------------------------------------------------------ locks, cores


def test_a_folder_that_another_holds_is_waited_for_as_long_as_asked(tmp_path):
    held, done = threading.Event(), []

    def hold(seconds):
        with folder_lock(tmp_path):
            held.set()
            time.sleep(seconds)
            done.append(True)

    thread = threading.Thread(target=hold, args=(0.3,))
    thread.start()
    held.wait()
    with pytest.raises(InputError, match="another process is writing there"), folder_lock(tmp_path):
        pass
    with folder_lock(tmp_path, wait=10):
        assert done
    thread.join()
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match="is not a folder"), folder_lock(tmp_path / "a" / "b"):
        pass


def test_a_table_that_is_called_like_a_url_opens_no_connection(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        server.timeout, asked = 0.2, []
        server.process_request = lambda *_: asked.append(True)
        threading.Thread(target=server.handle_request).start()
        for name in (f"http://127.0.0.1:{server.server_address[1]}/who.csv", "s3://bucket/who.csv", "memory://who.csv"):
            for path in (name, Path(name)):
                with pytest.raises(InputError, match=r"who.csv: no such file"):
                    files.read_csv(path, ["ImageID"])
        time.sleep(0.3)
    assert not asked


def test_photos_are_read_by_as_many_processes_as_this_one_may_use_cores():
    from foldface.data import loader

    assert not [path.name for path in ROOT.glob("*.py") if path.name != "files.py" and "cpu_count" in path.read_text()]
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        photos = loader.PhotoDataset(pd.DataFrame({"file": ["a"]}), "none", 8, False)
        assert loader.make(photos, loader.SeededBatchSampler(1, 1), None).num_workers == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_containers_quota_counts_as_its_cores(tmp_path, monkeypatch):
    """cgroup v2 and v1, the limit on the group itself or on one above it."""
    own = tmp_path / "cgroup"
    (tmp_path / "v2" / "pod" / "task").mkdir(parents=True)
    (tmp_path / "v2" / "pod" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "v2" / "pod" / "task" / "cpu.max").write_text("max 100000\n")
    own.write_text("0::/pod/task\n")
    assert quota(tmp_path / "v2", own) == 1.5
    (tmp_path / "v1" / "cpu").mkdir(parents=True)
    for name, value in (("quota", 250000), ("period", 100000)):
        (tmp_path / "v1" / "cpu" / f"cpu.cfs_{name}_us").write_text(f"{value}\n")
    own.write_text("4:memory:/x\n1:cpu,cpuacct:/not/shown/here\n0::/\n")
    assert quota(tmp_path / "v1", own) == 2.5
    assert quota(tmp_path / "none", own) == quota(tmp_path / "none", tmp_path / "none") == float("inf")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cores(root=tmp_path / "none", own=own) == 32 and cores(8, tmp_path / "none", own) == 8
    own.write_text("0::/pod/task\n")
    assert cores(root=tmp_path / "v2", own=own) == 2
