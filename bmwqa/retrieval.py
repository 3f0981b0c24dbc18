"""Which article a question is about, by BM25 over all contexts, and how well that works.

Without torch. The stop words and the threshold come from the questions to train on alone.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import bm25s
import numpy as np
from scipy.stats import mannwhitneyu

from bmwqa.pairs import UNANSWERABLE
from bmwqa.scores import by_variant, interval, score_records, score_table
from bmwqa_utils import load_rows, move_row, token_lengths

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs all that it does
LOST = 0.05  # the share of rightly found articles that the threshold gives up


class ArticleIndex:
    """BM25 by bm25s, with its defaults, over {article id: context}.

    Of the questions to train on, its long list of stop words finds 52 % of the articles, its short
    list 50 %; its stemmer adds less than one point.
    """

    def __init__(self, contexts: dict[str, str]):
        self.contexts = contexts
        self._bm25 = bm25s.BM25(corpus=list(contexts))
        self._bm25.index(_split(contexts.values()), show_progress=False)

    def rank(self, questions: Iterable[str], count: int = 3) -> list[list[tuple[str, float]]]:
        """The best `count` (article id, score) per question; 0 if they share no word."""
        options = {"k": min(count, len(self.contexts)), "show_progress": False}
        ids, scores = self._bm25.retrieve(_split(questions), **options)
        ranks = zip(ids.tolist(), scores.tolist(), strict=True)
        return [list(zip(*rank, strict=True)) for rank in ranks]


def _split(texts: Iterable[str]) -> list[list[str]]:
    options = {"stopwords": "english_plus", "return_ids": False, "show_progress": False}
    return bm25s.tokenize(list(texts), **options)


def decline_below(index: ArticleIndex, questions: list[dict]) -> float:
    """The score below which no article fits: LOST of the rightly found ones lie below.

    questions: on which nothing is measured. 0 if the article of none is found, or there is none.
    """
    ranks = index.rank([row["question"] for row in questions], 1) if questions else []
    best = zip(questions, ranks, strict=True)
    right = [score for row, [(name, score)] in best if name == row["article_id"]]
    return float(np.quantile(right, LOST)) if right else 0.0


def open_index(folder: Path) -> tuple[ArticleIndex, float]:
    """The index over the articles of notebook 2's rows in `folder`, and its `decline_below`."""
    rows = load_rows(folder / "train.jsonl")
    contexts = {row["article_id"]: row["context"] for row in rows}
    contexts |= {row["article_id"]: row["context"] for row in load_rows(folder / "eval.jsonl")}
    index = ArticleIndex(contexts)
    return index, decline_below(index, [row for row in rows if row["source"] == "written"])


def retrieved_rows(
    index: ArticleIndex, questions: list[dict], threshold: float, tokenizer, max_tokens: int
) -> list[dict]:
    """The rows in the context of the best article; "context_of" is its id, or None if declined.

    A question is declined below the threshold, and where its row has over `max_tokens` tokens.
    """
    rows, ranks = [], index.rank([row["question"] for row in questions], 1)
    for row, [(name, score)] in zip(questions, ranks, strict=True):
        rows.append(move_row(row, name if score >= threshold else None, index.contexts[name]))
    for row, tokens in zip(rows, token_lengths(rows, tokenizer), strict=True):
        if tokens > max_tokens:
            row["context_of"] = None
    return rows


def retrieval_figures(index: ArticleIndex, questions: list[dict], threshold: float) -> dict:
    """What results.json says of finding the articles of `questions`.

    recall_at_1, recall_at_3, declined, declined_without: each an `interval`. declined: best scores
    below the threshold; declined_without: those with the right article taken away.
    separation: how often a best score with the right article is above another without (the area
    under the ROC curve; 0.5 is chance).
    """
    names = [row["article_id"] for row in questions]
    ranks = index.rank([row["question"] for row in questions], 4)
    best = np.array([rank[0][1] for rank in ranks])
    without = np.array([*map(_best_other, names, ranks)])
    shares = {
        "recall_at_1": _in_first(1, names, ranks),
        "recall_at_3": _in_first(3, names, ranks),
        "declined": best < threshold,
        "declined_without": without < threshold,
    }
    area = mannwhitneyu(best, without).statistic / len(best) ** 2
    figures = {"articles": len(index.contexts), "threshold": threshold, "separation": float(area)}
    return figures | {key: interval(values, names) for key, values in shares.items()}


def _best_other(right: str, rank: list[tuple[str, float]]) -> float:
    """The best score of another article than the right one; 0 if there is none."""
    return max((score for name, score in rank if name != right), default=0.0)


def _in_first(count: int, names: list[str], ranks: list) -> list[bool]:
    """Whether each right article is among the first `count` of its rank."""
    return [name in dict(rank[:count]) for name, rank in zip(names, ranks, strict=True)]


def retrieved_scores(lines: list[dict], articles: dict[str, str]) -> dict:
    """{"full", "full_retrieved": {score: interval}}: full with its article given, and retrieved.

    lines: of eval_generations.jsonl; "retrieved" has "context_of" and, if full was asked with
    another article, its answer. articles: {id: context}; words_in_article is of the right one.
    """
    declined = {"answer": UNANSWERABLE, "stopped": True, "nll": None, "nll_tokens": None}
    records = []
    for line in lines:
        if "retrieved" in line:
            answer = line["full"] | line["retrieved"]
            answer |= declined if answer["context_of"] is None else {}
            records.append(line | {"full_retrieved": answer})
    table = by_variant(score_table(score_records(records, articles, ["full", "full_retrieved"])))
    return {name: scores for name, slices in table.items() for scores in slices.values()}
