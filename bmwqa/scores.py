"""Scores of one answer, and what a mean of such scores can and cannot show.

Every figure of the evaluation comes from eval_generations.jsonl through this file. A score is a
float, or None where it does not apply. Questions on one article are not independent, so intervals
and tests resample articles (Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640).
"""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from statistics import median

import numpy as np
import pandas as pd
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU
from scipy.stats import binomtest, bootstrap, norm, permutation_test, t

from bmwqa.pairs import UNANSWERABLE, content_words

ROUGE = RougeScorer(["rougeL"], use_stemmer=False)  # no stemmer, as in Hugging Face evaluate
SENTENCE_BLEU = BLEU(effective_order=True)  # a text of three words has no 4-grams


def normalize(text: str) -> str:
    """The text after folding, and then SQuAD's normalisation.

    Folding drops accents and typographic quotes, and makes every dash a space. SQuAD's
    (evaluate-v2.0.py): lower case, no ASCII punctuation, no a/an/the, single spaces.

    >>> normalize("The  BMW i4, from “Östersund”: 13:00–23:00, €1.5 million")
    'bmw i4 from ostersund 1300 2300 €15 million'
    """
    text = unicodedata.normalize("NFKD", text.lower())
    text = "".join(character for character in text if not unicodedata.combining(character))
    text = re.sub("[‐‑‒–—―−-]", " ", re.sub("[“”„‟‘’‚«»]", "", text))
    text = text.translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split() or text.split())


def numbers(text: str) -> list[str]:
    """The numbers in a text, sorted, "2,500" as "2500"; those in names count, too.

    >>> numbers("From 2,500 euros: the iX2 xDrive35, at 13:30")
    ['13:30', '2', '2500', '35']
    """
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return sorted(re.findall(r"\d+(?:[.:]\d+)*", text))


def token_f1(answer: str, reference: str, strict: bool = True) -> float:
    """SQuAD's F1: the harmonic mean of precision and recall over normalised tokens.

    A repeated token counts as often as both texts have it. strict: an answer with other numbers
    than the reference scores 0, as "xDrive35" for "xDrive25", or 2024 for 2025.
    """
    if strict and numbers(answer) != numbers(reference):
        return 0.0
    tokens, expected = normalize(answer).split(), normalize(reference).split()
    if not tokens or not expected:
        return float(tokens == expected)
    return 2 * (Counter(tokens) & Counter(expected)).total() / (len(tokens) + len(expected))


def score_answer(answer: str, references: list[str], article_text: str, kind: str) -> dict:
    """{score: float or None} of one answer; the best of several references counts.

    exact_match, f1: SQuAD's, after `normalize`; f1 is strict about numbers, except in paragraphs
    (kind "about"). "Yes, it does." for "Yes" has an f1 of 0.5.
    contains: whether a reference stands in the answer, as whole normalised words.
    rouge_l, sentence_bleu: rouge_score's F-measure, and sacrebleu's BLEU of one answer, from 0 to 1
    instead of 100. They are for paragraphs alone, as a name or a date has hardly any order.
    These five are for questions that have an answer, as "HasAns" of SQuAD 2.0. Otherwise, a
    constant that always declines would look like a reader.
    declined_rightly, declined_wrongly: whether the answer declines, for unanswerable and for other
    questions. To decline is to begin with UNANSWERABLE, the sentence of training; a model that was
    not taught it scores 0 even if it declines in other words.
    yes_no: whether the first word is that of a reference; for yes/no questions.
    words_in_article: the share of the answer's content words that stand in the article, a proxy for
    faithfulness. None if the answer declines or has no such word.
    """
    if not references:
        raise ValueError("A question has no reference, need one or more. Complete its row.")
    plain, accepted = normalize(answer), [normalize(reference) for reference in references]
    declined = float(declines(answer))
    answerable = kind != "unanswerable"
    scores: dict[str, float | None] = {
        "exact_match": float(plain in accepted),
        "f1": max(token_f1(answer, text, kind != "about") for text in references),
        "contains": float(any(f" {text} " in f" {plain} " for text in accepted)),
    } | paragraph_scores(answer, references if kind == "about" else [])
    if not answerable:
        scores = dict.fromkeys(scores)
    scores["declined_rightly"] = None if answerable else declined
    scores["declined_wrongly"] = declined if answerable else None
    begins_right = plain.split()[:1] in [text.split()[:1] for text in accepted]
    scores["yes_no"] = float(begins_right) if kind == "yes_no" else None
    words = content_words(answer)
    known = len(words & content_words(article_text)) / len(words) if words else None
    return scores | {"words_in_article": None if declined else known}


def declines(answer: str) -> bool:
    """Whether an answer begins with UNANSWERABLE, in any case and punctuation."""
    return f"{normalize(answer)} ".startswith(f"{normalize(UNANSWERABLE)} ")


def paragraph_scores(answer: str, references: list[str]) -> dict[str, float | None]:
    """{"rouge_l", "sentence_bleu"} of an answer that is a paragraph; None without references."""
    if not references:
        return {"rouge_l": None, "sentence_bleu": None}
    rouge = max(ROUGE.score(text, answer)["rougeL"].fmeasure for text in references)
    bleu = SENTENCE_BLEU.sentence_score(answer, references).score / 100
    return {"rouge_l": rouge, "sentence_bleu": min(1.0, bleu)}  # sacrebleu rounds up to above 1


def score_records(
    records: list[dict], articles: dict[str, str], variants: Sequence[str]
) -> pd.DataFrame:
    """A row per question and variant: its ids, the scores, stopped, nll (nats) and nll_tokens.

    records: lines of eval_generations.jsonl; articles: context by article_id.
    """
    rows = []
    for record in records:
        ids = {key: record[key] for key in ("slice", "article_id", "question_id", "kind")}
        references, text = record["references"], articles[record["article_id"]]
        for variant in variants:
            answer = record[variant]
            scores = score_answer(answer["answer"], references, text, record["kind"])
            scores |= {key: answer[key] for key in ("nll", "nll_tokens")}
            scores |= {"variant": variant, "stopped": float(answer["stopped"])}
            rows.append(ids | scores)
    return pd.DataFrame(rows)


TRAINED = ("full", "lora", "pruned")
BASELINES = ("base", "chat", "constant", "picker")  # not trained
PAIRS = (("full", "picker"), ("lora", "picker"), ("full", "lora"))  # planned before any result
OTHER_PAIRS = (("pruned", "full"), ("pruned", "lora"), ("pruned", "picker"))  # beside these
OTHER_PAIRS += tuple((trained, baseline) for trained in TRAINED for baseline in BASELINES[:3])
SCORES = ("exact_match", "f1", "contains", "rouge_l", "sentence_bleu", "declined_rightly")
SCORES += ("declined_wrongly", "yes_no", "words_in_article", "stopped")
TABLE_SCORES = (*SCORES, "perplexity")
Values = Sequence[float | None]  # one per question, None where it does not apply
Clusters = Sequence[str]  # the article of each question


def _by_article(clusters: Clusters, *columns: Values) -> list[np.ndarray]:
    """The sum of each column per article, in the order of ids; a row with a None is left out."""
    if not len(clusters) or any(len(column) != len(clusters) for column in columns):
        lengths = " and ".join(str(len(column)) for column in columns)
        need = "need one or more, and as many of each. Pass one of each for every question."
        raise ValueError(f"Got {lengths} values and {len(clusters)} clusters, {need}")
    table = np.array([np.array(column, float) for column in columns])
    applies = ~np.isnan(table).any(axis=0)
    _, owner = np.unique(np.array(clusters, str)[applies], return_inverse=True)
    return [np.bincount(owner, column[applies]) for column in table]


def _bootstrap(sums: np.ndarray, counts: np.ndarray) -> tuple[float | None, float | None]:
    """The 95 % interval of sum / count over articles, see `interval`."""
    n = len(sums)
    if n < 2:
        return None, None
    level = 1 - 2 * norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1))
    options = {"method": "percentile", "confidence_level": level, "rng": np.random.default_rng(0)}
    ratio = lambda s, c, axis: s.sum(axis) / c.sum(axis)  # noqa: E731
    drawn = bootstrap((sums, counts), ratio, paired=True, vectorized=True, **options)
    limits = drawn.confidence_interval
    return float(limits.low), float(limits.high)


def interval(
    values: Values, clusters: Clusters, counts: Values | None = None, effect: float | None = None
) -> dict:
    """Mean and 95 % interval: {"mean", "low", "high", "n", "clusters"}.

    n: the values that are not None; clusters: their articles. mean = sum(values) / sum(counts),
    with counts of 1 unless given. Of NLL and tokens, exp() of mean, low and high is perplexity.
    Bootstrap: articles are drawn with their questions, 9999 times, seed 0. The limits are the
    percentiles 100 Phi(-z) and 100 Phi(z), z = t[0.975, n-1] sqrt(n / (n-1)) for n articles: the
    expanded percentile interval (Hesterberg 2015, The American Statistician 69(4), arXiv
    1411.5279), because 2.5 and 97.5 are too narrow for few. Of 100 simulated evaluations with 12
    to 17 articles it held the truth in 92 to 95; plain percentiles in 89 to 93, BCa in 90 to 93.
    Shares that are all 0 or all 1 never vary in a bootstrap: they get the exact binomial interval
    (Clopper & Pearson 1934). Its trials are the questions divided by their design effect `effect`,
    at least one per article, or one per article without `effect`.
    With one article, low and high are None; where no value applies, mean is None too.
    """
    ones = np.ones(len(values))
    sums, weights, n = _by_article(clusters, values, ones if counts is None else counts, ones)
    if not len(n):
        return {"mean": None, "low": None, "high": None, "n": 0, "clusters": 0}
    mean, (low, high) = float(sums.sum() / weights.sum()), _bootstrap(sums, weights)
    if len(n) > 1 and counts is None and mean in (0, 1) and all(sums == mean * n):
        trials = len(n) if effect is None else max(len(n), round(n.sum() / effect))
        exact = binomtest(int(mean) * trials, trials).proportion_ci(0.95)
        low, high = float(exact.low), float(exact.high)
    return {"mean": mean, "low": low, "high": high, "n": int(n.sum()), "clusters": len(n)}


def design_effect(values: Values, clusters: Clusters) -> float | None:
    """How many times as large the variance of the mean is as that of independent questions.

    At least 1; None where nothing varies (Kish 1965, "Survey Sampling", section 8.2).
    """
    sums, n = _by_article(clusters, values, np.ones(len(values)))
    if len(n) < 2 or (plain := np.nanvar(np.array(values, float)) / n.sum()) < 1e-12:
        return None
    gaps = sums - sums.sum() / n.sum() * n
    clustered = len(n) / (len(n) - 1) * (gaps**2).sum() / n.sum() ** 2
    return max(1.0, float(clustered / plain))


def paired_difference(a: Values, b: Values, clusters: Clusters) -> dict:
    """The mean of a - b over questions, with its interval and its test.

    {"difference", "low", "high", "p", "wins", "ties", "losses", "n", "clusters", "error"}; low and
    high are those of the bootstrap in `interval`.
    p: two-sided sign-flip permutation test on the articles' sums of a - b. Up to 17 articles, it
    takes all 2**n flips, so p is at least 2 / 2**n; with more, 2**17 random flips.
    wins, ties, losses: questions in which a is above, equal to, below b.
    error: the standard error of the difference, the larger of two. Clustered, as in Miller 2024:
    sqrt(n / (n-1) * sum over articles of (its sum of (a - b - difference))**2) / questions. Plain:
    that of independent questions; with few articles, the clustered error may fall below it by luck.
    """
    _by_article(clusters, a, b)  # refuses columns of different lengths
    gaps = np.array(a, float) - np.array(b, float)
    sums, counts = _by_article(clusters, gaps, np.ones(len(gaps)))
    n, questions = len(sums), int(counts.sum())
    if not n:
        raise ValueError("No question has both values, need one or more. Compare another score.")
    difference, (low, high) = float(sums.sum() / questions), _bootstrap(sums, counts)
    p, error, signs = 1.0, 0.0, Counter(np.sign(gaps).tolist())
    if n > 1:
        flips = {"permutation_type": "samples", "n_resamples": 2**17}
        rng = np.random.default_rng(0)
        p = permutation_test((sums,), np.sum, vectorized=True, rng=rng, **flips).pvalue
        clustered = math.sqrt(n / (n - 1) * ((sums - difference * counts) ** 2).sum()) / questions
        error = max(clustered, float(np.nanstd(gaps)) / math.sqrt(questions))
    row = {"difference": difference, "low": low, "high": high, "p": float(p)}
    row |= {"wins": signs[1], "ties": signs[0], "losses": signs[-1]}
    return row | {"n": questions, "clusters": n, "error": error}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in order (Holm 1979, Scandinavian Journal of Statistics 6(2)).

    The smallest of m is multiplied by m, the next by m - 1, …; none exceeds 1 or the next.

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
    for slice_name, in_slice in scores.groupby("slice", sort=False):
        groups = in_slice.groupby("variant", sort=False)
        effects = [design_effect(g[s], g["article_id"]) for _, g in groups for s in SCORES]
        effects = [effect for effect in effects if effect is not None]
        effect = median(effects) if effects else None
        for variant, group in groups:
            articles = group["article_id"]
            cells = {score: interval(group[score], articles, effect=effect) for score in SCORES}
            nll = interval(group["nll"], articles, group["nll_tokens"])
            limits = {key: nll[key] for key in ("mean", "low", "high") if nll[key] is not None}
            cells["perplexity"] = nll | {key: math.exp(log) for key, log in limits.items()}
            ids = {"slice": slice_name, "variant": variant}
            rows += [ids | {"score": score} | figures for score, figures in cells.items()]
    return pd.DataFrame(rows)


def by_variant(table: pd.DataFrame) -> dict[str, dict[str, dict[str, dict]]]:
    """`score_table` as results.json has it: {variant: {slice: {score: interval}}}."""
    nested: dict = {}
    for row in plain_rows(table):
        of_variant = nested.setdefault(row["variant"], {})
        figures = {key: row[key] for key in ("mean", "low", "high", "n", "clusters")}
        of_variant.setdefault(row["slice"], {})[row["score"]] = figures
    return nested


def paired_table(scores: pd.DataFrame, planned=PAIRS, others=OTHER_PAIRS) -> pd.DataFrame:
    """The `paired_difference` in F1 of pairs of variants, a row per slice and pair.

    pair: "full - picker". p_holm: Holm over the planned pairs of a slice. The other pairs stand
    outside of that family, with the plain p, and do not make the planned comparisons harder.
    shown: whether p_holm, or p for the other pairs, is at most 0.05.
    smallest_detectable: the true difference that an evaluation of this size shows with 80 % power
    at alpha 0.05: (t[0.975, n-1] + t[0.80, n-1]) error (Bloom 1995, Evaluation Review 19(5)). The
    error is the root mean square of the slice's errors, as few articles tell little about each.
    """
    rows = []
    for slice_name, group in scores.groupby("slice", sort=False):
        wide = group.pivot(index=["article_id", "question_id"], columns="variant", values="f1")
        articles, pairs = wide.index.get_level_values("article_id"), (*planned, *others)
        pairs = [(a, b) for a, b in pairs if a in wide and b in wide]
        differences = [paired_difference(wide[a], wide[b], articles) for a, b in pairs]
        tested = [row["p"] for row, pair in zip(differences, pairs, strict=True) if pair in planned]
        adjusted = holm(tested) + [None] * (len(pairs) - len(tested))
        errors = [row.pop("error") for row in differences]
        n, error = len(set(articles)), math.sqrt(np.mean(np.square(errors)))
        smallest = (t.ppf(0.975, n - 1) + t.ppf(0.80, n - 1)) * error if n > 1 else 0.0
        for (a, b), row, p_holm in zip(pairs, differences, adjusted, strict=True):
            row |= {"smallest_detectable": float(smallest) or None, "p_holm": p_holm}
            row["shown"] = (row["p"] if p_holm is None else p_holm) <= 0.05
            rows.append({"slice": slice_name, "pair": f"{a} - {b}"} | row)
    return pd.DataFrame(rows)


def kind_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The `interval` of F1, or declined_rightly if unanswerable, by slice, kind and variant."""
    names = ["slice", "kind", "variant"]
    scores = scores.assign(f1=scores["f1"].fillna(scores["declined_rightly"]).astype(float))
    rows = []
    for key, group in scores.groupby(names, sort=False):
        figures = interval(group["f1"], group["article_id"])
        rows.append(dict(zip(names, key, strict=True)) | figures)
    return pd.DataFrame(rows)


def plain_rows(table: pd.DataFrame) -> list[dict]:
    """A table as JSON has it: a dict per row, None where there is no value."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def score_controls(records: list[dict], articles: dict[str, str]) -> pd.DataFrame:
    """`score_records` of full's answers with "own_article", then with each control in its place.

    Only records with "controls" take part: an answer per control, see `control_questions`.
    """
    records = [r | {"own_article": r["full"]} | r["controls"] for r in records if "controls" in r]
    names = ["own_article", *dict.fromkeys(name for r in records for name in r["controls"])]
    tables = [score_records([r for r in records if name in r], articles, [name]) for name in names]
    return pd.concat(tables, ignore_index=True)


def worst_failures(
    scores: pd.DataFrame,
    records: list[dict],
    articles: dict[str, str],
    slice_name: str,
    count: int = 3,
) -> pd.DataFrame:
    """Each variant's `count` answers with the lowest F1 in one slice, and where the answer stood.

    Of answers with the same F1, the first is the answer whose reference surprised the variant most
    (nll per token), then the earlier answer. line: see `answer_line`.
    """
    by_id, rows = {record["question_id"]: record for record in records}, []
    scores = scores[scores["slice"] == slice_name].assign(
        surprise=scores["nll"] / scores["nll_tokens"]
    )
    for variant, group in scores.groupby("variant", sort=False):
        worst = group.sort_values(["f1", "surprise"], ascending=[True, False]).head(count)
        for question_id, f1 in zip(worst["question_id"], worst["f1"], strict=True):
            record = by_id[question_id]
            row = {key: record[key] for key in ("question_id", "kind", "question", "reference")}
            text, references = articles[record["article_id"]], record["references"]
            line = answer_line(text, references, record["kind"])
            row |= {"answer": record[variant]["answer"], "f1": f1, "line": line}
            rows.append({"variant": variant} | row)
    return pd.DataFrame(rows)


def answer_line(context: str, references: list[str], kind: str) -> str:
    """The first line that holds a reference, as whole normalised words; else why there is none."""
    if kind == "unanswerable":
        return "(not in the article)"
    if kind == "yes_no":
        return "(yes or no is no part of a line)"
    for reference in map(normalize, references):
        for line in context.splitlines():
            if f" {reference} " in f" {normalize(line)} ":
                return line
    return "(over several lines)"
