"""Pairs by rule and written questions: right ones come through; an error names each wrong line."""

import doctest
import json
from collections import Counter

import pytest

import bmwqa_utils as bq
from bmwqa import corpus, pairs
from bmwqa.corpus import article_context

ARTICLE = {
    "id": "T1",
    "title": "Hill Race won.",
    "date": "2025-05-04",
    "text": "Ulm. Anna Berg won on Sunday.",
}
LINE = {
    "id": "q1",
    "article_id": "T1",
    "kind": "who",
    "question": "Who came first?",
    "answers": ["Anna Berg"],
}


def test_the_examples_in_the_docstrings():
    for module in (corpus, pairs):
        assert doctest.testmod(module).failed == 0


# --------------------------------------------------------------------------------------------------
# By rule


def rule(text, title="Hill Race won."):
    """The answers by kind, and what is left out."""
    rule_pairs, left_out = pairs.rule_pairs(ARTICLE | {"text": text, "title": title})
    return {pair["kind"]: pair["answer"] for pair in rule_pairs}, left_out


def test_title_date_and_first_paragraph_stand_in_the_context():
    lead = "Ulm. Anna Berg won on Sunday."
    answers = {"title": "Hill Race won.", "date": "4 May 2025", "about": lead}
    assert rule(f"{lead}\n\nIt rained later.") == (answers, {})


@pytest.mark.parametrize(
    "before",
    [
        "+++ A new record is set. +++ Two races were held. +++",
        "Rain at the start",
        "Pos.\tDriver\n1\tAnna Berg was first of all.",
        "- A list is no paragraph of running text.",
        "If you have any questions on this text, please contact:",
        "Ladies and gentlemen, it is good to see you all.",
        "Phone: +49-89-382-00000 is the number to call today.",
        "Sehr geehrte Damen und Herren, es ist schön, Sie hier zu sehen.",
    ],
)
def test_what_is_no_running_text_is_passed_over(before):
    answers, _ = rule(f"{before}\n\nUlm. Anna Berg won the race on Sunday.")
    assert answers["about"] == "Ulm. Anna Berg won the race on Sunday."


def test_a_headline_gives_way_to_the_paragraph_behind_it():
    lead = "A strong year for the whole team."
    text = "Anna Berg won the race on Sunday after a long fight with two others"
    text += " who had led before it rained."
    assert rule(f"{lead}\n\n{text}")[0]["about"] == text
    assert rule(f"{lead}\n\nRain")[0]["about"] == lead


def test_an_article_in_one_paragraph_answers_with_whole_first_sentences():
    sentences = [f"Car {number} came in on lap {number} of the race." for number in range(90)]
    answers, _ = rule(" ".join(sentences))
    assert 1300 < len(answers["about"]) <= pairs.ABOUT_LIMIT
    assert answers["about"].endswith("of the race.")


def test_what_is_missing_is_counted_and_not_invented():
    left_out = Counter({"no title": 1, "no paragraph is running text": 1})
    assert rule("Rain", title=" ") == ({"date": "4 May 2025"}, left_out)
    assert rule(" \n\n ") == ({}, Counter({"the text is empty": 1}))


def test_a_german_article_is_asked_in_german_and_answers_from_its_context():
    lead = "Anna Berg gewann am 12. Mai das Rennen, z. B. vor Otto Au. "
    title = "Sieg für Berg."
    article = {"id": "T0453713DE", "title": title, "date": "2025-05-12", "text": lead * 40}
    rows, left_out = pairs.rule_pairs(article)
    assert [row["answer"] for row in rows][:2] == [title, "12. Mai 2025"]
    about = rows[2]["answer"]
    assert 1400 < len(about) <= pairs.ABOUT_LIMIT and about.endswith("vor Otto Au.")
    assert all(row["answer"] in article_context(article) for row in rows) and not left_out
    assert all(row["question"] in pairs.GERMAN[row["kind"]] for row in rows)


def test_the_seed_chooses_the_phrasing_and_nothing_else():
    questions = {pairs.rule_pairs(ARTICLE, seed)[0][0]["question"] for seed in range(20)}
    assert questions == set(pairs.ENGLISH["title"])
    assert pairs.rule_pairs(ARTICLE, 7) == pairs.rule_pairs(ARTICLE, 7)


# --------------------------------------------------------------------------------------------------
# Written


def load(tmp_path, *lines):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return pairs.load_questions([path], {"T1": article_context(ARTICLE)})


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"kind": "when", "answers": ["4 May 2025", "Sunday"]},
        {"kind": "yes_no", "answers": ["No"]},
        {"kind": "unanswerable", "answers": [pairs.UNANSWERABLE]},
    ],
)
def test_a_right_line_comes_through_as_it_is(tmp_path, change):
    assert load(tmp_path, LINE | change) == [LINE | change]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"answers": ["Berta Ang"]}, "the answer 'Berta Ang' does not stand in T1. Copy it"),
        ({"answers": "Anna Berg"}, "'answers' is 'Anna Berg', need a list of texts"),
        ({"answers": []}, r"'answers' is \[\], need a list of texts"),
        ({"answers": [3]}, r"'answers' is \[3\], need a list of texts"),
        ({"answers": [" "]}, r"'answers' is \[' '\], need a list of texts"),
        ({"article_id": "T2"}, "there is no article 'T2'. Add its file"),
        ({"article_id": 3}, "'article_id' is 3, need text"),
        ({"question": " "}, "'question' is ' ', need text"),
        ({"question": None}, "'question' is None, need text"),
        ({"kind": "whom"}, "'kind' is 'whom', need one of who, when"),
        ({"kind": "yes_no"}, "the answer is 'Anna Berg', yes_no needs 'Yes' or 'No'"),
        (
            {"kind": "unanswerable"},
            "the answer is 'Anna Berg', unanswerable needs 'The press release does not say.'",
        ),
    ],
)
def test_a_wrong_line_is_one_error_with_its_number_and_what_to_do(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"questions\.jsonl, line 2: {message}") as error:
        load(tmp_path, LINE, LINE | {"id": "q2", "question": "Who lost?"} | change)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("key", pairs.QUESTION_KEYS)
def test_a_missing_key_is_named(tmp_path, key):
    shorter = {name: value for name, value in LINE.items() if name != key}
    message = f"line 1: the key '{key}' is missing. Need id, article_id"
    with pytest.raises(ValueError, match=message):
        load(tmp_path, shorter)


def test_a_line_that_is_there_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="line 2: 'q1' is in .*line 1, too"):
        load(tmp_path, LINE, LINE | {"question": "Who?"})
    with pytest.raises(ValueError, match="line 2: .*came first.* is in .*line 1, too"):
        load(tmp_path, LINE, LINE | {"id": "q2", "question": "WHO came first?"})


def test_rows_come_article_by_article_first_by_rule_then_written(tmp_path):
    files = {}
    for name in ("T1", "T2"):
        files[name] = tmp_path / f"{name}.json"
        keys = dict.fromkeys(corpus.ARTICLE_KEYS, "x")
        corpus.write_json(files[name], keys | ARTICLE | {"id": name})
    lines = [LINE | {"id": "q2", "article_id": "T2"}, LINE]
    corpus.write_jsonl(tmp_path / "questions.jsonl", lines)
    written = bq.written_pairs([tmp_path / "questions.jsonl"], files)
    assert list(written) == ["T2", "T1"]
    rows = list(bq.corpus_rows(files.values(), 42, written))
    kinds = ["title", "date", "about", "who"]
    assert [(row["article_id"], row["kind"]) for row in rows] == [
        (name, kind) for name in files for kind in kinds
    ]
    prompt = bq.format_prompt(article_context(ARTICLE), "Who came first?")
    assert rows[3] == bq.make_row(ARTICLE, {**LINE, "answer": "Anna Berg"}, "written")
    assert (rows[3]["prompt"], rows[3]["answer"]) == (prompt, "Anna Berg")
    assert list(bq.corpus_rows(files.values(), None, written)) == [rows[3], rows[7]]


# --------------------------------------------------------------------------------------------------
# Measures


@pytest.mark.parametrize(
    "question, answer, share",
    [
        ("Which driver finished first?", "Anna Berg", 0.0),
        ("Who won on Sunday?", "Anna Berg", 1.0),
        ("Why?", "x", None),
    ],
)
def test_words_in_common(question, answer, share):
    assert pairs.share_in_common(question, answer, corpus.article_context(ARTICLE)) == share
