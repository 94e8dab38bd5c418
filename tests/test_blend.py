"""Weights and decisions: fitted to some people, scored on others."""

import re

import numpy as np
import pandas as pd
import pytest
from helpers import MASK, guesses, people

import ensemble
import pseudo_label
from foldface import blend, metrics, oof, predictions, task
from foldface.files import InputError


def test_the_score_that_is_climbed_is_the_one_that_is_printed():
    target, _, _ = people()
    answer = guesses(target, 1.0, 1).argmax(1)
    assert metrics.value(MASK, target, answer) == pytest.approx(metrics.scores(MASK, target, answer)["f1"])


def test_hill_climbing_finds_who_is_good_and_never_does_worse_than_the_best():
    target, _, _ = people()
    stack = np.stack([guesses(target, strength, k) for k, strength in enumerate((0.2, 2.5, 2.5))])
    weights = blend.climb(MASK, stack, target)
    assert weights.sum() == pytest.approx(1) and weights[0] < weights[1:].min()
    best = max(metrics.value(MASK, target, member.argmax(1)) for member in stack)
    assert metrics.value(MASK, target, np.tensordot(weights, stack, 1).argmax(1)) >= best


def test_what_is_averaged_are_probabilities_votes_or_ranks():
    members = np.array([[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]]])
    assert np.array_equal(blend.votes(members, "soft"), members)
    hard = np.eye(3)[[0, 2, 1]][None]  # a vote each; probabilities only tell equal votes apart
    assert np.allclose(blend.votes(members, "hard"), hard + 1e-3 * members, atol=1e-12)
    assert blend.votes(members, "rank").tolist() == [[[1, 0.5, 0], [0, 0, 1], [0.5, 1, 0.5]]]
    ages = np.array([[30.0, 70.0]])
    for vote in ("soft", "hard", "rank"):
        assert blend.votes(ages, vote) is ages


def test_hill_climbing_blends_numbers_too():
    age = task.Task([{"name": "age", "range": [0, 100]}], score="mae")
    truth = np.random.default_rng(0).uniform(20, 60, 300)
    stack = np.stack([truth + 4, truth - 2, truth + 30])  # a third of the first and two of the second are the truth
    assert blend.climb(age, stack, truth) == pytest.approx([1 / 3, 2 / 3, 0], abs=0.02)


def test_a_boundary_moves_ages_alone():
    p = guesses(people(20)[0], 1.0, 3)
    ages = np.sort(np.random.default_rng(0).random((140, 8)), 1)[:, ::-1]  # the mean, from 30, from 55, ..., from 60
    for place, bound in enumerate(range(55, 61)):
        found = blend.at_boundary(MASK, p[None], ages[None], bound)[0]
        from30, old = ages[:, 1], ages[:, 2 + place]
        by_age = np.stack([1 - from30, from30 - old, old], 1)
        expected = p.reshape(140, 6, 3).sum(2, keepdims=True) * by_age[:, None]
        assert np.allclose(found, expected.reshape(140, 18))


def test_each_class_but_one_of_a_head_has_a_bias_and_the_oldest_comes_first():
    found = blend.movable(MASK)
    assert found == [("age", 2), ("age", 0), ("gender", 1), ("mask", 1), ("mask", 2)]
    spread = blend.spread_bias(MASK, {("age", 2): 0.5, ("mask", 1): -1.0})
    part = MASK.decode(np.arange(18))
    assert np.array_equal(spread, 0.5 * (part["age"] == 2) - (part["mask"] == 1))


def test_no_bias_is_chosen_where_none_helps():
    target, _, _ = people(40)
    assert set(blend.choose_bias(MASK, guesses(target, 50.0, 0), target).values()) == {0.0}


def test_the_boundary_that_the_answers_need_is_found():
    target, _, _ = people()
    p = guesses(target, 3.0, 1)
    old = target % 3 == 2
    ages = np.zeros((1, len(target), len(MASK.number.columns)))
    for k, bound in enumerate(MASK.number.steps, start=1):
        ages[0, :, k] = np.where(old, 0.9 if bound <= 56 else 0.2, np.where(target % 3 == 1, 0.9 * (bound == 30), 0.05))
    scores_at = {bound: blend.at_boundary(MASK, p[None], ages, bound)[0] for bound in MASK.number.steps[1:]}
    assert blend.choose_boundary(MASK, scores_at, target, 58) == 56  # 55 is as good: 56 is nearer to 58
    assert np.allclose(scores_at[56].sum(1), 1)


def test_a_bias_mends_answers_that_never_say_old():
    target, _, _ = people(400)
    p = guesses(target, 2.5, 1)
    p[:, 2::3] *= 0.3
    bias = blend.choose_bias(MASK, p, target)
    assert bias["age", 2] > 0.5
    better = (np.log(p) + blend.spread_bias(MASK, bias)).argmax(1)
    assert metrics.value(MASK, target, better) > metrics.value(MASK, target, p.argmax(1))


def test_all_photos_of_a_person_are_in_one_part_even_with_a_single_fold():
    _, person, fold = people()
    assert (blend.parts_of(person, fold) == fold).all()
    parts = blend.parts_of(person, np.zeros(len(person)))
    assert len(np.unique(parts)) == 5 and all(len(set(parts[person == p])) == 1 for p in person)


# -------------------------------------------------------------------------------------- the first way to cheat


@pytest.mark.slow
def test_weights_scored_on_the_rows_they_were_fitted_to_are_caught():
    """Twenty members of pure noise: fitted and scored on the same rows they seem to gain; nested they gain nothing."""
    target, person, fold = people(60)
    stack = np.stack([guesses(target, 0.0, k) for k in range(20)])
    plain = metrics.value(MASK, target, stack.mean(0).argmax(1))

    def fit(rows):
        weights = blend.climb(MASK, stack[:, rows], target[rows])
        return lambda others: np.tensordot(weights, stack[:, others], 1).argmax(1)

    cheating = metrics.value(MASK, target, fit(np.ones(len(target), bool))(np.ones(len(target), bool)))
    honest = metrics.value(MASK, target, blend.nested(fit, target, blend.parts_of(person, fold)))
    assert cheating > plain + 0.03
    assert honest < plain + 0.015


@pytest.mark.slow
def test_a_choice_never_sees_the_rows_that_it_answers():
    target, person, fold = people(50)
    seen = []

    def fit(rows):
        seen.append(set(person[rows]))
        return lambda others: (seen[-1].isdisjoint(person[others]) or pytest.fail("fitted to them")) and target[others]

    assert (blend.nested(fit, target, fold) == target).all() and len(seen) == 5


# --------------------------------------------------------------------------------------------------- the script


def sharpened(p, power):
    """Probabilities that are surer than they should be, the same answers."""
    return p**power / (p**power).sum(1, keepdims=True)


def write_run(home, name, target, person, fold, strength, seed, ages=False, answer_for=("a.jpg", "b.jpg"), power=1):
    run = home / name
    run.mkdir(parents=True)
    frame = pd.DataFrame({"ImageID": [f"{p}/{k}.jpg" for k, p in enumerate(person)], "id": person, "fold": fold})
    told = sharpened(guesses(target, strength, seed), power)
    predictions.with_answers(MASK, frame.assign(target=target), told).to_csv(run / "oof.csv", index=False)
    for k in range(2):
        found = sharpened(guesses(np.zeros(len(answer_for), int), 3.0, k), power)
        predictions.with_answers(MASK, pd.DataFrame({"ImageID": answer_for}), found).to_csv(
            run / f"fold{k}.csv", index=False
        )
    if ages:
        for path, ids in (
            ("oof_age", frame["ImageID"]),
            ("fold0_age", answer_for),
            ("fold1_age", answer_for),
        ):
            values = np.tile([40.0, 0.6, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05], (len(ids), 1))
            pd.DataFrame(values, columns=MASK.number.columns).assign(ImageID=list(ids)).to_csv(
                run / f"{path}.csv", index=False
            )
    return str(run)


@pytest.fixture
def runs(competition):
    target, person, fold = people()
    (competition.eval / "info.csv").write_text("ImageID,ans\na.jpg,0\nb.jpg,0\n")
    homes = [
        write_run(competition.root, name, target, person, fold, strength, seed, ages=True)
        for seed, (name, strength) in enumerate({"good": 3.0, "fair": 2.0, "noise": 0.0}.items())
    ]
    return competition, homes


@pytest.mark.slow
@pytest.mark.parametrize("vote", ["soft", "hard", "rank"])
def test_searched_weights_beat_the_plain_vote_on_other_people_and_what_each_brings_is_said(runs, capsys, vote):
    competition, homes = runs
    config = competition.config()
    competition.run(ensemble, "--runs", *homes, "--weights", "search", f"--{vote}")
    out = capsys.readouterr().out
    assert all(f"with {home} in it" in out for home in homes)
    assert f"plain {vote} vote of 3 runs" in out and "searched weights, on people not searched on" in out
    if vote == "soft":
        assert "weights: " in out
        found = dict(pair.rsplit(" ", 1) for pair in out.split("weights: ")[1].splitlines()[0].split(", "))
        assert float(found[homes[0]]) > 0.4 > 0.3 > float(found[homes[2]])
    if vote != "rank":  # two photos have no ranks to speak of
        assert pd.read_csv(config.submission)["ans"].tolist() == [0, 0]


@pytest.mark.slow
def test_classes_that_the_vote_hardly_answers_are_named_with_what_may_help(competition, capsys):
    target, person, fold = people()
    photos = [f"{k:03}.jpg" for k in range(200)]  # all are answered 0
    (competition.eval / "info.csv").write_text("ImageID,ans\n" + "".join(f"{name},0\n" for name in photos))
    run = write_run(competition.root, "good", target, person, fold, 3.0, 0, answer_for=photos)
    competition.run(ensemble, "--runs", run)
    assert "answered less than a third as often as in training: " in (out := capsys.readouterr().out)
    assert "try --decide bias" in out
    for words in (["--decide", "bias"], ["--task.score", "accuracy"]):
        competition.run(ensemble, "--runs", run, *words)
        assert "less than a third" not in capsys.readouterr().out


@pytest.mark.slow
def test_decisions_are_taken_only_where_they_beat_the_plain_answer(runs, capsys):
    competition, homes = runs
    competition.run(ensemble, "--runs", homes[0], "--decide", "bias")
    out = capsys.readouterr().out
    assert "decided bias, on people not decided on" in out
    assert ("log bias" in out) != ("the plain answer is not beaten: it stays" in out)
    competition.run(ensemble, "--runs", homes[0], "--decide", "boundary")
    assert "decided boundary" in capsys.readouterr().out
    (competition.root / "good" / "oof_age.csv").unlink()
    with pytest.raises(InputError, match="have no age in years"):
        competition.run(ensemble, "--runs", homes[0], "--decide", "boundary")


def printed(out, title):
    """The score that ensemble.py printed after a title."""
    return float(re.search(rf"{title}: out-of-fold macro F1 ([\d.]+)", out)[1])


def by_others(target, fold, fit):
    """The score of answers that fit(rows) -> (rows -> answers) gives for each fold, fitted to the other folds."""
    answer = np.empty_like(target)
    for k in np.unique(fold):
        answer[fold == k] = fit(fold != k)(fold == k)
    return metrics.value(MASK, target, answer)


@pytest.mark.slow
def test_weights_and_decisions_are_scored_on_people_that_neither_was_fitted_to(competition, capsys):
    target, person, fold = people(60)
    (competition.eval / "info.csv").write_text("ImageID,ans\na.jpg,0\nb.jpg,0\n")
    strengths = {"fair": 1.5, "other": 1.2, "noise": 0.0}
    homes = [
        write_run(competition.root, name, target, person, fold, s, k) for k, (name, s) in enumerate(strengths.items())
    ]
    competition.run(ensemble, "--runs", *homes, "--weights", "search", "--decide", "bias")
    out = capsys.readouterr().out
    stack = oof.OofPredictions(MASK, homes).predictions
    everyone = np.ones(len(target), bool)

    def searched(rows):
        weights = blend.climb(MASK, stack[:, rows], target[rows])
        return lambda others: np.tensordot(weights, stack[:, others], 1).argmax(1)

    def decided(rows, weights=None):
        weights = blend.climb(MASK, stack[:, rows], target[rows]) if weights is None else weights
        mean = np.tensordot(weights, stack, 1)
        factor = np.exp(blend.spread_bias(MASK, blend.choose_bias(MASK, mean[rows], target[rows])))
        return lambda others: (mean[others] * factor).argmax(1)

    honest = by_others(target, fold, searched), by_others(target, fold, decided)
    assert printed(out, "searched weights, on people not searched on") == pytest.approx(honest[0], abs=6e-5)
    assert printed(out, "decided bias, on people not decided on") == pytest.approx(honest[1], abs=6e-5)
    of_all = blend.climb(MASK, stack, target)
    cheats = [metrics.value(MASK, target, fit(everyone)(everyone)) for fit in (searched, decided)]
    half = by_others(target, fold, lambda rows: decided(rows, of_all))  # the weights were fitted to all
    assert abs(cheats[0] - honest[0]) > 1e-3 and abs(cheats[1] - honest[1]) > 1e-3 and abs(half - honest[1]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "vote"),
    [(["--weights", "search"], "--soft"), (["--weights", "search"], "--hard"), (["--decide", "bias"], "--soft")],
)
def test_what_is_chosen_and_worse_on_other_people_is_not_used(competition, capsys, flags, vote):
    target, person, fold = people(30, seed=3)
    (competition.eval / "info.csv").write_text("ImageID,ans\na.jpg,0\nb.jpg,0\n")
    several = "--weights" in flags  # on the people that they were chosen on, both would seem to gain
    strength, seeds = (1.0 if vote == "--soft" else 0.2, range(5)) if several else (3.0, [11])
    homes = [write_run(competition.root, f"r{k}", target, person, fold, strength, k) for k in seeds]
    config = competition.config()
    competition.run(ensemble, "--runs", *homes, vote)
    plain, _ = pd.read_csv(config.submission), capsys.readouterr()
    competition.run(ensemble, "--runs", *homes, vote, *flags)
    out = capsys.readouterr().out
    assert re.search(r"on people not .*, -0\.\d+ \(", out) and "is not beaten: it stays" in out
    assert "weights: " not in out and "log bias" not in out and pd.read_csv(config.submission).equals(plain)


def test_runs_on_other_photos_can_not_be_searched_together(runs):
    competition, homes = runs
    target, person, fold = people(60)
    other = write_run(competition.root, "other", target, person, fold, 1.0, 9)
    with pytest.raises(InputError, match="has other photos than"):
        competition.run(ensemble, "--runs", homes[0], other, "--weights", "search")
    (competition.root / "good" / "oof.csv").unlink()
    with pytest.raises(InputError, match=r"good/oof.csv: no such file"):
        competition.run(ensemble, "--runs", *homes, "--weights", "search")


# ------------------------------------------------------------------------------------------------- the temperature


def test_a_temperature_keeps_the_order_of_the_classes_and_the_labels_that_are_answered():
    p = guesses(people(20)[0], 1.0, 0)
    labels = task.Task([{"name": "has", "kind": "multilabel", "classes": ["a", "b", "c"]}])
    told = np.random.default_rng(0).random((50, 3))
    for temperature in (0.3, 4.0):
        found = blend.tempered(MASK, p, temperature)
        assert np.allclose(found.sum(1), 1) and np.array_equal(found.argsort(1), p.argsort(1))
        assert np.array_equal(blend.tempered(labels, told, temperature) >= 0.5, told >= 0.5)
    assert np.allclose(blend.tempered(MASK, p, 1.0), p) and np.allclose(blend.tempered(labels, told, 1.0), told)


def test_the_temperature_of_labels_that_are_too_sure_is_found():
    labels, rng = (
        task.Task([{"name": "has", "kind": "multilabel", "classes": ["a", "b", "c"]}]),
        np.random.default_rng(0),
    )
    logits = rng.normal(0, 1.5, (4000, 3))
    target = labels.code(rng.random((4000, 3)) < 1 / (1 + np.exp(-logits)))
    assert blend.choose_temperature(labels, 1 / (1 + np.exp(-3 * logits)), target) == pytest.approx(3, rel=0.1)


def overconfident(competition, power=4):
    """A run whose probabilities are far too sure: the right temperature is power / 2."""
    target, person, fold = people()
    (competition.eval / "info.csv").write_text("ImageID,ans\na.jpg,0\nb.jpg,0\n")
    run = write_run(competition.root, "sure", target, person, fold, 2.0, 0, power=power)
    return run, target, fold, oof.OofPredictions(MASK, [run]).predictions[0]  # as its file has them, rounded


@pytest.mark.slow
def test_a_temperature_makes_probabilities_mean_what_they_say_and_changes_no_answer(competition, capsys):
    run, target, fold, told = overconfident(competition)
    config = competition.config()
    competition.run(ensemble, "--runs", run)
    plain, _ = pd.read_csv(config.submission), capsys.readouterr()
    competition.run(ensemble, "--runs", run, "--decide", "temperature")
    out = capsys.readouterr().out
    assert float(re.search(r"temperature: ([\d.]+)", out)[1]) == pytest.approx(2, rel=0.1)
    assert pd.read_csv(config.submission).equals(plain)
    nested = np.empty_like(told)
    for k in np.unique(fold):
        chosen = blend.choose_temperature(MASK, told[fold != k], target[fold != k])
        nested[fold == k] = blend.tempered(MASK, told[fold == k], chosen)
    losses = [-np.log(p[np.arange(len(target)), target]).mean() for p in (blend.tempered(MASK, told, 1.0), nested)]
    found = re.search(r"on people not decided on: out-of-fold log loss ([\d.]+) .*, (-[\d.]+) \((.*) to (.*)\)\n", out)
    assert float(found[1]) == pytest.approx(losses[1], abs=6e-5)
    assert float(found[2]) == pytest.approx(losses[1] - losses[0], abs=6e-5) and float(found[4]) < 0
    after, before = re.search(r"expected calibration error ([\d.]+), before ([\d.]+)", out).groups()
    assert float(after) < 0.06 < 0.2 < float(before)
    decision = ensemble.decide(oof.OofPredictions(MASK, [run]), ["temperature"], lambda _: np.ones(1), None)
    assert np.allclose(decision(told[None], None), blend.tempered(MASK, told, 1.9), atol=0.02)


def test_probabilities_that_mean_what_they_say_stay(competition, capsys):
    run, *_ = overconfident(competition, power=2)
    competition.run(ensemble, "--runs", run, "--decide", "temperature")
    out = capsys.readouterr().out
    gain = re.search(r"log loss [\d.]+ \([^)]*\), ([+-][\d.]+) \(", out)
    assert abs(float(gain[1])) < 0.001
    assert "temperature: " not in out or re.search("temperature: (0.9|1.0)", out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--decide", "temperature", "bias"], r"--decide temperature is about probabilities, all else about answers"),
        (["--decide", "temperature", "--hard"], r"--decide chooses on mean probabilities"),
        (["--decide", "temperature", "--stack"], r"--stack takes the place of --decide"),
    ],
)
def test_what_does_not_go_with_a_temperature_is_one_line(competition, words, said):
    run, *_ = overconfident(competition)
    with pytest.raises(InputError, match=said):
        competition.run(ensemble, "--runs", run, *words)


def test_pseudo_labels_are_as_sure_as_out_of_fold_answers_were_right(competition, capsys):
    run, *_, told = overconfident(competition)
    for k, part in enumerate((told[:400], told[400:])):
        frame = pd.DataFrame({"ImageID": [f"{k}_{n}.jpg" for n in range(len(part))]})
        predictions.with_answers(MASK, frame, part).to_csv(f"{run}/fold{k}.csv", index=False)
    words = ["--run", run, "--pseudo.threshold", 0.8]
    competition.run(pseudo_label, *words)
    sure = pd.read_csv(f"{run}/pseudo.csv")
    competition.run(pseudo_label, *words, "--temperature")
    assert f"{run}: probabilities at the temperature 1.90" in capsys.readouterr().out
    fewer = pd.read_csv(f"{run}/pseudo.csv")
    expected = blend.tempered(MASK, told, 1.9).max(1)
    assert len(fewer) == pytest.approx((expected >= 0.8).sum(), rel=0.1) and len(fewer) < 0.8 * len(sure)
    both = fewer.merge(sure, on="ImageID")
    assert len(both) == len(fewer) and (both["ans_x"] == both["ans_y"]).all()
