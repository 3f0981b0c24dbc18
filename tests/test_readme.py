"""README says what results.json says, and names what is there."""

import re

import bmwqa_utils as bq
from scripts.notebooks import read_results, readme

README = (bq.ROOT / "README.md").read_text(encoding="utf-8")


def test_the_results_table_is_the_one_of_results_json():
    assert readme(read_results(bq.ROOT / "results")) == README


def test_results_come_from_the_generations_that_stand_beside_them():
    lines = bq.read_jsonl(bq.ROOT / "results/eval_generations.jsonl")
    for variant, figures in read_results(bq.ROOT / "results")["variants"].items():
        for part in ("rule_made", "benchmark"):
            some = [line[variant] for line in lines if line["slice"] == part]
            assert figures[part]["perplexity"]["n"] == len(some)
            stopped = sum(answer["stopped"] for answer in some) / len(some)
            assert abs(figures[part]["stopped"]["mean"] - stopped) < 1e-9


def test_every_file_of_the_tree_exists():
    tree = README.split("## What is here")[1].split("```")[1]
    for name in re.findall(r"^(\S+)", tree, re.M):
        assert (bq.ROOT / name).exists(), name


def test_every_make_target_named_exists():
    makefile = (bq.ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`)make ([a-z]+)\b", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_requirements_are_exact_pins():
    for line in (bq.ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.match(r"[\w.-]+==[\w.]+\s+# ", line), line
