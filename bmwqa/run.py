"""A training run: its steps, the Trainer, what it saves, and where it resumes after a kill.

Several processes may train together, see experiments/processes.py: a step is one article in each.
"""

import gc
import hashlib
import json
import math
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from tqdm import tqdm
from transformers import Trainer, TrainingArguments, set_seed
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_callback import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from bmwqa.checkpoints import WHOLE, last_checkpoint, refuse_other_counts, without_count
from bmwqa.corpus import ROOT, read_json
from bmwqa.machine import PeakMemory, hardware_arguments
from bmwqa.models import load_model, save_finished, short_name
from bmwqa.one_pass import answer_loss
from bmwqa.optimizer import optimizer_for
from bmwqa.parallel import processes, require_agreement, similar_lengths
from bmwqa.preflight import Preflight
from bmwqa.pruning import Distillation, prune_layers
from bmwqa.settings import Settings
from bmwqa_utils import IGNORE


def plan_steps(groups: list[dict], written: set[str], count: int, order: random.Random):
    """The groups of `count` steps: all groups in random order, then all again in a new order.

    groups: each with "article_id"; written: ids of articles with written questions. Such articles
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


def plan_run(groups, settings: Settings):
    """(steps, held out), of the dataset that `tokenize_rows` gives; the same for all variants.

    steps: a dataset with a group per step and process. held out: a group per article that only
    measures the loss. ValueError: there are more processes than articles.
    """
    order = random.Random(settings.seed)
    groups = groups.select([place for place, kept in enumerate(groups["branches"]) if kept])
    names, ids = list(groups["article_id"]), sorted(set(groups["article_id"]))
    held_out = set(order.sample(ids, min(settings.held_out, len(ids) - 1)))
    if processes() > (articles := len(ids) - len(held_out)):
        problem = f"There are {processes()} processes and {articles} articles to train on"
        raise ValueError(f"{problem}, need an article for each. Start at most {articles}.")
    written = {name for name, any_is in zip(names, groups["written"], strict=True) if any_is}
    places = [{"article_id": n, "place": i} for i, n in enumerate(names) if n not in held_out]
    steps = plan_steps(places, written - held_out, settings.max_steps * processes(), order)
    groups = groups.select_columns(["article_id", "prefix", "branches"])
    watched = groups.select([place for place, name in enumerate(names) if name in held_out])
    return groups.select([step["place"] for step in steps]), merge_groups(watched)


def merge_groups(groups) -> list[dict]:
    """A group per article, with the branches of all its groups."""
    articles: dict[str, dict] = {}
    for group in groups:
        article = articles.setdefault(group["article_id"], group | {"branches": []})
        article["branches"] += group["branches"]
    return list(articles.values())


@dataclass(frozen=True)
class Run:
    """What all variants of a run share."""

    settings: Settings
    used: dict[str, str]  # the base, see `resolve_model`
    tokenizer: object
    dtype: torch.dtype  # of weights and matrix products; adapters are fp32
    checks: Preflight  # how the model is computed
    steps: Sequence[dict]  # one group of `group_by_article` per step and process
    held_out: list[dict]  # groups
    notes: dict  # kept in each training.json

    def folder(self, variant: str) -> Path:
        """Where a variant ("full_ft", "lora", "pruned_ft") is saved."""
        return ROOT / self.settings.out_dir / f"{short_name(self.used['name'])}_{variant}"


def base_model(run: Run, variant: str | None = None):
    """The base, or a trained variant, loaded afresh from disk, after the seed was set.

    Its weights have the dtype of the matrix products, so that no step casts them.
    """
    gc.collect()  # the last Trainer is a circle of references, and still holds its optimizer
    set_seed(run.settings.seed)
    place = run.folder(variant) if variant else run.used["name"]
    return load_model(place, run.used["revision"], run.dtype, attention=run.checks.attention)


def lora_model(run: Run) -> PeftModel:
    """The frozen base with an adapter beside its layers; the adapter's weights are fp32."""
    settings = run.settings
    options = {"lora_alpha": settings.lora_alpha, "target_modules": settings.lora_targets}
    lora = LoraConfig(r=settings.lora_r, task_type="CAUSAL_LM", **options)
    model = get_peft_model(base_model(run), lora)
    saved = model.peft_config["default"]
    saved.base_model_name_or_path, saved.revision = run.used["name"], run.used["revision"]
    return model


def pruned_model(run: Run, share: float = 0.25) -> tuple:
    """(model, teacher, notes): full without a share of its layers, and full as its teacher.

    The layers are chosen on the two shortest articles of the steps. notes: for training.json.
    """
    model, teacher = base_model(run, "full_ft"), base_model(run, "full_ft")
    groups = {group["article_id"]: group for group in islice(run.steps, run.settings.max_steps)}
    shortest = sorted(groups.values(), key=lambda group: len(group["prefix"]))[:2]
    removed = prune_layers(model, shortest, run.checks.collate, share)
    began_from = read_json(run.folder("full_ft") / "training.json")["run"]
    return model, teacher, {"layers_removed": removed, "began_from": began_from}


SAVE_STEPS = 10  # between checkpoints to go on from; none is kept after the training
# settings that do not change the training, or whose effect is in the hash by itself
NOT_IN_HASH = {"model", "revision", "offline_model", "processed_dir", "out_dir", "train_kinds"}
NOT_IN_HASH |= {"max_new_tokens", "max_new_tokens_about", "benchmark", "precision"}
NOT_IN_HASH |= {"learning_rate_full", "learning_rate_lora", "max_tokens", "report_to"}


def run_name(run: Run, variant: str, learning_rate: float, notes: dict) -> str:
    """The name of a run's folder, which holds a hash of all that changes the run.

    The hash does not depend on the number of processes; a suffix as "-x2" names it.
    """
    settings = run.settings
    hashed = [run.used, variant, learning_rate, settings.model_dump(exclude=NOT_IN_HASH)]
    hashed += [str(run.dtype), run.checks.collate.__name__]
    hashed += [list(islice(run.steps, settings.max_steps)), run.held_out]
    hashed += [notes] if notes else []
    hashed += ["Kahan, dithered"] if run.dtype == torch.bfloat16 and variant != "lora" else []
    mark = hashlib.sha256(json.dumps(hashed).encode()).hexdigest()[:8]
    return f"{run.folder(variant).name}-{mark}" + (f"-x{processes()}" if processes() > 1 else "")


def training_arguments(run: Run, variant: str, learning_rate: float, notes: dict, autocast: bool):
    """The TrainingArguments of a variant; its folder is `run_name`."""
    settings, stops = run.settings, run.settings.early_stopping is not None
    name = run_name(run, variant, learning_rate, notes)
    folder = ROOT / settings.out_dir / "runs"
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "logs" / name)  # checkpoints are deleted
    return TrainingArguments(
        output_dir=str(folder / name),
        report_to=settings.report_to,
        project="bmwqa",
        run_name=name,
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
        save_steps=settings.eval_steps if stops else SAVE_STEPS,
        save_total_limit=2,
        load_best_model_at_end=stops,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        seed=settings.seed,
        **hardware_arguments(autocast),
    )


def step_loss(outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
    """What an article adds to the loss of its step, the mean NLL of all the step's tokens.

    num_items_in_batch: the supervised tokens of all articles in the step. Trainer multiplies the
    result by the processes, and takes the mean over them. A held-out article has its own mean.
    """
    if torch.is_grad_enabled():
        share = (labels != IGNORE).sum() / num_items_in_batch
    else:
        share = 1 / processes()
    return answer_loss(outputs, labels) * share


def make_trainer(run: Run, variant: str, model, rate: float, teacher=None, **notes) -> Trainer:
    """The stock Trainer; ours are the steps, the batch, the loss and an optimizer for bf16."""
    optimizer = optimizer_for(model, rate)
    autocast = run.dtype == torch.bfloat16 and optimizer is None
    arguments = training_arguments(run, variant, rate, notes, autocast)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more GPUs need more processes, a batch is a row
    trainer_class = Trainer if teacher is None else partial(Distillation, teacher=teacher)
    trainer = trainer_class(
        model,
        arguments,
        data_collator=lambda batch: run.checks.collate(*batch),
        train_dataset=similar_lengths(run.steps, processes(), run.settings.seed),
        eval_dataset=run.held_out,
        compute_loss_func=step_loss,
        optimizer_cls_and_kwargs=optimizer,
    )
    trainer._loss_shifts_labels = False  # all labels count: none is of a first token
    trainer.remove_callback(PrinterCallback)
    if run.settings.early_stopping is not None:
        trainer.add_callback(EarlyStoppingCallback(run.settings.early_stopping))
    if run.settings.checkpoint_above is not None:
        checkpoint_above(model, run.settings.checkpoint_above)
    return trainer


def train(run: Run, variant: str, model, rate: float, teacher=None, **notes) -> dict:
    """Train and save a variant, whole or not at all, and give back its training.json.

    A variant that is there with these settings, trained by any number of processes, is not trained
    again. rate: of learning. teacher: a model to learn from, see `Distillation`. notes: kept in
    training.json.
    ValueError: the processes disagree, or other numbers of processes have begun this run.
    """
    trainer = make_trainer(run, variant, model, rate, teacher, **notes)
    checkpoints, folder = Path(trainer.args.output_dir), run.folder(variant)
    with trainer.accelerator.main_process_first():
        checkpoint = last_checkpoint(checkpoints)
    training = read_json(folder / "training.json") if folder.is_dir() else {}
    require_agreement(
        {name.upper(): value for name, value in run.settings.model_dump().items()}
        | {"the run, of rows, model and settings": checkpoints.name, "notes": notes}
        | {"the last checkpoint": checkpoint, f"the model in {folder.name}": training.get("run")}
    )
    if without_count(training.get("run", "")) == without_count(checkpoints.name):
        print(f"{folder.name} was trained with these settings. Delete it to train it again.")
        return training
    refuse_other_counts(checkpoints)
    # autocast casts the inputs of PEFT's layers, too
    models = [model] if teacher is None else [model, teacher]
    with PeakMemory(*models) as peak, disable_input_dtype_casting(model):
        trainer.add_callback(StepReport(trainer.train_dataset, variant, peak))
        trainer.train(resume_from_checkpoint=checkpoint)
    training = training_record(run, trainer, checkpoints.name) | notes
    save_trained(folder, trainer, run.tokenizer, training)
    minutes = sum(entry.get("seconds", 0) for entry in trainer.state.log_history) / 60
    print(f"{folder.name}: {minutes:.1f} minutes in steps")
    return training


def save_trained(folder: Path, trainer: Trainer, tokenizer, training: dict) -> None:
    """Save what was trained and delete its checkpoints, in the main process; the others wait."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled:  # each process has a share of the weights
        weights = trainer.accelerator.get_state_dict(trainer.model)
        for tied in model.all_tied_weights_keys:  # the same as another one
            weights.pop(tied, None)
        model.save_pretrained = partial(model.save_pretrained, state_dict=weights)
    if trainer.is_world_process_zero():
        save_finished(folder, model, tokenizer, training)
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def training_record(run: Run, trainer: Trainer, name: str) -> dict:
    """training.json, see bmwqa/results.py `Training`; `name`: of the folder of checkpoints."""
    count = trainer.state.global_step * processes()
    groups = [trainer.train_dataset[place] for place in range(count)]
    record = {
        "model": run.used,
        "run": name,
        "held_out": [group["article_id"] for group in run.held_out],
        "learning_rate": trainer.args.learning_rate,
        "articles": [group["article_id"] for group in groups],
        "questions": sum(len(group["branches"]) for group in groups),
        "precision": str(run.dtype),
        "trainable_parameters": trainer.get_num_trainable_parameters(),
    }
    return run.notes | record | logged_figures(trainer.state.log_history)


def logged_figures(log: list[dict]) -> dict:
    """The losses of a run, its median seconds per step and its peak memory, from Trainer's log."""
    trained = [entry for entry in log if "loss" in entry]
    measured = [entry for entry in log if "eval_loss" in entry]
    return {
        "losses": [entry["loss"] for entry in trained],
        "eval_losses": [{"step": e["step"], "loss": e["eval_loss"]} for e in measured],
        "seconds_per_step": statistics.median(entry["seconds"] for entry in trained),
        "peak_memory_gb": max(entry["peak_gb"] for entry in trained),
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


class StepReport(TrainerCallback):
    """A bar with step, loss, speed and time left.

    A loss that is not finite is an error, which names step and article. The log of each step gets
    "seconds" and, from a running `PeakMemory`, "peak_gb"; checkpoints keep the log. Of several
    processes, the main one has the bar, and marks a checkpoint when all have written theirs.
    """

    def __init__(self, groups: list[dict], title: str, peak: PeakMemory | None = None):
        self.groups, self.title, self.peak = groups, title, peak

    def on_train_begin(self, args, state, control, **kwargs):
        style = {"desc": self.title, "file": sys.stdout, "ncols": 100}
        style["disable"] = not state.is_world_process_zero
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
            last, count = state.global_step * processes(), processes()
            places = [place % len(self.groups) for place in range(last - count, last)]
            article = ", ".join(self.groups[place]["article_id"] for place in places)
            problem = f"the loss is {logs['loss']}. Nothing was saved after it"
            need = "Lower the learning rate, or set PRECISION = 'fp32'."
            where = f"Step {state.global_step}, article {article}"
            raise FloatingPointError(f"{where}: {problem}. {need}")
        peak = self.peak.gb if self.peak else 0.0
        state.log_history[-1] |= {"seconds": self.seconds, "peak_gb": peak}
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            Path(args.output_dir, f"checkpoint-{state.global_step}", WHOLE).touch()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()
