"""Scores and statistics against expectations written by hand, or worked out again by plain Python."""

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
    token_f1,
    worst_failures,
)

pytestmark = pytest.mark.filterwarnings("error")
ARTICLE = (
    "Munich. From 12 May 2025 the BMW i4 eDrive40 has a range of up to 571 kilometres. It costs 59,900 euros.\n\n"
    "“We invested €1.5 billion,” says Anna Berg. Production at the Dingolfing plant grew by 20 per cent."
)


def scores(answer: str, *references: str, kind: str = "how_many") -> dict:
    return score_answer(answer, list(references), ARTICLE, kind)


def test_examples_in_the_docstrings():
    result = doctest.testmod(sys.modules["bmwqa.scores"])
    assert result.attempted >= 2 and result.failed == 0


# ---------------------------------------------------------------------------------------------------------------------
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


def test_the_best_reference_counts():
    row = scores("571 km", "571 kilometres", "571 km", "about 571 km")
    assert row["exact_match"] == row["f1"] == row["rouge_l"] == 1


def test_rouge_l_is_the_longest_common_subsequence_without_stemming():
    # range up to 571 / up to 571 range: the longest common subsequence has 3 of 4
    assert scores("range up to 571", "up to 571 range")["rouge_l"] == pytest.approx(0.75)
    assert scores("costs", "cost")["rouge_l"] == 0


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
def test_declined_is_strict_and_decides_unanswerable_questions(answer, declined):
    row = scores(answer, DECLINE, kind="unanswerable")
    assert [row[name] for name in ("declined_rightly", "exact_match", "f1", "contains")] == [
        declined
    ] * 4
    assert row["declined_wrongly"] is None


def test_a_wrong_answer_to_an_unanswerable_question_earns_nothing_for_its_common_words():
    assert token_f1("The press release is about cars.", DECLINE) == pytest.approx(0.4)
    assert scores("The press release is about cars.", DECLINE, kind="unanswerable")["f1"] == 0


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
    assert row["words_in_article"] == pytest.approx(2 / 4)  # i4, dingolfing; not km, hp
    assert scores("Munich’s", "Munich")["words_in_article"] == 1
    for nothing_to_check in ("Yes.", DECLINE):
        row = scores(nothing_to_check, "Yes")
        assert row["words_in_article"] is None


def test_a_question_without_reference_is_refused():
    with pytest.raises(ValueError, match="has no reference, need one or more"):
        score_answer("x", [], ARTICLE, "who")


# ---------------------------------------------------------------------------------------------------------------------
# Intervals

UNEQUAL = [1, 1, 0, 0.5, 1, 0, 0.25, 1, 1, 0.5]
ARTICLES = list("aaabbbbccd")


def test_interval_by_plain_python():
    found = interval(UNEQUAL, ARTICLES)
    by_article = [(2.0, 3), (1.75, 4), (2.0, 2), (0.5, 1)]
    assert found["mean"] == pytest.approx(6.25 / 10)
    assert (found["n"], found["clusters"]) == (10, 4)
    draw = random.Random(1)
    means = []
    for _ in range(20_000):
        picked = draw.choices(by_article, k=4)
        means.append(sum(total for total, _ in picked) / sum(count for _, count in picked))
    means.sort()
    tail = norm.cdf(-math.sqrt(4 / 3) * t.ppf(0.975, 3))
    assert found["low"] == pytest.approx(means[int(tail * 20_000)], abs=0.02)
    assert found["high"] == pytest.approx(means[int((1 - tail) * 20_000)], abs=0.02)


def test_interval_is_the_same_each_time_and_in_any_order():
    order = [3, 9, 0, 7, 1, 2, 8, 4, 6, 5]
    shuffled = interval([UNEQUAL[i] for i in order], [ARTICLES[i] for i in order])
    assert interval(UNEQUAL, ARTICLES) == interval(UNEQUAL, ARTICLES)
    assert shuffled == pytest.approx(interval(UNEQUAL, ARTICLES))


def test_interval_leaves_out_what_does_not_apply():
    assert interval([None, 1, None, 0], ["z", "a", "a", "b"]) == interval([1, 0], ["a", "b"])
    assert interval([None, None], ["a", "b"]) == {
        "mean": None,
        "low": None,
        "high": None,
        "n": 0,
        "clusters": 0,
    }


def test_interval_with_counts_is_token_weighted():
    found = interval(
        [200.0, 40.0], ["a", "b"], [100, 10]
    )  # 2 nats on each of 100 tokens, 4 on each of 10
    assert math.exp(found["mean"]) == pytest.approx(8.862, abs=1e-3)
    assert (found["low"], found["high"]) == (2, 4)
    assert interval([1, 1], ["a", "b"], [1, 1])["low"] == 1  # one nat a token, not a share


def test_one_article_has_no_interval():
    assert interval([1, 0, 1], list("aaa")) == {
        "mean": 2 / 3,
        "low": None,
        "high": None,
        "n": 3,
        "clusters": 1,
    }


def test_equal_values():
    assert interval([0.5] * 6, list("aabbcc")) == {
        "mean": 0.5,
        "low": 0.5,
        "high": 0.5,
        "n": 6,
        "clusters": 3,
    }
    none, every = (
        interval([0] * 24, list("abcdefghijkl") * 2),
        interval([1] * 24, list("abcdefghijkl") * 2),
    )
    beyond = 1 - 0.025 ** (
        1 / 12
    )  # Clopper and Pearson: 12 of 12 articles without one has at most this rate
    assert (none["mean"], none["low"], none["high"]) == pytest.approx((0, 0, beyond))
    assert (every["mean"], every["low"], every["high"]) == pytest.approx((1, 1 - beyond, 1))


def test_interval_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="need one or more, and as many of each"):
        interval([1, 0], ["a"])
    with pytest.raises(ValueError, match="need one or more, and as many of each"):
        interval([], [])
    with pytest.raises(ValueError, match="need one or more, and as many of each"):
        paired_difference([1, 0], [1], ["a", "b"])


def test_interval_covers_the_truth():
    """12 articles with 8 to 12 questions, a rate of 0.5 that differs between them: plain percentiles cover 0.89."""
    draw, covered, runs = np.random.default_rng(7), 0, 500
    for _ in range(runs):
        sizes = draw.integers(8, 13, 12)
        rates = np.repeat(draw.beta(4.5, 4.5, 12), sizes)
        found = interval(draw.random(len(rates)) < rates, np.repeat(np.arange(12), sizes))
        covered += found["low"] <= 0.5 <= found["high"]
    assert 0.92 <= covered / runs <= 0.98


# ---------------------------------------------------------------------------------------------------------------------
# Paired differences

BETTER = [1, 1, 0.5, 0.5, 1, 0.5, 0.25, 1, 1, 0]


def every_flip(sums: list[float]) -> list[float]:
    signs = itertools.product((1, -1), repeat=len(sums))
    return [
        abs(sum(sign * total for sign, total in zip(some, sums, strict=True))) for some in signs
    ]


def test_paired_difference_by_plain_python():
    found = paired_difference(BETTER, UNEQUAL, ARTICLES)
    gaps = [0, 0, 0.5, 0, 0, 0.5, 0, 0, 0, -0.5]
    assert found["difference"] == pytest.approx(sum(gaps) / 10)
    assert (found["wins"], found["ties"], found["losses"], found["n"], found["clusters"]) == (
        2,
        7,
        1,
        10,
        4,
    )
    totals, sizes = [0.5, 0.5, 0, -0.5], [3, 4, 2, 1]
    flipped = every_flip(totals)
    assert found["p"] == sum(x >= 0.5 for x in flipped) / 16 == 1
    squares = sum((total - 0.05 * size) ** 2 for total, size in zip(totals, sizes, strict=True))
    error = math.sqrt(4 / 3 * squares) / 10
    assert found["smallest_detectable"] == pytest.approx(
        (3.18245 + 0.97847) * error, rel=1e-5
    )  # t table, 3 df
    both = interval(gaps, ARTICLES)
    assert (found["low"], found["high"]) == (both["low"], both["high"])


def test_p_counts_every_flip_up_to_17_articles():
    draw = random.Random(3)
    gaps = [draw.gauss(0.3, 1) for _ in range(10)]
    flipped = every_flip(gaps)
    found = paired_difference(gaps, [0] * 10, range(10))
    assert found["p"] == pytest.approx(sum(x >= abs(sum(gaps)) - 1e-12 for x in flipped) / 1024)
    assert paired_difference([1] * 17, [0] * 17, range(17))["p"] == 2 / 2**17


def test_many_articles_are_flipped_at_random():
    draw = np.random.default_rng(5)
    found = paired_difference(draw.normal(0.45, 1, 24), [0] * 24, range(24))
    z = found["difference"] / found["smallest_detectable"] * (t.ppf(0.975, 23) + t.ppf(0.8, 23))
    assert found["p"] == pytest.approx(2 * t.sf(abs(z), 23), abs=0.015)


def test_the_same_answers_do_not_differ():
    found = paired_difference(UNEQUAL, UNEQUAL, ARTICLES)
    assert [found[key] for key in ("difference", "low", "high", "p", "wins", "losses")] == [
        0,
        0,
        0,
        1,
        0,
        0,
    ]
    assert found["smallest_detectable"] is None


def test_one_article_shows_no_difference():
    found = paired_difference([1, 1], [0, 0], ["a", "a"])
    assert (found["difference"], found["p"], found["low"], found["smallest_detectable"]) == (
        1,
        1,
        None,
        None,
    )


def test_pairs_need_both_values():
    found = paired_difference([1, None, 1], [0, 0, None], ["a", "b", "c"])
    assert (found["n"], found["clusters"], found["difference"]) == (1, 1, 1)
    with pytest.raises(ValueError, match="Compare another score"):
        paired_difference([None], [1], ["a"])


def test_swapping_the_sides_mirrors_the_result():
    one, other = (
        paired_difference(BETTER, UNEQUAL, ARTICLES),
        paired_difference(UNEQUAL, BETTER, ARTICLES),
    )
    assert one["low"] == pytest.approx(-other["high"], abs=0.01) and one["p"] == other["p"]
    assert (one["wins"], one["smallest_detectable"]) == (
        other["losses"],
        pytest.approx(other["smallest_detectable"]),
    )


def test_smallest_detectable_difference_is_found_in_four_of_five_evaluations():
    """12 articles, normal differences of sd 1: it is 3.08 / sqrt(12) = 0.89, where the t test's power is 0.80."""
    draw, hits, runs = np.random.default_rng(11), 0, 200
    for _ in range(runs):
        hits += (
            paired_difference(draw.normal(3.0769 / math.sqrt(12), 1, 12), np.zeros(12), range(12))[
                "p"
            ]
            <= 0.05
        )
    assert 0.71 <= hits / runs <= 0.89


def test_holm_by_hand():
    # sorted 0.005 0.01 0.03 0.04, times 4 3 2 1: 0.02 0.03 0.06 0.04, the last raised to 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6, 0.2]) == pytest.approx([1, 1, 0.6])
    assert holm([0.04]) == [0.04] and holm([]) == []


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def record(article: str, number: int, part: str, kind: str, reference: str, **answers: str) -> dict:
    made = {
        variant: {
            "answer": answer,
            "stopped": True,
            "tokens": 3,
            "nll": 2.0 * number,
            "nll_tokens": number,
        }
        for variant, answer in answers.items()
    }
    about = {
        "question_id": f"{article}-{number}",
        "article_id": article,
        "kind": kind,
        "slice": part,
    }
    return about | {"question": "?", "reference": reference, "references": [reference]} | made


VARIANTS = ("base", "full", "lora", "pruned")
RECORDS = [
    record(
        "a",
        1,
        "benchmark",
        "how_many",
        "571 km",
        base="571",
        full="571 km",
        lora="571 km",
        pruned="571",
    ),
    record(
        "a",
        2,
        "benchmark",
        "unanswerable",
        DECLINE,
        base="Anna",
        full=DECLINE,
        lora="Berg",
        pruned=DECLINE,
    ),
    record(
        "b",
        1,
        "benchmark",
        "yes_no",
        "Yes",
        base="No",
        full="Yes",
        lora="Yes, it does.",
        pruned="No",
    ),
    record(
        "b",
        3,
        "rule_made",
        "who",
        "Anna Berg",
        base="Anna Berg",
        full="Anna",
        lora="Anna Berg",
        pruned="",
    ),
]
TEXTS = {"a": ARTICLE, "b": ARTICLE}


@pytest.fixture
def table() -> pd.DataFrame:
    return score_records(RECORDS, TEXTS, VARIANTS)


def test_score_table_keeps_slices_apart(table):
    means = score_table(table).set_index(["slice", "variant", "score"])["mean"]
    assert means["benchmark", "base", "f1"] == pytest.approx(2 / 9)  # 2/3, 0, 0
    assert means["benchmark", "full", "f1"] == 1
    assert means["benchmark", "lora", "f1"] == pytest.approx(0.5)  # 1, 0, 1/2
    assert means["rule_made", "full", "f1"] == pytest.approx(2 / 3)
    assert means["benchmark", "lora", "yes_no"] == means["rule_made", "lora", "stopped"] == 1
    assert means["benchmark", "base", "perplexity"] == pytest.approx(math.exp(2))
    assert math.isnan(means["rule_made", "base", "yes_no"])
    nested = by_variant(score_table(table))
    assert nested["lora"]["benchmark"]["f1"]["mean"] == pytest.approx(0.5)
    assert nested["base"]["rule_made"]["yes_no"]["mean"] is None


def test_perplexity_over_tokens():
    rows = [
        record("a", 1, "benchmark", "who", "x", base="x"),
        record("b", 1, "benchmark", "who", "x", base="x"),
    ]
    rows[0]["base"] |= {"nll": 200.0, "nll_tokens": 100}
    rows[1]["base"] |= {"nll": 40.0, "nll_tokens": 10}
    found = score_table(score_records(rows, {"a": ARTICLE, "b": ARTICLE}, ("base",))).set_index(
        "score"
    )
    assert found["mean"]["perplexity"] == pytest.approx(math.exp(240 / 110))
    assert found["high"]["perplexity"] == pytest.approx(math.exp(4))


def test_paired_table(table):
    found = paired_table(table).set_index(["slice", "pair"])
    row = found.loc["benchmark", "full - base"]
    assert row["difference"] == pytest.approx(7 / 9) and row["wins"] == 3 and row["clusters"] == 2
    assert found.loc["benchmark", "pruned - full"]["difference"] == pytest.approx(
        (-1 / 3 + 0 - 1) / 3
    )
    planned = ["full - base", "lora - base", "full - lora"]
    others = ["pruned - full", "pruned - base", "pruned - lora"]
    assert list(found.index.get_level_values("pair")) == (planned + others) * 2


def test_holm_is_over_the_three_planned_pairs_and_shown_is_what_it_leaves():
    """Nine articles, one question each: full wins all, p 2/2^9 = 0.0039; lora 8 of 9, p 20/2^9 = 0.039."""
    rows = []
    for number, article in enumerate("abcdefghi"):
        lora = "wrong" if number == 0 else "right"
        made = dict(
            base="wrong" if number else "right",
            full="right",
            lora=lora,
            pruned="wrong" if number else "right",
        )
        rows.append(record(article, 1, "benchmark", "who", "right", **made))
    found = paired_table(
        score_records(rows, dict.fromkeys("abcdefghi", ARTICLE), VARIANTS)
    ).set_index("pair")
    planned = found.loc[["full - base", "lora - base", "full - lora"]]
    assert planned["p"].tolist() == [2 / 2**8, 20 / 2**9, 1]
    assert planned["p_holm"].tolist() == pytest.approx([3 * 2 / 2**8, 2 * 20 / 2**9, 1])
    assert planned["shown"].tolist() == [
        True,
        False,
        False,
    ]  # lora's own p is below 0.05, Holm's is not
    others = found.loc[["pruned - full", "pruned - base", "pruned - lora"]]
    assert others["p_holm"].isna().all() and others["shown"].tolist() == [True, False, True]


def test_kind_table(table):
    means = kind_table(table).set_index(["slice", "kind", "variant"])["mean"]
    assert means["benchmark", "how_many", "base"] == pytest.approx(2 / 3)
    assert means["benchmark", "unanswerable", "pruned"] == means["benchmark", "yes_no", "full"] == 1
    assert len(means) == 4 * 4


def test_plain_rows_keep_every_digit_and_know_no_nan():
    rows = plain_rows(
        pd.DataFrame({"a": [1 / 3, None], "b": [1, 2], "c": [True, False], "d": ["x", None]})
    )
    assert rows == [
        {"a": 1 / 3, "b": 1, "c": True, "d": "x"},
        {"a": None, "b": 2, "c": False, "d": None},
    ]
    assert [type(value) for value in rows[0].values()] == [float, int, bool, str]


# ---------------------------------------------------------------------------------------------------------------------
# Controls and failures


def test_controls_are_scored_on_the_questions_that_have_them_and_nothing_else():
    control = {"answer": "571 km", "stopped": True, "tokens": 3, "nll": 6.0, "nll_tokens": 2}
    rows = [row | {} for row in RECORDS]
    rows[0]["controls"] = {"no_article": control | {"answer": "571"}, "other_article": control}
    rows[2]["controls"] = {"no_article": control | {"answer": "Yes"}}
    found = score_controls(rows, TEXTS)
    assert len(found) == 2 + 2 + 1
    means = score_table(found).set_index(["variant", "score"])["mean"]
    assert means["own_article", "f1"] == 1
    assert means["no_article", "f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert means["other_article", "f1"] == 1
    assert means["no_article", "perplexity"] == pytest.approx(math.exp(3))
    pairs = [("own_article", "no_article"), ("own_article", "other_article")]
    gaps = paired_table(found, planned=(), others=pairs).set_index("pair")
    assert gaps["difference"].tolist() == pytest.approx([1 / 6, 0])
    assert gaps["n"].tolist() == [2, 1]


def test_the_worst_are_the_lowest_f1_then_the_most_surprised():
    rows = [
        record("a", n, "benchmark", "how_many", "571 kilometres", base=f"wrong {n}")
        for n in (1, 2, 3, 4)
    ]
    rows[1]["base"]["answer"] = "571 kilometres"
    rows[3]["base"]["nll"] = 4 * 9.0  # nine nats a token, the others two
    scores = score_records(rows, TEXTS, ["base"])
    found = worst_failures(scores, rows, TEXTS, "benchmark")
    assert found["question_id"].tolist() == ["a-4", "a-1", "a-3"]
    assert found["answer"].tolist() == ["wrong 4", "wrong 1", "wrong 3"] and found[
        "f1"
    ].tolist() == [0, 0, 0]
    assert set(found["line"]) == {ARTICLE.splitlines()[0]}


def test_the_line_of_an_answer():
    first, second = ARTICLE.split("\n\n")
    assert answer_line(ARTICLE, ["Anna Berg"], "who") == second
    assert (
        answer_line(ARTICLE, ["20", "59,900 euros"], "how_many") == second
    )  # the best reference decides
    assert answer_line(ARTICLE, ["59,900 euros"], "how_many") == first
    assert (
        answer_line(ARTICLE, ["57", "costs 59,900 euros we invested"], "how_many")
        == "(over several lines)"
    )
    assert answer_line(ARTICLE, ["Yes"], "yes_no").startswith("(yes or no is no part")
    assert answer_line(ARTICLE, [DECLINE], "unanswerable") == "(not in the article)"
