"""The order of the steps."""

import random

from bmwqa.run import plan_steps


def test_every_article_comes_once_before_any_comes_twice():
    groups = [{"article_id": name} for name in "abcde"]
    steps = plan_steps(groups, set("abcde"), 12, random.Random(1))
    names = [step["article_id"] for step in steps]
    assert len(names) == 12
    assert sorted(names[:5]) == sorted(names[5:10]) == list("abcde")


def test_articles_with_written_questions_and_without_take_turns_while_both_last():
    groups = [{"article_id": name} for name in "abcdeVWXYZ12345"]
    names = [step["article_id"] for step in plan_steps(groups, set("abcde"), 15, random.Random(1))]
    assert [name in "abcde" for name in names] == [True, False] * 5 + [False] * 5
    assert len(set(names)) == 15
