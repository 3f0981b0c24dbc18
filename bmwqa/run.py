"""A training run: its steps, the Trainer, what it saves, and where it resumes after a kill."""

import gc
import hashlib
import json
import math
import random
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from tqdm import tqdm
from transformers import Trainer, TrainingArguments, set_seed
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_callback import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from bmwqa.corpus import ROOT, read_json
from bmwqa.machine import PeakMemory, hardware_arguments
from bmwqa.models import load_model, save_finished, short_name
from bmwqa.one_pass import answer_loss
from bmwqa.preflight import Preflight
from bmwqa.settings import Settings
from bmwqa_utils import group_by_article


def plan_steps(groups: list[dict], written: set[str], count: int, order: random.Random):
    """The groups of `count` steps: all groups in random order, then all again in a new order.

    groups: of `group_by_article`; written: ids of articles with written questions. Such articles
    and others take turns while both last, so reading is taught even if a corpus has few of them.
    """
    steps = []
    while len(steps) < count:
        shuffled = order.sample(groups, len(groups))
        with_written = [group for group in shuffled if group["article_id"] in written]
        without = [group for group in shuffled if group["article_id"] not in written]
        turns = zip_longest(with_written, without)
        steps += [group for turn in turns for group in turn if group is not None]
    return steps[:count]


def plan_run(rows: list[dict], tokenizer, settings: Settings) -> tuple[list[dict], list[dict]]:
    """(steps, held out): groups of `group_by_article`, the same for all variants.

    steps: a group per step. held out: the groups of the articles that only measure the loss.
    """
    order = random.Random(settings.seed)
    ids = sorted({row["article_id"] for row in rows})
    held_out = set(order.sample(ids, min(settings.held_out, len(ids) - 1)))
    trained_rows = [row for row in rows if row["article_id"] not in held_out]
    held_out_rows = [row for row in rows if row["article_id"] in held_out]
    written = {row["article_id"] for row in trained_rows if row["source"] == "written"}
    groups = group_by_article(trained_rows, tokenizer, settings.questions_per_step)
    steps = plan_steps(groups, written, settings.max_steps, order)
    return steps, group_by_article(held_out_rows, tokenizer)


@dataclass(frozen=True)
class Run:
    """What all variants of a run share."""

    settings: Settings
    used: dict[str, str]  # the base, see `resolve_model`
    tokenizer: object
    dtype: torch.dtype  # of matrix products
    checks: Preflight  # how the model is computed
    steps: list[dict]  # one group of `group_by_article` each
    held_out: list[dict]  # groups
    notes: dict  # kept in each training.json

    def folder(self, variant: str) -> Path:
        """Where a variant ("full_ft", "lora", "pruned_ft") is saved."""
        return ROOT / self.settings.out_dir / f"{short_name(self.used['name'])}_{variant}"


def base_model(run: Run, dtype: torch.dtype = torch.float32):
    """The base, loaded afresh from disk, after the seed was set for all that is drawn next."""
    gc.collect()  # the last Trainer is a circle of references, and still holds its optimizer
    set_seed(run.settings.seed)
    return load_model(run.used["name"], run.used["revision"], dtype, attention=run.checks.attention)


def lora_model(run: Run) -> PeftModel:
    """The frozen base with an adapter beside its layers; the adapter's weights are fp32."""
    settings = run.settings
    options = {"lora_alpha": settings.lora_alpha, "target_modules": settings.lora_targets}
    lora = LoraConfig(r=settings.lora_r, task_type="CAUSAL_LM", **options)
    model = get_peft_model(base_model(run, run.dtype), lora)
    saved = model.peft_config["default"]
    saved.base_model_name_or_path, saved.revision = run.used["name"], run.used["revision"]
    return model


# these change nothing that is learnt, or what they change is in the hash by itself
NOT_IN_HASH = {"model", "revision", "offline_model", "processed_dir", "out_dir", "train_kinds"}
NOT_IN_HASH |= {"max_new_tokens", "max_new_tokens_about", "benchmark", "save_steps", "precision"}
NOT_IN_HASH |= {"learning_rate_full", "learning_rate_lora", "max_tokens"}


def training_arguments(run: Run, variant: str, learning_rate: float) -> TrainingArguments:
    """Steps, rate and checkpoints; the folder's name holds a hash of all that changes a run."""
    settings, stops = run.settings, run.settings.early_stopping is not None
    hashed = [run.used, variant, learning_rate, settings.model_dump(exclude=NOT_IN_HASH)]
    hashed += [str(run.dtype), run.checks.collate.__name__, run.steps, run.held_out]
    mark = hashlib.sha256(json.dumps(hashed).encode()).hexdigest()[:8]
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
        data_collator=lambda batch: run.checks.collate(*batch),
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
    """What training.json says of a variant, after it was trained and saved, whole or not at all.

    A variant that is there with these settings is not trained again. notes: kept in training.json.
    """
    trainer, folder = make_trainer(run, variant, model, learning_rate), run.folder(variant)
    checkpoints = Path(trainer.args.output_dir)
    if folder.is_dir():
        training = read_json(folder / "training.json")
        if training.get("run") == checkpoints.name:
            print(f"{folder.name} was trained with these settings. Delete it to train it again.")
            return training
    # autocast casts the inputs of PEFT's layers, too
    with PeakMemory(model) as peak, disable_input_dtype_casting(model):
        trainer.add_callback(StepReport(run.steps, variant, peak))
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    training = training_record(run, trainer, checkpoints.name) | notes
    save_finished(folder, trainer.model, run.tokenizer, training)
    shutil.rmtree(checkpoints, ignore_errors=True)
    minutes = sum(entry.get("seconds", 0) for entry in trainer.state.log_history) / 60
    print(f"{folder.name}: {minutes:.1f} minutes in steps")
    return training


def training_record(run: Run, trainer: Trainer, name: str) -> dict:
    """training.json, see bmwqa/results.py `Training`; `name`: of the folder of checkpoints."""
    log, steps = trainer.state.log_history, run.steps[: trainer.state.global_step]
    trained = [entry for entry in log if "loss" in entry]
    measured = [entry for entry in log if "eval_loss" in entry]
    return run.notes | {
        "model": run.used,
        "run": name,
        "held_out": [group["article_id"] for group in run.held_out],
        "learning_rate": trainer.args.learning_rate,
        "losses": [entry["loss"] for entry in trained],
        "eval_losses": [{"step": e["step"], "loss": e["eval_loss"]} for e in measured],
        "articles": [group["article_id"] for group in steps],
        "questions": sum(len(group["branches"]) for group in steps),
        "precision": str(run.dtype),
        "seconds_per_step": statistics.median(entry["seconds"] for entry in trained),
        "peak_memory_gb": max(entry["peak_gb"] for entry in trained),
        "trainable_parameters": trainer.get_num_trainable_parameters(),
    }


def checkpoint_above(model, tokens: int) -> None:
    """Turn gradient checkpointing on for batches of more than `tokens` tokens, and off for others.

    A checkpointed layer keeps only its input, and computes the rest again for the gradients. They
    stay the same, with less memory and more time (Chen et al., arXiv 1604.06174).
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    model.activation_checkpointing_enable()

    def choose(model, arguments, inputs):
        for layer in layers:
            layer.gradient_checkpointing = inputs["input_ids"].numel() > tokens

    model.register_forward_pre_hook(choose, with_kwargs=True)


WHOLE = "whole"  # an empty file, written to a checkpoint after all others


class StepReport(TrainerCallback):
    """A bar with step, loss, speed and time left.

    A loss that is not finite is an error, which names step and article. The log of each step gets
    "seconds" and, from a running `PeakMemory`, "peak_gb"; checkpoints keep the log.
    """

    def __init__(self, groups: list[dict], title: str, peak: "PeakMemory | None" = None):
        self.groups, self.title, self.peak = groups, title, peak

    def on_train_begin(self, args, state, control, **kwargs):
        style = {"desc": self.title, "file": sys.stdout, "ncols": 100}
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, **style)

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
            problem = f"the loss is {logs['loss']}. Nothing was saved after it"
            need = "Lower the learning rate, or set PRECISION = 'fp32'."
            where = f"Step {state.global_step}, article {article}"
            raise FloatingPointError(f"{where}: {problem}. {need}")
        peak = self.peak.gb if self.peak else 0.0
        state.log_history[-1] |= {"seconds": self.seconds, "peak_gb": peak}
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_save(self, args, state, control, **kwargs):
        Path(args.output_dir, f"checkpoint-{state.global_step}", WHOLE).touch()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest whole checkpoint of a run, or None; half-written checkpoints are deleted."""
    whole = []
    for checkpoint in Path(folder).glob("checkpoint-*"):
        if (checkpoint / WHOLE).exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None
