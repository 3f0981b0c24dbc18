"""The rules of qa_rules, on small texts written here; nothing is downloaded."""

import doctest

import pytest

import qa_rules
import qa_sentences
from qa_rules import article_context, find_pairs

TEXT = """+++ A new record +++ Two races +++

Rain at the start

Munich. Anna Berg won the Hill Race on Sunday. The race took place in Garmisch.

If you have any questions, please contact:

Phone: +49-89-0"""


def make_article(text=TEXT, title="Hill Race won.", day="2025-05-12", name="T1EN"):
    return {"id": name, "url": "", "title": title, "date": day, "category": "", "teaser": "", "text": text}


def test_examples_in_the_docstrings_are_true():
    for module in (qa_rules, qa_sentences):
        result = doctest.testmod(module)
        assert result.attempted > 5 and result.failed == 0


def test_original_kinds_come_first_and_stand_in_the_context():
    article = make_article()
    pairs, reasons = find_pairs(article)
    assert [pair["answer"] for pair in pairs] == [
        "Hill Race won.",
        "12 May 2025",
        "Munich. Anna Berg won the Hill Race on Sunday. The race took place in Garmisch.",
    ]
    assert not reasons
    context = article_context(article)
    assert all(context[slice(*pair["evidence"])] == pair["answer"] for pair in pairs)


@pytest.mark.parametrize("text", ["", "   \n\n ", "Heading only", "Phone: 1234 567.", "- Check against delivery –"])
def test_no_sound_answer_is_counted(text):
    pairs, reasons = find_pairs(make_article(text))
    assert [pair["kind"] for pair in pairs] == ["title", "date"]
    assert reasons == {"about: no paragraph is a sentence": 1}


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="got 'poem', need some of title, date, about"):
        find_pairs(make_article(), kinds=("title", "poem"))
