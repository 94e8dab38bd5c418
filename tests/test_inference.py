"""From checkpoints to submission.csv: every photo gets its row, votes are counted rightly, mismatches are refused."""

import json
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import MASK, mask_task, write_photo
from safetensors.torch import load_file

import dataset
import ensemble
import inference
import model
import pseudo_label
from foldface import blend, metrics, settings
from foldface.data import leaks
from foldface.files import InputError
from foldface.nn import predicting, progress
from foldface.nn.heads import Heads
from foldface.predictions import PSEUDO_COLUMNS, read_fold, with_answers
from tools import average_weights


def predictions(competition, fold):
    return pd.read_csv(competition.root / "run" / f"fold{fold}.csv")


def test_every_row_of_info_csv_is_answered_in_its_order_even_the_unreadable(trained, capsys):
    competition = trained
    names = [competition.images[n] for n in (3, 0, 4, 1, 0)]
    (competition.eval / "info.csv").write_text(
        "ImageID,ans\n" + "".join(f"{name},0\n" for name in [*names, "gone.jpg"])
    )
    (competition.eval / "images" / names[2]).write_bytes(b"")
    competition.run(inference)
    assert "warning: 2 of 6 photos can't be read" in capsys.readouterr().err
    competition.run(ensemble, "--soft")
    submission = pd.read_csv(competition.root / "submission.csv")
    assert submission.columns.tolist() == ["ImageID", "ans"]
    assert submission["ImageID"].tolist() == [*names, "gone.jpg"]
    frame = predictions(competition, 0)
    assert frame.columns.tolist() == ["ImageID", "ans", *MASK.probabilities]
    assert frame.loc[2, MASK.probabilities].tolist() == frame.loc[5, MASK.probabilities].tolist()
    assert frame["p0"][2] == pytest.approx(1.5 / 18, abs=1e-6) and frame["ans"][2] == 0  # the prior
    assert frame.loc[1].tolist() == frame.loc[4].tolist()  # the same photo twice
    assert frame["p0"][0] != frame["p0"][1]


def test_a_photos_answer_does_not_hang_on_its_batch(trained):
    competition = trained
    competition.run(inference)
    before = predictions(competition, 1)
    competition.run(inference, "--inference.batch_size", 2)
    assert np.allclose(predictions(competition, 1)[MASK.probabilities], before[MASK.probabilities], atol=2e-6)


def test_each_photo_is_read_once_for_all_folds(trained, monkeypatch):
    reads, fromfile = [], np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda path, *words: reads.append(str(path)) or fromfile(path, *words))
    trained.run(inference)
    assert sorted(Path(path).name for path in reads if path.endswith(".jpg")) == sorted(trained.images)


@pytest.mark.slow
def test_onnx_answers_as_torch_does_and_a_file_is_not_taken_by_its_name(trained):
    competition = trained
    competition.run(inference)
    before = [predictions(competition, k) for k in (0, 1)]
    folders = [competition.root / "run" / f"fold{k}" for k in (0, 1)]
    for _ in range(2):
        competition.run(inference, "--inference.backend", "onnx")
        for k, plain in enumerate(before):
            found = predictions(competition, k)
            assert (found["ans"] == plain["ans"]).all()
            assert np.allclose(found[MASK.probabilities], plain[MASK.probabilities], atol=1e-5)
        mine, other = (next(folder.glob("best-*.onnx")) for folder in folders)
        mine.write_bytes(other.read_bytes())  # fold 1's network under the name of fold 0's
    assert all(len(list(folder.glob("*.onnx"))) == 1 for folder in folders)


def test_a_fold_that_answers_nan_is_an_error(trained):
    path = trained.root / "run" / "fold1" / "best.safetensors"
    net, _, about = model.load(path)
    torch.nn.init.constant_(net.get_classifier().weight, 3e38)  # finite, as weights must be; outputs overflow
    model.save(path, net, about)
    with pytest.raises(InputError, match="fold 1 predicts NaN"):
        trained.run(inference)
    assert not (trained.root / "run" / "fold1.csv").exists()


def test_another_folds_weights_are_refused(trained):
    first, second = (trained.root / "run" / f"fold{k}" / "best.safetensors" for k in (0, 1))
    second.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match=r"fold1/best\.safetensors: holds the weights of fold 0"):
        trained.run(inference)


def test_a_flip_averages_both_views(trained):
    competition = trained
    competition.run(inference)
    plain = predictions(competition, 0)[MASK.probabilities].to_numpy()
    for name in competition.images:
        path = str(competition.eval / "images" / name)
        pixels = inference_cv2().imread(path)
        inference_cv2().imwrite(path.replace(".jpg", ".png"), pixels[:, ::-1])
    (competition.eval / "info.csv").write_text(
        "ImageID\n" + "\n".join(n.replace("jpg", "png") for n in competition.images)
    )
    competition.run(inference)
    mirrored = predictions(competition, 0)[MASK.probabilities].to_numpy()
    competition.run(inference, "--inference.flip")
    both = predictions(competition, 0)[MASK.probabilities].to_numpy()
    assert np.allclose(both, (plain + mirrored) / 2, atol=0.01) and not np.allclose(both, mirrored, atol=0.01)


def test_four_enlarged_corners_may_join_the_views():
    config = types.SimpleNamespace(crops=True, flip=True)
    photos = torch.arange(32.0).repeat(2, 3, 32, 1)  # brighter to the right
    views = predicting.views_of(photos, config)
    assert len(views) == 10 and all(view.shape == photos.shape for view in views) and torch.equal(views[0], photos)
    left, right = views[1].mean(), views[2].mean()
    assert left == pytest.approx(13.5, abs=0.2) and right == pytest.approx(17.5, abs=0.2)
    assert torch.equal(views[5], photos.flip(3))
    assert len(predicting.views_of(photos, types.SimpleNamespace(crops=False, flip=False))) == 1


@pytest.mark.slow
def test_a_soup_is_the_mean_of_the_folds_with_statistics_of_its_own(trained):
    competition = trained
    dealt = "".join(f"{person[0]},{n % 2}\n" for n, person in enumerate(competition.people))
    (competition.root / "run" / "folds.csv").write_text("id,fold\n" + dealt)
    competition.run(average_weights)
    home = competition.root / "run-soup"
    one, two, mean = (
        load_file(path / "best.safetensors")
        for path in (competition.root / "run" / "fold0", competition.root / "run" / "fold1", home / "fold0")
    )
    assert set(pd.read_csv(home / "folds.csv")["fold"]) == {-1}  # it has seen everyone
    assert torch.allclose(mean["conv1.0.weight"], (one["conv1.0.weight"] + two["conv1.0.weight"]) / 2)
    assert torch.equal(mean["bn1.running_mean"], one["bn1.running_mean"])  # freeze_bn: they were never moved
    competition.run(average_weights, "--model.freeze_bn", "false")
    assert not torch.equal(load_file(home / "fold0" / "best.safetensors")["bn1.running_mean"], one["bn1.running_mean"])
    competition.run(inference, "--run", home)
    assert len(pd.read_csv(home / "fold0.csv")) == 5
    (competition.root / "run" / "fold1" / "best.safetensors").unlink()
    with pytest.raises(InputError, match="has one fold; an average needs two"):
        competition.run(average_weights)


@pytest.mark.slow
def test_a_soup_takes_its_statistics_from_what_its_folds_were_trained_on(trained, monkeypatch):
    from foldface.data import loader

    competition = trained
    words = ["--model.freeze_bn", "false", "--data.only", "[mask=normal]", "--data.test_size", 0.2]
    config = competition.config(*words)
    with pytest.raises(InputError, match=r"has no folds\.csv"):
        competition.run(average_weights, *words)
    rows = dataset.prepare(config)
    seen, honest = [], loader.PhotoDataset
    monkeypatch.setattr(
        loader, "PhotoDataset", lambda rows, *words, **names: seen.append(rows) or honest(rows, *words, **names)
    )
    competition.run(average_weights, *words)
    trained_on = set(rows["ImageID"][rows["source"] == "train"])
    assert 0 < len(trained_on) < len(rows) <= 12 and set(seen[0]["ImageID"]) == trained_on
    assert leaks.seen_by(competition.root / "run-soup" / "fold0")[0] == {person[0] for person in competition.people}
    assert "extra" in json.loads((competition.root / "run-soup" / "data.json").read_text())


def test_an_age_in_years_lies_beside_the_predictions(trained):
    competition = trained
    for fold in (0, 1):
        path = competition.root / "run" / f"fold{fold}" / "best.safetensors"
        _, _, about = model.load(path)
        reader = Heads(mask_task(learn="distribution"), "multi")
        heads = settings.change_heads(about["task"]["heads"], {"age": {"learn": "distribution"}}, "")
        about |= {"task": {"heads": heads}, "prior": about["prior"] + [40.0] + [0.5] * 7}
        model.save(path, model.build("test_resnet", reader.size, False, 32), about)
    (competition.eval / "images" / competition.images[1]).write_bytes(b"")
    competition.run(inference)
    ages = pd.read_csv(competition.root / "run" / "fold1_age.csv")
    assert ages.columns.tolist() == ["ImageID", *MASK.number.columns]
    assert ages.loc[1, MASK.number.columns].tolist() == [40.0] + [0.5] * 7
    found = predictions(competition, 1)[MASK.probabilities].to_numpy().reshape(5, 6, 3).sum(1)
    assert np.allclose(found[[0, 2, 3, 4], 2], ages["from58"].to_numpy()[[0, 2, 3, 4]], atol=1e-5)
    competition.run(ensemble, "--soft")
    assert len(pd.read_csv(competition.root / "submission.csv")) == 5


def inference_cv2():
    from foldface.data.photos import cv2

    return cv2


def test_preparation_comes_from_the_weights_and_other_crops_are_refused(trained, tmp_path):
    made = {"size": 224, "margin": 0.25, "align": False, "detectors": ["centre"]}
    predicting.refuse_other_crops({}, "")
    with pytest.raises(InputError, match="trained on face crops"):
        predicting.refuse_other_crops(made, "")
    with pytest.raises(InputError, match="trained on whole photos"):
        predicting.refuse_other_crops({}, "crops")
    (tmp_path / "crop.json").write_text('{"size": 224, "margin": 0.5, "align": false, "detectors": ["centre"]}')
    with pytest.raises(InputError, match=r"margin was 0\.25, is 0\.5"):
        predicting.refuse_other_crops(made, str(tmp_path))


@pytest.mark.parametrize(("ages", "alike"), [([0, 100], True), ([0, 116], False)])
def test_folds_from_before_bounds_were_written_answer_with_new_ones_where_both_learned_the_same(tmp_path, ages, alike):
    about = {"backbone": "test_resnet", "heads": "multi", "age": "classes", "age_boundary": 58, "image_size": 32}
    about |= {"task": {"heads": [{"name": "age", "bounds": [30, 60], "range": ages}]}, "fit": "stretch", "crops": {}}
    about |= {"augment": "light", "mean": [0.5] * 3, "std": [0.5] * 3, "prior": [1 / 3] * 3}
    paths = {0: tmp_path / "old.safetensors", 1: tmp_path / "new.safetensors"}
    for path, more in zip(paths.values(), ({}, {"bounds": [30, 58]}), strict=True):
        model.save(path, model.build("test_resnet", 3, False, 32), about | more)
    if alike:
        assert len(model.load_folds(paths)[0]) == 2
    else:
        with pytest.raises(InputError, match="were trained with different task"):
            model.load_folds(paths)


def test_a_run_without_weights_says_so(competition):
    with pytest.raises(InputError, match=r"has no fold\*/best.safetensors: train first"):
        competition.run(inference)


# ------------------------------------------------------------------------------------------------ pseudo labels


def table(told, confidence):
    """Predictions with these answers, each of this probability."""
    probabilities = np.full((len(told), 18), 0.0)
    for row, (answer, value) in enumerate(zip(told, confidence, strict=True)):
        probabilities[row] = (1 - value) / 17
        probabilities[row, answer] = value
    return with_answers(MASK, pd.DataFrame({"ImageID": [f"{n}.jpg" for n in range(len(told))]}), probabilities)


def test_only_sure_answers_are_kept_and_at_most_so_many_a_class():
    frame = table([3, 3, 3, 5, 5], [0.99, 0.95, 0.8, 0.5, 0.97])
    assert pseudo_label.choose(MASK, frame, 0.9, 0)["ImageID"].tolist() == ["0.jpg", "4.jpg", "1.jpg"]
    assert pseudo_label.choose(MASK, frame, 0.9, 1)["ImageID"].tolist() == ["0.jpg", "4.jpg"]


def test_threshold_and_cap_may_be_one_a_class():
    frame = table([3, 3, 3, 5, 5], [0.99, 0.95, 0.8, 0.5, 0.97])
    least, most = [0.9] * 18, [0] * 18
    least[5], most[3] = 0.4, 1
    assert pseudo_label.choose(MASK, frame, least, most)["ImageID"].tolist() == ["0.jpg", "4.jpg", "3.jpg"]


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (["--model.heads", "joint", "--loss.name", "neighbour", "--loss.smoothing", 0.1], "0.900"),
        (["--loss.smoothing", 0.1], "0.828"),
        (["--model.heads", "joint", "--loss.name", "neighbour", "--loss.smoothing", 0.05], ""),
        (["--loss.smoothing", 0.0], ""),
    ],
)
def test_a_threshold_that_label_smoothing_puts_out_of_reach_is_said(competition, capsys, words, most):
    (competition.root / "run").mkdir()
    table([1, 2], [0.99, 0.999]).to_csv(competition.root / "run/fold0.csv", index=False)
    competition.run(pseudo_label, "--pseudo.threshold", 0.9, *words)
    said = capsys.readouterr().err
    assert (f"training aims at {most} for" in said) if most else not said


def test_what_share_of_pseudo_labels_is_right_is_said_where_the_truth_is_known(competition, capsys):
    run, half = competition.root / "run", ["--pseudo.threshold", 0.5]
    run.mkdir()
    table([1, 2, 1], [0.9, 0.9, 0.9]).to_csv(run / "fold0.csv", index=False)
    (competition.root / "answers.csv").write_text("ImageID,ans\n0.jpg,1\n1.jpg,2\n2.jpg,3\n")
    competition.run(pseudo_label, *half, "--answers", competition.root / "answers.csv")
    out = capsys.readouterr().out
    assert "66.7% of 3" in out and "50.0% of 2" in out
    with pytest.raises(InputError, match="lists 2 numbers"):
        competition.run(pseudo_label, "--pseudo.threshold", "[0.5, 0.5]")


def test_each_folds_labels_come_from_its_own_model_and_never_from_unreadable_photos(competition):
    run, half = competition.root / "run", ["--pseudo.threshold", 0.5]
    run.mkdir()
    for fold, told in enumerate(([1, 2], [7, 8])):
        table(told, [0.9, 0.9]).to_csv(run / f"fold{fold}.csv", index=False)
    (run / "unreadable.csv").write_text("ImageID,reason\n1.jpg,empty file\n")
    competition.run(pseudo_label, *half)
    frame = pd.read_csv(run / "pseudo.csv")
    assert frame[["ImageID", "fold", "ans"]].to_numpy().tolist() == [["0.jpg", 0, 1], ["0.jpg", 1, 7]]
    assert frame.columns.tolist() == [*PSEUDO_COLUMNS, *MASK.probabilities]
    with pytest.raises(InputError, match=r"pseudo.threshold 0\.95: lower it"):
        competition.run(pseudo_label, "--pseudo.threshold", 0.95)


# -------------------------------------------------------------------------------------------------------- votes


def votes(*members):
    """(members, 1, 18) probabilities: each member's are {class: probability}."""
    stack = np.zeros((len(members), 1, 18))
    for number, probabilities in enumerate(members):
        for answer, value in probabilities.items():
            stack[number, 0, answer] = value
    return stack


def test_soft_is_the_mean_and_hard_the_majority():
    stack = votes({0: 0.51, 4: 0.49}, {0: 0.51, 4: 0.49}, {4: 1.0})
    assert blend.soft_vote(MASK, stack).tolist() == [4] and blend.hard_vote(MASK, stack).tolist() == [0]


@pytest.mark.parametrize("vote", ["soft", "hard", "rank"])
def test_the_vote_without_a_member_is_the_vote_of_the_others(vote):
    told = np.random.default_rng(3).dirichlet(np.ones(18), size=(5, 60))
    others = [blend.VOTES[vote](MASK, np.delete(told, k, 0)) for k in range(5)]
    assert np.array_equal(blend.votes_without_one(MASK, vote, told), others)


def test_a_tied_vote_goes_by_attribute_and_then_by_mean_probability():
    wear_male_young, wear_female_young, wear_female_middle = 0, 3, 4
    stack = votes({wear_male_young: 1.0}, {wear_female_young: 0.6, 17: 0.4}, {wear_female_middle: 1.0})
    assert blend.hard_vote(MASK, stack).tolist() == [wear_female_young]  # female 2 of 3, <30 2 of 3
    assert blend.hard_vote(MASK, votes({0: 0.6, 9: 0.4}, {17: 0.9, 0: 0.1})).tolist() == [17]


@pytest.mark.parametrize("members", [334, 1500])
def test_no_number_of_members_lets_attributes_outvote_votes(members):
    most = members // 7 + 2  # for class 6; one less for class 4, with which all the others share two attributes
    others = members - 2 * most + 1
    told = [6] * most + [4] * (most - 1) + [[1, 3, 5, 10, 16][k % 5] for k in range(others)]
    assert np.bincount(told).argmax() == 6 and (np.bincount(told) == most).sum() == 1
    assert blend.hard_vote(MASK, np.eye(18)[told][:, None]).tolist() == [6]


def test_members_that_answer_for_other_photos_are_refused(tmp_path):
    for run, names in (("a", "01"), ("b", "10"), ("c", "0")):
        (tmp_path / run).mkdir()
        frame = table([1] * len(names), [0.9] * len(names)).assign(ImageID=[f"{n}.jpg" for n in names])
        frame.to_csv(tmp_path / run / "fold0.csv", index=False)
    ids, _found = ensemble.members(MASK, [tmp_path / "a", tmp_path / "a"])
    assert list(ids) == ["0.jpg", "1.jpg"]
    with pytest.raises(InputError, match=r"b/fold0.csv, row 2: is 1.jpg"):
        ensemble.members(MASK, [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(InputError, match=r"has 1 rows, .* has 2"):
        ensemble.members(MASK, [tmp_path / "a", tmp_path / "c"])
    with pytest.raises(InputError, match=r"has no fold0\.csv: run inference"):
        ensemble.members(MASK, [tmp_path / "d"])


@pytest.mark.slow
def test_one_fold_may_answer_without_the_others(trained):
    competition = trained
    competition.run(inference)
    for k in (0, 1):
        competition.run(ensemble, "--folds", k)
        answer = pd.read_csv(competition.root / "submission.csv")["ans"].tolist()
        assert answer == read_fold(MASK, competition.root / f"run/fold{k}.csv")["ans"].tolist()
    with pytest.raises(InputError, match=r"--folds 7: .* has the folds 0, 1"):
        competition.run(ensemble, "--folds", 7)


def test_a_submission_for_another_info_csv_is_refused(trained):
    competition = trained
    competition.run(inference)
    (competition.eval / "info.csv").write_text("ImageID\nanswer0.jpg\n")
    with pytest.raises(InputError, match=r"has other rows \(1\)"):
        competition.run(ensemble, "--soft")


def test_the_interval_of_known_answers_is_drawn_over_objects_where_they_are_known(capsys):
    rng = np.random.default_rng(0)
    target = rng.integers(18, size=20).repeat(10)
    answer = np.where((rng.random(20) < 0.6).repeat(10), target, (target + 1) % 18)  # all photos of an object, or none
    rows = pd.DataFrame({"ImageID": [f"object{k // 10}_{k}.jpg" for k in range(200)], "target": target})
    for group, ids in ((r"^(\w+?)_", np.arange(20).repeat(10).astype(str)), ("", rows["ImageID"])):
        ensemble.log_known_answers(MASK, rows, answer, np.eye(18)[answer], group)
        low, high = metrics.interval(MASK, target, answer, ids)
        width = high - low
        assert f"(95 % {low:.3f}-{high:.3f})" in capsys.readouterr().out and (width > 0.2) == bool(group)


@pytest.mark.slow
def test_voting_never_imports_torch():
    import subprocess
    import sys

    from helpers import ROOT

    code = "import sys, ensemble, pseudo_label; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_predictions_go_on_where_they_were_unless_a_photo_changed(trained, tmp_path, capsys):
    competition = trained
    config = competition.config("--inference.batch_size", 2, "--save_minutes", 0)
    files = np.array([str(competition.eval / "images" / name) for name in competition.images])
    rows = pd.DataFrame({"file": files})
    paths = model.checkpoints(str(competition.root / "run"))
    key = predicting.key_of(paths, rows, config)
    nets, abouts, heads = model.load_folds(paths)
    whole, _ = predicting.predict(nets, abouts, heads, rows, config)
    kept = tmp_path / "kept.npz"
    part = progress.Progress(kept, key, nets, 5, heads.width, 0)  # as a kill after two batches leaves it
    for fold, found in part.found.items():
        found[:] = whole[fold]
    part.add(np.arange(4))
    again, _ = predicting.predict(nets, abouts, heads, rows, config, kept, key)
    assert "4 of 5 photos were predicted before: going on" in capsys.readouterr().out
    assert all((whole[fold] == again[fold]).all() for fold in whole)
    write_photo(competition.eval / "images" / competition.images[0], 77, (50, 30))
    assert predicting.key_of(paths, rows, config) != key
    boxes = [rows.assign(x1=0, y1=0, x2=5, y2=y2) for y2 in (5, 6)]
    assert len({predicting.key_of(paths, box, config) for box in boxes}) == 2
