"""Experts: a network that knows one head helps; one that knows nothing gets no weight; neither sees whom it answers."""

import json

import numpy as np
import onnx
import pandas as pd
import pytest
from helpers import MASK, STEMS, Competition, guesses
from onnx import TensorProto, helper

import ensemble
from foldface import predictions
from foldface.data.photos import cv2
from foldface.files import InputError
from foldface.settings import as_dict
from tools import expert

SIDE = 16


def colours_network(path, seen):
    """An ONNX network of a photo's mean colour; without `seen` of its mean brightness at the border alone."""
    pads = helper.make_tensor("w", TensorProto.FLOAT, [2, 3, 1, 1], [float(seen), 0, 0, 0, 0, 1])
    nodes = [
        helper.make_node("GlobalAveragePool", ["photos"], ["mean"]),
        helper.make_node("Conv", ["mean", "w"], ["mixed"]),
        helper.make_node("Flatten", ["mixed"], ["told"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("photos", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("told", TensorProto.FLOAT, ["n", 2])],
        [pads],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    path.with_name(path.name + ".json").write_text('{"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}')
    return f"onnx:{path}#told"


@pytest.fixture
def begun(tmp_path):
    return begin(tmp_path)


def begin(tmp_path, misled=False):
    """(its words, the run, true genders of the photos to answer for): a competition whose photos are redder where the
    person is male, and a run that guesses. misled: in fold 1 they are redder where the person is female."""
    people, rng = 40, np.random.default_rng(0)
    competition = Competition(tmp_path, people=people, answer_for=12)

    def draw(path, male):
        image = rng.integers(0, 200, (20, 20, 3), dtype=np.uint8)
        image[..., 2] = np.clip(image[..., 2] + 50 * male, 0, 255)
        cv2.imencode(".png", image)[1].tofile(path)

    for k, (_, gender, _, folder) in enumerate(competition.people):
        for stem in STEMS:
            path = competition.train / "images" / folder / f"{stem}.jpg"
            draw(path, (gender == "male") != (misled and k // 2 % 2 == 1))
    male = rng.integers(2, size=12)
    for name, is_male in zip(competition.images, male, strict=True):
        draw(competition.eval / "images" / name, is_male)
    run, config = tmp_path / "run", competition.config()
    run.mkdir()
    (run / "args.json").write_text(json.dumps(as_dict(config)))
    rows, _ = expert.dataset.training_rows(config)
    person = {name: k for k, name in enumerate(dict.fromkeys(rows["id"]))}
    fold = rows["id"].map(person) // 2 % 2
    pd.DataFrame({"id": rows["id"], "fold": fold}).drop_duplicates().to_csv(run / "folds.csv", index=False)
    frame = rows[["ImageID", "id"]].assign(fold=fold, target=rows["target"])
    told = guesses(rows["target"].to_numpy(), 2.5, 1)
    predictions.with_answers(MASK, frame, told).to_csv(run / "oof.csv", index=False)
    for k in range(2):
        frame = pd.DataFrame({"ImageID": competition.images})
        found = guesses(np.zeros(12, int), 0.0, k)
        predictions.with_answers(MASK, frame, found).to_csv(run / f"fold{k}.csv", index=False)
    return ["--run", str(run), "--data.workers", "0"], run, male


@pytest.mark.slow
def test_an_expert_of_one_head_mends_that_head_alone_and_is_believed(begun, tmp_path, capsys):
    words, run, male = begun
    network, out = colours_network(tmp_path / "red.onnx", True), tmp_path / "with_expert"
    expert.main([*words, "--networks", network, "--heads", "gender", "--output", str(out)])
    before, after = (predictions.read_oof(MASK, folder / "oof.csv") for folder in (run, out))
    old, new = (MASK.decode(frame["ans"].to_numpy()) for frame in (before, after))
    truth = MASK.decode(before["target"].to_numpy())
    assert (old["gender"] == truth["gender"]).mean() < 0.9 < (new["gender"] == truth["gender"]).mean()
    masks = [predictions.values(MASK, frame).reshape(-1, 3, 6).sum(2) for frame in (before, after)]
    assert np.corrcoef(masks[0].ravel(), masks[1].ravel())[0, 1] > 0.9  # what it does not know stays
    asked = predictions.read_fold(MASK, out / "fold0.csv")
    assert (MASK.decode(asked["ans"].to_numpy())["gender"] == 1 - male).all()  # male is class 0
    submission = str(tmp_path / "submission.csv")
    capsys.readouterr()
    ensemble.main([*words, "--weights", "search", "--runs", str(run), str(out), "--submission", submission])
    said = capsys.readouterr().out
    assert float(said.split("weights: ")[1].split(f"{out} ")[1].split()[0]) > 0.5
    ensemble.main([*words, "--stack", "linear", "--runs", str(run), str(out), "--submission", submission])
    assert "stacked on 16 inputs, on people not fitted to" in capsys.readouterr().out


@pytest.mark.slow
def test_an_expert_that_is_wrong_on_the_people_it_answers_for_gets_no_weight(tmp_path, capsys):
    words, run, _ = begin(tmp_path, misled=True)
    network, out = colours_network(tmp_path / "red.onnx", True), tmp_path / "with_expert"
    expert.main([*words, "--networks", network, "--heads", "gender", "--output", str(out)])
    oof = predictions.read_oof(MASK, out / "oof.csv")
    truth, told = (MASK.decode(oof[name].to_numpy()) for name in ("target", "ans"))
    assert (truth["gender"] == told["gender"]).mean() < 0.2  # what the other fold taught it is wrong here
    capsys.readouterr()
    words += ["--submission", str(tmp_path / "submission.csv")]
    ensemble.main([*words, "--weights", "search", "--runs", str(run), str(out)])
    assert f"{out} 0.00" in capsys.readouterr().out.split("weights: ")[1].splitlines()[0]


@pytest.mark.slow
def test_an_expert_that_knows_nothing_changes_next_to_nothing(begun, tmp_path):
    words, _run, _ = begun
    network, out = colours_network(tmp_path / "blue.onnx", False), tmp_path / "with_expert"
    expert.main([*words, "--networks", network, "--heads", "gender", "--output", str(out)])
    oof = predictions.read_oof(MASK, out / "oof.csv")
    gender = predictions.values(MASK, oof).reshape(-1, 3, 2, 3).sum((1, 3))
    assert abs(gender - 0.5).max() < 0.2  # it was not fitted to whom it answers for


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--heads", "beard", "--networks", "onnx:a.onnx"], r"--heads beard: name heads of mask, gender, age"),
        (["--heads", "gender"], r"and --networks that know them"),
        (["--heads", "gender", "--networks", "onnx:nowhere.onnx", "--output", "x"], r"nowhere.onnx: no such file"),
        (["--heads", "gender", "--networks", "onnx:a.onnx"], r"--output: name a folder of its own"),
    ],
)
def test_what_an_expert_lacks_is_one_line(begun, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said) as caught:
        expert.main([*begun[0], *words])
    assert "\n" not in str(caught.value)
