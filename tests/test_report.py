"""results.json fits its schema, a broken copy does not; the sentences say what the figures say."""

import doctest
import json
import math
import re

import pytest

import bmwqa_utils as bq
from bmwqa import report
from bmwqa.report import trade_off_rows, verdict, with_interval
from bmwqa.results import check_results


@pytest.fixture
def results() -> dict:
    return json.loads((bq.ROOT / "experiments/results.json").read_text(encoding="utf-8"))


def change(value, *keys):
    """A function that sets `value` under `keys` in the results, or deletes that key for "del"."""

    def apply(results):
        place = results
        for key in keys[:-1]:
            place = place[key]
        if value == "del":
            del place[keys[-1]]
        else:
            place[keys[-1]] = value

    return apply


BROKEN = {
    "a score is gone": (change("del", "variants", "full", "benchmark", "f1"), "f1: Field required"),
    "a variant is unknown": (change({}, "variants", "lora2"), "variants.lora2.*: Input should be"),
    "a mean is text": (
        change("0.5", "variants", "base", "benchmark", "f1", "mean"),
        "f1.mean: Input should be a valid number",
    ),
    "a share above 1": (change(1.5, "differences", 0, "p"), "differences.0.p: .* less than or"),
    "a field nobody described": (
        change(1, "trade_off", "variants", "lora", "watts"),
        "lora.watts: Extra inputs are not permitted",
    ),
    "no controls": (change("del", "controls"), "controls: Field required"),
    "a slice mixed in": (change({}, "variants", "base", "all"), "base.all.*: Input should be"),
    "negative time": (change(-1, "evaluation_seconds", "base"), "base: .* greater than or equal"),
    "a wrong parameter": (change(0, "settings", "max_steps"), "settings.max_steps: .* greater"),
    "NaN": (change(math.nan, "differences", 0, "low"), "low: Input should be a finite number"),
    "infinity": (change(math.inf, "training", "full", "losses", 0), "losses.0: .* finite number"),
}


def test_the_committed_results_fit(results):
    assert check_results(results) is results


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_copy_is_refused_and_its_field_named(results, name):
    apply, message = BROKEN[name]
    apply(results)
    with pytest.raises(ValueError) as error:
        check_results(results)
    assert re.search(rf"^results.json, .*{message}.*bmwqa/results.py.$", str(error.value))


def test_examples_in_the_docstrings():
    assert doctest.testmod(report).failed == 0


# --------------------------------------------------------------------------------------------------
# Sentences from figures written by hand


def figure(mean, low=None, high=None):
    return {"mean": mean, "low": low, "high": high, "n": 10, "clusters": 5}


def pair(name, difference, shown, p_holm=None, smallest=0.2):
    row = {"slice": "benchmark", "pair": name, "difference": difference}
    row |= {"low": difference - 0.1, "high": difference + 0.3, "p": 0.04, "p_holm": p_holm}
    row |= {"shown": shown, "smallest_detectable": smallest}
    return row | {"wins": 1, "ties": 2, "losses": 3, "n": 10, "clusters": 5}


def cost(**known):
    training = {"trainable_parameters": None, "seconds_per_step": None, "peak_memory_gb": None}
    answering = {"weights_mb": 100.0, "first_token_seconds": 1.0, "tokens_per_second": 10.0}
    return training | answering | known


@pytest.fixture
def by_hand() -> dict:
    f1 = {"base": 0.1, "chat": 0.2, "constant": 0.1, "picker": 0.35}
    f1 |= {"full": 0.5, "lora": 0.3, "pruned": 0.4, "full_int8": 0.55}  # it is no baseline
    pairs = [
        pair("full - picker", 0.15, True, 0.03),
        pair("lora - picker", -0.05, False, 0.6),
        pair("full - lora", 0.2, False, 0.06),
        pair("pruned - full", -0.1, False),
        pair("pruned - picker", 0.05, True),
        pair("full - base", 0.4, True),
    ]
    elsewhere = [row | {"slice": "rule_made", "difference": 0.99} for row in pairs]
    trained = {"trainable_parameters": 1_000_000, "seconds_per_step": 8.0, "peak_memory_gb": 6.0}
    costs = {
        "base": cost(),
        "full": cost(**trained),
        "lora": cost(**trained, weights_mb=2.0),
        "lora_merged": cost(),
        "pruned": cost(**trained, weights_mb=75.0, tokens_per_second=13.0),
    }
    contexts = {"own_article": figure(0.5), "no_article": figure(0.2), "other_article": figure(0.1)}
    return {
        "headline": "benchmark",
        "training": {"full": {}, "lora": {}, "pruned": {"layers_removed": [3, 4]}},
        "variants": {
            name: {"benchmark": {"f1": figure(mean), "exact_match": figure(mean - 0.05)}}
            for name, mean in f1.items()
        },
        "differences": elsewhere + pairs,
        "trade_off": {"variants": costs},
        "controls": {
            "conditions": {name: {"f1": value} for name, value in contexts.items()},
            "differences": [pair("own_article - no_article", 0.3, True)],
        },
    }


def test_the_verdict_compares_the_best_trained_model_with_the_best_baseline(by_hand):
    worth, two, price, smaller, controls = verdict(by_hand)
    assert worth == (
        "Training is shown to beat the best answer without it, on the benchmark questions. "
        "**full: exact match 0.45, token F1 0.50**; picker: exact match 0.30, token F1 0.35. "
        "The difference in F1, +0.15 [+0.05, +0.45], is shown (p 0.03 after Holm)."
    )
    assert two == (
        "full and lora are not told apart. full - lora, +0.20 [+0.10, +0.50], is not shown "
        "(p 0.06 after Holm); an evaluation of this size shows 0.20 in four of five cases."
    )
    full = "full, 1,000,000 parameters trained (8.00 s per step, 6.0 GB), 100.0 MB on disk, "
    assert full + "10.0 tokens per second" in price
    assert "not shown to differ from full (-0.10 [" in smaller
    assert "better than picker (+0.05 [" in smaller
    assert "(layers removed: 2)" in smaller
    assert "0.75 of full's disk and writes 1.30 times as fast" in smaller
    assert "0.50 with its own article, 0.20 with no article, 0.10 with another article" in controls
    assert "What its own article adds, +0.30 [+0.20, +0.60], is shown (p 0.04)." in controls


def test_the_verdict_follows_the_figures(by_hand):
    by_hand["variants"]["base"]["benchmark"]["f1"] = figure(0.9, 0.8, 0.95)
    by_hand["differences"][11] = pair("full - base", -0.4, True)
    by_hand["differences"][8] = pair("full - lora", -0.2, True, 0.01)
    worth, two, *_ = verdict(by_hand)
    assert worth.startswith("Training is not shown to beat the best answer without it")
    assert "base: exact match 0.05, token F1 0.90 [0.80, 0.95]" in worth
    assert two.startswith("lora is the better one. full - lora, -0.20")


def test_without_a_smaller_model_the_verdict_says_so(by_hand):
    for place in ("training", "variants"):
        by_hand[place].pop("pruned")
    by_hand["trade_off"]["variants"].pop("pruned")
    assert "No smaller model: layers cannot be cut out of this one." in verdict(by_hand)


def test_what_was_not_measured_is_a_dash(by_hand):
    rows = {row["model"]: row for row in trade_off_rows(by_hand)}
    assert rows["base"]["trained parameters"] == "–"
    assert rows["lora, merged"]["s per step / peak GB"] == "– / –"
    assert rows["lora, merged"]["token F1"] == "as lora" and rows["lora"]["token F1"] == "0.30"
    assert with_interval(figure(None)) == "–"
