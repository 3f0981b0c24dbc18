"""Scores of one answer, and what a mean of such scores can and cannot show.

Every figure of the evaluation comes from eval_generations.jsonl through this file. Scores are floats, None where one
does not apply. Questions on one article are not independent, so intervals and tests resample articles, not questions
(Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640).
"""

import math
import re
import string
from calendar import month_name
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache

import numpy as np
import pandas as pd
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import binomtest, bootstrap, norm, permutation_test, t

from bmwqa.pairs import UNANSWERABLE

# ---------------------------------------------------------------------------------------------------------------------
# Numbers with their units

SMALL = "two three four five six seven eight nine ten eleven twelve"
VALUES = {word: value for value, word in enumerate(SMALL.split(), start=2)}  # "one" is mostly a pronoun
SIZES = {"hundred": 2, "thousand": 3, "million": 6, "mn": 6, "billion": 9, "bn": 9, "trillion": 12}  # powers of ten
SYMBOLS = {"€": "€", "eur": "€", "us$": "$", "$": "$", "£": "£", "chf": "CHF"}
PER_100_KM = "(?: ?/ ?| per )100 ?(?:km|kilomet(?:re|er)s)"
UNITS = {  # the spellings of each unit, in any case; compound ones first
    "%-points": "%-points?|percentage points?", "%": "%|per ?cent", "€": "€|euros?|eur", "$": "(?:us )?dollars?|usd",
    "£": "gbp|pounds sterling", "CHF": "swiss francs?|chf", "cent": "cents?", "mph": "mph|miles per hour",
    "km/h": "km/h|kph|kilomet(?:re|er)s (?:per|an) hour", "g/km": "g/km|grams per kilomet(?:re|er)",
    "l/100 km": f"(?:l|lit(?:re|er)s?){PER_100_KM}", "kWh/100 km": f"(?:kwh|kilowatt[- ]hours?){PER_100_KM}",
    "kWh": "kwh|kilowatt[- ]hours?", "MWh": "mwh|megawatt[- ]hours?", "GWh": "gwh|gigawatt[- ]hours?",
    "kW": "kw|kilowatts?", "MW": "mw|megawatts?", "hp": "hp|bhp|horsepower", "PS": "ps", "V": "volts?|v",
    "Nm": "nm|newton[- ]met(?:re|er)s?", "rpm": "rpm|revolutions per minute", "km": "km|kilomet(?:re|er)s?",
    "m²": "m²|square met(?:re|er)s?", "m³": "m³|cubic met(?:re|er)s?", "cm³": "cm³|cc|cubic centimet(?:re|er)s?",
    "cm": "cm|centimet(?:re|er)s?", "mm": "mm|millimet(?:re|er)s?", "m": "met(?:re|er)s?|(?-i:m)",
    "kg": "kg|kilo(?:gram(?:me)?)?s?", "g": "gram(?:me)?s?|g", "t": "tons?|tonnes?|t", "l": "lit(?:re|er)s?|l",
    "°C": "° ?c|degrees celsius", "°": "°|degrees?", "a.m.": r"a\.?m\.?", "p.m.": r"p\.?m\.?", "ms": "ms|milliseconds?",
    "s": "seconds?|s", "min": "minutes?|min", "h": "hours?|h", "day": "days?", "week": "weeks?", "month": "months?",
    "year": "years?", "mile": "miles?", "inch": "inch(?:es)?",
}  # fmt: skip
MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?" for month in month_name[1:])
AMERICAN_DATE = re.compile(rf"(?<!\d )\b({MONTH}) (\d\d?)(?:st|nd|rd|th)?\b")
DATE = re.compile(rf"\b(?:(\d\d?)(?:st|nd|rd|th)? (?:of )?)?({MONTH})\b(?:,? (\d{{4}})\b)?")
NUMBER = re.compile(
    r"(?<!\w)(?<!\w[.,:])(?<!\b[B-HJ-Z] )(?P<minus>[-−–]|(?i:minus) )?(?P<money>(?i:€|us\$|\$|£|eur|chf) ?)?"
    rf"(?:(?P<digits>\d+(?:[.,:]\d+)*)(?:st|nd|rd|th)?|(?P<word>(?i:{'|'.join(VALUES)}))\b)"
    rf"(?:[ -]?(?P<size>(?i:{'|'.join(SIZES)}))\b)?(?:[ -]?(?P<unit>(?i:{'|'.join(UNITS.values())}))(?![^\W_]))?"
    r"(?P<name>[^\W\d_]|[ -]Series\b)?"
)
Number = tuple[Decimal | str, str]


@lru_cache
def numbers(text: str) -> frozenset[Number]:
    """The numbers in a text with their units, as (value, unit); unit "" is none. The rule:

    Figures are English: "2,500" is 2500, "1.50" is 1.5. The words two to twelve count, hundred … trillion, mn and bn
    multiply. The unit is the one of UNITS right after the number, or the currency right before it: "€4,500 million",
    "4.5 billion euros" and "EUR 4.5bn" are one number, "571 km" and "571" are two. "18-inch" has a unit, "32nd" is 32.
    A clock or lap time, "1:27.114", is a value of its own; minutes or hours after it are dropped.
    A date is one number with the year as its unit: "12 May 2025", "May 12, 2025", "12th of May", "May 2025".
    Digits of a name are none: they touch a letter (M4, 330e), follow one capital (R 1300 GS) or precede Series.

    >>> sorted(numbers("The i4 costs €1.5 million, 20 per cent less than in 2024."))
    [(Decimal('20'), '%'), (Decimal('2024'), ''), (Decimal('1500000.0'), '€')]
    """
    found: set[Number] = set()

    def take_date(match: re.Match) -> str:
        day, month, year = match.groups()
        if not day and not year:
            return match[0]
        found.add((f"{int(day)} {month[:3]}" if day else month[:3], year or ""))
        return ";"

    text = DATE.sub(take_date, AMERICAN_DATE.sub(r"\2 \1", " ".join(text.split())))
    for match in NUMBER.finditer(text):
        if match["name"]:
            continue
        spelled, power = match["unit"] or "", SIZES[match["size"].lower()] if match["size"] else 0
        unit = next((unit for unit, spellings in UNITS.items() if re.fullmatch(spellings, spelled, re.IGNORECASE)), "")
        if match["money"]:
            unit, power = SYMBOLS[match["money"].strip().lower()], 6 if unit == "m" else power  # "€1.5m"
        digits = match["digits"] or str(VALUES[match["word"].lower()])
        digits = digits.replace(":", ".") if unit in ("a.m.", "p.m.") else digits
        if re.fullmatch(r"(\d+|\d{1,3}(,\d{3})+)(\.\d+)?", digits):
            value = Decimal(digits.replace(",", "")) * 10**power
            found.add((-value if match["minus"] else value, unit))
        else:
            found.add((digits, ""))
    return frozenset(found)


def _agree(one: Number, other: Number) -> bool:
    """Equal, or the same date of which one has no year."""
    return one == other or (one[0] == other[0] and isinstance(one[0], str) and "" in (one[1], other[1]))


def same_numbers(ours: frozenset[Number], theirs: frozenset[Number]) -> bool:
    """Whether each number of one is in the other; a date without a year agrees with that day of any year."""
    return all(any(_agree(a, b) for b in theirs) for a in ours) and all(any(_agree(a, b) for a in ours) for b in theirs)


# ---------------------------------------------------------------------------------------------------------------------
# Scores of one answer

DECLINE = UNANSWERABLE  # the sentence that training teaches is the one that scoring looks for
ROUGE = RougeScorer(["rougeL"], use_stemmer=False)  # no stemmer, as in Hugging Face evaluate; HELM stems
STOP_WORDS = frozenset(
    "about after all also an and any are as at be been before both but by can could did do does for from had has have "
    "he her his how if in into is it its more most no not of on one only or other our out over she so some such than "
    "that the their them then there these they this those to under up was we were what when where which who why will "
    "with would yes you".split()
)


def normalize(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no a/an/the, single spaces (its evaluate-v2.0.py).

    >>> normalize("The  BMW i4, for €1.5 million")
    'bmw i4 for €15 million'
    """
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(answer: str, reference: str) -> float:
    """SQuAD's F1: harmonic mean of precision and recall over normalised tokens, repeated ones counted as often."""
    ours, theirs = normalize(answer).split(), normalize(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


@lru_cache
def content_words(text: str) -> frozenset[str]:
    """The lower-cased words of two characters or more, but not STOP_WORDS: "i4" is one, "571" is a number."""
    words = re.findall(r"[^\W_]{2,}", text.lower())
    return frozenset(word for word in words if not word.isdigit()) - STOP_WORDS


def score_answer(answer: str, references: list[str], article_text: str, kind: str) -> dict[str, float | None]:
    """All scores of one answer; over several references, the best.

    exact_match, f1: SQuAD's. rouge_l: rouge_score's F-measure. contains: a reference stands in the answer, as whole
    normalised words. On an "unanswerable" question these four are 1 if the answer declines, else 0, as in SQuAD 2.0:
    by its tokens "The press release is about cars." would earn 0.4. The headline F1 is the mean of f1 over all kinds;
    a yes/no question enters it as a string: "Yes, it does." for "Yes" is 0.5.
    declined: the normalised answer begins with the normalised DECLINE. Strict: a model that was not taught these words
    scores 0 even if it refuses in others. yes_no: the first word is that of a reference; None for other kinds.
    numbers_match: the answer has the `same_numbers` as a reference that has some; None if none has.
    words_in_article, numbers_in_article: share of the answer's different content words and numbers that stand in the
    article. PROXIES for faithfulness: a copy of the wrong sentence scores 1. None if there are none or it declines.
    words: the length of the answer.
    """
    if not references:
        raise ValueError("Got a question without a reference, need one accepted answer or more. Complete its row.")
    plain, accepted, ours = normalize(answer), [normalize(reference) for reference in references], numbers(answer)
    declines = f"{plain} ".startswith(f"{normalize(DECLINE)} ")
    scores: dict[str, float | None] = {
        "exact_match": float(plain in accepted),
        "f1": max(token_f1(answer, reference) for reference in references),
        "rouge_l": max(ROUGE.score(reference, answer)["rougeL"].fmeasure for reference in references),
        "contains": float(any(f" {reference} " in f" {plain} " for reference in accepted)),
    }
    if kind == "unanswerable":
        scores = dict.fromkeys(scores, float(declines))
    first = plain.split()[:1]
    scores["declined"] = float(declines)
    scores["yes_no"] = float(first in [reference.split()[:1] for reference in accepted]) if kind == "yes_no" else None
    wanted = [theirs for reference in references if (theirs := numbers(reference))]
    scores["numbers_match"] = float(any(same_numbers(ours, theirs) for theirs in wanted)) if wanted else None
    words = [word in content_words(article_text) for word in content_words(answer)]
    known = [any(_agree(number, other) for other in numbers(article_text)) for number in ours]
    scores["words_in_article"] = sum(words) / len(words) if words and not declines else None
    scores["numbers_in_article"] = sum(known) / len(known) if known and not declines else None
    return scores | {"words": float(len(answer.split()))}


def score_records(records: list[dict], articles: dict[str, str], variants: Sequence[str]) -> pd.DataFrame:
    """A row a question and variant: slice, article_id, question_id, kind, variant, scores, stopped, nll, nll_tokens.

    records: rows of eval_generations.jsonl; articles: text by article_id; nll: nats of a reference of nll_tokens.
    """
    rows = []
    for record in records:
        about = {key: record[key] for key in ("slice", "article_id", "question_id", "kind")}
        for variant in variants:
            made = record[variant]
            scores = score_answer(made["answer"], record["references"], articles[record["article_id"]], record["kind"])
            measured = {"stopped": float(made["stopped"]), "nll": made["nll"], "nll_tokens": made["nll_tokens"]}
            rows.append(about | {"variant": variant} | scores | measured)
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------------------------------
# What a mean of scores shows

PAIRS = (("full", "base"), ("lora", "base"), ("full", "lora"))  # planned before any result was seen
OTHER_PAIRS = (("pruned", "full"), ("pruned", "base"), ("pruned", "lora"))  # described beside them
SCORES = ("exact_match", "f1", "rouge_l", "contains", "declined", "yes_no", "numbers_match")
SCORES += ("words_in_article", "numbers_in_article", "words", "stopped")
Values = Sequence[float | None]


def _by_article(clusters: Sequence[str], *columns: Values) -> list[np.ndarray]:
    """The sum of each column for each article, the articles sorted by id; a row with a None is left out."""
    if not len(clusters) or any(len(column) != len(clusters) for column in columns):
        got = f"Got {' and '.join(str(len(column)) for column in columns)} values and {len(clusters)} clusters"
        raise ValueError(f"{got}, need one or more, and as many of each. Pass one of each for every question.")
    table = np.array([np.array(column, float) for column in columns])
    applies = ~np.isnan(table).any(axis=0)
    _, owner = np.unique(np.array(clusters, str)[applies], return_inverse=True)
    return [np.bincount(owner, column[applies]) for column in table]


def _bootstrap(sums: np.ndarray, counts: np.ndarray) -> tuple[float | None, float | None]:
    """The 95 % interval of sum / count over articles, see `interval`."""
    n = len(sums)
    if n < 2:
        return None, None
    found = bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=1 - 2 * norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1)),
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def interval(
    values: Values, clusters: Sequence[str], counts: Sequence[float] | None = None, share: bool = True
) -> dict:
    """Mean and 95 % interval: {"mean", "low", "high", "n", "clusters"}, n values from so many articles.

    values: one a question, None where it does not apply (left out); clusters: the article of each. mean = sum(values) /
    sum(counts), counts 1 each unless given: with NLL and token counts, exp() of mean, low and high is perplexity.
    Bootstrap: articles are drawn with their questions, 9999 times, seed 0. Its limits are the percentiles 100 Phi(-z)
    and 100 Phi(z), z = t[0.975, n-1] sqrt(n / (n-1)) for n articles, not 2.5 and 97.5, which are too narrow for few:
    the expanded percentile interval of Hesterberg (2015), The American Statistician 69(4), arXiv 1411.5279. Of 100
    simulated evaluations with 12 to 17 articles it held the truth in 92 to 95, the plain percentiles in 89 to 93, BCa
    (a correction for skew, not for few articles) in 90 to 93.
    Shares all 0 or all 1 never vary in a bootstrap: they get the exact binomial interval (Clopper & Pearson 1934) with
    the articles as trials. One article: low and high are None. No value applies: mean too.
    """
    ones = np.ones(len(values))
    sums, weights, n = _by_article(clusters, values, ones if counts is None else counts, ones)
    if not len(n):
        return {"mean": None, "low": None, "high": None, "n": 0, "clusters": 0}
    mean, (low, high) = float(sums.sum() / weights.sum()), _bootstrap(sums, weights)
    if share and len(n) > 1 and counts is None and mean in (0, 1) and all(sums == mean * n):
        exact = binomtest(int(mean) * len(n), len(n)).proportion_ci(0.95)
        low, high = float(exact.low), float(exact.high)
    return {"mean": mean, "low": low, "high": high, "n": int(n.sum()), "clusters": len(n)}


def paired_difference(a: Values, b: Values, clusters: Sequence[str]) -> dict:
    """The mean of a - b over questions: difference, low, high, p, wins, ties, losses, smallest_detectable, n, clusters.

    low, high: as `interval`. p: two-sided sign-flip permutation test on the articles' sums of a - b; all 2**n flips up
    to 17 articles, so p is never below 2 / 2**n; else 2**17 random ones, (hits + 1) / (flips + 1) on each side.
    wins, ties, losses: questions in which a is above, equal to, below b.
    smallest_detectable: the true difference found with 80 % power at alpha 0.05 by an evaluation of this size,
    (t[0.975, n-1] + t[0.80, n-1]) SE (Bloom 1995, Evaluation Review 19(5), there for any estimate with its SE). SE =
    sqrt(n / (n-1) * sum over articles of (its sum of (a - b - difference))**2) / questions, clustered as in Miller
    2024, arXiv 2411.00640, times the small-sample factor n / (n-1). None: nothing varies to estimate it from.
    """
    _by_article(clusters, a, b)  # refuses columns of different lengths
    gaps = np.array(a, float) - np.array(b, float)
    sums, counts = _by_article(clusters, gaps, np.ones(len(gaps)))
    n, questions = len(sums), int(counts.sum())
    if not n:
        raise ValueError("Got no question on which both a and b have a value, need one. Compare another score.")
    difference, (low, high), p, smallest = float(sums.sum() / questions), _bootstrap(sums, counts), 1.0, None
    if n > 1:
        flips = {"permutation_type": "samples", "n_resamples": 2**17, "rng": np.random.default_rng(0)}
        p = float(permutation_test((sums,), lambda s, axis: s.sum(axis), vectorized=True, **flips).pvalue)
        error = math.sqrt(n / (n - 1) * ((sums - difference * counts) ** 2).sum()) / questions
        smallest = float((t.ppf(0.975, n - 1) + t.ppf(0.80, n - 1)) * error) if error > 1e-12 else None
    signs = Counter(np.sign(gaps).tolist())
    return {
        "difference": difference, "low": low, "high": high, "p": p, "wins": signs[1], "ties": signs[0],
        "losses": signs[-1], "smallest_detectable": smallest, "n": questions, "clusters": n,
    }  # fmt: skip


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values in the order given (Holm 1979, Scandinavian Journal of Statistics 6(2)).

    The smallest is multiplied by m, the next by m - 1, …; none ends below the one before it or above 1.

    >>> holm([0.01, 0.04, 0.03, 0.005])
    [0.03, 0.06, 0.06, 0.02]
    """
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        floor = adjusted[index] = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
    return adjusted


def score_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The `interval` of each score for each slice and variant of `score_records`: slice, variant, score, mean, low, ….

    perplexity: exp(all nats / all tokens). perplexity_per_question: exp(mean over questions of nats / tokens).
    """
    rows = []
    for (part, variant), some in scores.groupby(["slice", "variant"], sort=False):
        articles, nll, tokens = some["article_id"], some["nll"], some["nll_tokens"]
        found = {score: interval(some[score], articles, share=score != "words") for score in SCORES}
        logs = interval(nll, articles, tokens), interval(nll / tokens, articles)
        for score, log in zip(("perplexity", "perplexity_per_question"), logs, strict=True):
            limits = {key: None if log[key] is None else math.exp(log[key]) for key in ("mean", "low", "high")}
            found[score] = log | limits
        rows += [{"slice": part, "variant": variant, "score": score} | row for score, row in found.items()]
    return pd.DataFrame(rows)


def paired_table(
    scores: pd.DataFrame, score: str = "f1", planned: Sequence = PAIRS, others: Sequence = OTHER_PAIRS
) -> pd.DataFrame:
    """The `paired_difference` of pairs of variants in one score for each slice of `score_records`.

    slice, pair ("full - base"), the difference's columns, p_holm and shown, a row a pair, the planned ones first.
    p_holm: Holm over the planned pairs of a slice. The others stand outside of that family, with the plain p: they
    describe the smaller model, and do not make the three planned comparisons harder. shown: p_holm, p for the others,
    is at most 0.05.
    """
    rows = []
    for part, some in scores.groupby("slice", sort=False):
        wide = some.pivot(index=["article_id", "question_id"], columns="variant", values=score)
        articles = wide.index.get_level_values("article_id")
        found = [paired_difference(wide[a], wide[b], articles) for a, b in (*planned, *others)]
        adjusted = holm([row["p"] for row in found[: len(planned)]]) + [None] * len(others)
        for (a, b), row, p_holm in zip((*planned, *others), found, adjusted, strict=True):
            shown = (row["p"] if p_holm is None else p_holm) <= 0.05
            rows.append({"slice": part, "pair": f"{a} - {b}"} | row | {"p_holm": p_holm, "shown": shown})
    return pd.DataFrame(rows)


def kind_table(scores: pd.DataFrame, score: str = "f1") -> pd.DataFrame:
    """The `interval` of one score for each slice, kind of question and variant: slice, kind, variant, mean, low, …."""
    groups = scores.groupby(["slice", "kind", "variant"], sort=False)
    names = ("slice", "kind", "variant")
    rows = [dict(zip(names, key, strict=True)) | interval(some[score], some["article_id"]) for key, some in groups]
    return pd.DataFrame(rows)


def plain_rows(table: pd.DataFrame) -> list[dict]:
    """A table as JSON has it: a dict a row, floats with all their digits, None where there is no value."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


# ---------------------------------------------------------------------------------------------------------------------
# Controls and failures


def score_controls(records: list[dict], articles: dict[str, str]) -> pd.DataFrame:
    """`score_records` of full's answers to the questions that have controls: "own_article", then each control.

    A record's "controls" has an answer for each control that its question was asked in, see `control_questions`.
    """
    asked = [
        record | {"own_article": record["full"]} | record["controls"] for record in records if "controls" in record
    ]
    names = ["own_article", *dict.fromkeys(name for record in asked for name in record["controls"])]
    parts = [score_records([row for row in asked if name in row], articles, [name]) for name in names]
    return pd.concat(parts, ignore_index=True)


def worst_failures(
    scores: pd.DataFrame, records: list[dict], articles: dict[str, str], part: str, count: int = 3
) -> pd.DataFrame:
    """Each variant's `count` answers with the lowest F1 in one slice; of equals, whose reference surprised it most.

    Surprise: nll / nll_tokens; then the order of the records. line: see `answer_line`.
    """
    by_id, rows = {record["question_id"]: record for record in records}, []
    some = scores[scores["slice"] == part].assign(surprise=scores["nll"] / scores["nll_tokens"])
    for variant, own in some.groupby("variant", sort=False):
        worst = own.sort_values(["f1", "surprise"], ascending=[True, False]).head(count)
        for question_id, f1 in zip(worst["question_id"], worst["f1"], strict=True):
            record = by_id[question_id]
            about = {key: record[key] for key in ("question_id", "kind", "question", "reference")}
            line = answer_line(articles[record["article_id"]], record["references"], record["kind"])
            rows.append({"variant": variant} | about | {"answer": record[variant]["answer"], "f1": f1, "line": line})
    return pd.DataFrame(rows)


def answer_line(context: str, references: list[str], kind: str) -> str:
    """The first line of an article that holds an accepted answer, the best one first, as whole normalised words.

    Or why there is none: the article does not say, a yes or a no is no span of it, an answer goes over several lines.
    """
    if kind in ("unanswerable", "yes_no"):
        return {"unanswerable": "(not in the article)", "yes_no": "(a yes or a no: no one line says it)"}[kind]
    for reference in references:
        for line in context.splitlines():
            if f" {normalize(reference)} " in f" {normalize(line)} ":
                return line
    return "(over several lines)"
