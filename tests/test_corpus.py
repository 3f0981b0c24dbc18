"""The sample corpus and the benchmark: complete, fictional, unrepetitive, and apart from each other."""

import re
from collections import Counter

import pytest

import bmwqa_utils as bq
from qa_rules import UNANSWERABLE, article_context

SAMPLE = bq.ROOT / "data/sample"
KINDS = {"who", "when", "where", "how_many", "which", "why", "yes_no", "unanswerable"}
BOILERPLATE = re.compile(
    "^(In case of queries|If you have any questions|In the event of enquiries|The BMW Group$|The BMW Group’s Cultural)",
    re.M,
)


@pytest.fixture(scope="module")
def corpus():
    return bq.load_corpus(SAMPLE)


@pytest.fixture(scope="module")
def benchmark():
    return bq.read_jsonl(bq.ROOT / "data/benchmark.jsonl", ("id", "article_id", "kind", "question", "answers"))


def words(text):
    return re.findall(r"\w+", text.lower())


def test_sixty_to_train_and_twelve_to_evaluate_all_said_to_be_fiction(corpus):
    assert (len(corpus["train"]), len(corpus["eval"])) == (60, 12)
    for article in corpus["train"] + corpus["eval"]:
        assert article["fiction"].startswith("Fiction, written for bmwqa")
        assert article["url"].startswith("https://pressclub.example/")


def test_no_run_of_twelve_words_stands_in_two_articles(corpus):
    owner = {}
    for article in corpus["train"] + corpus["eval"]:
        text = words(f"{article['title']}\n{BOILERPLATE.split(article['text'])[0]}")
        for run in {" ".join(text[i : i + 12]) for i in range(len(text) - 11)}:
            assert owner.setdefault(run, article["id"]) == article["id"], f"{run!r} in {owner[run]} and {article['id']}"


def test_six_articles_are_longer_than_the_limit_in_qwen_tokens(corpus, qwen_tokenizer):
    rows = {split: [row for a in articles for row in bq.build_qa_pairs(a)] for split, articles in corpus.items()}
    _, dropped = bq.drop_long(rows["train"], qwen_tokenizer)
    assert len({row["article_id"] for row in dropped}) == 6
    assert bq.drop_long(rows["eval"], qwen_tokenizer)[1] == []


def test_the_forms_are_there(corpus):
    articles = corpus["train"]
    assert Counter(a["category"] for a in articles).keys() >= {"Press Release", "Press Kit", "Speech", "Fact & Figures"}
    assert sum(len(a["text"]) < 600 for a in articles) == 3
    assert sum("\t" in a["text"] for a in articles) >= 5
    assert sum("please contact:" in a["text"] for a in articles) >= 8
    assert sum(a["teaser"].startswith("+++") for a in articles) >= 15
    assert sum(bool(re.match(r"[A-ZÄÖÜ][\w/ -]+\. ", a["text"])) for a in articles) >= 20


def test_benchmark_questions_are_many_unique_and_of_known_kinds(benchmark, corpus):
    assert len({line["id"] for line in benchmark}) == len(benchmark)
    assert len({(line["article_id"], line["question"]) for line in benchmark}) == len(benchmark)
    assert {line["kind"] for line in benchmark} == KINDS
    answerable = Counter(line["article_id"] for line in benchmark if line["kind"] != "unanswerable")
    assert all(answerable[article["id"]] >= 8 for article in corpus["eval"])


def test_every_answerable_reference_stands_in_its_article(benchmark, corpus):
    contexts = {article["id"]: article_context(article) for article in corpus["eval"]}
    for line in benchmark:
        if line["kind"] == "unanswerable":
            assert line["answers"] == [UNANSWERABLE]
        elif line["kind"] == "yes_no":
            assert line["answers"] in (["Yes"], ["No"])
        elif line["article_id"] in contexts:
            assert line["answers"][0] in contexts[line["article_id"]], line["id"]


def test_nothing_of_the_benchmark_is_in_training(benchmark, corpus):
    assert {article["id"] for article in corpus["train"]}.isdisjoint(line["article_id"] for line in benchmark)
