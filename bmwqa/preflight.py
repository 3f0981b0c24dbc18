"""What is checked before the first training step: tokenizer, model, rows and machine (notebook 3).

What cannot work is one error, with what to do. What works in the plain way only, goes that way.
"""

import copy
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from bmwqa.answers import answer_apart, end_tokens
from bmwqa.int8 import to_int8
from bmwqa.machine import choose_precision
from bmwqa.one_pass import (
    ATTENTION,
    answer_questions,
    read_article,
    reference_nll,
    separate_rows,
    share_prefix,
)
from bmwqa.pruning import keep_layers, per_layer_lists
from bmwqa.settings import Settings
from bmwqa_utils import encode_text, prompt_ids

SENTENCE = "Östersund, 12 May: “1,500 engines – and one <|im_end|>”, said Anna."
LIMIT = 1e-5  # of the losses, relative, in fp32; exact models are at 1e-6
NEW_TOKENS = 5
REFUSALS = (ValueError, TypeError, RuntimeError, AttributeError)  # of PEFT, or of the adapted model
FAULTS = (*REFUSALS, IndexError, KeyError)  # of a model that cannot compute what it is given


@dataclass
class Preflight:
    """The outcome: how to compute, and the lines that say why."""

    collate: Callable = share_prefix  # or separate_rows
    attention: str | None = ATTENTION  # for `load_model`; None: the model's own
    prunable: bool = True
    int8: bool = True  # whether `to_int8` fits this model and this machine
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
    if not exact:
        together = extremes[0]["branches"][: settings.questions_per_step]
        check_rows(model, tokenizer, extremes[0] | {"branches": together})
    reason = why_not_prunable(model) or why_not_saved_pruned(model, extremes[0])
    pruning = f"no: {reason}; the smaller model is left out" if reason else "layers can be cut out"
    no_int8 = reason or why_not_int8(model, extremes[0])
    int8 = f"no: {no_int8}; that row is left out" if no_int8 else "linear layers compute in it"
    dtype, _ = choose_precision(settings.precision)
    lines += [one_pass, f"pruning: {pruning}", f"int8: {int8}"]
    lines.append(check_machine(model, folder, dtype))
    options = {} if exact else {"collate": separate_rows, "attention": None}
    options |= {"prunable": not reason, "int8": not no_int8}
    return Preflight(lines=lines, one_pass=one_pass, **options)


def check_tokenizer(tokenizer, config) -> str:
    """A line on the tokenizer.

    ValueError: it loses text, has no end, knows too many ids, or prompts lack how it begins.
    """
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
    whole = tokenizer(SENTENCE, split_special_tokens=True)["input_ids"]
    begin = whole[: next((i for i in range(len(whole)) if whole[i : i + len(ids)] == ids), 0)]
    first = " ".join(map(repr, tokenizer.convert_ids_to_tokens(begin))) or "no token of its own"
    if prompt_ids(tokenizer, "", "")[: len(begin)] != begin:
        problem = f"The tokenizer begins a text with {first}, and prompts lack it"
        raise ValueError(f"{problem}. Need none or its bos_token alone; use another MODEL.")
    ending = f"begins with {first}, ends with {tokenizer.eos_token!r}"
    return f"tokenizer: gives a sentence back, {ending}"


def check_positions(config, settings: Settings) -> str:
    """A line on the room that the model has; ValueError if MAX_TOKENS goes beyond it."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", float("inf"))
    answer = max(settings.max_new_tokens, settings.max_new_tokens_about)
    if answer >= positions:
        problem = f"MAX_NEW_TOKENS and MAX_NEW_TOKENS_ABOUT go up to {answer:,}"
        raise ValueError(f"{problem}; the model has {positions:,} positions. Lower them.")
    if settings.max_tokens > positions - answer:
        problem = f"MAX_TOKENS is {settings.max_tokens:,}, and answers take up to {answer}"
        need = f"the model has {positions:,} positions. Set MAX_TOKENS to {positions - answer:,}."
        raise ValueError(f"{problem}; {need}")
    return f"positions: {positions:,}, enough for {settings.max_tokens:,} tokens and an answer"


def check_targets(model, targets: str | list[str]) -> str:
    """A line on the layers that get an adapter; ValueError if an adapter beside them fails."""
    names = [targets] if isinstance(targets, str) else targets
    modules = {name.split(".")[-1]: m for name, m in model.named_modules() if _has_weight(m)}
    try:
        if not names or {*names} - {*modules} - {"all-linear"}:
            raise ValueError("a layer is not there")
        try_adapter(model, targets)
    except REFUSALS as error:
        linear = [name for name, m in modules.items() if isinstance(m, torch.nn.Linear | Conv1D)]
        good = [name for name in sorted(linear) if takes_adapter(model, name)]
        need = f"Set it to some of the layers that can have an adapter: {good}."
        reason = one_line(error, 240)
        raise ValueError(f"LORA_TARGETS is {targets!r}, refused: {reason}. {need}") from error
    return f"adapter: beside {', '.join(names)}"


@torch.inference_mode()
def try_adapter(model, targets: str | list[str]) -> None:
    """Error if PEFT refuses an adapter, or if the model does not run or cannot be merged with it.

    An adapter merged into a weight that two layers share would change it for both, or twice.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers_of = Counter(id(module.weight) for module in modules.values() if _has_weight(module))
    adapted = get_peft_model(model, LoraConfig(r=1, target_modules=targets, task_type="CAUSAL_LM"))
    try:
        for name in adapted.targeted_module_names:
            if layers_of[id(modules[name].weight)] > 1:
                raise ValueError(f"{name} shares its weights with another layer")
        adapted(input_ids=torch.arange(1, 9)[None].to(model.device), use_cache=False)
    finally:
        adapted.unload()


def one_line(error: Exception, most: int) -> str:
    """The first `most` characters of an error's words."""
    return " ".join(str(error).split())[:most]


def _has_weight(module) -> bool:
    return isinstance(getattr(module, "weight", None), torch.nn.Parameter)


def takes_adapter(model, name: str) -> bool:
    """Whether the layers of a name can get an adapter."""
    try:
        try_adapter(model, [name])
    except REFUSALS:
        return False
    return True


def check_exact(model, tokenizer, groups: list[dict]) -> tuple[bool, str]:
    """Whether one pass per article is what this model computes for separate rows, and a line on it.

    The losses of each group are compared with those of separate rows, and the first new tokens with
    those of `generate`: for the first group under eager attention, which has all windows, sinks and
    biases, for the others under the one that transformers chooses for this model, which is faster.
    A sliding window shows in a long article alone, whose last question is compared.
    """
    ends, gaps = end_tokens(model.generation_config, tokenizer), []
    ours = model.config._attn_implementation
    try:
        for number, group in enumerate(groups):
            first = number == 0
            plain = "eager" if first else model.get_correct_attn_implementation(None)
            same_tokens, gap = compare_with_rows(model, group, ends, ours, plain, compare_all=first)
            if not same_tokens:
                return False, "one pass: answers differ from generate's, so rows stay separate"
            gaps.append(gap)
    except FAULTS as error:
        reason = one_line(error, 80)
        return False, f"one pass: {type(error).__name__} ({reason}), so rows stay separate"
    finally:
        model.set_attn_implementation(ours)
    worst = torch.stack(gaps).max().item()
    if not worst < LIMIT:
        return False, f"one pass: losses are off by a relative {worst:.0e}, so rows stay separate"
    line = f"one pass per article: same losses as separate rows, up to a relative {worst:.0e}"
    return True, f"{line}, and the same tokens as generate"


def compare_with_rows(
    model, group: dict, ends: list[int], ours: str, plain: str, compare_all: bool
) -> tuple[bool, torch.Tensor]:
    """(same new tokens, largest relative gap of the losses) of one pass and of separate rows.

    ours, plain: the attention of one pass and that of the rows. compare_all: all questions of the
    group are compared, else its last; the first has in one pass what it has in a row of its own.
    """
    compared = len(group["branches"]) if compare_all else 1
    model.set_attn_implementation(ours)
    reading = read_article(model, group)
    nll = torch.tensor([answer.sum() for answer in reading.nll[-compared:]])
    ids = answer_questions(model, [reading], ends, [NEW_TOKENS] * len(group["branches"]))
    model.set_attn_implementation(plain)
    apart = group | {"branches": group["branches"][-compared:]}
    rows, row_ids = answer_apart(model, [apart], ends, [NEW_TOKENS] * compared)
    row_nll = torch.tensor([row["nll"] for row in rows])
    return ids[-compared:] == row_ids, (nll - row_nll).abs().max() / row_nll.mean()


@torch.inference_mode()
def check_rows(model, tokenizer, group: dict) -> None:
    """ValueError if the plain way fails, too: rows side by side, alone, and `generate`."""
    ends, ours = end_tokens(model.generation_config, tokenizer), model.config._attn_implementation
    caps, ids = [NEW_TOKENS] * len(group["branches"]), torch.tensor([group["prefix"][:32]])
    model.set_attn_implementation(model.get_correct_attn_implementation(None))
    try:
        together = reference_nll(model, group, separate_rows)
        alone = torch.tensor([row["nll"] for row in answer_apart(model, [group], ends, caps)[0]])
        whole, cut = (model(input_ids=x.to(model.device)).logits[0] for x in (ids, ids[:, :-1]))
    except FAULTS as error:
        reason = one_line(error, 160)
        problem = f"MODEL cannot score and answer a row: {type(error).__name__} ({reason})"
        raise ValueError(f"{problem}. Use another MODEL.") from error
    finally:
        model.set_attn_implementation(ours)
    if not torch.allclose(whole[:-1], cut, rtol=0, atol=1e-4 * cut.abs().max()):
        raise ValueError("MODEL reads what comes after a token. Need a causal model; use another.")
    if not torch.allclose(together.cpu(), alone.float(), rtol=1e-4):
        problem = "MODEL computes rows of several lengths wrongly when they are padded"
        raise ValueError(
            f"{problem}. Use another MODEL, or set QUESTIONS_PER_STEP to 1 and HELD_OUT to 0."
        )


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


def why_not_saved_pruned(model, group: dict) -> str:
    """ "" if the model without its first or last layer is the same after save and load, else why.

    Some configs count what the layers are (`first_k_dense_replace`), or change the last one.
    """
    layers, lists = list(model.get_decoder().layers), per_layer_lists(model.config)
    group, verbosity = group | {"branches": group["branches"][:1]}, logging.get_verbosity()
    logging.set_verbosity_error()  # it would report each weight that does not fit
    try:
        for kept in (range(1, len(layers)), range(len(layers) - 1)):
            keep_layers(model, layers, lists, kept)
            before = reference_nll(model, group, separate_rows)
            after = reference_nll(loaded_again(model), group, separate_rows)
            if not torch.allclose(before, after, rtol=LIMIT):
                return "its config cannot say which layers are left"
    except FAULTS as error:
        return f"{type(error).__name__} without a layer ({one_line(error, 80)})"
    finally:
        keep_layers(model, layers, lists, range(len(layers)))
        logging.set_verbosity(verbosity)
    return ""


def why_not_int8(model, group: dict) -> str:
    """ "" if the first layer of a model that can be pruned computes in int8 here, else why not."""
    if torch.accelerator.is_available():
        return "it is for CPUs"
    layers, lists = list(model.get_decoder().layers), per_layer_lists(model.config)
    group = group | {"branches": group["branches"][:1]}
    try:
        keep_layers(model, layers, lists, [0])
        nll = reference_nll(to_int8(copy.deepcopy(model)), group, separate_rows)
        return "" if nll.isfinite().all() else "its losses are not finite"
    except FAULTS as error:
        return f"{type(error).__name__} ({one_line(error, 80)})"
    finally:
        keep_layers(model, layers, lists, range(len(layers)))


def loaded_again(model):
    """What loading a saved model would give, its weights taken from memory."""
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        config = type(model.config).from_pretrained(folder)
    options = {"config": config, "state_dict": model.state_dict(), "dtype": model.dtype}
    again = type(model).from_pretrained(None, **options)
    again.set_attn_implementation(model.config._attn_implementation)
    return again.to(model.device).eval()


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
