"""README says what results.json says, and names what is there."""

import math
import re
from statistics import mean

import pytest

import bmwqa_utils as bq
from bmwqa.report import verdict
from experiments import learning_curve, tables
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
            asked = [line for line in lines if (line["kind"] == "unanswerable") == none]
            said = [" ".join(plain_words(line[variant]["answer"])) for line in asked]
            share = slices["benchmark"][name]
            assert share["n"] == len(asked)
            declines = (text.startswith("press release does not say") for text in said)
            assert share["mean"] == pytest.approx(mean(declines))


def test_tables_are_narrow_enough_to_be_read():
    assert max(line.count("|") for line in PAGE.splitlines() if line.startswith("|")) <= 8


def test_the_table_of_speed_is_the_one_of_the_benchmark():
    assert write_readme(bq.read_json(bq.ROOT / "experiments/speed.json")) == PAGE


def test_the_table_of_the_experiments_is_the_one_of_their_file():
    assert learning_curve.readme(bq.read_json(learning_curve.RESULTS)) == PAGE


def test_the_scores_of_the_experiments_come_from_the_answers_that_stand_beside_them():
    runs = {run["name"]: run["scores"] for run in bq.read_json(learning_curve.RESULTS)["runs"]}
    asked = {line["question_id"]: line for line in LINES}
    answers = {run["name"]: run["answers"] for run in learning_curve.read_runs()}
    assert runs.keys() == answers.keys() and runs
    for name, scores in runs.items():
        lines = [asked[key] | {"made": made["answer"]} for key, made in answers[name].items()]
        given = [
            line
            for line in lines
            if line["slice"] == "benchmark" and line["kind"] != "unanswerable"
        ]
        assert scores["f1"] == pytest.approx(mean(plain_f1(line, line["made"]) for line in given))
        exact = [
            plain_words(line["made"]) in map(plain_words, line["references"]) for line in given
        ]
        assert scores["exact_match"] == pytest.approx(mean(exact))
        none = [line for line in lines if line["kind"] == "unanswerable"]
        assert scores["declined_rightly"] == pytest.approx(
            mean(plain_f1(line, line["made"]) for line in none)
        )


def test_the_verdict_is_the_one_of_the_figures():
    assert verdict(RESULTS) == RESULTS["verdict"]


def plain_words(text):
    return re.sub(r"\b(an?|the)\b", " ", re.sub(r"[!-/:-@[-`{-~]", "", text.lower())).split()


def plain_f1(line, answer):
    """Token F1, or 1 for a right refusal, worked out again without scores."""
    ours, best = plain_words(answer), 0.0
    if line["kind"] == "unanswerable":
        return float(" ".join(ours).startswith("press release does not say"))
    for theirs in map(plain_words, line["references"]):
        shared = sum(min(ours.count(word), theirs.count(word)) for word in set(ours))
        best = max(best, 2 * shared / (len(ours) + len(theirs)) if shared else 0.0)
    return best


def test_results_come_from_the_generations_that_stand_beside_them():
    for variant, figures in RESULTS["variants"].items():
        for part in ("rule_made", "benchmark"):
            lines = [line for line in LINES if line["slice"] == part]
            some = [line[variant] for line in lines]
            found = {
                score: figures[part][score]["mean"] for score in ("perplexity", "stopped", "f1")
            }
            nll, tokens = (sum(answer[key] for answer in some) for key in ("nll", "nll_tokens"))
            assert figures[part]["perplexity"]["n"] == len(some)
            assert found["perplexity"] == pytest.approx(math.exp(nll / tokens))
            assert found["stopped"] == pytest.approx(mean(answer["stopped"] for answer in some))
            assert found["f1"] == pytest.approx(
                mean(plain_f1(line, line[variant]["answer"]) for line in lines)
            )


def test_differences_kinds_controls_and_failures_come_from_them_too():
    f1 = {
        v: {line["question_id"]: plain_f1(line, line[v]["answer"]) for line in LINES}
        for v in RESULTS["variants"]
    }
    for row in RESULTS["differences"]:
        one, other = (f1[variant] for variant in row["pair"].split(" - "))
        asked = [line["question_id"] for line in LINES if line["slice"] == row["slice"]]
        assert row["difference"] == pytest.approx(mean(one[key] - other[key] for key in asked))
        assert row["wins"] == sum(one[key] > other[key] for key in asked)
        assert row["losses"] == sum(one[key] < other[key] for key in asked)
        assert row["ties"] == len(asked) - row["wins"] - row["losses"]
    for row in RESULTS["by_kind"]:
        some = [
            x["question_id"]
            for x in LINES
            if (x["slice"], x["kind"]) == (row["slice"], row["kind"])
        ]
        assert row["mean"] == pytest.approx(mean(f1[row["variant"]][key] for key in some))
    asked = [line for line in LINES if "controls" in line]
    assert asked and all(line["kind"] != "unanswerable" for line in asked)
    for name, found in RESULTS["controls"]["conditions"].items():
        made = [
            (line, (line | line["controls"] | {"own_article": line["full"]}).get(name))
            for line in asked
        ]
        scores = [plain_f1(line, answer["answer"]) for line, answer in made if answer]
        assert (found["f1"]["n"], found["f1"]["mean"]) == (len(scores), pytest.approx(mean(scores)))
    for row in RESULTS["failures"]:
        assert row["f1"] == pytest.approx(f1[row["variant"]][row["question_id"]])


def test_every_file_of_the_tree_exists():
    tree, folder = README.split("## What is here")[1].split("```")[1], ""
    for indent, name in re.findall(r"^( *)(\S+)", tree, re.M):
        folder = "" if not indent else folder
        assert (bq.ROOT / folder / name).exists(), name
        folder = name if name.endswith("/") else folder


def test_every_make_target_named_exists():
    makefile = (bq.ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`)make ([a-z]+)\b", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_requirements_are_exact_pins():
    for line in (bq.ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.match(r"[\w.-]+==[\w.]+\s+# ", line), line
