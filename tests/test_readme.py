"""README says what results.json says, and names what is there."""

import math
import re
import unicodedata
from statistics import mean

import pytest

import bmwqa_utils as bq
from bmwqa.report import verdict
from experiments import balance, gpu, int8, learning_curve, precision, tables
from experiments.speed_page import write_readme

README, PAGE = (path.read_text(encoding="utf-8") for path in (tables.FRONT, tables.PAGE))
RESULTS = bq.read_json(bq.ROOT / "experiments/results.json")
LINES = bq.read_jsonl(bq.ROOT / "experiments/eval_generations.jsonl")


def test_both_pages_show_what_results_json_and_the_answers_say():
    assert tables.pages(RESULTS, LINES) == {tables.FRONT: README, tables.PAGE: PAGE}


def test_readme_is_for_the_person_who_arrives():
    """Short enough to be read, its table narrow enough for a screen."""
    assert len(README.splitlines()) <= 110
    assert max(line.count("|") for line in README.splitlines() if line.startswith("|")) <= 6


def test_what_was_declined_is_counted_again_from_the_answers():
    for variant, slices in RESULTS["variants"].items():
        lines = [line for line in LINES if line["slice"] == "benchmark"]
        for name, none in (("declined_rightly", True), ("declined_wrongly", False)):
            answers = [
                " ".join(plain_words(line[variant]["answer"]))
                for line in lines
                if (line["kind"] == "unanswerable") == none
            ]
            share = slices["benchmark"][name]
            assert share["n"] == len(answers)
            declines = (answer.startswith("press release does not say") for answer in answers)
            assert share["mean"] == pytest.approx(mean(declines))


def test_tables_are_narrow_enough_to_be_read():
    assert max(line.count("|") for line in PAGE.splitlines() if line.startswith("|")) <= 8


def test_the_table_of_speed_is_the_one_of_the_benchmark():
    assert write_readme(bq.read_json(bq.ROOT / "experiments/speed.json")) == PAGE


def test_the_table_of_the_gpu_is_the_one_that_was_measured():
    assert gpu.page(bq.read_json(bq.ROOT / "experiments/speed_gpu.json")) == PAGE


def test_sections_of_several_processors_or_commits_are_not_mixed():
    speed = bq.read_json(bq.ROOT / "experiments/speed.json")
    other = speed["stamps"]["rates"] | {"commit": "another"}
    mixed = speed | {"stamps": speed["stamps"] | {"speed": other}}
    with pytest.raises(ValueError, match="do not compare.*another.*--missing"):
        write_readme(mixed)
    bare = {key: stamp for key, stamp in speed["stamps"].items() if key != "speed"}
    with pytest.raises(ValueError, match="no stamp"):
        write_readme(speed | {"stamps": bare})


def test_the_table_of_weights_in_bf16_is_the_one_of_its_runs():
    assert precision.readme(bq.read_json(precision.RESULTS)) == PAGE


def test_the_table_of_waiting_is_the_one_of_the_simulation():
    assert balance.readme(bq.read_json(bq.ROOT / "experiments/balance.json")) == PAGE


def test_the_table_of_the_experiments_is_the_one_of_their_file():
    assert learning_curve.readme(bq.read_json(learning_curve.RESULTS)) == PAGE


def test_the_scores_of_the_experiments_come_from_the_answers_that_stand_beside_them():
    scores = {run["name"]: run["scores"] for run in bq.read_json(learning_curve.RESULTS)["runs"]}
    answers = {run["name"]: run["answers"] for run in learning_curve.read_runs()}
    questions = {line["question_id"]: line for line in LINES}
    assert scores.keys() == answers.keys() and scores
    for name, figures in scores.items():
        f1, exact, declined = [], [], []
        for question_id, record in answers[name].items():
            line, answer = questions[question_id], record["answer"]
            if line["kind"] == "unanswerable":
                declined.append(plain_f1(line, answer))
            elif line["slice"] == "benchmark":
                f1.append(plain_f1(line, answer))
                exact.append(plain_words(answer) in map(plain_words, line["references"]))
        assert figures["f1"] == pytest.approx(mean(f1))
        assert figures["exact_match"] == pytest.approx(mean(exact))
        assert figures["declined_rightly"] == pytest.approx(mean(declined))


def test_the_table_of_int8_is_the_one_of_its_answers():
    assert int8.readme() == PAGE
    table = PAGE.split("<!-- int8:")[1].split("<!-- /int8 -->")[0]
    lines = bq.read_jsonl(bq.ROOT / "experiments/int8.jsonl")
    for way in int8.ANSWERED:
        given = [line for line in lines if line["kind"] != "unanswerable"]
        f1 = mean(plain_f1(line, line[way]["answer"]) for line in given)
        row = next(row for row in table.splitlines() if row.startswith(f"| {way} |"))
        assert row.split(" | ")[5] == f"{f1:.2f}"


def test_the_verdict_is_the_one_of_the_figures():
    assert verdict(RESULTS) == RESULTS["verdict"]


def plain_words(text):
    """SQuAD's words, with accents, quotes and dashes folded, without bmwqa/scores.py."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if c not in ACCENTS)
    text = re.sub(r"[\-–—−‐‑]", " ", re.sub("[“”„‘’‚]", "", text))
    return re.sub(r"\b(an?|the)\b", " ", re.sub(r"[!-/:-@[-`{-~]", "", text)).split()


ACCENTS = {chr(code) for code in range(0x300, 0x370)}


def plain_numbers(text):
    return sorted(re.findall(r"\d+(?:[.:]\d+)*", re.sub(r"(\d),(?=\d\d\d\b)", r"\1", text)))


def plain_f1(line, answer):
    """Token F1, or 1 for a right refusal, worked out again without bmwqa/scores.py."""
    ours, best = plain_words(answer), 0.0
    if line["kind"] == "unanswerable":
        return float(" ".join(ours).startswith("press release does not say"))
    for reference in line["references"]:
        theirs = plain_words(reference)
        shared = sum(min(ours.count(word), theirs.count(word)) for word in set(ours))
        same = line["kind"] == "about" or plain_numbers(answer) == plain_numbers(reference)
        if shared and same:
            best = max(best, 2 * shared / (len(ours) + len(theirs)))
    return best


def answerable(lines, slice_name):
    return [q for q in lines if q["slice"] == slice_name and q["kind"] != "unanswerable"]


def test_results_come_from_the_generations_that_stand_beside_them():
    for variant, figures in RESULTS["variants"].items():
        for slice_name, scores in figures.items():
            lines = [line for line in LINES if line["slice"] == slice_name]
            answers = [line[variant] for line in lines]
            if variant not in ("constant", "picker"):
                nll, tokens = (sum(a[key] for a in answers) for key in ("nll", "nll_tokens"))
                assert scores["perplexity"]["mean"] == pytest.approx(math.exp(nll / tokens))
            stopped = mean(answer["stopped"] for answer in answers)
            assert scores["stopped"]["mean"] == pytest.approx(stopped)
            given = answerable(lines, slice_name)
            f1 = mean(plain_f1(line, line[variant]["answer"]) for line in given)
            exact = mean(
                plain_words(line[variant]["answer"]) in map(plain_words, line["references"])
                for line in given
            )
            assert scores["f1"]["n"] == scores["exact_match"]["n"] == len(given)
            assert scores["f1"]["mean"] == pytest.approx(f1)
            assert scores["exact_match"]["mean"] == pytest.approx(exact)


def test_differences_kinds_controls_and_failures_come_from_them_too():
    f1 = {
        v: {line["question_id"]: plain_f1(line, line[v]["answer"]) for line in LINES}
        for v in RESULTS["variants"]
    }
    for row in RESULTS["differences"]:
        one, other = (f1[variant] for variant in row["pair"].split(" - "))
        keys = [line["question_id"] for line in answerable(LINES, row["slice"])]
        assert row["difference"] == pytest.approx(mean(one[key] - other[key] for key in keys))
        assert row["wins"] == sum(one[key] > other[key] for key in keys)
        assert row["losses"] == sum(one[key] < other[key] for key in keys)
        assert row["ties"] == len(keys) - row["wins"] - row["losses"]
    for row in RESULTS["by_kind"]:
        lines = [line for line in LINES if line["slice"] == row["slice"]]
        keys = [line["question_id"] for line in lines if line["kind"] == row["kind"]]
        assert row["mean"] == pytest.approx(mean(f1[row["variant"]][key] for key in keys))
    controlled = [line for line in LINES if "controls" in line]
    assert controlled and all(line["kind"] != "unanswerable" for line in controlled)
    for name, scores in RESULTS["controls"]["conditions"].items():
        values = []
        for line in controlled:
            answers = line["controls"] | {"own_article": line["full"]}
            if answer := answers.get(name):
                values.append(plain_f1(line, answer["answer"]))
        assert scores["f1"]["n"] == len(values)
        assert scores["f1"]["mean"] == pytest.approx(mean(values))
    for row in RESULTS["failures"]:
        assert row["f1"] == pytest.approx(f1[row["variant"]][row["question_id"]])


def test_every_file_of_the_tree_exists():
    tree, folder = README.split("## What is here")[1].split("```")[1], ""
    for indent, names in re.findall(r"^( *)([^\s,]+(?:, [^\s,]+)*)", tree, re.M):
        folder = "" if not indent else folder
        for name in names.split(", "):
            file = name if re.search(r"[./]", name) else f"{name}.py"
            assert (bq.ROOT / folder / file).exists(), name
        folder = names if names.endswith("/") else folder
    modules = {path.stem for path in (bq.ROOT / "bmwqa").glob("[a-z]*.py")}
    assert modules <= set(re.findall(r"\w+", tree))


def test_every_make_target_named_exists():
    makefile = (bq.ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`)make ([a-z]+)\b", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_requirements_are_exact_pins():
    for line in (bq.ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.match(r"[\w.-]+==[\w.]+\s+# ", line), line
