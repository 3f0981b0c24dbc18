"""Scores of one answer, and what a mean of such scores can and cannot show.

Every figure of the evaluation comes from eval_generations.jsonl through this file. Scores are
floats, None where one does not apply. Questions on one article are not independent, so intervals
and tests resample articles, not questions (Miller 2024, "Adding Error Bars to Evals", arXiv
2411.00640).
"""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import binomtest, bootstrap, norm, permutation_test, t

from bmwqa.pairs import UNANSWERABLE

# --------------------------------------------------------------------------------------------------
# Scores of one answer

ROUGE = RougeScorer(["rougeL"], use_stemmer=False)  # no stemmer, as in Hugging Face evaluate
STOP_WORDS = frozenset(
    "about after all also an and any are as at be been before both but by can could did do does "
    "for from had has have he her his how if in into is it its more most no not of on one only or "
    "other our out over she so some such than that the their them then there these they this "
    "those to under up was we were what when where which who why will with would yes you".split()
)


def normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no a/an/the, single spaces: SQuAD's, its evaluate-v2.0.py.

    >>> normalize("The  BMW i4, for €1.5 million")
    'bmw i4 for €15 million'
    """
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(answer: str, reference: str) -> float:
    """SQuAD's F1: the harmonic mean of precision and recall over normalised tokens.

    A token that is repeated counts as often as both texts have it.
    """
    ours, theirs = normalize(answer).split(), normalize(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


@lru_cache
def content_words(text: str) -> frozenset[str]:
    """The words of two characters or more in lower case, without STOP_WORDS and plain numbers."""
    words = re.findall(r"[^\W_]{2,}", text.lower())
    return frozenset(word for word in words if not word.isdigit()) - STOP_WORDS


def score_answer(
    answer: str, references: list[str], article_text: str, kind: str
) -> dict[str, float | None]:
    """All scores of one answer; over several references, the best one counts.

    exact_match, f1: SQuAD's. rouge_l: rouge_score's F-measure. contains: a reference stands in the
    answer, as whole normalised words. On an "unanswerable" question these four are 1 if the answer
    declines, else 0, as in SQuAD 2.0. A yes/no question enters f1 as a string: "Yes, it does." for
    "Yes" is 0.5.
    declined_rightly, declined_wrongly: whether the answer declines, for unanswerable and for other
    questions. To decline is to begin with the sentence of training, UNANSWERABLE; a model that was
    not taught it scores 0 even if it declines in other words.
    yes_no: the first word is that of a reference; for yes/no questions.
    words_in_article: the share of the answer's content words that stand in the article, where it
    has some and does not decline: a proxy for faithfulness.
    """
    if not references:
        raise ValueError("A question has no reference, need one or more. Complete its row.")
    plain, accepted = normalize(answer), [normalize(reference) for reference in references]
    declines = float(f"{plain} ".startswith(f"{normalize(UNANSWERABLE)} "))
    answerable = kind != "unanswerable"
    scores: dict[str, float | None] = {
        "exact_match": float(plain in accepted),
        "f1": max(token_f1(answer, text) for text in references),
        "rouge_l": max(ROUGE.score(text, answer)["rougeL"].fmeasure for text in references),
        "contains": float(any(f" {text} " in f" {plain} " for text in accepted)),
    }
    if not answerable:
        scores = dict.fromkeys(scores, declines)
    scores["declined_rightly"] = None if answerable else declines
    scores["declined_wrongly"] = declines if answerable else None
    first_words = [text.split()[:1] for text in accepted]
    scores["yes_no"] = float(plain.split()[:1] in first_words) if kind == "yes_no" else None
    words = content_words(answer)
    known = len(words & content_words(article_text)) / len(words) if words else None
    return scores | {"words_in_article": None if declines else known}


def score_records(
    records: list[dict], articles: dict[str, str], variants: Sequence[str]
) -> pd.DataFrame:
    """A row per question and variant: its ids, the scores, stopped, nll (nats) and nll_tokens.

    records: rows of eval_generations.jsonl; articles: context by article_id.
    """
    rows = []
    for record in records:
        ids = {key: record[key] for key in ("slice", "article_id", "question_id", "kind")}
        references, text = record["references"], articles[record["article_id"]]
        for variant in variants:
            line = record[variant]
            scores = score_answer(line["answer"], references, text, record["kind"])
            scores |= {key: float(line[key]) for key in ("stopped", "nll", "nll_tokens")}
            rows.append(ids | {"variant": variant} | scores)
    return pd.DataFrame(rows)


# --------------------------------------------------------------------------------------------------
# What a mean of scores shows

PAIRS = (("full", "base"), ("lora", "base"), ("full", "lora"))  # planned before any result was seen
OTHER_PAIRS = (("pruned", "full"), ("pruned", "base"), ("pruned", "lora"))  # described beside them
SCORES = ("exact_match", "f1", "rouge_l", "contains", "declined_rightly", "declined_wrongly")
SCORES += ("yes_no", "words_in_article", "stopped")
TABLE_SCORES = (*SCORES, "perplexity")
Values = Sequence[float | None]


def _by_article(clusters: Sequence[str], *columns: Values) -> list[np.ndarray]:
    """The sum of each column per article, in the order of ids; a row with a None is left out."""
    if not len(clusters) or any(len(column) != len(clusters) for column in columns):
        lengths = " and ".join(str(len(column)) for column in columns)
        raise ValueError(
            f"Got {lengths} values and {len(clusters)} clusters, need one or more, and as many of "
            f"each. Pass one of each for every question."
        )
    table = np.array([np.array(column, float) for column in columns])
    applies = ~np.isnan(table).any(axis=0)
    _, owner = np.unique(np.array(clusters, str)[applies], return_inverse=True)
    return [np.bincount(owner, column[applies]) for column in table]


def _bootstrap(sums: np.ndarray, counts: np.ndarray) -> tuple[float | None, float | None]:
    """The 95 % interval of sum / count over articles, see `interval`."""
    n = len(sums)
    if n < 2:
        return None, None
    limits = bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=1 - 2 * norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1)),
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(limits.low), float(limits.high)


def interval(values: Values, clusters: Sequence[str], counts: Values | None = None) -> dict:
    """Mean and 95 % interval: {"mean", "low", "high", "n", "clusters"}.

    values: one per question, None where it does not apply (left out). clusters: the article of
    each. mean = sum(values) / sum(counts), with counts of 1 unless given: with NLL and tokens,
    exp() of mean, low and high is perplexity.
    Bootstrap: articles are drawn with their questions, 9999 times, seed 0. The limits are the
    percentiles 100 Phi(-z) and 100 Phi(z), z = t[0.975, n-1] sqrt(n / (n-1)) for n articles,
    because 2.5 and 97.5 are too narrow for few (the expanded percentile interval of Hesterberg
    2015, The American Statistician 69(4), arXiv 1411.5279). Of 100 simulated evaluations with 12
    to 17 articles it held the truth in 92 to 95; plain percentiles in 89 to 93, BCa in 90 to 93.
    Shares that are all 0 or all 1 never vary in a bootstrap: they get the exact binomial interval
    (Clopper & Pearson 1934), with the articles as trials. With one article, low and high are None;
    where no value applies, mean is None too.
    """
    ones = np.ones(len(values))
    sums, weights, n = _by_article(clusters, values, ones if counts is None else counts, ones)
    if not len(n):
        return {"mean": None, "low": None, "high": None, "n": 0, "clusters": 0}
    mean, (low, high) = float(sums.sum() / weights.sum()), _bootstrap(sums, weights)
    if len(n) > 1 and counts is None and mean in (0, 1) and all(sums == mean * n):
        exact = binomtest(int(mean) * len(n), len(n)).proportion_ci(0.95)
        low, high = float(exact.low), float(exact.high)
    return {"mean": mean, "low": low, "high": high, "n": int(n.sum()), "clusters": len(n)}


def paired_difference(a: Values, b: Values, clusters: Sequence[str]) -> dict:
    """The mean of a - b over questions, with its interval, its test, and what could be shown.

    {"difference", "low", "high", "p", "wins", "ties", "losses", "smallest_detectable", "n",
    "clusters"}; low, high: as `interval`.
    p: two-sided sign-flip permutation test on the articles' sums of a - b. Up to 17 articles all
    2**n flips, so p is never below 2 / 2**n; else 2**17 random ones.
    wins, ties, losses: questions in which a is above, equal to, below b.
    smallest_detectable: the true difference that is shown with 80 % power at alpha 0.05 by an
    evaluation of this size, (t[0.975, n-1] + t[0.80, n-1]) SE (Bloom 1995, Evaluation Review
    19(5)). SE = sqrt(n / (n-1) * sum over articles of (its sum of (a - b - difference))**2) /
    questions, clustered as in Miller 2024. None: nothing varies to estimate it from.
    """
    _by_article(clusters, a, b)  # refuses columns of different lengths
    gaps = np.array(a, float) - np.array(b, float)
    sums, counts = _by_article(clusters, gaps, np.ones(len(gaps)))
    n, questions = len(sums), int(counts.sum())
    if not n:
        raise ValueError("No question has both values, need one or more. Compare another score.")
    difference, (low, high) = float(sums.sum() / questions), _bootstrap(sums, counts)
    p, smallest, signs = 1.0, None, Counter(np.sign(gaps).tolist())
    if n > 1:
        p = _flip_signs(sums)
        error = math.sqrt(n / (n - 1) * ((sums - difference * counts) ** 2).sum()) / questions
        if error > 1e-12:
            smallest = float((t.ppf(0.975, n - 1) + t.ppf(0.80, n - 1)) * error)
    row = {"difference": difference, "low": low, "high": high, "p": p}
    row |= {"wins": signs[1], "ties": signs[0], "losses": signs[-1]}
    return row | {"smallest_detectable": smallest, "n": questions, "clusters": n}


def _flip_signs(sums: np.ndarray) -> float:
    options = {"permutation_type": "samples", "n_resamples": 2**17, "rng": np.random.default_rng(0)}
    total = lambda s, axis: s.sum(axis)  # noqa: E731
    return float(permutation_test((sums,), total, vectorized=True, **options).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in order (Holm 1979, Scandinavian Journal of Statistics 6(2)).

    The smallest is multiplied by m, the next by m - 1, …; none ends below the last, or above 1.

    >>> holm([0.01, 0.04, 0.03, 0.005])
    [0.03, 0.06, 0.06, 0.02]
    """
    adjusted, floor, m = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        floor = adjusted[index] = max(floor, min(1.0, (m - rank) * p_values[index]))
    return adjusted


def score_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The `interval` of each score, a row per slice, variant and score of `score_records`.

    perplexity: exp(all nats / all tokens) of the references.
    """
    rows = []
    for (part, variant), group in scores.groupby(["slice", "variant"], sort=False):
        articles = group["article_id"]
        intervals = {score: interval(group[score], articles) for score in SCORES}
        log = interval(group["nll"], articles, group["nll_tokens"])
        intervals["perplexity"] = log | {
            key: None if log[key] is None else math.exp(log[key]) for key in ("mean", "low", "high")
        }
        ids = {"slice": part, "variant": variant}
        rows += [ids | {"score": score} | row for score, row in intervals.items()]
    return pd.DataFrame(rows)


def by_variant(table: pd.DataFrame) -> dict[str, dict[str, dict[str, dict]]]:
    """`score_table` as results.json has it: {variant: {slice: {score: interval}}}."""
    nested: dict = {}
    for row in plain_rows(table):
        variant, part, score = (row[key] for key in ("variant", "slice", "score"))
        figures = {key: row[key] for key in ("mean", "low", "high", "n", "clusters")}
        nested.setdefault(variant, {}).setdefault(part, {})[score] = figures
    return nested


def paired_table(
    scores: pd.DataFrame, planned: Sequence = PAIRS, others: Sequence = OTHER_PAIRS
) -> pd.DataFrame:
    """The `paired_difference` in F1 of pairs of variants, a row per slice and pair.

    pair: "full - base". p_holm: Holm over the planned pairs of a slice; the others stand outside of
    that family, with the plain p: they describe the smaller model, and do not make the three
    planned comparisons harder. shown: p_holm, or p for the others, is at most 0.05.
    """
    rows = []
    for part, group in scores.groupby("slice", sort=False):
        wide = group.pivot(index=["article_id", "question_id"], columns="variant", values="f1")
        articles, pairs = wide.index.get_level_values("article_id"), (*planned, *others)
        differences = [paired_difference(wide[a], wide[b], articles) for a, b in pairs]
        adjusted = holm([row["p"] for row in differences[: len(planned)]]) + [None] * len(others)
        for (a, b), row, p_holm in zip(pairs, differences, adjusted, strict=True):
            shown = (row["p"] if p_holm is None else p_holm) <= 0.05
            test = {"p_holm": p_holm, "shown": shown}
            rows.append({"slice": part, "pair": f"{a} - {b}"} | row | test)
    return pd.DataFrame(rows)


def kind_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The `interval` of F1, a row per slice, kind of question and variant."""
    names = ["slice", "kind", "variant"]
    return pd.DataFrame(
        dict(zip(names, key, strict=True)) | interval(group["f1"], group["article_id"])
        for key, group in scores.groupby(names, sort=False)
    )


def plain_rows(table: pd.DataFrame) -> list[dict]:
    """A table as JSON has it: a dict per row, None where there is no value."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


# --------------------------------------------------------------------------------------------------
# Controls and failures


def score_controls(records: list[dict], articles: dict[str, str]) -> pd.DataFrame:
    """`score_records` of full's answers with "own_article", then with each control in its place.

    A record's "controls" has an answer for each control that its question was asked in, see
    `control_questions`; records without are left out.
    """
    asked = [
        record | {"own_article": record["full"]} | record["controls"]
        for record in records
        if "controls" in record
    ]
    names = ["own_article", *dict.fromkeys(name for r in asked for name in r["controls"])]
    tables = [score_records([r for r in asked if name in r], articles, [name]) for name in names]
    return pd.concat(tables, ignore_index=True)


def worst_failures(
    scores: pd.DataFrame, records: list[dict], articles: dict[str, str], part: str, count: int = 3
) -> pd.DataFrame:
    """Each variant's `count` answers with the lowest F1 in one slice, and where the answer stood.

    Of equal ones, the answer comes first whose reference surprised the variant most (nll per
    token), then the earlier one. line: see `answer_line`.
    """
    by_id, rows = {record["question_id"]: record for record in records}, []
    scores = scores[scores["slice"] == part].assign(surprise=scores["nll"] / scores["nll_tokens"])
    for variant, group in scores.groupby("variant", sort=False):
        worst = group.sort_values(["f1", "surprise"], ascending=[True, False]).head(count)
        for question_id, f1 in zip(worst["question_id"], worst["f1"], strict=True):
            record = by_id[question_id]
            row = {key: record[key] for key in ("question_id", "kind", "question", "reference")}
            text, references = articles[record["article_id"]], record["references"]
            row |= {"answer": record[variant]["answer"], "f1": f1}
            row |= {"line": answer_line(text, references, record["kind"])}
            rows.append({"variant": variant} | row)
    return pd.DataFrame(rows)


def answer_line(context: str, references: list[str], kind: str) -> str:
    """The first line of an article that holds a reference, as whole normalised words.

    Or why there is none, in brackets.
    """
    if kind == "unanswerable":
        return "(not in the article)"
    if kind == "yes_no":
        return "(yes or no is no part of a line)"
    for reference in references:
        for line in context.splitlines():
            if f" {normalize(reference)} " in f" {normalize(line)} ":
                return line
    return "(over several lines)"
