"""A training run: its steps, the Trainer, what it saves, and where it goes on after a kill."""

import gc
import hashlib
import json
import math
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from tqdm import tqdm
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_callback import PrinterCallback

from bmwqa.corpus import ROOT, read_json
from bmwqa.machine import PeakMemory, hardware_arguments
from bmwqa.models import load_model, save_finished, short_name
from bmwqa.one_pass import answer_loss, read_article
from bmwqa.settings import Settings
from bmwqa_utils import group_by_article

# --------------------------------------------------------------------------------------------------
# Which steps


def plan_steps(groups: list[dict], written: set[str], count: int, order: random.Random):
    """The groups of `count` steps: all groups in random order, then all of them again.

    groups: of `group_by_article`; written: ids of articles with written questions. These and the
    others take turns: with a corpus of one's own, half of the steps are there to teach reading.
    """
    steps = []
    while len(steps) < count:
        shuffled = order.sample(groups, len(groups))
        sides = ([g for g in shuffled if (g["article_id"] in written) == side] for side in (1, 0))
        steps += [group for pair in zip_longest(*sides) for group in pair if group is not None]
    return steps[:count]


def plan_run(rows: list[dict], tokenizer, settings: Settings) -> tuple[list[dict], list[dict]]:
    """(steps, held out): the groups of `group_by_article` that are trained on, one per step, and
    those of the articles that are held out to measure the loss on. All variants get the same."""
    order = random.Random(settings.seed)
    names = sorted({row["article_id"] for row in rows})
    held_out = set(order.sample(names, min(settings.held_out, len(names) - 1)))
    kept = [row for row in rows if row["article_id"] not in held_out]
    written = {row["article_id"] for row in kept if row["source"] == "written"}
    groups = group_by_article(kept, tokenizer, settings.questions_per_step)
    watched = group_by_article([row for row in rows if row["article_id"] in held_out], tokenizer)
    return plan_steps(groups, written, settings.max_steps, order), watched


@dataclass(frozen=True)
class Run:
    """What all variants of a run share."""

    settings: Settings
    used: dict[str, str]  # the base, see `resolve_model`
    tokenizer: object
    dtype: torch.dtype  # of matrix products
    collate: Callable  # of `choose_collator`
    steps: list[dict]  # one group of `group_by_article` each
    held_out: list[dict]  # groups
    notes: dict  # kept in each training.json

    def folder(self, variant: str) -> Path:
        """Where a variant ("full_ft", "lora", "pruned_ft") is saved."""
        return ROOT / self.settings.out_dir / f"{short_name(self.used['name'])}_{variant}"


# --------------------------------------------------------------------------------------------------
# Training


def base_model(run: Run, dtype: torch.dtype = torch.float32):
    """The base, loaded afresh from disk, with the seed set for whatever is drawn next."""
    gc.collect()  # the last Trainer is a circle of references, and still holds its optimizer
    set_seed(run.settings.seed)
    return load_model(run.used["name"], run.used["revision"], dtype)


def lora_model(run: Run) -> PeftModel:
    """The base, frozen, and beside its layers the adapter, whose weights are fp32."""
    settings = run.settings
    lora = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        target_modules=settings.lora_targets,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base_model(run, run.dtype), lora)
    saved = model.peft_config["default"]
    saved.base_model_name_or_path, saved.revision = run.used["name"], run.used["revision"]
    return model


# changing these changes nothing, or a thing that is in the hash by itself
NOT_IN_HASH = {"model", "revision", "offline_model", "processed_dir", "out_dir", "train_kinds"}
NOT_IN_HASH |= {"max_new_tokens", "max_new_tokens_about", "benchmark", "save_steps", "precision"}
NOT_IN_HASH |= {"learning_rate_full", "learning_rate_lora", "max_tokens"}


def training_arguments(run: Run, variant: str, learning_rate: float) -> TrainingArguments:
    """Steps, rate, checkpoints; a hash of all that matters is part of the name of the folder."""
    settings, stops = run.settings, run.settings.early_stopping is not None
    matters = [run.used, variant, learning_rate, settings.model_dump(exclude=NOT_IN_HASH)]
    matters += [str(run.dtype), run.collate.__name__, run.steps, run.held_out]
    mark = hashlib.sha256(json.dumps(matters).encode()).hexdigest()[:8]
    return TrainingArguments(
        output_dir=str(ROOT / settings.out_dir / "runs" / f"{run.folder(variant).name}-{mark}"),
        max_steps=settings.max_steps,
        learning_rate=learning_rate,
        warmup_steps=settings.warmup_steps,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if run.held_out else "no",
        eval_steps=settings.eval_steps,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=settings.eval_steps if stops else settings.save_steps,
        save_total_limit=2,
        load_best_model_at_end=stops,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        seed=settings.seed,
        **hardware_arguments(run.dtype),
    )


def make_trainer(run: Run, variant: str, model, learning_rate: float) -> Trainer:
    """The stock Trainer; ours are the order of the steps, the batch and the loss."""
    trainer = Trainer(
        model,
        training_arguments(run, variant, learning_rate),
        data_collator=lambda batch: run.collate(*batch),
        train_dataset=run.steps,
        eval_dataset=run.held_out,
        compute_loss_func=answer_loss,
    )
    trainer.remove_callback(PrinterCallback)
    if run.settings.early_stopping is not None:
        trainer.add_callback(EarlyStoppingCallback(run.settings.early_stopping))
    if run.settings.checkpoint_above is not None:
        checkpoint_above(model, run.settings.checkpoint_above)
    return trainer


def train(run: Run, variant: str, model, learning_rate: float, **notes) -> dict:
    """Train to the variant's folder, whole or not at all; what its training.json says.

    notes: kept in training.json. Not trained again: a variant that is there with these settings.
    """
    trainer, folder = make_trainer(run, variant, model, learning_rate), run.folder(variant)
    place = Path(trainer.args.output_dir)
    if folder.is_dir():
        training = read_json(folder / "training.json")
        if training.get("run") == place.name:
            print(f"{folder.name} was trained with these settings. Delete it to train it again.")
            return training
    with (
        PeakMemory(model) as peak,
        disable_input_dtype_casting(model),
    ):  # autocast casts for PEFT, too
        trainer.add_callback(StepReport(run.steps, variant, peak))
        trainer.train(resume_from_checkpoint=last_checkpoint(place))
    training = training_record(run, trainer, place.name) | notes
    save_finished(folder, trainer.model, run.tokenizer, training)
    shutil.rmtree(place, ignore_errors=True)
    minutes = sum(entry.get("seconds", 0) for entry in trainer.state.log_history) / 60
    print(f"{folder.name}: {minutes:.1f} minutes in steps")
    return training


def training_record(run: Run, trainer: Trainer, name: str) -> dict:
    """training.json, see bmwqa/results.py `Training`."""
    log, steps = trainer.state.log_history, run.steps[: trainer.state.global_step]
    trained = [entry for entry in log if "loss" in entry]
    watched = [entry for entry in log if "eval_loss" in entry]
    return run.notes | {
        "model": run.used,
        "run": name,
        "held_out": [group["article_id"] for group in run.held_out],
        "learning_rate": trainer.args.learning_rate,
        "losses": [entry["loss"] for entry in trained],
        "eval_losses": [{"step": e["step"], "loss": e["eval_loss"]} for e in watched],
        "articles": [group["article_id"] for group in steps],
        "questions": sum(len(group["branches"]) for group in steps),
        "precision": str(run.dtype),
        "seconds_per_step": statistics.median(entry["seconds"] for entry in trained),
        "peak_memory_gb": max(entry["peak_gb"] for entry in trained),
        "trainable_parameters": trainer.get_num_trainable_parameters(),
    }


def checkpoint_above(model, tokens: int) -> None:
    """Turn gradient checkpointing on in batches of more than so many tokens, and off in others.

    A checkpointed layer keeps only its input, and computes the rest again for the gradients, which
    stay the same (Chen et al., arXiv 1604.06174): less memory, more time.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    model.activation_checkpointing_enable()

    def choose(model, arguments, inputs):
        for layer in layers:
            layer.gradient_checkpointing = inputs["input_ids"].numel() > tokens

    model.register_forward_pre_hook(choose, with_kwargs=True)


def prune_layers(model, groups: list[dict], share: float = 0.25) -> list[int]:
    """The numbers of the decoder layers that were cut out of `model`, in place: a block in a row.

    share: of the layers. Of all blocks that leave the last layer, the one is cut without which the
    answers of `groups` have the lowest NLL (Kim et al., "Shortened LLaMA", arXiv 2402.02834,
    section 3).
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
        readings = [read_article(model, group) for group in groups]
        nll[first] = sum(answer.sum().item() for reading in readings for answer in reading.nll)
    best = min(nll, key=nll.get)
    cut(best)
    return list(range(best, best + count))


# --------------------------------------------------------------------------------------------------
# During it: its bar, its checkpoints


class StepReport(TrainerCallback):
    """A bar with step, loss, speed and time left.

    A loss that is not finite is an error, which names step and article. The log of each step gets
    "seconds" and, from a running `PeakMemory`, "peak_gb"; checkpoints keep the log.
    """

    def __init__(self, groups: list[dict], title: str, peak: "PeakMemory | None" = None):
        self.groups, self.title, self.peak = groups, title, peak

    def on_train_begin(self, args, state, control, **kwargs):
        place = {"file": sys.stdout, "ncols": 100}
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, **place)

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
                f"Step {state.global_step}, article {article}: the loss is {logs['loss']}. Nothing "
                f"was saved after it. Lower the learning rate, or set PRECISION = 'fp32'."
            )
        peak = self.peak.gb if self.peak else 0.0
        state.log_history[-1] |= {"seconds": self.seconds, "peak_gb": peak}
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_save(self, args, state, control, **kwargs):
        Path(args.output_dir, f"checkpoint-{state.global_step}", WHOLE).touch()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


WHOLE = "whole"  # an empty file, the last one written to a checkpoint


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest whole checkpoint of a run, for `resume_from_checkpoint`; None if there is none.

    A checkpoint that a kill has left half written is deleted.
    """
    whole = []
    for checkpoint in Path(folder).glob("checkpoint-*"):
        if (checkpoint / WHOLE).exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None
