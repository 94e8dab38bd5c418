"""Pages to look at: they stand alone, say what is so, and find the labels that are wrong."""

import re

import numpy as np
import pandas as pd
import pytest
from helpers import MASK, guesses, people

import dataset
import ensemble
import inference
import train
from foldface import metrics, predictions
from foldface.files import InputError, read_csv, write_csv
from foldface.report import charts, html
from tools import domain_shift, eda, label_errors

pytestmark = pytest.mark.usefixtures("one_accelerator")


def stands_alone(path):
    """The page's text, after a look for anything that a browser would fetch."""
    page = path.read_text()
    fetched = re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']+)""", page)
    assert {*fetched} <= {*html.PAGES} and "<script" not in page and "url(http" not in page
    assert page.count("<img") == page.count('src="data:image/')
    return page


def test_a_page_escapes_the_text_that_it_is_given(tmp_path):
    pieces = [html.table(["<i>"], [["<script>"]])]
    html.write_report(tmp_path / "a.html", "<b>", "a & b", [("x<y", pieces), ("empty one", [])])
    page = stands_alone(tmp_path / "a.html")
    assert "&lt;script&gt;" in page and "a &amp; b" in page and "x&lt;y" in page and "empty one" not in page
    html.add_section(tmp_path / "a.html", "--><script>", ["<p>1</p>"])
    html.add_section(tmp_path / "a.html", "--><script>", ["<p>2</p>"])
    assert stands_alone(tmp_path / "a.html").count("<h2") == 2


def test_a_section_that_is_added_twice_is_there_once(tmp_path):
    path = tmp_path / "a.html"
    html.write_report(path, "title", "intro", [("first", ["<p>1</p>"]), ("second", ["<p>2</p>"])])
    for words in ("old", "new"):
        html.add_section(path, "more", [f"<p>{words}</p>"])
    html.add_section(path, "first", ["<p>3</p>"], tmp_path / "other" / "b.html")
    page, other = stands_alone(path), stands_alone(tmp_path / "other" / "b.html")
    assert "new" in page and "old" not in page and page.count("<h2") == 3 and page.count('href="#s3">more') == 1
    assert "<p>1</p>" in page and "<p>3</p>" not in page  # a page written elsewhere leaves its source as it is
    assert other.index("<p>3</p>") < other.index("<p>2</p>") < other.index("new") and "<p>1</p>" not in other


def test_the_pages_of_a_run_link_one_another_whichever_was_written_first(tmp_path):
    for name in ("report.html", "eda.html", "other.html"):
        html.write(tmp_path / name, "<!-- pages -->", "intro", [("first", ["<p>1</p>"])])
    report, data, other = ((tmp_path / name).read_text() for name in ("report.html", "eda.html", "other.html"))
    assert '<a href="eda.html">Data</a>' in report and "<strong>Scores</strong>" in report
    assert '<a href="report.html">Scores</a>' in data and report.count("href=") == data.count("href=")
    assert "report.html" not in other  # no page of a run


def test_a_file_name_breaks_after_a_slash_alone_and_an_image_says_what_it_shows():
    page = html.gallery([(np.zeros((20, 20, 3), np.uint8), ["is <b>", html.Name("a b/c_d.jpg")])])
    assert '<span class="name">a b/</span><wbr><span class="name">c_d.jpg</span>' in page
    assert 'alt="is &lt;b&gt;, a b/c_d.jpg"' in page and 'title="a b/c_d.jpg"' in page
    pair = html.gallery([([np.zeros((20, 20, 3), np.uint8)] * 2, ["is x"])])
    assert pair.count("<figure") == 1 and pair.count("<img") == 2 and 'alt="map over it: is x"' in pair
    assert 'aria-label="chart: a &lt; b"' in charts.svg(lambda ax: ax.set_title("a < b"))


def test_a_matrix_is_a_table_whose_colours_are_shares_of_a_row():
    page = html.matrix(["x", "<y>"], np.array([[3, 1], [0, 2]]), "kind")
    assert page.count("&lt;y&gt;") == 2 and '--s:0.75" title="75%">3<' in page and '--s:0.00"><' in page
    assert "wide" not in page and 'class="scroll wide"' in html.matrix(list("abcdefghijk"), np.eye(11, dtype=int), "k")


def test_a_table_of_the_terminal_becomes_one_of_the_page():
    page = html.columns("            fold 0  fold 1\nphotos           7      12\n  <red>          2       3")
    assert "<th></th><th>fold 0</th><th>fold 1</th>" in page and "<td>&lt;red&gt;</td><td>2</td><td>3</td>" in page
    assert html.columns("one  two  three\nfour").startswith("<pre>")


def test_a_wide_table_of_a_markdown_page_becomes_several_that_a_phone_can_show():
    header, row = (" | ".join(f"{word}{k}" for k in range(8)) for word in ("h", "<c>"))
    pieces = html.of_markdown(f"| {header} |\n|---|---|\n| {row} |\n\nA sentence\nof two lines.\n")
    assert [piece.count("<th>") for piece in pieces] == [5, 4, 0] and pieces[2] == "<p>A sentence of two lines.</p>"
    assert all("<td>&lt;c&gt;0</td>" in piece for piece in pieces[:2]) and "<th>h7</th>" in pieces[1]


def test_an_axis_of_epochs_has_whole_numbers():
    from matplotlib import pyplot

    for count in (1, 2, 3, 12):
        _, ax = pyplot.subplots(figsize=(3.7, 2.9))
        ax.plot(range(1, count + 1), range(count))
        charts.whole_epochs(ax)
        assert all(tick == int(tick) for tick in ax.get_xticks())
        pyplot.close("all")


def test_a_page_of_an_earlier_version_gets_no_section_and_the_line_names_the_command(tmp_path):
    path = tmp_path / "report.html"
    html.write(path, "title", "intro", [("first", ["<p>1</p>"])])
    for content in (None, "[]", '{"sections": 1}', '{"title": "a", "intro": "b", "sections": [["a"]]}'):
        if content:
            path.with_suffix(".json").write_text(content)
        with pytest.raises(InputError, match=r"report\.json: .*python -m tools\.report"):
            html.add_section(path, "more", ["<p>2</p>"])


def test_curves_show_training_dashed_and_validation_solid_and_the_mean_of_several_runs(competition):
    from matplotlib import pyplot

    task = competition.config().predicted
    log = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [3.0, 2.0, 1.0], "val_loss": [4.0, np.nan, 2.0]})
    _, axes = pyplot.subplots(1, 3)
    charts.draw_curves(axes, {"one": [log], "two": [log, log.assign(val_loss=[6.0, np.nan, 4.0])]}, task)
    solid = [line for line in axes[0].lines if line.get_linestyle() == "-"]
    assert [list(line.get_ydata()) for line in solid] == [[4, 2], [4, 2], [6, 4], [5, 3]]
    assert [list(line.get_xdata()) for line in solid] == [[1, 3]] * 4  # epoch 2 was not validated
    assert sum(line.get_linestyle() == "--" for line in axes[0].lines) == 4
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["one", "two"]
    pyplot.close("all")


def test_a_chart_is_the_same_bytes_twice_and_a_broken_photo_says_so(tmp_path):
    drawn = [charts.svg(lambda ax: ax.plot([1, 2, 3])) for _ in range(2)]
    assert drawn[0] == drawn[1] and drawn[0].startswith("<svg")
    assert "$5_$" in charts.svg(lambda ax: ax.set_title("$5_$"))  # and no formula
    assert 'width="150" height="1"' in html.thumbnail(np.zeros((2, 900, 3), np.uint8))
    (tmp_path / "broken.jpg").write_bytes(b"")
    page = html.gallery([(str(tmp_path / "broken.jpg"), ["a"]), (np.zeros((300, 200, 3), np.uint8), ["b"])])
    assert "empty file" in page and 'width="100" height="150"' in page


@pytest.mark.slow
def test_training_ends_with_a_page_that_says_what_metrics_json_says(competition):
    train.train_folds(competition.config(), [0, 1])
    page = stands_alone(competition.root / "run" / "report.html")
    saved = pd.read_json(competition.root / "run" / "metrics.json", typ="series")
    for heading in ("Scores", "Training", "Confusions", "By class", "Calibration", "Errors by age", "mistakes"):
        assert heading in page
    first = page[: page.index("<h2")]  # the first screen
    assert f"<strong>{saved['f1']:.3f}</strong> macro F1, 95 % {saved['f1_low']:.3f} to {saved['f1_high']:.3f}" in first
    assert first.count("<tr>") == 1 + 3 and "worst classes" in first and "taken for" in first
    assert f"python inference.py --run {competition.root / 'run'}" in first and "train.epochs 2" in first
    assert "mask F1" in first and "age F1" in first
    assert f"{saved['f1']:.3f}" in page and "fold1" in page and page.count("<figure>") > 5


def test_the_calibration_error_is_that_of_its_definition():
    confidence, right = np.array([0.95, 0.95, 0.55, 0.55]), np.array([1.0, 0.0, 1.0, 1.0])
    error, _ = metrics.expected_calibration_error(confidence, right, bins=10)
    assert error == pytest.approx(0.5 * abs(0.95 - 0.5) + 0.5 * abs(0.55 - 1.0))
    rng = np.random.default_rng(0)
    sure = rng.random(20000)
    assert metrics.expected_calibration_error(sure, (rng.random(20000) < sure).astype(float))[0] < 0.02


@pytest.mark.slow
def test_an_ensemble_puts_itself_into_the_report(competition):
    config = competition.config()
    train.train_folds(config, [0, 1])
    competition.run(inference)
    for _ in range(2):
        competition.run(ensemble, "--soft")
    page = stands_alone(competition.root / "run" / "report.html")
    assert page.count(">Ensemble</h2>") == 1 and "two members answer alike" in page
    told = [read_csv(competition.root / "run" / f"fold{k}.csv", ["ans"])["ans"] for k in (0, 1)]
    assert f"<td>{(told[0] == told[1]).mean():.3f}</td>" in page


# ---------------------------------------------------------------------------------------------------- wrong labels


def with_wrong_labels(n=150, wrong=8, strength=5.0, seed=0):
    """Out-of-fold predictions of people of whom `wrong` have a wrong gender and as many swapped masks; their ids."""
    target, person, fold = people(n, seed)
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(n)[: 2 * wrong].astype(str)
    part = MASK.decode(target)
    gender, mask = part["gender"].copy(), part["mask"].copy()
    flipped = np.isin(person, drawn[:wrong])
    gender[flipped] = 1 - gender[flipped]
    swapped = np.isin(person, drawn[wrong:]) & (mask > 0)
    mask[swapped] = 3 - mask[swapped]
    told = MASK.encode(mask, gender, part["age"])
    frame = pd.DataFrame({"ImageID": [f"{p}/{k % 7}.jpg" for k, p in enumerate(person)], "id": person, "fold": fold})
    return predictions.with_answers(MASK, frame.assign(target=told), guesses(target, strength, seed)), drawn, wrong


def test_wrong_genders_and_swapped_masks_are_found_by_person():
    oof, drawn, wrong = with_wrong_labels()
    found = label_errors.find_issues(MASK, oof, oof["target"])
    first = set(label_errors.choose(found, len(drawn))["id"])
    assert len(first & set(drawn)) >= 0.8 * len(drawn)
    flips = found[found["id"].isin(drawn[:wrong]) & (found["head"] == "gender")]
    assert len(flips) == wrong and (flips["photo"] == "").all() and flips["evidence"].str.contains("of 7 photos").all()
    swaps = found[found["id"].isin(drawn[wrong:]) & (found["head"] == "mask")]
    assert swaps["evidence"].str.contains("swapped with").sum() >= 2 * (wrong - 1) and (swaps["photo"] != "").all()


def test_a_head_is_judged_by_what_it_was_trained_on(make_competition):
    """A model that learned 58 as the oldest class says so of people of 58 and 59: their labels are not wrong for it."""
    competition = make_competition(people=60, photos=["mask1", "normal"], answer_for=1)
    ages = [(20, 25, 33, 40, 45, 50, 58, 59, 60, 60)[n % 10] for n in range(60)]
    people = zip(competition.people, ages, strict=True)
    competition.write_table(rows=[[i, gender, "Drawn", age, path] for (i, gender, _, path), age in people])
    config = competition.config("--task.heads.age.train_bounds", "[30,58]")
    rows, _ = dataset.training_rows(config)
    knows = rows["label"].to_numpy() - 2 * (rows["id"] == "000008").to_numpy()  # 60 by the table, and looks young
    frame = rows[["ImageID", "id", "target"]].assign(fold=0)
    write_csv(competition.root / "run" / "oof.csv", predictions.with_answers(MASK, frame, guesses(knows, 9.0, 0)))
    competition.run(label_errors, "--task.heads.age.train_bounds", "[30,58]", "--people", 60)
    page = stands_alone(competition.root / "run" / "clean.html")
    assert re.findall(r"<td>age</td><td>([^<]*)</td>", page) == ["60"]
    assert "the last class of age begins at 58" in page
    with pytest.raises(InputError, match=r"1 photos, such as .* are no longer among the rows to train on"):
        label_errors.trained_on(frame, rows[1:])


def test_where_all_labels_are_right_hardly_anything_is_flagged():
    oof, _, _ = with_wrong_labels(wrong=0, strength=6.0)
    assert label_errors.choose(label_errors.find_issues(MASK, oof, oof["target"]), 0)["id"].nunique() <= 8


def test_a_head_that_is_often_wrong_does_not_crowd_out_the_others():
    """Ages by a model that knows little of them, surely told: softened to what they are worth."""
    oof, drawn, _ = with_wrong_labels()
    p = oof[MASK.probabilities].to_numpy().reshape(-1, 3, 2, 3)
    rng = np.random.default_rng(1)
    ages = rng.dirichlet([0.1] * 3, 150).repeat(7, 0)
    p = p.sum(3, keepdims=True) * ages[:, None, None]
    oof[MASK.probabilities] = p.reshape(-1, 18)
    first = set(label_errors.choose(label_errors.find_issues(MASK, oof, oof["target"]), len(drawn))["id"])
    assert len(first & set(drawn)) >= 0.7 * len(drawn)


def test_what_chance_explains_is_counted_as_its_definition_says():
    fair = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    assert label_errors.expected_by_chance(fair, np.array([0.05, 0.1, 0.2, 1.0])) == pytest.approx([0, 0.1, 0.3, 3.0])
    rng = np.random.default_rng(0)
    fair = rng.dirichlet([1, 1, 1], 20000)
    label = (rng.random((20000, 1)) > fair.cumsum(1)).sum(1)  # drawn by these very probabilities: all are right
    own = np.sort(fair[np.arange(20000), label])
    assert label_errors.expected_by_chance(fair, own[[199, 1999]]) == pytest.approx([200, 2000], rel=0.15)


def test_who_is_chosen_is_shown_with_what_is_doubted_as_much_and_no_more():
    found = pd.DataFrame({"id": list("abab"), "by_chance": [0.1, 0.2, 50.0, 0.15], "flagged": False})
    found = found.sort_values("by_chance", ignore_index=True)
    assert label_errors.choose(found, 2)["by_chance"].tolist() == [0.1, 0.15]
    assert label_errors.choose(found, 1)["id"].tolist() == ["a"] and not len(label_errors.choose(found, 0))


@pytest.mark.slow
def test_corrections_are_ready_to_be_trained_on_and_nothing_is_applied(competition, tmp_path):
    config = competition.config()
    train.train_folds(config, [0, 1])
    before = (competition.train / "train.csv").read_bytes()
    competition.run(label_errors, "--people", 4)
    page = stands_alone(competition.root / "run" / "clean.html")
    rows = read_csv(competition.root / "run" / "corrections.csv", label_errors.COLUMNS)
    assert (
        rows["id"].nunique() <= 4
        and page.count("<h2") == 4
        and (competition.train / "train.csv").read_bytes() == before
    )
    from dataset import training_rows

    words = ["--data.corrections", competition.root / "run" / "corrections.csv", "--run", tmp_path / "second"]
    corrected, _ = training_rows(competition.config(*words))
    plain, _ = training_rows(config)
    changed = corrected[corrected["target"] != plain["target"]]
    assert set(changed["id"]) <= set(rows["id"]) and len(changed) >= 1


# --------------------------------------------------------------------------------------------------- a look at data


@pytest.mark.slow
def test_the_look_at_the_data_shows_what_is_wrong_with_it(competition):
    home = competition.train / "images"
    (home / competition.people[0][3] / "mask1.jpg").write_bytes(b"")
    copy = (home / competition.people[1][3] / "normal.jpg").read_bytes()
    (competition.eval / "images" / competition.images[0]).write_bytes(copy)
    competition.run(eda)
    page = stands_alone(competition.root / "run" / "eda.html")
    assert "empty file" in page and "AUC" in page and "between train and eval" in page
    assert re.search(r"between train and eval</td><td>1<", page) and "fold 1" in page


@pytest.mark.slow
def test_two_halves_of_one_kind_can_not_be_told_apart_and_two_kinds_can():
    rng = np.random.default_rng(0)
    persons = np.repeat(np.arange(120), 7).astype(str)
    of = rng.normal(size=(240, 60)).repeat(7, 0) + 0.3 * rng.normal(size=(1680, 60))
    auc, told = domain_shift.separate(of[:840], of[840:], persons)
    assert 0.4 < auc < 0.6 and len(told) == 1680
    moved = of[840:] + 6 * np.eye(60)[0]
    assert domain_shift.separate(of[:840], moved, persons)[0] > 0.85


def test_the_yardstick_halves_people_not_photos():
    people = np.arange(40).repeat(7)
    halves = [domain_shift.half_of_people(people, seed) for seed in range(3)]
    for half in halves:
        assert half.sum() == 140 and not set(people[half]) & set(people[~half])
    assert (halves[0] != halves[1]).any()
    assert 0 <= domain_shift.baseline_auc(people[:, None].astype(float), people) <= 1
