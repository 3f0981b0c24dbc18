"""The sample corpus and the benchmark are complete, fictional, varied and kept apart."""

import re
from collections import Counter

import pytest

import bmwqa_utils as bq
from bmwqa.corpus import article_context
from bmwqa.pairs import UNANSWERABLE, first_word, load_questions, share_in_common, words

SAMPLE = bq.ROOT / "data/sample"
KINDS = {"who", "when", "where", "how_many", "which", "why", "yes_no", "unanswerable"}
BOILERPLATE = re.compile(
    "^(In case of queries|If you have any questions|In the event of enquiries"
    "|The BMW Group$|The BMW Group’s Cultural)",
    re.M,
)


@pytest.fixture(scope="module")
def corpus():
    return {split: bq.load_articles(SAMPLE / split) for split in ("train", "eval")}


@pytest.fixture(scope="module")
def benchmark():
    keys = ("id", "article_id", "kind", "question", "answers")
    return bq.read_jsonl(bq.ROOT / "data/benchmark.jsonl", keys)


@pytest.fixture(scope="module")
def questions(corpus):
    """The written questions. Loading proves that each span answer stands in its context."""
    contexts = {article["id"]: article_context(article) for article in corpus["train"]}
    return load_questions([bq.ROOT / "data/questions/train.jsonl"], contexts)


def test_at_least_160_to_train_and_24_to_evaluate_all_said_to_be_fiction(corpus):
    assert len(corpus["train"]) >= 160 and len(corpus["eval"]) == 24
    for article in corpus["train"] + corpus["eval"]:
        assert article["fiction"].startswith("Fiction, written for bmwqa")
        assert article["url"].startswith("https://pressclub.example/")


def test_no_run_of_twelve_words_stands_in_two_articles(corpus):
    owner = {}
    for article in corpus["train"] + corpus["eval"]:
        body = BOILERPLATE.split(article["text"])[0]
        text = re.findall(r"\w+", f"{article['title']}\n{body}".lower())
        for run in {" ".join(text[i : i + 12]) for i in range(len(text) - 11)}:
            first = owner.setdefault(run, article["id"])
            assert first == article["id"], f"{run!r} in {first} and {article['id']}"


def test_six_articles_are_longer_than_the_limit_in_qwen_tokens(corpus, qwen_tokenizer):
    rows = {
        split: [row for a in articles for row in bq.build_qa_pairs(a)]
        for split, articles in corpus.items()
    }
    _, dropped = bq.drop_long(rows["train"], qwen_tokenizer)
    assert len({row["article_id"] for row in dropped}) == 6
    assert bq.drop_long(rows["eval"], qwen_tokenizer)[1] == []


def test_the_forms_are_there(corpus):
    articles = corpus["train"]
    categories = {a["category"] for a in articles}
    assert categories >= {"Press Release", "Press Kit", "Speech", "Fact & Figures"}
    assert sum(len(a["text"]) < 600 for a in articles) >= 3
    assert sum("\t" in a["text"] for a in articles) >= 5
    assert sum("please contact:" in a["text"] for a in articles) >= 8
    assert sum(a["teaser"].startswith("+++") for a in articles) >= 15
    assert sum(bool(re.match(r"[A-ZÄÖÜ][\w/ -]+\. ", a["text"])) for a in articles) >= 20


def test_benchmark_questions_are_many_unique_and_of_known_kinds(benchmark, corpus):
    assert len({line["id"] for line in benchmark}) == len(benchmark)
    assert len({(line["article_id"], line["question"]) for line in benchmark}) == len(benchmark)
    assert {line["kind"] for line in benchmark} == KINDS
    for article in corpus["eval"]:
        lines = [line for line in benchmark if line["article_id"] == article["id"]]
        kinds = Counter(line["kind"] for line in lines)
        answers = Counter(line["answers"][0] for line in lines if line["kind"] == "yes_no")
        assert len(lines) >= 20 and kinds["unanswerable"] >= 6
        assert answers == {"Yes": 3, "No": 3}
        unanswerable = [q for q in lines if q["kind"] == "unanswerable"]
        assert len({line["question"].split()[0] for line in unanswerable}) >= 5


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
    trained = {article["id"] for article in corpus["train"]}
    assert trained.isdisjoint(line["article_id"] for line in benchmark)


# --------------------------------------------------------------------------------------------------
# The written questions


def test_written_questions_are_many_and_on_many_articles(questions):
    assert len(questions) >= 2400
    assert len({line["article_id"] for line in questions}) >= 160
    assert list(questions[0]) == ["id", "article_id", "kind", "question", "answers"]


def plain(question):
    return " ".join(words(question))


def test_no_question_stands_twice_nor_in_the_benchmark(questions, benchmark):
    written = [plain(line["question"]) for line in questions]
    assert [question for question, count in Counter(written).items() if count > 1] == []
    assert not {plain(line["question"]) for line in benchmark} & set(written)


def test_openings_vary(questions):
    openings = Counter(tuple(words(line["question"])[:3]) for line in questions)
    assert max(openings.values()) <= 0.015 * len(questions)
    assert len(openings) >= 0.45 * len(questions)


def test_the_first_word_does_not_tell_whether_there_is_an_answer(questions):
    """Among at least 25 questions with one first word, 10 to 25 % have no answer.

    All yes/no verbs count as one first word, and so do all prepositions.
    """
    groups = {}
    for line in questions:
        groups.setdefault(first_word(line["question"]), []).append(line["kind"] == "unanswerable")
    shares = {word: sum(none) / len(none) for word, none in groups.items() if len(none) >= 25}
    assert {"who", "when", "where", "why", "which", "what", "how"} <= shares.keys()
    assert {word: share for word, share in shares.items() if not 0.10 <= share <= 0.25} == {}


def test_yes_and_no_are_about_as_many(questions):
    answers = Counter(line["answers"][0] for line in questions if line["kind"] == "yes_no")
    assert sum(answers.values()) >= 0.12 * len(questions)
    assert 0.8 <= answers["Yes"] / answers["No"] <= 1.25


def test_questions_are_asked_in_other_words_than_those_around_the_answer(questions, corpus):
    contexts = {article["id"]: article_context(article) for article in corpus["train"]}
    spans = [line for line in questions if line["kind"] not in ("yes_no", "unanswerable")]
    shares = [
        share_in_common(q["question"], q["answers"][0], contexts[q["article_id"]]) for q in spans
    ]
    shares = [share for share in shares if share is not None]
    assert sum(shares) / len(shares) <= 0.35
    assert sum(share == 0 for share in shares) >= 0.25 * len(shares)


def test_the_data_card_counts_right(questions, corpus):
    card = (bq.ROOT / "data/README.md").read_text(encoding="utf-8")
    about = len({line["article_id"] for line in questions})
    assert f"| `questions/train.jsonl` | {len(questions):,} on {about} of these |" in card
    assert f"| `sample/train/` | {len(corpus['train'])} articles |" in card
