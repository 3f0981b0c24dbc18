"""What is checked before the first training step: tokenizer, model, rows and machine (notebook 3).

What cannot work is one error, with what to do. What works in the plain way only, goes that way.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from peft import LoraConfig, get_peft_model

from bmwqa.answers import answer_apart, end_tokens
from bmwqa.one_pass import (
    ATTENTION,
    answer_questions,
    read_article,
    separate_rows,
    share_prefix,
)
from bmwqa.settings import Settings
from bmwqa_utils import encode_text, prompt_ids

SENTENCE = "Östersund, 12 May: “1,500 engines – and one <|im_end|>”, said Anna."
LIMIT = 1e-5  # of the losses, relative, in fp32; exact models are at 1e-6
NEW_TOKENS = 5


@dataclass
class Preflight:
    """The outcome: how to compute, and the lines that say why."""

    collate: Callable = share_prefix  # or separate_rows
    attention: str | None = ATTENTION  # for `load_model`; None: the model's own
    prunable: bool = True
    lines: list[str] = field(default_factory=list)
    one_pass: str = ""  # of the lines, that on one pass per article


def check_all(model, tokenizer, groups, settings: Settings, folder: Path) -> Preflight:
    """Check a model that `load_model` gave in fp32, for these groups; ValueError: it cannot work.

    groups: those to train on, or of the questions of the evaluation, see `group_by_article`; two
    questions about the shortest article and about the longest are enough. folder: for models.
    """
    ends = [choose(groups, key=lambda group: len(group["prefix"])) for choose in (min, max)]
    ends = [group | {"branches": group["branches"][:2]} for group in ends]
    checks = Preflight(
        lines=[
            check_tokenizer(tokenizer, model.config),
            check_positions(model.config, settings),
            check_targets(model, settings.lora_targets),
        ]
    )
    exact, checks.one_pass = check_exact(model, tokenizer, ends)
    if not exact:
        checks.collate, checks.attention = separate_rows, None
    reason = why_not_prunable(model)
    checks.prunable = not reason
    pruning = f"no: {reason}; the smaller model is left out" if reason else "layers can be cut out"
    checks.lines += [checks.one_pass, f"pruning: {pruning}", check_machine(model, folder)]
    return checks


def check_tokenizer(tokenizer, config) -> str:
    """A line on the tokenizer; ValueError if it loses text, has no end, or knows too many ids."""
    ids = encode_text(tokenizer, SENTENCE)
    back = tokenizer.decode(ids)
    if "".join(back.split()) != "".join(SENTENCE.split()):
        raise ValueError(
            f"The tokenizer gives {back[:60]!r} back for {SENTENCE!r}. Are its files there? Copy "
            f"tokenizer.json and tokenizer_config.json into the model's folder."
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no end of text (eos_token), so a model cannot learn to stop. Set "
            "eos_token in its tokenizer_config.json."
        )
    vocabulary = config.get_text_config().vocab_size
    if max(len(tokenizer), tokenizer.eos_token_id + 1) > vocabulary and max(ids) >= vocabulary:
        raise ValueError(
            f"The tokenizer has the id {max(ids):,}, the model {vocabulary:,} ids. They do not "
            f"belong together; use the model's own tokenizer."
        )
    begin = prompt_ids(tokenizer, "", "")[:1] == [tokenizer.bos_token_id]
    starts = f"begins with {tokenizer.bos_token!r}" if begin else "begins with no token of its own"
    return f"tokenizer: gives a sentence back, {starts}, ends with {tokenizer.eos_token!r}"


def check_positions(config, settings: Settings) -> str:
    """A line on the room that the model has; ValueError if MAX_TOKENS goes beyond it."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return "positions: the model names no limit"
    room = positions - max(settings.max_new_tokens, settings.max_new_tokens_about)
    if settings.max_tokens > room:
        raise ValueError(
            f"MAX_TOKENS is {settings.max_tokens:,}, and answers take up to {positions - room}; "
            f"the model has {positions:,} positions. Set MAX_TOKENS to {room:,} or less."
        )
    return f"positions: {positions:,}, enough for {settings.max_tokens:,} tokens and an answer"


def check_targets(model, targets: str | list[str]) -> str:
    """A line on the layers that get an adapter; ValueError if one is missing or PEFT refuses one.

    PEFT puts an adapter beside them, and takes it away again.
    """
    modules = {name.split(".")[-1] for name, m in model.named_modules() if hasattr(m, "weight")}
    names = [] if targets == "all-linear" else targets
    try:
        if isinstance(names, str) or {*names} - modules:
            raise ValueError("a layer is not there")
        config = LoraConfig(r=1, target_modules=targets, task_type="CAUSAL_LM")
        get_peft_model(model, config).unload()
    except (ValueError, TypeError, RuntimeError) as error:
        there = ", ".join(sorted(name for name in modules if not name.isdigit()))
        need = f"Need 'all-linear' or a list of names. There are: {there}."
        reason = " ".join(str(error).split())[:240]
        raise ValueError(f"LORA_TARGETS is {targets!r}, refused: {reason}. {need}") from error
    return f"adapter: beside {', '.join(names) or targets}"


# --------------------------------------------------------------------------------------------------
# Is one pass per article exact?


def check_exact(model, tokenizer, groups: list[dict]) -> tuple[bool, str]:
    """Whether one pass per article is what this model computes for separate rows, and a line on it.

    The losses of each group are compared with those of separate rows under the model's own
    attention, and the first new tokens with those of `generate`. The first group should be of a
    short article and the last of a long one: a sliding window shows in the long one alone.
    """
    ends, worst = end_tokens(model.generation_config, tokenizer), 0.0
    try:
        for group in groups:
            plain_nll, plain_ids = plain_answers(model, group, ends)
            reading = read_article(model, group)
            nll = torch.stack([answer.sum() for answer in reading.nll])
            worst = max(worst, ((nll - plain_nll).abs().max() / plain_nll.mean()).item())
            ids = answer_questions(model, [reading], ends, [NEW_TOKENS] * len(plain_ids))
            if ids != plain_ids:
                return False, "one pass: answers differ from generate's, so rows stay separate"
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        reason = str(error).splitlines()[0][:80] if str(error) else ""
        return False, f"one pass: {type(error).__name__} ({reason}), so rows stay separate"
    if not worst < LIMIT:
        return False, f"one pass: losses are off by a relative {worst:.0e}, so rows stay separate"
    line = f"one pass per article: same losses as separate rows, up to a relative {worst:.0e}"
    return True, f"{line}, and the same tokens as generate"


def plain_answers(model, group: dict, ends: list[int]) -> tuple[torch.Tensor, list[list[int]]]:
    """(NLL of each reference, first new tokens) of a group, under the model's eager attention.

    Every model has that one, with its windows, sinks and biases; ours and torch's may lack them.
    """
    ours = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        caps = [NEW_TOKENS] * len(group["branches"])
        nll, ids = answer_apart(model, [group], ends, caps)
        return torch.tensor([answer["nll"] for answer in nll]), ids
    finally:
        model.set_attn_implementation(ours)


# --------------------------------------------------------------------------------------------------
# Can layers be cut out? Does it fit?


def why_not_prunable(model) -> str:
    """ "" if `prune_layers` can cut layers out of this model, else what is in the way."""
    decoder, config = model.get_decoder(), model.config
    layers = getattr(decoder, "layers", None)
    if layers is None:
        return f"{type(decoder).__name__} keeps its layers elsewhere than in .layers"
    if getattr(config, "num_hidden_layers", None) != len(layers):
        return "its config counts the layers in another way"
    for name in ("num_kv_shared_layers", "hidden_size_per_layer_input"):
        if getattr(config.get_text_config(), name, None):
            return f"its config has {name}, so its layers need one another"
    if not all(any(hasattr(m, "layer_idx") for m in layer.modules()) for layer in layers):
        return "a layer has no part that knows its number"
    return ""


def check_machine(model, folder: Path) -> str:
    """A line on memory and disk; ValueError if they cannot suffice.

    Full fine-tuning with AdamW keeps 16 bytes per weight (weights, gradients, two moments, fp32) in
    each process; FSDP divides them. What a step computes is not estimated. On disk, three models
    and a checkpoint with its moments take 24 bytes per weight.
    """
    weights = sum(weight.numel() for weight in model.parameters())
    all_processes, here = (int(os.environ.get(f"{n}WORLD_SIZE", 1)) for n in ("", "LOCAL_"))
    need, there = here * 16 * weights / 1e9, psutil.virtual_memory().total / 1e9
    if torch.cuda.is_available():
        need /= here * (all_processes if "ACCELERATE_USE_FSDP" in os.environ else 1)
        there = torch.cuda.get_device_properties(0).total_memory / 1e9
    if need > there:
        raise ValueError(
            f"Full fine-tuning keeps {need:.1f} GB for {weights:,} weights, this machine has "
            f"{there:.1f} GB. Use a smaller MODEL or a larger machine."
        )
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    disk, free = 24 * weights / 1e9, shutil.disk_usage(place).free / 1e9
    if disk > free:
        raise ValueError(
            f"Models and checkpoints take {disk:.1f} GB, {place} has {free:.1f} GB free. Make "
            f"room, or set OUT_DIR to another disk."
        )
    return (
        f"memory: {need:.1f} GB and what a step computes, of {there:.1f}; "
        f"disk: {disk:.1f} GB of {free:.1f}"
    )
