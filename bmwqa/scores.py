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

import numpy as np
import pandas as pd
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU
from scipy.stats import binomtest, bootstrap, norm, permutation_test, t

from bmwqa.pairs import UNANSWERABLE, content_words

ROUGE = RougeScorer(["rougeL"])  # without a stemmer, as in Hugging Face evaluate
SENTENCE_BLEU = BLEU(effective_order=True)  # a text of three words has no 4-grams
TRAINED = ("full", "lora", "pruned")
INT8 = "full_int8"
BASELINES = ("base", "chat", "constant", "picker")  # not trained
PAIRS = (("full", "picker"), ("lora", "picker"), ("full", "lora"))  # planned before any result
OTHER_PAIRS = (("pruned", "full"), ("pruned", "lora"), ("pruned", "picker"), (INT8, "full"))
OTHER_PAIRS += tuple((trained, baseline) for trained in TRAINED for baseline in BASELINES[:3])
ANSWER_SCORES = ("exact_match", "f1", "contains", "rouge_l", "sentence_bleu", "declined_rightly")
ANSWER_SCORES += ("declined_wrongly", "yes_no", "words_in_article")
SCORES = (*ANSWER_SCORES, "stopped")
Values = Sequence[float | None]  # one per question, None where it does not apply
Clusters = Sequence[str]  # the article of each question


def normalize(text: str) -> str:
    """The text after folding, and then SQuAD's normalisation.

    Folding drops accents and typographic quotes, and makes every dash a space. SQuAD's
    (evaluate-v2.0.py): lower case, no ASCII punctuation, no a/an/the, single spaces. A text of
    articles alone, as "A", stays.

    >>> normalize("The  BMW i4, from “Östersund”: 13:00–23:00, €1.5 million")
    'bmw i4 from ostersund 1300 2300 €15 million'
    """
    text = unicodedata.normalize("NFKD", text.lower())
    text = "".join(character for character in text if not unicodedata.combining(character))
    text = re.sub("[“”„‟‘’‚«»]", "", text)
    text = re.sub("[‐‑‒–—―−-]", " ", text)
    text = text.translate(str.maketrans("", "", string.punctuation))
    words = re.sub(r"\b(a|an|the)\b", " ", text).split()
    return " ".join(words or text.split())


def holds(text: str, words: str) -> bool:
    """Whether a normalised text holds other normalised words, as whole words."""
    return f" {words} " in f" {text} "


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


def declines(answer: str) -> bool:
    """Whether an answer begins with UNANSWERABLE, in any case and punctuation."""
    return f"{normalize(answer)} ".startswith(f"{normalize(UNANSWERABLE)} ")


def score_answer(answer: str, references: list[str], article_text: str, kind: str) -> dict:
    """{score: float or None} of one answer, for ANSWER_SCORES; the best reference counts.

    words_in_article: the share of the answer's content words that stand in the article, a proxy for
    faithfulness. None if the answer declines or has no such word.
    declined_rightly, declined_wrongly: whether the answer declines, for unanswerable and for other
    questions. A model that was not taught the sentence scores 0.
    The others are for questions that have an answer, as "HasAns" of SQuAD 2.0.
    exact_match, f1: SQuAD's, after `normalize`; f1 is strict except for paragraphs, kind "about".
    contains: whether a reference stands in the answer. yes_no: whether both begin with one word.
    rouge_l, sentence_bleu: of rouge_score and sacrebleu, from 0 to 1; for paragraphs alone, as a
    name or a date has hardly any order.
    """
    scores: dict[str, float | None] = dict.fromkeys(ANSWER_SCORES)
    declined, words = declines(answer), content_words(answer)
    if words and not declined:
        scores["words_in_article"] = len(words & content_words(article_text)) / len(words)
    if kind == "unanswerable":
        return scores | {"declined_rightly": float(declined)}
    plain, accepted = normalize(answer), [normalize(reference) for reference in references]
    scores["declined_wrongly"] = float(declined)
    scores["exact_match"] = float(plain in accepted)
    scores["f1"] = max(token_f1(answer, text, kind != "about") for text in references)
    scores["contains"] = float(any(holds(plain, text) for text in accepted))
    if kind == "yes_no":
        scores["yes_no"] = float(plain.split()[:1] in [text.split()[:1] for text in accepted])
    if kind == "about":
        scores["rouge_l"] = ROUGE.score_multi(references, answer)["rougeL"].fmeasure
        bleu = SENTENCE_BLEU.sentence_score(answer, references).score / 100
        scores["sentence_bleu"] = min(1.0, bleu)  # sacrebleu rounds up to above 1
    return scores


def score_records(records: list[dict], articles: dict[str, str], variants) -> pd.DataFrame:
    """A row per question and variant that answered it: ids, scores, stopped, nll (nats) and tokens.

    records: lines of eval_generations.jsonl; articles: context by article_id.
    """
    rows = []
    for record in records:
        text = articles[record["article_id"]]
        for variant in [name for name in variants if name in record]:
            answer = record[variant]
            row = {key: record[key] for key in ("slice", "article_id", "question_id", "kind")}
            row |= {"variant": variant, "stopped": float(answer["stopped"])}
            row |= {key: answer[key] for key in ("nll", "nll_tokens")}
            row |= score_answer(answer["answer"], record["references"], text, record["kind"])
            rows.append(row)
    return pd.DataFrame(rows)


def _by_article(clusters: Clusters, *columns: Values) -> list[np.ndarray]:
    """The sum of each column per article, in the order of ids; a row with a None is left out."""
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

    def ratio(sums: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
        return sums.sum(axis) / counts.sum(axis)

    options = {"method": "percentile", "confidence_level": level, "rng": np.random.default_rng(0)}
    limits = bootstrap((sums, counts), ratio, paired=True, **options).confidence_interval
    return float(limits.low), float(limits.high)


def interval(
    values: Values, clusters: Clusters, counts: Values | None = None, effect: float = math.inf
) -> dict:
    """{"mean", "low", "high", "n", "clusters"}: a mean and its 95 % interval.

    n: the values that are not None; clusters: their articles. mean = sum(values) / sum(counts),
    with counts of 1 unless given. None: low and high of one article, all three of no value.
    Bootstrap: articles are drawn with their questions, 9999 times, seed 0. The limits are the
    percentiles 100 Phi(-z) and 100 Phi(z), z = t[0.975, n-1] sqrt(n / (n-1)) for n articles: the
    expanded percentile interval (Hesterberg 2015, The American Statistician 69(4), arXiv
    1411.5279), because 2.5 and 97.5 are too narrow for few, see tests/test_scores.py.
    Shares that are all 0 or all 1 never vary in a bootstrap: they get the exact binomial interval
    (Clopper & Pearson 1934). Its trials are the questions divided by `effect`, a `design_effect`,
    at least one per article.
    """
    ones = np.ones(len(values))
    sums, weights, n = _by_article(clusters, values, ones if counts is None else counts, ones)
    if not len(n):
        return {"mean": None, "low": None, "high": None, "n": 0, "clusters": 0}
    mean, (low, high) = float(sums.sum() / weights.sum()), _bootstrap(sums, weights)
    if len(n) > 1 and counts is None and mean in (0, 1):
        trials = max(len(n), round(n.sum() / effect))
        exact = binomtest(int(mean) * trials, trials).proportion_ci(0.95)
        low, high = float(exact.low), float(exact.high)
    return {"mean": mean, "low": low, "high": high, "n": int(n.sum()), "clusters": len(n)}


def perplexity(nll: Values, clusters: Clusters, tokens: Values) -> dict:
    """The `interval` of exp(all nats / all tokens)."""
    nats = interval(nll, clusters, tokens)
    limits = {key: nats[key] for key in ("mean", "low", "high") if nats[key] is not None}
    return nats | {key: math.exp(limit) for key, limit in limits.items()}


def design_effect(values: Values, clusters: Clusters) -> float:
    """How many times as large the variance of the mean is as that of independent questions.

    At least 1; NaN where nothing varies (Kish 1965, "Survey Sampling", section 8.2).
    """
    sums, n = _by_article(clusters, values, np.ones(len(values)))
    if len(n) < 2 or (plain := np.nanvar(np.array(values, float)) / n.sum()) < 1e-12:
        return math.nan
    gaps = sums - sums.sum() / n.sum() * n
    clustered = len(n) / (len(n) - 1) * (gaps**2).sum() / n.sum() ** 2
    return max(1.0, float(clustered / plain))


def paired_difference(a: Values, b: Values, clusters: Clusters) -> dict:
    """The mean of a - b over questions, with the bootstrap of `interval` and a test.

    p: two-sided sign-flip permutation test on the articles' sums of a - b. Up to 17 articles, it
    takes all 2**n flips, so p is at least 2 / 2**n; with more, 2**17 random flips.
    wins, ties, losses: questions in which a is above, equal to, below b.
    error: the standard error of the difference, clustered by article (Miller 2024), or that of
    independent questions if it is larger: with few articles, the first may be too small by luck.
    """
    gaps = np.array(a, float) - np.array(b, float)
    sums, counts = _by_article(clusters, gaps, np.ones(len(gaps)))
    n, questions = len(sums), int(counts.sum())
    difference, (low, high) = float(sums.sum() / questions), _bootstrap(sums, counts)
    p, error, signs = 1.0, 0.0, Counter(np.sign(gaps).tolist())
    if n > 1:
        options = {"permutation_type": "samples", "rng": np.random.default_rng(0)}
        p = float(permutation_test((sums,), np.sum, n_resamples=2**17, **options).pvalue)
        clustered = math.sqrt(n / (n - 1) * ((sums - difference * counts) ** 2).sum()) / questions
        error = max(clustered, float(np.nanstd(gaps)) / math.sqrt(questions))
    row = {"difference": difference, "low": low, "high": high, "p": p}
    row |= {"wins": signs[1], "ties": signs[0], "losses": signs[-1]}
    return row | {"n": questions, "clusters": n, "error": error}


def holm(p_values: Sequence[float]) -> pd.Series:
    """Holm's adjusted p values, in order (Holm 1979, Scandinavian Journal of Statistics 6(2)).

    The smallest of m is multiplied by m, the next by m - 1, …; none exceeds 1 or the next.
    """
    p_values = pd.Series(p_values, dtype=float)
    ascending = p_values.sort_values()
    factors = np.arange(len(ascending), 0, -1)
    return (factors * ascending).cummax().clip(upper=1)[p_values.index]


def score_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The `interval` of each score, a row per slice, variant and score of `score_records`."""
    rows = []
    for slice_name, in_slice in scores.groupby("slice", sort=False):
        groups = in_slice.groupby("variant", sort=False)
        effects = [design_effect(g[score], g["article_id"]) for _, g in groups for score in SCORES]
        known = pd.Series(effects).dropna()
        effect = known.median() if len(known) else math.inf
        for variant, group in groups:
            articles, ids = group["article_id"], {"slice": slice_name, "variant": variant}
            for score in SCORES:
                figures = interval(group[score], articles, effect=effect)
                rows.append(ids | {"score": score} | figures)
            figures = perplexity(group["nll"], articles, group["nll_tokens"])
            rows.append(ids | {"score": "perplexity"} | figures)
    return pd.DataFrame(rows)


def by_variant(table: pd.DataFrame) -> dict[str, dict[str, dict[str, dict]]]:
    """`score_table` as results.json has it: {variant: {slice: {score: interval}}}."""
    nested: dict = {}
    for row in plain_rows(table):
        slices = nested.setdefault(row.pop("variant"), {})
        slices.setdefault(row.pop("slice"), {})[row.pop("score")] = row
    return nested


def paired_table(scores: pd.DataFrame, planned=PAIRS, others=OTHER_PAIRS) -> pd.DataFrame:
    """The `paired_difference` in F1 of pairs of variants, a row per slice and pair.

    pair: "full - picker". p_holm: Holm over the planned pairs of a slice; the other pairs do not
    make these harder. shown: whether p_holm, or p for the other pairs, is at most 0.05.
    smallest_detectable: the true difference that an evaluation of this size shows with 80 % power
    at alpha 0.05: (t[0.975, n-1] + t[0.80, n-1]) error (Bloom 1995, Evaluation Review 19(5)). The
    error is the root mean square of the slice's errors, as few articles tell little about each.
    """
    tables = []
    for slice_name, in_slice in scores.groupby("slice", sort=False):
        f1 = in_slice.pivot(index=["article_id", "question_id"], columns="variant", values="f1")
        articles = f1.index.get_level_values("article_id")
        pairs = [(a, b) for a, b in (*planned, *others) if a in f1 and b in f1]
        rows = [paired_difference(f1[a], f1[b], articles) for a, b in pairs]
        table = pd.DataFrame(rows, index=[f"{a} - {b}" for a, b in pairs])
        table.insert(0, "slice", slice_name)
        tested = [pair in planned for pair in pairs]
        table.loc[tested, "p_holm"] = holm(table["p"][tested])
        table["shown"] = table["p_holm"].fillna(table["p"]) <= 0.05
        error = math.sqrt(np.mean(np.square(table.pop("error").to_numpy())))
        freedom = articles.nunique() - 1
        power = t.ppf(0.975, freedom) + t.ppf(0.80, freedom)  # NaN with one article
        table["smallest_detectable"] = power * error or math.nan
        tables.append(table.rename_axis("pair").reset_index())
    return pd.concat(tables, ignore_index=True)


def kind_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The `interval` of F1, or declined_rightly if unanswerable, by slice, kind and variant."""
    scores = scores.assign(f1=scores["f1"].fillna(scores["declined_rightly"]).astype(float))
    groups = scores.groupby(["slice", "kind", "variant"], sort=False)
    return pd.DataFrame(
        {"slice": slice_name, "kind": kind, "variant": variant}
        | interval(group["f1"], group["article_id"])
        for (slice_name, kind, variant), group in groups
    )


def plain_rows(table: pd.DataFrame) -> list[dict]:
    """A table as JSON has it: a dict per row, None where there is no value."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def score_controls(records: list[dict], articles: dict[str, str]) -> pd.DataFrame:
    """`score_records` of full's answers with "own_article", then with each control in its place.

    Only records with "controls" take part: an answer per control, see `control_questions`.
    """
    variants = ("own_article", "no_article", "other_article")
    records = [r | {"own_article": r["full"]} | r["controls"] for r in records if "controls" in r]
    return score_records(records, articles, variants)


def worst_failures(scores, records: list[dict], articles: dict, slice_name: str) -> pd.DataFrame:
    """Each variant's three answers with the lowest F1 in one slice, and where the answer stood.

    Of answers with the same F1, the first is the answer whose reference surprised the variant most
    (nll per token), then the earlier answer. line: see `answer_line`.
    """
    record_of, rows = {record["question_id"]: record for record in records}, []
    scores = scores[scores["slice"] == slice_name]
    scores = scores.assign(surprise=scores["nll"] / scores["nll_tokens"])
    scores = scores.sort_values(["variant", "f1", "surprise"], ascending=[True, True, False])
    worst = scores.groupby("variant").head(3)
    for _, variant, question_id, f1 in worst[["variant", "question_id", "f1"]].itertuples():
        record = record_of[question_id]
        row = {key: record[key] for key in ("question_id", "kind", "question", "reference")}
        row |= {"variant": variant, "answer": record[variant]["answer"], "f1": f1}
        text, references = articles[record["article_id"]], record["references"]
        rows.append(row | {"line": answer_line(text, references, record["kind"])})
    return pd.DataFrame(rows)


def answer_line(context: str, references: list[str], kind: str) -> str:
    """The first line that holds a reference, as whole normalised words; else why there is none."""
    if kind == "unanswerable":
        return "(not in the article)"
    if kind == "yes_no":
        return "(yes or no is no part of a line)"
    for reference in map(normalize, references):
        for line in context.splitlines():
            if holds(normalize(line), reference):
                return line
    return "(over several lines)"
