"""Killed, stopped, out of memory, out of room: one line, nothing lost, and nothing left running or half done."""

import io
import json
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, at_step, write_photo
from safetensors.torch import load_file

import train
from foldface import cli
from foldface.data import loader
from foldface.faces import job
from foldface.files import InputError, folder_lock
from foldface.nn import resume
from foldface.nn.progress import Progress
from foldface.runtime import Stopped
from tools import sample_data

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX")


def python(code, *words, **keywords):
    """Start Python on some code that sees the scripts; its output is kept."""
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keywords)


def ended(process, timeout=180):
    """(exit status, stdout, stderr) of a process."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def gone(pid, seconds=60):
    """Has this process ended, or does it within so many seconds?"""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


# ------------------------------------------------------------------------------------------------------- signals


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_is_one_line_and_its_own_exit_status(number, status):
    code = "import os, sys, time; from foldface import cli\n"
    code += "cli.run_main(lambda: os.kill(os.getpid(), int(sys.argv[1])) or time.sleep(60))"
    returned, _, err = ended(python(code, int(number)))
    assert (returned, err) == (status, "stopped; the same command goes on where it was\n")


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_that_comes_as_a_script_begins_is_one_line(number, status):
    code = (
        "import os\nfrom foldface import cli\ncli.keep_memory = lambda: os.kill(os.getpid(), %d)\ncli.run_main(print)"
    )
    status_of, _, err = ended(python(code % number))
    assert status_of == status and err == "stopped; the same command goes on where it was\n"


@pytest.mark.slow
def test_a_stop_is_not_dropped_where_python_drops_exceptions():
    code = """if True:
        import os, signal, time
        from foldface import cli
        class Loader:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.3)
        def main():
            Loader()
            time.sleep(60)
            print("went on")
        cli.run_main(main)
    """
    assert ended(python(code)) == (143, "", "stopped; the same command goes on where it was\n")


@pytest.mark.slow
def test_a_stop_in_the_middle_of_a_save_is_one_line_and_leaves_the_old_file(tmp_path):
    code = """if True:
        import os, signal, sys, time
        from foldface import cli, files
        def main():
            with files.atomic_write(sys.argv[1]) as partial:
                try:
                    partial.write_bytes(b"half")
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(60)
                finally:  # as torch.save ends
                    raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 128 vs 64")
        cli.run_main(main)
    """
    (tmp_path / "state.pt").write_text("the old one")
    returned, _, err = ended(python(code, tmp_path / "state.pt"))
    assert returned == 143 and err == "stopped; the same command goes on where it was\n"
    assert (tmp_path / "state.pt").read_text() == "the old one" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_sigterm_saves_a_training_as_ctrl_c_does(competition, tmp_path):
    train.train_folds(competition.config(), [0])
    config = competition.config("--run", tmp_path / "stopped")
    with at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Stopped) as stopped:
        train.train_folds(config, [0])
    assert stopped.value.number == signal.SIGTERM
    assert torch.load(tmp_path / "stopped/fold0/state.pt", weights_only=True)["steps"] == 3
    train.train_folds(config, [0])
    one, two = (load_file(run / "fold0/best.safetensors") for run in (competition.root / "run", tmp_path / "stopped"))
    assert all(torch.equal(one[name], two[name]) for name in one)


CHILD = """if True:
    import os, signal, sys, time
    def save(*_):
        open(sys.argv[1] + ".saved", "w").close()
        sys.exit(0)
    signal.signal(signal.SIGTERM, save)
    with open(sys.argv[1], "w") as file:
        file.write(str(os.getpid()))
    time.sleep(60)
"""
PARENT = "import sys; from foldface import cli, files\n"
PARENT += "cli.run_main(lambda: files.run_command([sys.executable, '-c', *sys.argv[1:]]))"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_stopped_stops_what_it_started(tmp_path, number):
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux says that a parent has ended")
    process, note = python(PARENT, CHILD, tmp_path / "pid"), tmp_path / "pid"
    while not (note.is_file() and note.read_text()):
        time.sleep(0.05)
    process.send_signal(number)
    returned, _, err = ended(process)
    assert returned == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number] and "Traceback" not in err
    assert gone(note.read_text()) and (tmp_path / "pid.saved").is_file()


# ------------------------------------------------------------------------------------------------ killed workers


def test_a_killed_cropping_process_is_one_line_and_what_was_done_is_kept():
    done = []
    with pytest.raises(InputError, match="was killed"), job.processes(1) as pool:
        job.share_out(pool, abs, [-1, -2], done.append)
        job.share_out(pool, signal.raise_signal, [signal.SIGKILL], done.append)
    assert sorted(done) == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("main, status", [("print('done')", 0), ("raise files.InputError('x')", 2)])
def test_a_sigterm_that_comes_while_a_command_ends_changes_nothing(main, status):
    """As torchrun sends it to all processes once one has ended."""
    code = "import atexit, os, signal, time\nfrom foldface import cli, files\ndef main():\n"
    code += "    atexit.register(lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.1)))\n"
    returned, _, err = ended(python(code + f"    {main}\ncli.run_main(main)"))
    assert returned == status and err == ("error: x\n" if status else "")


@pytest.mark.slow
def test_cropping_processes_end_with_a_command_that_is_killed():
    code = """if True:
        import os, signal, time
        from foldface.faces import job
        with job.processes(1) as pool:
            print(pool.submit(os.getpid).result(), flush=True)
            pool.submit(time.sleep, 60)
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    returned, out, _ = ended(python(code))
    assert returned == -9 and gone(out.strip())


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_after_a_killed_loader_worker_training_goes_on_to_the_same_weights(competition, tmp_path):
    words = ["--data.workers", 2, "--data.augment", "light", "--train.epochs", 3]
    train.train_folds(competition.config(*words), [0])

    def kill_workers():
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)

    config = competition.config(*words, "--run", tmp_path / "killed")
    with at_step(2, kill_workers), pytest.raises(InputError, match="a process that reads photos was killed"):
        train.train_folds(config, [0])
    assert torch.load(tmp_path / "killed/fold0/state.pt", weights_only=True)["steps"] >= 2  # no step is lost
    train.train_folds(config, [0])
    one, two = (load_file(run / "fold0/best.safetensors") for run in (competition.root / "run", tmp_path / "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_random_numbers_go_on_where_they_were():
    def drawn():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]

    drawn()
    file = io.BytesIO()
    torch.save(resume.random_states(), file)
    expected = drawn()
    file.seek(0)
    resume.set_random_states(torch.load(file, weights_only=True))
    assert drawn() == expected != drawn()


def test_within_a_step_a_stop_is_only_asked_for_and_a_second_ctrl_c_interrupts():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number in (signal.SIGINT, signal.SIGTERM):
        with resume.stopping_between_steps() as stop:
            assert not stop.asked
            os.kill(os.getpid(), number)
            assert stop.asked and stop.number == number
            with pytest.raises(Stopped) as found:
                stop.end()
            assert found.value.number == number
            if number == signal.SIGTERM:
                os.kill(os.getpid(), number)  # a second one changes nothing
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(KeyboardInterrupt), resume.stopping_between_steps():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_state_belongs_to_its_rows_wherever_their_files_lie(competition):
    config = competition.config()
    rows = pd.DataFrame({"photo": ["/a/1.jpg", "/a/2.jpg"], "file": ["1", "2"], "ImageID": ["1", "2"], "label": [0, 1]})
    own = resume.belongs(config, 1, rows)
    moved = rows.assign(photo=["/b/1.jpg", "/b/2.jpg"]).drop(columns="file").set_index(np.array([4, 9]))
    assert resume.belongs(competition.config("--data.workers", 3), 1, moved) == own and own["fold"] == 1
    assert resume.belongs(config, 1, rows[::-1])["rows"] != own["rows"]
    assert resume.belongs(config, 1, rows.assign(label=[1, 0]))["rows"] != own["rows"]
    assert resume.belongs(config, 1, rows.assign(ImageID=["1", "3"]))["rows"] != own["rows"]
    other = resume.belongs(competition.config("--train.lr", 0.5), 1, rows)["settings"]
    assert {key for key in other if other[key] != own["settings"][key]} == {"train.lr"}


# -------------------------------------------------------------------------------------------------- one at a time


@pytest.mark.slow
def test_overwrite_beside_a_running_training_removes_nothing(competition):
    run = competition.root / "run"
    (run / "fold1").mkdir(parents=True)
    (run / "args.json").write_text("{}")
    (run / "fold1" / "state.pt").write_bytes(b"hours of work")
    with folder_lock(run, "fold1"), pytest.raises(InputError, match="fold1: another process is writing there now"):
        train.train_folds(competition.config(), [0], overwrite=True)
    assert (run / "fold1" / "state.pt").read_bytes() == b"hours of work"
    with folder_lock(run), pytest.raises(InputError, match="another process is writing there now"):  # it predicts
        train.train_folds(competition.config(), [0], overwrite=True)
    assert (run / "fold1" / "state.pt").is_file()
    assert [path.name for path in run.iterdir() if path.name.endswith(".lock")] == []


@pytest.mark.chain
def test_two_trainings_of_one_run_side_by_side_end_with_the_scores_of_both_folds(competition):
    run, words = competition.root / "run", ["--data.train", competition.train, "--data.crops", "", "--device", "cpu"]
    words += ["--model.backbone", "test_resnet", "--model.pretrained", "false", "--data.image_size", 32]
    words += ["--train.epochs", 2, "--train.folds", 2, "--data.workers", 0, "--run", run, "--data.eval", ""]

    def start(fold):
        command = [sys.executable, ROOT / "train_kfold.py", *words, "--train.only_folds", f"[{fold}]"]
        return subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    both = [start(0), start(1)]
    for process in both:
        status, _, err = ended(process, 300)
        assert status == 0, err
    assert set(pd.read_csv(run / "oof.csv")["fold"]) == {0, 1}
    assert json.loads((run / "metrics.json").read_text())["folds"] == [0, 1]
    assert (run / "report.html").is_file() and (run / "history.png").is_file()


@pytest.mark.slow
def test_a_lock_ends_with_its_process_and_leaves_nothing(tmp_path):
    code = "import os, sys\nfrom foldface import files\nwith files.folder_lock(sys.argv[1]): os.kill(os.getpid(), 9)"
    assert ended(python(code, tmp_path))[0] == -9
    with folder_lock(tmp_path):
        returned, _, _ = ended(
            python("import sys\nfrom foldface import files\nwith files.folder_lock(sys.argv[1]): pass", tmp_path)
        )
        assert returned == 1  # an InputError: it is held here
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_locks_is_said_and_goes_on_and_a_read_only_one_is_one_line(tmp_path, monkeypatch, capsys):
    import errno

    import filelock

    def refuse(number):
        def acquire(*_, **__):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(filelock.FileLock, "acquire", acquire)

    refuse(errno.ENOLCK)
    with folder_lock(tmp_path):
        assert "has no locks" in capsys.readouterr().err
    refuse(errno.EROFS)
    with pytest.raises(InputError, match="can't be written to"), folder_lock(tmp_path):
        pass


# ---------------------------------------------------------------------------------------------- the system's limits


@pytest.mark.slow
def test_a_photo_is_not_to_blame_for_too_few_open_files(tmp_path):
    write_photo(tmp_path / "a.png", 0)
    code = """if True:
        import resource, sys
        from foldface import cli
        from foldface.data import photos
        photos.read_photo(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        cli.run_main(lambda: photos.read_photo(sys.argv[1]))
    """
    returned, _, err = ended(python(code, tmp_path / "a.png"))
    assert returned == 2 and err.startswith("error: too many open files: raise the limit") and err.count("\n") == 1


@pytest.mark.slow
def test_a_photo_is_not_to_blame_for_too_little_memory(tmp_path):
    write_photo(tmp_path / "a.png", 0, (5000, 4000))
    code = """if True:
        import resource, sys
        from foldface import cli
        from foldface.data import photos
        photos.refuse_without_memory(b"")
        held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + 100_000_000, -1))
        cli.run_main(lambda: photos.read_photo(sys.argv[1]))
    """
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    returned, _, err = ended(python(code, tmp_path / "a.png"))
    assert returned == 2 and err.startswith("error: out of memory") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BlockingIOError(11, "Resource temporarily unavailable"), "no more processes"),
        (RuntimeError("can't start new thread"), "no more processes"),
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (OSError("Caught OSError in DataLoader worker process 0.\n[Errno 24] Too many open files"), "too many open"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "out of memory"),
        (OSError(28, "No space left on device"), "the disk is full"),
    ],
)
def test_what_the_system_refuses_is_said_and_a_bug_keeps_its_traceback(error, said):
    assert cli.limit_of(error).startswith(said)
    assert cli.limit_of(KeyError("bug")) is None and cli.limit_of(FileNotFoundError(2, "No such file")) is None


def test_a_killed_process_of_several_is_said_where_there_are_several(monkeypatch):
    error = RuntimeError("[gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:50851: Connection reset by peer")
    assert cli.limit_of(error) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.limit_of(error) == "another process of this command was killed"
    assert cli.limit_of(RuntimeError("shapes do not match")) is None


def without_shm(how, code, *words):
    """What Python code prints where /dev/shm is mounted so: a CompletedProcess."""
    mount = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o {how} none /dev/shm && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("/dev/shm can't be mounted here")
    return subprocess.run([*mount, sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ro", "size=4k"])
def test_photos_are_read_where_shared_memory_is_read_only_or_tiny(tmp_path, how):
    for k in range(6):
        write_photo(tmp_path / f"{k}.png", k)
    code = """if True:
        import sys, pandas as pd
        from foldface.data import loader
        if sys.argv[2] != "ro":
            try:
                open("/dev/shm/full", "wb").write(bytes(10_000_000))
            except OSError:
                pass
        rows = pd.DataFrame({"file": [f"{sys.argv[1]}/{k}.png" for k in range(6)]})
        photos = loader.PhotoDataset(rows, "none", 32, False)
        print(sum(len(batch) for _, batch, _ in loader.make(photos, loader.SeededBatchSampler(6, 2), 2)))
    """
    done = without_shm(how, code, tmp_path, how)
    assert done.stdout == "6\n", done.stderr
    assert "photos are read by one process" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_cropping_needs_no_shared_memory():
    code = """if True:
        from foldface.faces import job
        done = []
        with job.processes(4) as pool:
            job.share_out(pool, abs, [-1, -2], done.append)
        print(done)
    """
    done = without_shm("ro", code)
    assert done.stdout == "[1, 2]\n" and "cropped by one process" in done.stderr


def test_photos_that_memory_has_no_room_for_are_decoded_each_epoch(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(12, "Cannot allocate memory")

    write_photo(tmp_path / "a.png", 0)
    monkeypatch.setattr(mmap, "mmap", full)
    photos = loader.PhotoDataset(pd.DataFrame({"file": [str(tmp_path / "a.png")]}), "none", 32, False, memory_gb=1)
    assert photos[0, 0][2] == "" and "decoded in each epoch" in capsys.readouterr().err


def test_a_clock_that_goes_back_does_not_change_what_a_run_may_take(competition):
    folder = competition.root / "run" / "fold0"
    folder.mkdir(parents=True)
    (folder / "speed.csv").write_text("seconds,other_seconds\n100,20\n")
    os.utime(folder / "speed.csv", (2**33, 2**33))  # written before the clock went back
    config = competition.config("--train.minutes", 5, "--train.scheduler", "cosine")
    fresh, after = (train.seconds_for(config, earlier, 1, time.monotonic()) for earlier in ([], [0]))
    assert fresh - after == pytest.approx(120, abs=1)


# -------------------------------------------------------------------------------------------------- damaged, full


def test_damaged_progress_of_a_prediction_begins_at_the_first_photo(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "inference.npz"
    kept = Progress(path, "key", [0, 1], 20, 3, 0)
    for found in kept.found.values():
        found[:] = rng.random((20, 3))
    kept.add(np.arange(10))
    whole = path.read_bytes()
    for _ in range(600):
        data = bytearray(whole[: rng.integers(len(whole))] if rng.random() < 0.1 else whole)
        for at in rng.integers(max(1, len(data)), size=rng.integers(1, 9)):
            data[at : at + 1] = bytes([rng.integers(256)])
        path.write_bytes(bytes(data))
        again = Progress(path, "key", [0, 1], 20, 3, 0)
        assert again.done.sum() in (0, 10)
        assert not again.done.any() or all((again.found[k][:10] == kept.found[k][:10]).all() for k in (0, 1))


def test_progress_that_would_grow_to_any_size_is_not_unpacked(tmp_path, capsys):
    path = tmp_path / "inference.npz"
    kept = Progress(path, "key", [0], 20, 3, 0)
    kept.found[0][:] = 0
    kept.add(np.arange(10))
    with np.load(path) as content:
        parts = dict(content)
    assert Progress(path, "key", [0], 20, 3, 0).done.sum() == 10
    np.savez_compressed(path, **parts)  # of ten rows here; of gigabytes of zeros in a stranger's run
    assert not Progress(path, "key", [0], 20, 3, 0).done.any()
    assert "is damaged; its photos are predicted again" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_a_soup_on_a_full_disk_is_one_line_and_leaves_no_run(competition):
    train.train_folds(competition.config("--train.epochs", 1), [0, 1])
    code = """if True:
        import resource
        from foldface import cli
        from tools import average_weights
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        cli.run_main(average_weights.main)
    """
    returned, _, err = ended(python(code, "--run", competition.root / "run"), timeout=200)
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert returned == 2 and len(lines) == 1 and "best.safetensors: can't be written" in lines[0]
    assert "Traceback" not in err and not (competition.root / "run-soup").exists()


DRAW = ["--sample.people", "2", "--sample.eval_people", "1", "--sample.folder"]


@pytest.mark.slow
def test_drawing_again_keeps_what_a_user_put_there(tmp_path):
    sample_data.draw(tmp_path / "s", 2, 1, progress=False)
    sample_data.draw(tmp_path / "s", 2, 1, seed=1, progress=False)  # untouched: it is drawn anew
    (tmp_path / "s" / "train" / "mine.csv").write_text("hours of work")
    with pytest.raises(InputError, match=r"train/mine\.csv was not drawn here"):
        sample_data.draw(tmp_path / "s", 2, 1, progress=False)
    assert (tmp_path / "s" / "train" / "mine.csv").read_text() == "hours of work"
    (tmp_path / "s" / "train" / "mine.csv").unlink()
    with open(tmp_path / "s" / "train" / "train.csv", "a") as table:
        table.write("changed")
    with pytest.raises(InputError, match=r"train\.csv was not drawn here, or was changed since \(1 such files\)"):
        sample_data.draw(tmp_path / "s", 2, 1, progress=False)


@pytest.mark.slow
def test_drawing_on_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    code = """if True:
        import resource
        from foldface import cli
        from tools import sample_data
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # a photo is larger
        cli.run_main(sample_data.main)
    """
    returned, _, err = ended(python(code, *DRAW, tmp_path / "s"))
    lines = [line for line in err.splitlines() if "error" in line]
    assert returned == 2 and len(lines) == 1 and "can't be drawn (File too large)" in lines[0]
    assert "Traceback" not in err and list(tmp_path.iterdir()) == []


def test_drawing_that_was_killed_leaves_nothing_that_the_same_command_does_not_clear_up(tmp_path):
    (tmp_path / ".s.unfinished" / "train").mkdir(parents=True)
    sample_data.draw(tmp_path / "s", 2, 1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert sample_data.about(2, 1, 0).items() <= json.loads((tmp_path / "s" / "sample.json").read_text()).items()
