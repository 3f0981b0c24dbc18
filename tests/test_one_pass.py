"""One pass per article is exact: the losses, gradients, answers and NLL of separate rows, in fp32.

The models are random: two layers, 64 wide, two query heads per key.
"""

import copy
import doctest
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Qwen2Config,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

import bmwqa_utils as bq
from bmwqa import one_pass, pruning, run
from bmwqa.answers import answer_rows
from bmwqa.checkpoints import last_checkpoint
from bmwqa.models import load_model, save_finished

SHAPE = dict(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
SHAPE |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)
SHAPE |= dict(tie_word_embeddings=True, initializer_range=0.1)
CONFIGS = {"qwen2": Qwen2Config, "llama": LlamaConfig}


def make_model(name="qwen2", lora=False, attention=one_pass.ATTENTION, **changes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](**SHAPE | changes)).eval()
    model.set_attn_implementation(attention)
    if lora:
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
        for key, weight in model.named_parameters():
            if "lora_B" in key:  # zero at the start, where the gradient of A would be zero too
                torch.nn.init.normal_(weight, std=0.1)
    return model


def make_group(questions: int, article: int = 150, seed: int = 0) -> dict:
    draw = random.Random(seed)

    def ids(count):
        return [draw.randrange(300) for _ in range(count)]

    branches = []
    for _ in range(questions):
        question, answer = ids(draw.randint(3, 9)), ids(draw.randint(1, 12))
        labels = [one_pass.IGNORE] * len(question) + answer
        branches.append({"input_ids": question + answer, "labels": labels})
    return {"article_id": f"{seed}", "prefix": ids(article), "branches": branches}


def loss_and_gradients(model, batch: dict) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    labels = batch.pop("labels")
    loss = one_pass.answer_loss(model(**batch), labels)
    loss.backward()
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    return loss.item(), {name: weight.grad.clone() for name, weight in trained}


def test_the_batch_of_a_toy_to_the_integer():
    """Two article tokens, two questions of two tokens; the answers are [23] and [33, 34]."""
    branches = [
        {"input_ids": [21, 22, 23], "labels": [-100, -100, 23]},
        {"input_ids": [31, 32, 33, 34], "labels": [-100, -100, 33, 34]},
    ]
    batch = one_pass.share_prefix({"article_id": "toy", "prefix": [11, 12], "branches": branches})
    assert batch["input_ids"].tolist() == [[11, 12, 21, 22, 23, 31, 32, 33, 34]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 4, 5]]
    # 22 predicts 23; 32 predicts 33, and 33 predicts 34
    assert batch["logits_to_keep"].tolist() == [3, 6, 7]
    assert batch["labels"].tolist() == [[23, -100], [33, 34]]
    mask = batch["attention_mask"][0, 0].tolist()
    assert ["".join("x" if sees else "." for sees in row) for row in mask] == [
        "x........",
        "xx.......",
        "xxx......",
        "xxxx.....",
        "xxxxx....",
        "xx...x...",
        "xx...xx..",
        "xx...xxx.",
        "xx...xxxx",
    ]


@pytest.mark.parametrize("attention", ["sdpa", one_pass.ATTENTION])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("questions", [1, 2, 3, 7, 12])
def test_loss_and_every_gradient_are_those_of_separate_rows(
    name, lora, attention, questions, monkeypatch
):
    # the article has four blocks, and many branches have two or three
    monkeypatch.setattr(one_pass, "BLOCK", 40)
    model, group = make_model(name, lora, attention), make_group(questions)
    loss, gradients = loss_and_gradients(model, one_pass.share_prefix(group))
    model.set_attn_implementation("sdpa")
    expected, other = loss_and_gradients(model, one_pass.separate_rows(group))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == other.keys()
    for key in gradients:
        assert (gradients[key] - other[key]).norm() <= 1e-4 * other[key].norm(), key


@pytest.mark.parametrize("attention", ["sdpa", one_pass.ATTENTION])
def test_a_changed_token_changes_its_own_branch_alone(attention):
    model, group = make_model(attention=attention), make_group(3)
    batch = one_pass.share_prefix(group)
    del batch["labels"], batch["logits_to_keep"]
    sizes = [len(group["prefix"])] + [len(branch["input_ids"]) for branch in group["branches"]]
    changed = batch | {"input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, sizes[0] + sizes[1]] += 1  # the first token of the second branch
    with torch.no_grad():
        moved = (model(**batch).logits - model(**changed).logits).abs().amax(-1)[0].split(sizes)
    assert [logits.max().item() > 0 for logits in moved] == [False, False, True, False]
    assert (moved[2] > 0).all()


@pytest.mark.parametrize("size", [1, 7, 100, 300, 1000])
def test_attention_in_blocks_is_that_in_one_call(size, monkeypatch):
    monkeypatch.setattr(one_pass, "BLOCK", size)
    batch = one_pass.share_prefix(make_group(5, article=300))
    del batch["labels"]
    kinds = ("sdpa", one_pass.ATTENTION)
    with torch.no_grad():
        one, other = (make_model(attention=kind)(**batch).logits for kind in kinds)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_blocks_cover_every_token_once_and_cut_no_branch(monkeypatch):
    assert doctest.testmod(one_pass).failed == 0
    monkeypatch.setattr(one_pass, "BLOCK", 4)
    blocks = one_pass.cut_blocks(6, [8, 10, 11, 13])
    assert blocks == [[0, 4, 0], [4, 6, 4], [6, 10, 6], [10, 13, 6]]
    assert one_pass.cut_blocks(4, [5, 6]) == [[0, 4, 0], [4, 6, 4]]
    assert one_pass.cut_blocks(4, [14, 15]) == [[0, 4, 0], [4, 14, 4], [14, 15, 4]]


def test_under_autocast_products_are_bf16_and_gradients_close_to_those_of_fp32():
    model, group = make_model(), make_group(7)
    loss, gradients = loss_and_gradients(model, one_pass.share_prefix(group))
    with torch.autocast("cpu", torch.bfloat16):
        other, rough = loss_and_gradients(model, one_pass.share_prefix(group))
    assert other == pytest.approx(loss, rel=0.01) and other != loss
    for key in gradients:
        assert rough[key].dtype == torch.float32
        similarity = torch.cosine_similarity(rough[key].flatten(), gradients[key].flatten(), 0)
        assert similarity > 0.99, key


# --------------------------------------------------------------------------------------------------
# Scores and answers


@pytest.fixture
def rows():
    opening = "Munich. The plant opened in May with 40 engines."
    contexts = (f"{opening}\n\nIt is open every day, and free. " * 3, "Steyr. A short text.")

    pairs = [
        ("Where?", "Munich"),
        ("When did it open, and with what?", "in May with 40 engines"),
        ("Free?", "Yes"),
    ]
    return [
        {"article_id": context[:3], "context": context, "question": question, "answer": answer}
        for context in contexts
        for question, answer in pairs
    ]


def generate(model, prompt: list[int]) -> list[int]:
    """Up to twelve new tokens, by the library's own loop."""
    ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_those_of_plain_generate(name, rows, embedded_tokenizer):
    end = embedded_tokenizer.eos_token_id
    model = make_model(name, vocab_size=len(embedded_tokenizer), eos_token_id=end, pad_token_id=end)
    answers = answer_rows(model, embedded_tokenizer, rows, 12)
    model.set_attn_implementation("sdpa")
    for row, answer in zip(rows, answers, strict=True):
        example = bq.encode_example(embedded_tokenizer, row)
        plain = generate(model, example["input_ids"][: example["labels"].count(one_pass.IGNORE)])
        text = embedded_tokenizer.decode(plain, skip_special_tokens=True).strip()
        assert (answer["answer"], answer["tokens"]) == (text, len(plain))
        assert answer["stopped"] == (plain[-1] == end)


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_that_end_early_leave_the_others_as_they_are(name, rows, embedded_tokenizer):
    """One answer ends after three tokens, by an end token, and each answer has its own limit."""
    model = make_model(name, vocab_size=len(embedded_tokenizer), eos_token_id=None, pad_token_id=0)
    groups = bq.group_by_article(rows, embedded_tokenizer)
    readings = [one_pass.read_article(model, group) for group in groups]
    plain, limits = [], [12, 12, 2, 12, 12, 1]
    model.set_attn_implementation("sdpa")
    for group in groups:
        for branch in group["branches"]:
            question = branch["labels"].count(one_pass.IGNORE)
            plain.append(generate(model, group["prefix"] + branch["input_ids"][:question]))
    model.set_attn_implementation(one_pass.ATTENTION)
    end = plain[1][2]
    cut = [ids[: ids.index(end) + 1] if end in ids else ids for ids in plain]
    cut = [ids[:limit] for ids, limit in zip(cut, limits, strict=True)]
    assert len({len(ids) for ids in cut}) > 2
    assert one_pass.answer_questions(model, readings, end, limits) == cut


def test_nll_is_that_of_one_row_at_a_time(rows, embedded_tokenizer):
    model = make_model(vocab_size=len(embedded_tokenizer))
    for row, got in zip(rows, answer_rows(model, embedded_tokenizer, rows, 0), strict=True):
        example = bq.encode_example(embedded_tokenizer, row)
        example = {key: torch.tensor([ids]) for key, ids in example.items()}
        supervised = (example["labels"] != one_pass.IGNORE).sum().item()
        with torch.no_grad():
            row_nll = model(**example).loss.item() * supervised
        assert got["nll_tokens"] == supervised
        assert got["nll"] == pytest.approx(row_nll, rel=1e-5)


def test_uniform_logits_have_the_perplexity_of_the_vocabulary(rows, embedded_tokenizer):
    model = make_model(vocab_size=len(embedded_tokenizer), tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    scored = answer_rows(model, embedded_tokenizer, rows, 0)
    nll, tokens = (sum(row[key] for row in scored) for key in ("nll", "nll_tokens"))
    assert math.exp(nll / tokens) == pytest.approx(len(embedded_tokenizer), rel=1e-5)


# --------------------------------------------------------------------------------------------------
# Training


def make_trainer(model, folder, groups: list[dict], callbacks=(), **changes) -> Trainer:
    """A Trainer on `groups`, with the arguments of the notebook that matter here."""
    settings = dict(max_steps=len(groups), learning_rate=1e-3, per_device_train_batch_size=1)
    settings |= dict(train_sampling_strategy="sequential", save_strategy="no", save_total_limit=2)
    settings |= dict(logging_steps=1, logging_nan_inf_filter=False, disable_tqdm=True)
    settings |= dict(remove_unused_columns=False, dataloader_pin_memory=False)
    settings |= run.hardware_arguments() | changes
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(folder), **settings),
        train_dataset=groups,
        data_collator=lambda batch: one_pass.share_prefix(batch[0]),
        compute_loss_func=one_pass.answer_loss,
        callbacks=[run.StepReport(groups, "test"), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def losses(trainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def test_a_lora_step_moves_the_adapters_alone(tmp_path):
    model = make_model(lora=True)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = make_trainer(model, tmp_path, [make_group(3)])
    trainer.train()
    weights = dict(model.named_parameters())
    moved = {name for name in before if not torch.equal(weights[name], before[name])}
    assert moved == {name for name in before if "lora_" in name}


def test_a_full_step_moves_every_weight_by_fused_adamw(tmp_path):
    model = make_model()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = make_trainer(model, tmp_path, [make_group(3)])
    trainer.train()
    assert all(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert trainer.optimizer.optimizer.__class__ is torch.optim.AdamW
    assert trainer.optimizer.optimizer.defaults["fused"] is True


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", CONFIGS)
def test_long_steps_are_computed_twice_and_give_the_same_gradients(name, lora, tmp_path):
    """A Trainer that checkpoints the longer of two articles ends with the same weights."""
    groups, lengths = [make_group(3, article) for article in (100, 300)], []
    plain = make_model(name, lora)
    make_trainer(plain, tmp_path, groups).train()
    model = make_model(name, lora)
    run.checkpoint_above(model, 200)
    layer = (model.base_model.model if lora else model).model.layers[0]
    layer.mlp.register_forward_pre_hook(lambda mlp, inputs: lengths.append(inputs[0].shape[1]))
    make_trainer(model, tmp_path, groups).train()
    first, *second = lengths
    assert first < 200 and len(second) == 2 and min(second) > 300
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_usual_trainer_has_the_same_loss_curve(tmp_path):
    """One pair per step, in the same order, with `labels=` and the model's own loss."""
    groups = [make_group(1, article=60, seed=seed % 5) for seed in range(20)]
    ours = make_trainer(make_model(), tmp_path, groups)
    ours.train()

    def usual_batch(batch):
        (group,) = batch
        (branch,) = group["branches"]
        labels = [one_pass.IGNORE] * len(group["prefix"]) + branch["labels"]
        ids = group["prefix"] + branch["input_ids"]
        return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}

    model = make_model(attention="sdpa")
    usual = Trainer(model, ours.args, train_dataset=groups, data_collator=usual_batch)
    usual.train()
    assert losses(ours)[-1] < losses(ours)[0]
    assert losses(ours) == pytest.approx(losses(usual), rel=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_layers_that_are_missed_least_go_and_the_rest_survives_the_disk(
    name, tmp_path, embedded_tokenizer
):
    """Two of eight layers go: each left out alone, these give separate rows the lowest NLL."""
    model, group = make_model(name, num_hidden_layers=8), make_group(3, article=20, seed=1)
    batch, layers, nll = one_pass.separate_rows(group), list(model.model.layers), {}
    labels = batch.pop("labels")
    for missing in range(8):
        shorter = copy.deepcopy(model)
        del shorter.model.layers[missing]
        with torch.no_grad():
            logits = shorter(**batch, use_cache=False).logits
            nll[missing] = one_pass.answer_nll(logits, labels).sum().item()
    removed = sorted(sorted(nll, key=nll.get)[:2])
    assert pruning.prune_layers(model, [group], one_pass.share_prefix) == removed
    assert list(model.model.layers) == [layers[i] for i in range(8) if i not in removed]
    save_finished(tmp_path / "pruned", model, embedded_tokenizer)
    loaded = load_model(tmp_path / "pruned")
    assert loaded.config.num_hidden_layers == len(loaded.model.layers) == 6
    ids = torch.randint(300, (1, 20))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    options = dict(do_sample=False, max_new_tokens=5)
    assert torch.equal(loaded.generate(ids, **options), model.generate(ids, **options))


class KilledIn(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def long_run(folder, callbacks=()):
    groups = [make_group(2, article=40, seed=seed) for seed in range(7)]
    saves = dict(save_strategy="steps", save_steps=2)
    return make_trainer(make_model(), folder, groups, callbacks, **saves)


def test_a_killed_run_goes_on_with_the_losses_of_an_unbroken_one(tmp_path):
    unbroken = long_run(tmp_path / "unbroken")
    unbroken.train()
    command = [sys.executable, __file__, str(tmp_path / "killed")]
    environment = os.environ | {"PYTHONPATH": str(bq.ROOT)}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == -signal.SIGKILL, process.stderr[-2000:]
    torn = tmp_path / "killed" / "checkpoint-6"
    torn.mkdir()  # as if the kill had come while it was written
    last = last_checkpoint(tmp_path / "killed")
    assert Path(last).name == "checkpoint-4" and not torn.exists()
    resumed = long_run(tmp_path / "killed")
    resumed.train(resume_from_checkpoint=last)
    assert losses(resumed) == losses(unbroken)
    for one, other in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(one, other)
    kept = sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*"))
    assert kept == ["checkpoint-6", "checkpoint-7"]

    done = long_run(tmp_path / "killed")  # as if the next kill had come after the last step
    done.train(resume_from_checkpoint=last_checkpoint(tmp_path / "killed"))
    assert losses(done) == losses(unbroken)
    assert all(log["seconds"] > 0 for log in done.state.log_history if "loss" in log)


def test_a_loss_that_is_not_finite_names_its_step_and_article(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match="Step 1, article 5: the loss is nan"):
        make_trainer(model, tmp_path, [make_group(2, seed=5)]).train()


if __name__ == "__main__":  # the run that is killed in its sixth step
    long_run(sys.argv[1], [KilledIn(6)]).train()
