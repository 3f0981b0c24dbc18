"""Scores and statistics against values written by hand, or worked out again in plain Python."""

import doctest
import itertools
import math
import random
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, t

from bmwqa.pairs import UNANSWERABLE as DECLINE
from bmwqa.scores import (
    answer_line,
    by_variant,
    design_effect,
    holm,
    interval,
    kind_table,
    paired_difference,
    paired_table,
    plain_rows,
    score_answer,
    score_controls,
    score_records,
    score_table,
    worst_failures,
)

pytestmark = pytest.mark.filterwarnings("error")
ARTICLE = (
    "Munich. From 12 May 2025 the BMW i4 eDrive40 has a range of up to 571 kilometres. "
    "It costs 59,900 euros.\n\n"
    "“We invested €1.5 billion,” says Anna Berg. "
    "Production at the Dingolfing plant grew by 20 per cent."
)


def scores(answer: str, *references: str, kind: str = "how_many") -> dict:
    return score_answer(answer, list(references), ARTICLE, kind)


def test_examples_in_the_docstrings():
    result = doctest.testmod(sys.modules["bmwqa.scores"])
    assert result.attempted >= 2 and result.failed == 0


# --------------------------------------------------------------------------------------------------
# Scores of one answer


def test_exact_match_is_squads():
    assert scores("The Dingolfing plant.", "Dingolfing plant")["exact_match"] == 1
    assert scores("the plant in Dingolfing", "Dingolfing plant")["exact_match"] == 0
    assert scores("", "Dingolfing")["exact_match"] == scores("", "Dingolfing")["f1"] == 0


def test_f1_counts_shared_tokens_as_often_as_both_have_them():
    # 2 shared, precision 1, recall 2/3; then 1 shared, precision 1/2, recall 1
    assert scores("plant plant", "plant, plant, Dingolfing")["f1"] == pytest.approx(0.8)
    assert scores("plant plant", "plant")["f1"] == pytest.approx(2 / 3)
    assert scores("Anna", "Anna Berg")["f1"] == pytest.approx(2 / 3)
    assert scores("Yes, it does.", "Yes", kind="yes_no")["f1"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("Ostersund", "Östersund"),
        ("O\u0308stersund", "Östersund"),
        ("13:00-23:00", "13:00–23:00"),
        ("the Blue Bus", "the “Blue Bus”"),
        ("BMW's fleet", "BMW’s fleet"),
        ("18 inch", "18-inch"),
        ("Rene", "René"),
    ],
)
def test_accents_quotes_and_dashes_are_folded(answer, reference):
    assert scores(answer, reference)["exact_match"] == scores(answer, reference)["f1"] == 1


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("BMW iX2 eDrive25", "BMW iX2 xDrive35"),
        ("12 May 2024", "12 May 2025"),
        ("12 May", "12 May 2025"),
        ("2,500 cars", "25,00 cars"),
        ("from 13:00", "from 23:00"),
        ("three of 40", "three"),
    ],
)
def test_other_numbers_earn_nothing(answer, reference):
    assert scores(answer, reference)["f1"] == 0
    assert score_answer(answer, [reference], ARTICLE, "about")["f1"] > 0 or answer[0] == "2"


def test_the_same_numbers_in_another_order_or_form_earn_what_the_words_do():
    assert scores("more than 6,400 cars", "6400 cars")["f1"] == pytest.approx(4 / 6)
    assert scores("in 2025, 40 cars", "40 cars in 2025")["f1"] == 1


def test_the_best_reference_counts():
    row = scores("571 km", "571 kilometres", "571 km", "about 571 km", kind="about")
    best = ("exact_match", "f1", "contains", "rouge_l", "sentence_bleu")
    assert [row[name] for name in best] == [1] * 5


def test_rouge_l_is_the_longest_common_subsequence_without_stemming():
    # range up to 571 / up to 571 range: the longest common subsequence has 3 of 4
    row = scores("range up to 571", "up to 571 range", kind="about")
    assert row["rouge_l"] == pytest.approx(0.75)
    assert scores("costs", "cost", kind="about")["rouge_l"] == 0


def test_sentence_bleu_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; no penalty at equal length
    row = scores("the cat sat on a mat", "the cat sat on the mat", kind="about")
    assert row["sentence_bleu"] == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4))
    # three of six words: up to triples, and the penalty exp(1 - 6/3) for brevity
    row = scores("the cat sat", "the cat sat on the mat", kind="about")
    assert row["sentence_bleu"] == pytest.approx(math.exp(-1))
    assert scores("", "the cat", kind="about")["sentence_bleu"] == 0


def test_paragraph_scores_are_for_paragraphs_alone():
    row = scores("571 km", "571 km")
    assert row["f1"] == 1 and row["rouge_l"] is row["sentence_bleu"] is None


def test_contains_needs_whole_words():
    assert scores("It is the Dingolfing plant, in Bavaria.", "Dingolfing plant")["contains"] == 1
    assert scores("It is 1571 km.", "571 km")["contains"] == 0
    assert scores("Anything", "the")["contains"] == 0


@pytest.mark.parametrize(
    ("answer", "declined"),
    [
        (DECLINE, 1),
        ("the press release does not say", 1),
        ("The press release does not say who paid.", 1),
        ("Press release does not say.", 1),
        ("The press release does not sayings.", 0),
        ("The press release does not mention it.", 0),
        ("Sorry. The press release does not say.", 0),
        ("", 0),
    ],
)
def test_declined_is_strict_and_is_all_that_counts_of_unanswerable_questions(answer, declined):
    row = scores(answer, DECLINE, kind="unanswerable")
    assert row["declined_rightly"] == declined
    others = ("declined_wrongly", "exact_match", "f1", "contains", "yes_no")
    assert [row[name] for name in others] == [None] * 5


def test_declining_an_answerable_question_is_wrong():
    row = scores(DECLINE, "571 km")
    assert row["declined_wrongly"] == 1 and row["exact_match"] == row["f1"] == 0
    assert row["declined_rightly"] is None


def test_yes_no_reads_the_first_word():
    assert scores("Yes, from May.", "Yes", kind="yes_no")["yes_no"] == 1
    assert scores("No.", "Yes", kind="yes_no")["yes_no"] == 0
    assert scores("It does, yes", "Yes", kind="yes_no")["yes_no"] == 0
    assert scores("", "No", kind="yes_no")["yes_no"] == 0
    assert scores("Yes", "Yes", kind="which")["yes_no"] is None


def test_words_in_the_article():
    row = scores("The i4 has 571 km and 600 hp at Dingolfing", "571 km")
    assert row["words_in_article"] == pytest.approx(3 / 6)  # i4, 571, dingolfing; not km, 600, hp
    for nothing_to_check in ("Yes.", DECLINE):
        assert scores(nothing_to_check, "Yes")["words_in_article"] is None


# --------------------------------------------------------------------------------------------------
# Intervals

UNEQUAL = [1, 1, 0, 0.5, 1, 0, 0.25, 1, 1, 0.5]
ARTICLES = list("aaabbbbccd")


def test_interval_by_plain_python():
    result = interval(UNEQUAL, ARTICLES)
    by_article = [(2.0, 3), (1.75, 4), (2.0, 2), (0.5, 1)]
    assert result["mean"] == pytest.approx(6.25 / 10)
    assert (result["n"], result["clusters"]) == (10, 4)
    draw = random.Random(1)
    means = []
    for _ in range(20_000):
        picked = draw.choices(by_article, k=4)
        means.append(sum(total for total, _ in picked) / sum(count for _, count in picked))
    means.sort()
    tail = norm.cdf(-math.sqrt(4 / 3) * t.ppf(0.975, 3))
    assert result["low"] == pytest.approx(means[int(tail * 20_000)], abs=0.02)
    assert result["high"] == pytest.approx(means[int((1 - tail) * 20_000)], abs=0.02)


def test_interval_is_the_same_each_time_and_in_any_order():
    order = [3, 9, 0, 7, 1, 2, 8, 4, 6, 5]
    shuffled = interval([UNEQUAL[i] for i in order], [ARTICLES[i] for i in order])
    assert interval(UNEQUAL, ARTICLES) == interval(UNEQUAL, ARTICLES)
    assert shuffled == pytest.approx(interval(UNEQUAL, ARTICLES))


def test_interval_leaves_out_what_does_not_apply():
    assert interval([None, 1, None, 0], ["z", "a", "a", "b"]) == interval([1, 0], ["a", "b"])
    nothing = interval([None, None], ["a", "b"])
    assert nothing == {"mean": None, "low": None, "high": None, "n": 0, "clusters": 0}


def test_interval_with_counts_is_token_weighted():
    # 2 nats per token for 100 tokens, 4 nats per token for 10
    result = interval([200.0, 40.0], ["a", "b"], [100, 10])
    assert math.exp(result["mean"]) == pytest.approx(8.862, abs=1e-3)
    assert (result["low"], result["high"]) == (2, 4)
    assert interval([1, 1], ["a", "b"], [1, 1])["low"] == 1  # one nat per token, not a share


def test_one_article_has_no_interval():
    result = interval([1, 0, 1], list("aaa"))
    assert result == {"mean": 2 / 3, "low": None, "high": None, "n": 3, "clusters": 1}


def test_equal_values():
    half = interval([0.5] * 6, list("aabbcc"))
    assert half == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 6, "clusters": 3}
    articles = list("abcdefghijkl") * 2
    none, every = interval([0] * 24, articles), interval([1] * 24, articles)
    beyond = 1 - 0.025 ** (1 / 12)  # Clopper and Pearson, of 12 articles
    assert (none["mean"], none["low"], none["high"]) == pytest.approx((0, 0, beyond))
    assert (every["mean"], every["low"], every["high"]) == pytest.approx((1, 1 - beyond, 1))
    better_known = interval([1] * 24, articles, effect=1.5)
    assert better_known["low"] == pytest.approx(0.025 ** (1 / 16))  # 24 / 1.5 trials
    assert interval([1] * 24, articles, effect=9)["low"] == every["low"]


def test_the_design_effect_by_hand():
    assert design_effect([1, 1, 0, 0], list("aabb")) == pytest.approx(4)  # 2/1 * 2 / 16, to 1/16
    assert design_effect([1, 0, 1, 0], list("aabb")) == 1  # less than independent ones: 1
    assert math.isnan(design_effect([1, 1], list("ab")))
    assert design_effect([1, None, 0], list("aab")) == pytest.approx(2)


def test_interval_covers_the_truth():
    """12 articles with 8 to 12 questions each and a rate around 0.5 per article.

    The intervals cover 0.5 in 95 % of the runs; plain percentiles would in 89 %.
    """
    draw, covered, runs = np.random.default_rng(7), 0, 500
    for _ in range(runs):
        sizes = draw.integers(8, 13, 12)
        rates = np.repeat(draw.beta(4.5, 4.5, 12), sizes)
        result = interval(draw.random(len(rates)) < rates, np.repeat(np.arange(12), sizes))
        covered += result["low"] <= 0.5 <= result["high"]
    assert 0.92 <= covered / runs <= 0.98


# --------------------------------------------------------------------------------------------------
# Paired differences

BETTER = [1, 1, 0.5, 0.5, 1, 0.5, 0.25, 1, 1, 0]


def every_flip(sums: list[float]) -> list[float]:
    """The absolute total of `sums` under every choice of signs."""
    choices = itertools.product((1, -1), repeat=len(sums))
    return [abs(sum(sign * x for sign, x in zip(signs, sums, strict=True))) for signs in choices]


def test_paired_difference_by_plain_python():
    result = paired_difference(BETTER, UNEQUAL, ARTICLES)
    gaps = [0, 0, 0.5, 0, 0, 0.5, 0, 0, 0, -0.5]
    assert result["difference"] == pytest.approx(sum(gaps) / 10)
    assert (result["wins"], result["ties"], result["losses"]) == (2, 7, 1)
    assert (result["n"], result["clusters"]) == (10, 4)
    totals, sizes = [0.5, 0.5, 0, -0.5], [3, 4, 2, 1]
    flipped = every_flip(totals)
    assert result["p"] == sum(x >= 0.5 for x in flipped) / 16 == 1
    squares = sum((total - 0.05 * size) ** 2 for total, size in zip(totals, sizes, strict=True))
    error = math.sqrt(4 / 3 * squares) / 10
    plain = math.sqrt(sum((gap - 0.05) ** 2 for gap in gaps) / 10 / 10)
    assert result["error"] == pytest.approx(max(error, plain))
    both = interval(gaps, ARTICLES)
    assert (result["low"], result["high"]) == (both["low"], both["high"])


def test_p_counts_every_flip_up_to_17_articles():
    draw = random.Random(3)
    gaps = [draw.gauss(0.3, 1) for _ in range(10)]
    flipped = every_flip(gaps)
    result = paired_difference(gaps, [0] * 10, range(10))
    assert result["p"] == pytest.approx(sum(x >= abs(sum(gaps)) - 1e-12 for x in flipped) / 1024)
    assert paired_difference([1] * 17, [0] * 17, range(17))["p"] == 2 / 2**17


def test_many_articles_are_flipped_at_random():
    draw = np.random.default_rng(5)
    result = paired_difference(draw.normal(0.45, 1, 24), [0] * 24, range(24))
    z = result["difference"] / result["error"]
    assert result["p"] == pytest.approx(2 * t.sf(abs(z), 23), abs=0.015)


def test_the_same_answers_do_not_differ():
    result = paired_difference(UNEQUAL, UNEQUAL, ARTICLES)
    zeros = ("difference", "low", "high", "wins", "losses", "error")
    assert [result[key] for key in zeros] == [0] * 6
    assert result["p"] == 1


def test_an_error_that_falls_below_that_of_independent_questions_is_not_believed():
    gaps = [1, -1, 1, -1, 1, -1]  # each article's sum is 0
    assert paired_difference(gaps, [0] * 6, list("aabbcc"))["error"] == pytest.approx(1 / 6**0.5)


def test_one_article_shows_no_difference():
    result = paired_difference([1, 1], [0, 0], ["a", "a"])
    assert (result["difference"], result["p"], result["low"], result["error"]) == (1, 1, None, 0)


def test_pairs_need_both_values():
    result = paired_difference([1, None, 1], [0, 0, None], ["a", "b", "c"])
    assert (result["n"], result["clusters"], result["difference"]) == (1, 1, 1)


def test_swapping_the_sides_mirrors_the_result():
    one = paired_difference(BETTER, UNEQUAL, ARTICLES)
    other = paired_difference(UNEQUAL, BETTER, ARTICLES)
    assert one["low"] == pytest.approx(-other["high"], abs=0.01) and one["p"] == other["p"]
    assert one["wins"] == other["losses"] and one["error"] == pytest.approx(other["error"])


def test_smallest_detectable_difference_is_found_in_four_of_five_evaluations():
    """12 articles with normal differences of sd 1: the t test has power 0.80 at 3.08 / sqrt(12)."""
    draw, hits, runs = np.random.default_rng(11), 0, 200
    for _ in range(runs):
        gaps = draw.normal(3.0769 / math.sqrt(12), 1, 12)
        hits += paired_difference(gaps, np.zeros(12), range(12))["p"] <= 0.05
    assert 0.71 <= hits / runs <= 0.89


def test_holm_by_hand():
    # sorted 0.005 0.01 0.03 0.04, times 4 3 2 1: 0.02 0.03 0.06 0.04, the last raised to 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6, 0.2]).tolist() == pytest.approx([1, 1, 0.6])
    assert holm([0.04]).tolist() == [0.04] and holm([]).size == 0


# --------------------------------------------------------------------------------------------------
# Tables


def record(article, number, slice_name, kind, reference, **answers) -> dict:
    """One question with the answer of each variant, as eval_generations.jsonl holds it."""
    line = {"question_id": f"{article}-{number}", "article_id": article, "kind": kind}
    line |= {"slice": slice_name, "question": "?"}
    line |= {"reference": reference, "references": [reference]}
    counts = {"stopped": True, "tokens": 3, "nll": 2.0 * number, "nll_tokens": number}
    return line | {variant: {"answer": answer} | counts for variant, answer in answers.items()}


VARIANTS = ("picker", "full", "lora", "pruned")
ANSWERS = {
    ("a", 1, "benchmark", "how_many", "571 km"): ("571", "571 km", "571 km", "571"),
    ("a", 2, "benchmark", "unanswerable", DECLINE): ("Anna", DECLINE, "Berg", DECLINE),
    ("b", 1, "benchmark", "yes_no", "Yes"): ("No", "Yes", "Yes, it does.", "No"),
    ("b", 3, "rule_made", "who", "Anna Berg"): ("Anna Berg", "Anna", "Anna Berg", ""),
}
RECORDS = [
    record(*question, **dict(zip(VARIANTS, answers, strict=True)))
    for question, answers in ANSWERS.items()
]
TEXTS = {"a": ARTICLE, "b": ARTICLE}


@pytest.fixture
def table() -> pd.DataFrame:
    return score_records(RECORDS, TEXTS, VARIANTS)


def test_score_table_keeps_slices_apart(table):
    means = score_table(table).set_index(["slice", "variant", "score"])["mean"]
    assert means["benchmark", "picker", "f1"] == pytest.approx(1 / 3)  # 2/3, 0
    assert means["benchmark", "full", "f1"] == 1
    assert means["benchmark", "lora", "f1"] == pytest.approx(0.75)  # 1, 1/2
    assert means["benchmark", "full", "declined_rightly"] == 1
    assert means["benchmark", "lora", "declined_rightly"] == 0
    assert means["rule_made", "full", "f1"] == pytest.approx(2 / 3)
    assert means["benchmark", "lora", "yes_no"] == means["rule_made", "lora", "stopped"] == 1
    assert means["benchmark", "picker", "perplexity"] == pytest.approx(math.exp(2))
    assert math.isnan(means["rule_made", "picker", "yes_no"])
    nested = by_variant(score_table(table))
    assert nested["lora"]["benchmark"]["f1"]["mean"] == pytest.approx(0.75)
    assert nested["picker"]["rule_made"]["yes_no"]["mean"] is None


def test_perplexity_over_tokens():
    rows = [record(article, 1, "benchmark", "who", "x", picker="x") for article in "ab"]
    rows[0]["picker"] |= {"nll": 200.0, "nll_tokens": 100}
    rows[1]["picker"] |= {"nll": 40.0, "nll_tokens": 10}
    result = score_table(score_records(rows, TEXTS, ("picker",))).set_index("score")
    assert result["mean"]["perplexity"] == pytest.approx(math.exp(240 / 110))
    assert result["high"]["perplexity"] == pytest.approx(math.exp(4))


def test_paired_table(table):
    result = paired_table(table).set_index(["slice", "pair"])
    row = result.loc["benchmark", "full - picker"]
    assert row["difference"] == pytest.approx(2 / 3) and row["wins"] == 2 and row["clusters"] == 2
    assert result.loc["benchmark", "pruned - full"]["difference"] == pytest.approx(-2 / 3)
    planned = ["full - picker", "lora - picker", "full - lora"]
    others = ["pruned - full", "pruned - lora", "pruned - picker"]
    assert list(result.index.get_level_values("pair")) == (planned + others) * 2


def test_holm_is_over_the_three_planned_pairs_and_shown_is_what_it_leaves():
    """Nine articles with one question each, against the picker.

    full wins 8 and ties 1: p is 2 / 2^8 = 0.008. lora wins 8 and loses 1: p is 20 / 2^9 = 0.039.
    """
    rows = []
    for article in "abcdefghi":
        weak, lora = ("right", "wrong") if article == "a" else ("wrong", "right")
        answers = dict(picker=weak, full="right", lora=lora, pruned=weak)
        rows.append(record(article, 1, "benchmark", "who", "right", **answers))
    table = score_records(rows, dict.fromkeys("abcdefghi", ARTICLE), VARIANTS)
    gaps = paired_table(table).set_index("pair")
    planned = gaps.loc[["full - picker", "lora - picker", "full - lora"]]
    assert planned["p"].tolist() == [2 / 2**8, 20 / 2**9, 1]
    assert planned["p_holm"].tolist() == pytest.approx([3 * 2 / 2**8, 2 * 20 / 2**9, 1])
    # lora's own p is below 0.05, Holm's is not
    assert planned["shown"].tolist() == [True, False, False]
    others = gaps.loc[["pruned - full", "pruned - picker", "pruned - lora"]]
    assert others["p_holm"].isna().all() and others["shown"].tolist() == [True, False, True]


def test_smallest_detectable_is_pooled_over_the_pairs_of_a_slice(table):
    rows = paired_table(table)
    wide = table[table["slice"] == "benchmark"]
    wide = wide.pivot(index=["article_id", "question_id"], columns="variant", values="f1")
    articles = wide.index.get_level_values("article_id")
    pairs = [pair.split(" - ") for pair in rows[rows["slice"] == "benchmark"]["pair"]]
    errors = [paired_difference(wide[a], wide[b], articles)["error"] for a, b in pairs]
    pooled = math.sqrt(sum(error**2 for error in errors) / len(errors))
    expected = (t.ppf(0.975, 1) + t.ppf(0.8, 1)) * pooled
    shown = rows[rows["slice"] == "benchmark"]["smallest_detectable"].tolist()
    assert shown == pytest.approx([expected] * 6)


def test_what_has_no_nll_has_no_perplexity():
    row = record("a", 1, "benchmark", "who", "x", picker="x")
    row["picker"] |= {"nll": None, "nll_tokens": None}
    table = score_table(score_records([row], TEXTS, ["picker"])).set_index("score")["mean"]
    assert table["f1"] == 1 and math.isnan(table["perplexity"])


def test_kind_table(table):
    means = kind_table(table).set_index(["slice", "kind", "variant"])["mean"]
    assert means["benchmark", "how_many", "picker"] == pytest.approx(2 / 3)
    assert means["benchmark", "unanswerable", "pruned"] == means["benchmark", "yes_no", "full"] == 1
    assert len(means) == 4 * 4


def test_plain_rows_keep_every_digit_and_know_no_nan():
    columns = {"a": [1 / 3, None], "b": [1, 2], "c": [True, False], "d": ["x", None]}
    rows = plain_rows(pd.DataFrame(columns))
    assert rows == [
        {"a": 1 / 3, "b": 1, "c": True, "d": "x"},
        {"a": None, "b": 2, "c": False, "d": None},
    ]
    assert [type(value) for value in rows[0].values()] == [float, int, bool, str]


# --------------------------------------------------------------------------------------------------
# Controls and failures


def test_controls_are_scored_on_the_questions_that_have_them_and_nothing_else():
    control = {"answer": "571 km", "stopped": True, "tokens": 3, "nll": 6.0, "nll_tokens": 2}
    rows = [row | {} for row in RECORDS]
    rows[0]["controls"] = {"no_article": control | {"answer": "571"}, "other_article": control}
    rows[2]["controls"] = {"no_article": control | {"answer": "Yes"}}
    table = score_controls(rows, TEXTS)
    assert len(table) == 2 + 2 + 1
    means = score_table(table).set_index(["variant", "score"])["mean"]
    assert means["own_article", "f1"] == 1
    assert means["no_article", "f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert means["other_article", "f1"] == 1
    assert means["no_article", "perplexity"] == pytest.approx(math.exp(3))
    pairs = [("own_article", "no_article"), ("own_article", "other_article")]
    gaps = paired_table(table, planned=(), others=pairs).set_index("pair")
    assert gaps["difference"].tolist() == pytest.approx([1 / 6, 0])
    assert gaps["n"].tolist() == [2, 1]


def test_the_worst_are_the_lowest_f1_then_the_most_surprised():
    question = ("benchmark", "how_many", "571 kilometres")
    rows = [record("a", number, *question, base=f"wrong {number}") for number in (1, 2, 3, 4)]
    rows[1]["base"]["answer"] = "571 kilometres"
    rows[3]["base"]["nll"] = 4 * 9.0  # nine nats per token, the others two
    worst = worst_failures(score_records(rows, TEXTS, ["base"]), rows, TEXTS, "benchmark")
    assert worst["question_id"].tolist() == ["a-4", "a-1", "a-3"]
    assert worst["answer"].tolist() == ["wrong 4", "wrong 1", "wrong 3"]
    assert worst["f1"].tolist() == [0, 0, 0]
    assert set(worst["line"]) == {ARTICLE.splitlines()[0]}


def test_the_line_of_an_answer():
    first, second = ARTICLE.split("\n\n")
    assert answer_line(ARTICLE, ["Anna Berg"], "who") == second
    # the best reference decides
    assert answer_line(ARTICLE, ["20", "59,900 euros"], "how_many") == second
    assert answer_line(ARTICLE, ["59,900 euros"], "how_many") == first
    across = ["57", "costs 59,900 euros we invested"]
    assert answer_line(ARTICLE, across, "how_many") == "(over several lines)"
    assert answer_line(ARTICLE, ["Yes"], "yes_no").startswith("(yes or no is no part")
    assert answer_line(ARTICLE, [DECLINE], "unanswerable") == "(not in the article)"


def test_an_answer_that_is_only_an_article_is_no_empty_answer():
    assert scores("", "A")["exact_match"] == scores("the", "A")["exact_match"] == 0
    assert scores("a", "A")["exact_match"] == scores("A.", "A")["f1"] == 1
