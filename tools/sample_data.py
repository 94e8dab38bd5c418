"""Draw the embedded data set: people who don't exist, seven photos each, in the layout of the mask competition.

    python -m tools.sample_data
    python -m tools.sample_data --sample.people 300 --sample.eval_people 200 --seed 7 --sample.folder data/sample-7

Nothing is taken from a photo: a face is a relief (skull, nose, sockets, lips, folds) and a colour, and the light comes
from another side in each photo. Gender and age change many traits at once, and each trait is also random, so that the
classes overlap as they do in life. The same settings give the same bytes.
"""

import csv
import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from foldface import cli
from foldface.cli import run_main
from foldface.files import InputError, folder_lock, read_json, write_json
from foldface.task import MASK_TASK, Task
from tools.camera import STEMS, take_photos
from tools.portrait import invent

MARKER = "sample.json"  # says that a folder was drawn here, so that it may be replaced


def cast(people, seed):
    """Who there is: (gender 0 male or 1 female, age in years 18..60) of each, the six classes equally often."""
    rng, out = np.random.default_rng(seed), []
    while len(out) < people:
        for kind in rng.permutation(6):
            out.append((int(kind % 2), (int(rng.integers(18, 30)), int(30 + 30 * rng.beta(2.5, 2.5)), 60)[kind // 2]))
    return out[:people]


def draw(folder, people=60, eval_people=30, seed=0, progress=True):
    """Draw the data set into `folder`: people to train on, eval_people to answer for, seven photos each.

    Writes train/train.csv (id,gender,race,age,path), train/images/<path>/<stem>.<ending>, eval/info.csv (ImageID,ans),
    eval/images/<ImageID>, and, for scoring alone, answers.csv (ImageID,ans,id,mask,gender,age) and landmarks.csv.
    Quirks of the real table are kept: CRLF, an id on two rows with two ages, ids such as 000009-1, nobody over 60,
    several file endings. The folder appears whole or not at all, and takes the place of one drawn before. Raises
    InputError, and touches nothing, if it holds anything that was not drawn here, or was changed since; and if the
    disk is full.
    """
    folder = Path(folder)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    with folder_lock(folder.parent, f"{folder.name}.drawing"):
        refuse_others(folder)
        try:
            remove(unfinished)  # what a kill left
            fill(unfinished, people, eval_people, seed, progress)
            write_json(unfinished / MARKER, about(people, eval_people, seed) | {"files": digests(unfinished)})
            remove(folder)
            unfinished.rename(folder)
        except OSError as error:
            raise InputError(f"{folder}: can't be drawn ({error.strerror or error})") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def about(people, eval_people, seed):
    """What decides what is drawn, as it stands in MARKER."""
    return {"people": people, "eval_people": eval_people, "seed": seed}


def digests(folder):
    """{path below the folder: sha1} of all files, MARKER aside."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: "a link" if path.is_symlink() else hashlib.sha1(path.read_bytes()).hexdigest()
        for name, path in names.items()
        if name != MARKER
    }


def refuse_others(folder):
    """Raise InputError if a folder holds anything that was not drawn here as it is: somebody's work."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    drawn_files = drawn(folder).get("files", {})
    others = [folder.name] if folder.is_file() else []
    others += [name for name, digest in ({} if others else digests(folder)).items() if drawn_files.get(name) != digest]
    if others:
        raise InputError(
            f"{folder}: {others[0]} was not drawn here, or was changed since ({len(others)} such files): it is kept; "
            "choose another --sample.folder, or move it away"
        )


def remove(folder):
    """Remove a folder, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def fill(folder, people, eval_people, seed, progress):
    """Write all of the data set's files into a new folder."""
    for part in ("train", "eval"):
        (folder / part / "images").mkdir(parents=True)
    table, answers, landmarks, task = [], [], [], Task(**MASK_TASK)
    everyone = cast(people, [seed, 0]) + cast(eval_people, [seed, 1])
    twin = next((n for n in range(4, people) if everyone[n][1] != everyone[n - 1][1]), None)
    bar = tqdm(everyone, "drawing people", unit="person", disable=None if progress else True)
    for number, (gender, age) in enumerate(bar):
        training, name = number < people, task.head("gender").classes[gender]
        identity = f"{number - (number == twin):06d}" + ("-1" if number % 31 == 9 else "")
        path = f"{identity}_{name}_Drawn_{age}"
        ending = "png" if number % 97 == 5 else "jpeg" if number % 31 == 7 else "jpg"
        into = folder / "train" / "images" / path if training else folder / "eval" / "images"
        into.mkdir(exist_ok=True)
        if training:
            table.append([identity, name, "Drawn", age, path])
        person = invent(np.random.default_rng([seed, 2, number]), gender, age)
        for stem, mask, photo, spots in take_photos(person, (seed, 3, number)):
            file = f"{stem}.{ending}"
            if not training:
                file = hashlib.sha1(f"{seed}/{number}/{stem}".encode()).hexdigest() + ".jpg"
                answer = int(task.encode(mask, gender, task.head("age").class_of(age)))
                answers.append([file, answer, identity, mask, name, age])
            quality = [] if file.endswith("png") else [cv2.IMWRITE_JPEG_QUALITY, 80 + number * 7 % 13]
            (into / file).write_bytes(cv2.imencode(Path(file).suffix, photo, quality)[1].tobytes())
            landmarks.append([(into / file).relative_to(folder).as_posix(), *spots.round(1).ravel().tolist()])
    answers.sort()
    columns = [f"{spot}_{axis}" for spot in ("left_eye", "right_eye", "mouth") for axis in "xy"]
    for file, header, rows, ending in (
        ("train/train.csv", ["id", "gender", "race", "age", "path"], table, "\r\n"),
        ("eval/info.csv", ["ImageID", "ans"], [[row[0], 0] for row in answers], "\n"),
        ("answers.csv", ["ImageID", "ans", "id", "mask", "gender", "age"], answers, "\n"),
        ("landmarks.csv", ["photo", *columns], landmarks, "\n"),
    ):
        with open(folder / file, "w", newline="") as out:
            csv.writer(out, lineterminator=ending).writerows([header, *rows])


def drawn(folder):
    """What a folder was drawn with: {"people", "eval_people", "seed", "files"}, {} if it wasn't drawn here."""
    path = folder / MARKER
    return read_json(path, "move the folder away") if path.is_file() else {}


USED = ("sample",)  # --help shows these groups of settings


def main(argv: list[str] | None = None) -> None:
    config = cli.read(__doc__, argv=argv, used=USED)
    folder, people, eval_people = Path(config.sample.folder), config.sample.people, config.sample.eval_people
    if about(people, eval_people, config.seed).items() <= drawn(folder).items():
        print(f"{folder}: is drawn already")
        return
    draw(folder, people, eval_people, config.seed)
    print(f"{folder}: {people} people to train on, {eval_people * len(STEMS)} photos to answer for")


if __name__ == "__main__":
    run_main(main)
