"""A training run: where it computes, what it shows, where it goes on after a kill, and what it costs (notebook 3)."""

import contextlib
import ctypes
import gc
import math
import platform
import random
import shutil
import sys
import threading
import time
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

import psutil
import torch
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

from bmwqa.one_pass import read_article

# ---------------------------------------------------------------------------------------------------------------------
# Before it: precision, memory, layers


def choose_precision(wanted: str = "auto") -> tuple[torch.dtype, str]:
    """The dtype of matrix products on this machine and one line that says why: "auto", or "bf16" or "fp32" by force."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        fast = device.type != "mps" and torch.cuda.is_bf16_supported(including_emulation=False)
        unit = f"this {device.type} device {'has' if fast else 'has no'} bf16 units"
    else:
        able = [unit for unit in ("amx_bf16", "avx512_bf16") if torch.cpu.get_capabilities().get(unit)]
        fast = bool(able)
        unit = f"this CPU has {able[0]}" if able else "this CPU has no bf16 instructions (amx_bf16 or avx512_bf16)"
    if wanted not in ("auto", "bf16", "fp32"):
        raise ValueError(f'PRECISION is {wanted!r}, need "auto", "bf16" or "fp32".')
    dtype = torch.bfloat16 if wanted == "bf16" or (wanted == "auto" and fast) else torch.float32
    reason = unit if wanted == "auto" else f"PRECISION asks for it; {unit}"
    return dtype, f"Matrix products in {'bf16' if dtype == torch.bfloat16 else 'fp32'}: {reason}."


def hardware_arguments(dtype: torch.dtype) -> dict[str, bool]:
    """What TrainingArguments must be told of this machine, for weights in fp32 and products in `dtype`."""
    return {"use_cpu": not torch.accelerator.is_available(), "bf16": dtype == torch.bfloat16}


def checkpoint_above(model, tokens: int) -> None:
    """Gradient checkpointing, in batches of more than so many tokens and in no others.

    Of a checkpointed layer only the input is kept, and the rest computed again for the gradients (Chen et al., arXiv
    1604.06174): slower, for rows that would not fit into memory. The gradients are the same.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    model.activation_checkpointing_enable()

    def choose(model, arguments, inputs):
        for layer in layers:
            layer.gradient_checkpointing = inputs["input_ids"].numel() > tokens

    model.register_forward_pre_hook(choose, with_kwargs=True)


def prune_layers(model, groups: list[dict], share: float = 0.25) -> list[int]:
    """Cut a block of that share of the decoder layers out of `model`, in place; the numbers of the removed layers.

    Of all blocks that leave the last layer, the one goes without which the answers of `groups` have the lowest NLL:
    perplexity as the measure of a block, as in Kim et al., "Shortened LLaMA", arXiv 2402.02834, section 3.
    """
    decoder = model.get_decoder()
    layers, types = list(decoder.layers), getattr(model.config, "layer_types", None)
    count = max(1, round(len(layers) * share))

    def cut(first: int) -> None:
        kept = [i for i in range(len(layers)) if not first <= i < first + count]
        decoder.layers = torch.nn.ModuleList(layers[i] for i in kept)
        for number, layer in enumerate(decoder.layers):
            layer.self_attn.layer_idx = number
        model.config.num_hidden_layers = len(kept)
        if types:
            model.config.layer_types = [types[i] for i in kept]

    nll = {}
    for first in range(len(layers) - count):
        cut(first)
        nll[first] = sum(score.sum().item() for group in groups for score in read_article(model, group).nll)
    best = min(nll, key=nll.get)
    cut(best)
    return list(range(best, best + count))


def plan_steps(groups: list[dict], written: set[str], count: int, order: random.Random) -> list[dict]:
    """The groups of `count` steps: all in random order, then all again; articles in `written` and others in turn.

    groups: of `group_by_article`; written: ids of articles with written questions. Taking turns matters for a corpus of
    one's own: few steps see little of it, and half of what they see is to teach reading.
    """
    steps = []
    while len(steps) < count:
        shuffled = order.sample(groups, len(groups))
        sides = [[group for group in shuffled if (group["article_id"] in written) == side] for side in (True, False)]
        steps += [group for pair in zip_longest(*sides) for group in pair if group is not None]
    return steps[:count]


# ---------------------------------------------------------------------------------------------------------------------
# During it: its bar, its checkpoints


class StepReport(TrainerCallback):
    """A bar with step, loss, speed and time left; an error that names step and article when a loss is not finite.

    Adds "seconds" and, from a running `PeakMemory`, "peak_gb" to the log of each step, which checkpoints keep.
    """

    def __init__(self, groups: list[dict], title: str, peak: "PeakMemory | None" = None):
        self.groups, self.title, self.peak = groups, title, peak

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, file=sys.stdout, ncols=100)

    def on_step_begin(self, args, state, control, **kwargs):
        self.clock = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.seconds = time.perf_counter() - self.clock

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            article = self.groups[(state.global_step - 1) % len(self.groups)]["article_id"]
            raise FloatingPointError(
                f"Step {state.global_step}, article {article}: the loss is {logs['loss']}. Nothing was saved after it. "
                f"Lower the learning rate, or set PRECISION = 'fp32'."
            )
        state.log_history[-1] |= {"seconds": self.seconds, "peak_gb": self.peak.gb if self.peak else 0.0}
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_save(self, args, state, control, **kwargs):
        Path(args.output_dir, f"checkpoint-{state.global_step}", WHOLE).touch()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


WHOLE = "whole"  # an empty file, the last one written to a checkpoint


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest whole checkpoint of a run, for `resume_from_checkpoint`; what a kill left half written is deleted."""
    whole = []
    for checkpoint in Path(folder).glob("checkpoint-*"):
        if (checkpoint / WHOLE).exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


# ---------------------------------------------------------------------------------------------------------------------
# What it costs


def machine() -> dict:
    """What a figure was measured on: processor, cores, threads, memory, and the versions that matter."""
    return {
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
        "device": str(torch.accelerator.current_accelerator(check_available=True) or "cpu"),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
    } | {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")}


class PeakMemory:
    """`with PeakMemory() as peak: …`, then `peak.gb`: the most memory this process held, looked at every 20 ms.

    On a CUDA device it is the most that torch has held there.
    """

    def __enter__(self):
        gc.collect()
        with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc has it; what an earlier model left behind
            ctypes.CDLL(None).malloc_trim(0)  # is not this one's
        self.gb, self._done = 0.0, threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def _watch(self):
        process = psutil.Process()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        while not self._done.wait(0.02):
            held = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else process.memory_info().rss
            self.gb = max(self.gb, held / 1e9)

    def __exit__(self, *error):
        self._done.set()
        self._watcher.join()
