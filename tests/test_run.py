"""The order of the steps, and the parameters as checked settings."""

import random
import re

import pytest
from conftest import PARAMETERS

from bmwqa.run import plan_steps
from bmwqa.settings import read_settings


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


# --------------------------------------------------------------------------------------------------
# Settings


def test_every_parameter_is_a_setting_and_nothing_else():
    settings = read_settings(PARAMETERS | {"unrelated": 1})
    assert {name.upper(): value for name, value in settings.model_dump().items()} == PARAMETERS


def test_values_come_from_a_command_line_too():
    changes = {"LEARNING_RATE_LORA": "1e-4", "EARLY_STOPPING": "None", "MAX_STEPS": "7"}
    settings = read_settings(PARAMETERS | changes)
    assert (settings.learning_rate_lora, settings.max_steps) == (1e-4, 7)
    assert settings.early_stopping is None


@pytest.mark.parametrize(
    ("name", "value", "need"),
    [
        ("MAX_STEPS", 0, "greater than 0"),
        ("MAX_STEPS", 2.5, "integer"),
        ("MAX_STEPS", "many", "integer"),
        ("LEARNING_RATE_FULL", -1, "greater than 0"),
        ("SEED", "abc", "integer"),
        ("SEED", None, "integer"),
        ("LORA_TARGETS", 3, "valid"),
        ("PRECISION", "fp16", "'auto', 'bf16' or 'fp32'"),
        ("PRECISION", None, "'auto', 'bf16' or 'fp32'"),
        ("EARLY_STOPPING", 100, "nothing would be measured|Input"),
    ],
)
def test_a_wrong_parameter_is_one_line_that_names_it(name, value, need):
    changes = {"HELD_OUT": 0} if name == "EARLY_STOPPING" else {}
    with pytest.raises(ValueError, match=f"^{name} is {re.escape(repr(value))}.*{need}") as error:
        read_settings(PARAMETERS | changes | {name: value})
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_parameter_is_named():
    with pytest.raises(ValueError, match="^SEED is missing"):
        read_settings({name: value for name, value in PARAMETERS.items() if name != "SEED"})
