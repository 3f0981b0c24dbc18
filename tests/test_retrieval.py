"""bmwqa/retrieval.py on a few articles whose figures can be counted by hand, and on the corpus."""

import subprocess
import sys

import pytest

from bmwqa.corpus import ROOT, article_context, load_articles, read_jsonl
from bmwqa.pairs import UNANSWERABLE
from bmwqa.retrieval import (
    ArticleIndex,
    decline_below,
    retrieval_figures,
    retrieved_rows,
    retrieved_scores,
)
from bmwqa_utils import format_prompt

CONTEXTS = {
    "T1": "Rain in Brno\n15 June 2025\n\nHallberg won after a thunderstorm.",
    "T2": "A museum in Steyr\n12 May 2025\n\nForty engines stand in the museum.",
    "T3": "An engine for ships\n1 May 2025\n\nIt has forty cylinders.",
}


def row(number, article_id, question, answer):
    keys = {"question_id": f"q{number}", "article_id": article_id, "question": question}
    kind = "unanswerable" if answer == UNANSWERABLE else "what"
    keys |= {"reference": answer, "references": [answer], "answer": answer, "kind": kind}
    return keys | {"slice": "benchmark", "context": CONTEXTS[article_id]}


ROWS = [
    row(1, "T1", "Who won after the thunderstorm?", "Hallberg"),
    row(2, "T2", "What stands in the museum?", "Forty engines"),
    row(3, "T3", "How many engines stand in the museum?", UNANSWERABLE),  # T2 fits better
    row(4, "T1", "Was it wet?", "Yes"),  # no word of any article
]


@pytest.fixture(scope="module")
def index():
    return ArticleIndex(CONTEXTS)


def test_rank_gives_the_best_with_their_scores(index):
    first, none = index.rank([ROWS[0]["question"], "Was it wet?"], count=9)
    assert first[0][0] == "T1" and [score for _, score in first[1:]] == [0.0, 0.0]
    assert first[0][1] > 0 and sorted(name for name, _ in none) == ["T1", "T2", "T3"]
    assert [score for _, score in none] == [0.0, 0.0, 0.0]
    assert [len(rank) for rank in index.rank(["<script>", ""])] == [3, 3]


def test_the_threshold_loses_one_in_twenty_of_the_rightly_found(index):
    scores = sorted(rank[0][1] for rank in index.rank([row["question"] for row in ROWS[:2]], 1))
    low, high = scores
    assert decline_below(index, ROWS[:3]) == pytest.approx(low + 0.05 * (high - low))
    assert decline_below(index, ROWS[2:3]) == 0.0


def test_figures_by_hand(index):
    figures = retrieval_figures(index, ROWS[:3], threshold=0.1)
    assert figures["articles"] == 3
    means = {key: figures[key]["mean"] for key in ("recall_at_1", "recall_at_3")}
    assert means == {"recall_at_1": pytest.approx(2 / 3), "recall_at_3": 1.0}
    assert figures["declined"]["mean"] == 0
    # without T1 no article has a word of the first question, the same for T2 and the second
    assert figures["declined_without"]["mean"] == pytest.approx(2 / 3)
    # each best score is above two zeros; q3 has the highest, which is the same without T3
    assert figures["separation"] == pytest.approx(6.5 / 9)


def test_rows_move_to_the_article_that_is_found(index, embedded_tokenizer):
    rows = retrieved_rows(index, ROWS, 0.1, embedded_tokenizer, 2048)
    assert [row["context_of"] for row in rows] == ["T1", "T2", "T2", None]
    assert rows[2]["context"] == CONTEXTS["T2"]
    assert rows[2]["prompt"] == format_prompt(CONTEXTS["T2"], ROWS[2]["question"])
    assert [row["article_id"] for row in rows] == ["T1", "T2", "T3", "T1"]
    rows = retrieved_rows(index, ROWS, 0.1, embedded_tokenizer, 10)  # fewer than any row has
    assert [row["context_of"] for row in rows] == [None] * 4


def test_scores_given_and_retrieved(index, embedded_tokenizer):
    def answer(text):
        return {"answer": text, "stopped": True, "nll": 1.0, "nll_tokens": 2}

    given = ["Hallberg", "No", UNANSWERABLE, "Yes"]
    rows = retrieved_rows(index, ROWS, 0.1, embedded_tokenizer, 2048)
    lines = [
        question | {"full": answer(text), "retrieved": {"context_of": row["context_of"]}}
        for question, text, row in zip(ROWS, given, rows, strict=True)
    ]
    lines[2]["retrieved"] |= answer("Forty")
    scores = retrieved_scores([*lines, {"full": answer("of another slice")}], CONTEXTS)
    full, retrieved = scores["full"], scores["full_retrieved"]
    assert full["exact_match"]["mean"] == pytest.approx(2 / 3)
    assert retrieved["exact_match"]["mean"] == pytest.approx(1 / 3)  # q4 is declined
    assert (full["declined_wrongly"]["mean"], full["declined_rightly"]["mean"]) == (0, 1)
    assert retrieved["declined_wrongly"]["mean"] == pytest.approx(1 / 3)
    assert retrieved["declined_rightly"]["mean"] == 0  # q3 is answered from T2


def test_the_article_of_every_second_training_question_is_found():
    articles = load_articles(ROOT / "data" / "sample" / "train")
    index = ArticleIndex({article["id"]: article_context(article) for article in articles})
    questions = read_jsonl(ROOT / "data" / "questions" / "train.jsonl")
    recall = retrieval_figures(index, questions, 0.0)["recall_at_1"]["mean"]
    assert 0.5 < recall < 0.54  # 0.52 by bm25s 0.3.16


def test_retrieval_does_without_torch():
    code = "import sys, bmwqa.retrieval; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
