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
from bmwqa.machine import choose_precision
from bmwqa.one_pass import ATTENTION, answer_questions, read_article, separate_rows, share_prefix
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
    extremes = [choose(groups, key=lambda group: len(group["prefix"])) for choose in (min, max)]
    extremes = [group | {"branches": group["branches"][:2]} for group in extremes]
    lines = [check_tokenizer(tokenizer, model.config), check_positions(model.config, settings)]
    lines.append(check_targets(model, settings.lora_targets))
    exact, one_pass = check_exact(model, tokenizer, extremes)
    reason = why_not_prunable(model)
    pruning = f"no: {reason}; the smaller model is left out" if reason else "layers can be cut out"
    dtype, _ = choose_precision(settings.precision)
    lines += [one_pass, f"pruning: {pruning}", check_machine(model, folder, dtype)]
    plain = {} if exact else {"collate": separate_rows, "attention": None}
    return Preflight(prunable=not reason, lines=lines, one_pass=one_pass, **plain)


def check_tokenizer(tokenizer, config) -> str:
    """A line on the tokenizer; ValueError if it loses text, has no end, or knows too many ids."""
    ids = encode_text(tokenizer, SENTENCE)
    decoded, vocabulary = tokenizer.decode(ids), config.get_text_config().vocab_size
    if "".join(decoded.split()) != "".join(SENTENCE.split()):
        problem = f"The tokenizer gives {decoded[:60]!r} back for {SENTENCE!r}"
        need = "Are its files there? Copy tokenizer.json and its config into the model's folder."
        raise ValueError(f"{problem}. {need}")
    if tokenizer.eos_token_id is None:
        need = "Set eos_token in its tokenizer_config.json, so that a model can learn to stop."
        raise ValueError(f"The tokenizer has no end of text. {need}")
    if (most := max(*ids, tokenizer.eos_token_id)) >= vocabulary:
        problem = f"The tokenizer has the id {most:,}, the model {vocabulary:,} ids"
        raise ValueError(f"{problem}. They do not belong together; use the model's own tokenizer.")
    begins = prompt_ids(tokenizer, "", "")[0] == tokenizer.bos_token_id
    beginning = repr(tokenizer.bos_token) if begins else "no token of its own"
    ending = f"begins with {beginning}, ends with {tokenizer.eos_token!r}"
    return f"tokenizer: gives a sentence back, {ending}"


def check_positions(config, settings: Settings) -> str:
    """A line on the room that the model has; ValueError if MAX_TOKENS goes beyond it."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", float("inf"))
    answer = max(settings.max_new_tokens, settings.max_new_tokens_about)
    if settings.max_tokens > positions - answer:
        problem = f"MAX_TOKENS is {settings.max_tokens:,}, and answers take up to {answer}"
        need = f"the model has {positions:,} positions. Set MAX_TOKENS to {positions - answer:,}."
        raise ValueError(f"{problem}; {need}")
    return f"positions: {positions:,}, enough for {settings.max_tokens:,} tokens and an answer"


def check_targets(model, targets: str | list[str]) -> str:
    """A line on the layers that get an adapter; ValueError if one is missing or PEFT refuses one.

    PEFT puts an adapter beside them, and takes it away again.
    """
    modules = {name.split(".")[-1] for name, m in model.named_modules() if hasattr(m, "weight")}
    names = [targets] if isinstance(targets, str) else targets
    try:
        if {*names} - modules - {"all-linear"}:
            raise ValueError("a layer is not there")
        config = LoraConfig(r=1, target_modules=targets, task_type="CAUSAL_LM")
        get_peft_model(model, config).unload()
    except (ValueError, TypeError, RuntimeError) as error:
        there = ", ".join(sorted(name for name in modules if not name.isdigit()))
        need = f"Need 'all-linear' or a list of names. There are: {there}."
        reason = " ".join(str(error).split())[:240]
        raise ValueError(f"LORA_TARGETS is {targets!r}, refused: {reason}. {need}") from error
    return f"adapter: beside {', '.join(names)}"


def check_exact(model, tokenizer, groups: list[dict]) -> tuple[bool, str]:
    """Whether one pass per article is what this model computes for separate rows, and a line on it.

    The losses of each group are compared with those of separate rows, and the first new tokens with
    those of `generate`: for the first group under eager attention, which has all windows, sinks and
    biases, for the others under the one that transformers chooses for this model, which is faster.
    A sliding window shows in a long article alone, whose last question is answered.
    """
    ends, gaps = end_tokens(model.generation_config, tokenizer), []
    ours = model.config._attn_implementation
    try:
        for number, group in enumerate(groups):
            first = number == 0
            plain = "eager" if first else model.get_correct_attn_implementation(None)
            same_tokens, gap = compare_with_rows(model, group, ends, ours, plain, answer_all=first)
            if not same_tokens:
                return False, "one pass: answers differ from generate's, so rows stay separate"
            gaps.append(gap)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        reason = " ".join(str(error).split())[:80]
        return False, f"one pass: {type(error).__name__} ({reason}), so rows stay separate"
    finally:
        model.set_attn_implementation(ours)
    worst = torch.stack(gaps).max().item()
    if not worst < LIMIT:
        return False, f"one pass: losses are off by a relative {worst:.0e}, so rows stay separate"
    line = f"one pass per article: same losses as separate rows, up to a relative {worst:.0e}"
    return True, f"{line}, and the same tokens as generate"


def compare_with_rows(
    model, group: dict, ends: list[int], ours: str, plain: str, answer_all: bool
) -> tuple[bool, torch.Tensor]:
    """(same new tokens, largest relative gap of the losses) of one pass and of separate rows.

    ours, plain: the attention of one pass and that of the rows. answer_all: all questions of the
    group are answered, else its last.
    """
    caps = [NEW_TOKENS if answer_all else 0] * len(group["branches"])
    caps[-1] = NEW_TOKENS
    model.set_attn_implementation(ours)
    reading = read_article(model, group)
    nll = torch.tensor([answer.sum() for answer in reading.nll])
    ids = answer_questions(model, [reading], ends, caps)
    model.set_attn_implementation(plain)
    rows, row_ids = answer_apart(model, [group], ends, caps)
    row_nll = torch.tensor([row["nll"] for row in rows])
    same_tokens = all(a == b for cap, a, b in zip(caps, ids, row_ids, strict=True) if cap)
    return same_tokens, (nll - row_nll).abs().max() / row_nll.mean()


def why_not_prunable(model) -> str:
    """ "" if `prune_layers` can cut layers out of this model, else what is in the way."""
    layers = getattr(model.get_decoder(), "layers", ())
    if getattr(model.config, "num_hidden_layers", None) != len(layers):
        return "its layers are not in .layers, or its config counts them in another way"
    for name in ("num_kv_shared_layers", "hidden_size_per_layer_input"):
        if getattr(model.config.get_text_config(), name, None):
            return f"its config has {name}, so its layers need one another"
    if not all(any(hasattr(m, "layer_idx") for m in layer.modules()) for layer in layers):
        return "a layer has no part that knows its number"
    return ""


def check_machine(model, folder: Path, dtype: torch.dtype = torch.float32) -> str:
    """A line on memory and disk; ValueError if they cannot suffice.

    Full fine-tuning with AdamW keeps weights, gradients and two moments in each process: 16 bytes
    per weight in fp32, 10 in bf16, with what Kahan's sum keeps. FSDP divides them. What a step
    computes is not estimated. On disk, three checkpoints with their moments lie beside each other
    until the oldest is deleted: 36 bytes per weight, 24 in bf16.
    """
    billions = sum(weight.numel() for weight in model.parameters()) / 1e9
    in_memory, on_disk = (10, 24) if dtype == torch.bfloat16 else (16, 36)
    need, there = in_memory * billions * copies_here(), memory_gb()
    if need > there:
        problem = f"Full fine-tuning keeps {need:.1f} GB in memory, this machine has {there:.1f} GB"
        raise ValueError(f"{problem}. Use a smaller MODEL or a larger machine.")
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    disk, free = on_disk * billions, shutil.disk_usage(place).free / 1e9
    if disk > free:
        problem = f"Models and checkpoints take {disk:.1f} GB, {place} has {free:.1f} GB free"
        raise ValueError(f"{problem}. Make room, or set OUT_DIR to another disk.")
    memory = f"memory: {need:.1f} GB and what a step computes, of {there:.1f}"
    return f"{memory}; disk: {disk:.1f} GB of {free:.1f}"


def copies_here() -> float:
    """How many copies of a model in training share a memory; a part of one under FSDP."""
    if not torch.cuda.is_available():
        return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    divided = "ACCELERATE_USE_FSDP" in os.environ
    return 1 / int(os.environ.get("WORLD_SIZE", 1)) if divided else 1


def memory_gb() -> float:
    """The memory (1e9 bytes) in which a model is trained: a GPU's, or the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / 1e9
    return psutil.virtual_memory().total / 1e9
