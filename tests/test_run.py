"""The order of the steps, weights in bf16, and the parameters as checked settings."""

import random
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import PARAMETERS
from test_processes import make_group, make_run

from bmwqa.checkpoints import last_checkpoint
from bmwqa.machine import PeakMemory
from bmwqa.optimizer import DitheredAdamW, last_bit, optimizer_for
from bmwqa.run import base_model, make_trainer, plan_steps
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
# Weights in bf16


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def bf16_trainer(fp32_run):
    run = replace(fp32_run, dtype=torch.bfloat16)
    return make_trainer(run, "full_ft", base_model(run), 2e-5)


def test_bf16_weights_learn_as_fp32_ones_and_go_on_after_a_kill(tiny_model_folder, tmp_path):
    groups = [make_group(number % 3 + 1) for number in range(12)]
    changes = {"MAX_STEPS": 12, "HELD_OUT": 0}
    run = make_run(tiny_model_folder, tmp_path, groups, **changes)
    plain = make_trainer(run, "full_ft", base_model(run), 2e-5)
    plain.train()
    trainer = bf16_trainer(run)
    assert trainer.args.bf16 is False  # no autocast
    trainer.train()
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.bfloat16}
    assert losses(trainer) == pytest.approx(losses(plain), rel=5e-3)
    # a rate of 2e-5 changes a weight of 0.02 by less than its last bit; Kahan's sum keeps that
    moved = [
        w.float() - v
        for w, v in zip(trainer.model.parameters(), base_model(run).parameters(), strict=True)
    ]
    wanted = [
        w - v for w, v in zip(plain.model.parameters(), base_model(run).parameters(), strict=True)
    ]
    moved, wanted = (torch.cat([t.flatten() for t in parts]) for parts in (moved, wanted))
    assert torch.nn.functional.cosine_similarity(moved, wanted, dim=0) > 0.7
    resumed = bf16_trainer(run)
    shutil.rmtree(Path(resumed.args.output_dir, "checkpoint-12"))  # as after a kill in step 11
    resumed.train(resume_from_checkpoint=last_checkpoint(resumed.args.output_dir))
    assert losses(resumed) == losses(trainer)
    weights = zip(resumed.model.parameters(), trainer.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_bf16_weights_that_are_trained_get_kahans_sum_and_frozen_ones_do_not():
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert optimizer_for(layers, 1e-3) is None
    layers[0].to(torch.bfloat16)
    optimizer, options = optimizer_for(layers, 1e-3)
    assert optimizer is DitheredAdamW and options["kahan_sum"]
    layers[0].requires_grad_(False)
    assert optimizer_for(layers, 1e-3) is None


@pytest.mark.parametrize("steps", [1, 3, 30])
def test_the_mean_of_many_bf16_weights_follows_each_update(steps):
    """A weight of 1.5 cannot hold an update of a tenth of its last bit; a tenth of them take it."""
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.full((40_000,), 1.5, dtype=torch.bfloat16))
    rate = last_bit(weights)[0].item() / 10
    optimizer, options = optimizer_for(torch.nn.ParameterList([weights]), rate)
    optimizer = optimizer([weights], **options)
    for _ in range(steps):
        weights.grad = torch.ones_like(weights)  # each update is the rate
        optimizer.step()
    assert (weights.float() - 1.5).mean().item() == pytest.approx(-steps * rate, rel=0.05)


def test_the_last_bit_is_what_separates_a_weight_from_the_next():
    weights = torch.tensor([1.0, -1.5, 0.25, 0.0, 300.0], dtype=torch.bfloat16)
    bits = last_bit(weights).tolist()
    assert bits[:3] + bits[4:] == [2**-7, 2**-7, 2**-9, 2.0] and 0 <= bits[3] < 1e-38


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


def test_peak_memory_counts_the_models_and_what_comes_but_not_what_was_there():
    before = torch.ones(50_000_000)  # 0.2 GB
    models = [torch.nn.Linear(5000, 5000) for _ in range(2)]  # 0.1 GB each
    with PeakMemory(*models) as peak:
        more = torch.ones(75_000_000)  # 0.3 GB
        time.sleep(0.2)
    assert 0.48 < peak.gb < 0.56, (peak.gb, len(before), len(more))
