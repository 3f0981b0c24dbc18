"""The ways to train and to answer that experiments/speed.py compares, on one model and articles.

The first word of a way says whose Trainer it is: ours, Hugging Face's ("hf") or TRL's. All take
the same articles; ours all their questions in a step, a peer's one or several of them.
"""

import bmwqa_utils as bq  # isort: skip  (first: large pages, see bmwqa/__init__.py)
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median

import psutil
import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Qwen2Config,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from bmwqa.activations import keep_less
from bmwqa.answers import Stamps, answer_rows, end_tokens, stream_answer
from bmwqa.linear import multiply, use_all_threads
from bmwqa.machine import PeakMemory, choose_precision, hardware_arguments, this_device
from bmwqa.models import load_model, load_tokenizer
from bmwqa.one_pass import (
    ATTENTION,
    answer_loss,
    pad_left,
    reference_nll,
    separate_rows,
    share_prefix,
)
from bmwqa.optimizer import optimizer_for
from bmwqa.run import StepReport, checkpoint_above
from experiments.speed_page import SHOWN

QWEN, SMOL = "Qwen2.5-0.5B's shape", SHOWN
FOLDER = bq.ROOT / "models" / SMOL
DEVICE = this_device()
METHODS = {  # the adapter of each
    "full": {},
    "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "lora, r 8, q and v": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
}
ROWS_UP_TO = 2000  # tokens: of longer articles, a peer takes one row, or memory would not do
BATCH, LARGE_BATCH = "trl bf16, 3 rows", "trl bf16, 14 rows"
NEW_TOKENS = 32  # per answer in the evaluation
QWEN_CONFIG = Qwen2Config(
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    max_position_embeddings=32768,
    tie_word_embeddings=True,
    rms_norm_eps=1e-6,
)


@dataclass(frozen=True)
class Way:
    precision: str  # see `choose_precision`
    attention: str = "sdpa"
    loss: Callable | None = None  # None: the Trainer's own
    checkpointed: bool = False
    rows: int = 1  # per step, of the peers
    at_once: bool = False  # the loss from all logits, as Trainer has it; TRL's own is in chunks

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products and of frozen weights; in ours, of all weights but the adapter's."""
        return choose_precision(self.precision)[0]


WAYS = {
    "ours": Way("auto", ATTENTION, answer_loss),
    "ours fp32": Way("fp32", ATTENTION, answer_loss),
    "ours checkpointed": Way("auto", ATTENTION, answer_loss, checkpointed=True),
    "ours in one call": Way("auto", loss=answer_loss),
    "hf fp32": Way("fp32"),
    "hf bf16": Way("bf16"),
    "trl bf16": Way("bf16"),
    BATCH: Way("bf16", rows=3),
    LARGE_BATCH: Way("bf16", rows=14),  # of a GPU alone
    "trl bf16, logits at once": Way("bf16", at_once=True),
    "trl fp32": Way("fp32"),
    "trl fp32, 3 rows": Way("fp32", rows=3),
}
ARGUMENTS = dict(  # of every Trainer
    output_dir=str(bq.ROOT / "runs" / "bench"),
    train_sampling_strategy="sequential",
    gradient_checkpointing=False,
    logging_steps=1,
    save_strategy="no",
    dataloader_pin_memory=False,
    report_to="none",
    disable_tqdm=True,
    **hardware_arguments(),
)

# --------------------------------------------------------------------------------------------------
# One model, one way, some articles


def load(model_name: str, dtype: torch.dtype, ours: bool = True):
    """QWEN, with random weights, or SMOL; with our layers, or with those of transformers."""
    torch.manual_seed(0)
    if model_name == QWEN:
        with DEVICE:
            model = AutoModelForCausalLM.from_config(QWEN_CONFIG, dtype=dtype)
        return keep_less(use_all_threads(model)) if ours else model
    model = load_model(model_name, dtype=dtype)  # its folder is there from now on
    return model if ours else AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype)


def load_for_training(model_name: str, method: str, name: str):
    """The model with its adapter, attention and checkpointing, for a way of WAYS."""
    way, ours = WAYS[name], name.startswith("ours")
    model = load(model_name, way.dtype if ours or method != "full" else torch.float32, ours)
    set_seed(0)
    if adapter := METHODS[method]:
        model = get_peft_model(model, LoraConfig(**adapter, task_type="CAUSAL_LM"))
    model.set_attn_implementation(way.attention)
    if way.checkpointed:
        checkpoint_above(model, 0)
    return model


def first_rows(groups: list[dict], count: int) -> list[dict]:
    """The rows of the first `count` questions of each group, one row per question."""
    return [
        {
            "input_ids": group["prefix"] + branch["input_ids"],
            "labels": [bq.IGNORE] * len(group["prefix"]) + branch["labels"],
        }
        for group in groups
        for branch in group["branches"][:count]
    ]


def rows_of_step(way: str, group: dict) -> int:
    """How many questions of an article a step takes."""
    there, most = len(group["branches"]), WAYS[way].rows
    if way.startswith("ours"):
        return there
    return min(there, most) if len(group["prefix"]) <= ROWS_UP_TO else 1


def make_trainer(model, way: str, groups: list[dict], learning_rate: float) -> Trainer:
    """The Trainer of a way, a step per group, each of `rows_of_step` questions."""
    library, dtype, loss = way.split()[0], WAYS[way].dtype, WAYS[way].loss
    count = 1 if library == "ours" else rows_of_step(way, groups[-1])  # the same in all groups
    steps = groups if library == "ours" else first_rows(groups, count)
    arguments = ARGUMENTS | dict(max_steps=len(groups), learning_rate=learning_rate)
    arguments["per_device_train_batch_size"] = count
    optimizer = optimizer_for(model, learning_rate) if library == "ours" else None
    arguments["bf16"] = dtype == torch.bfloat16 and optimizer is None
    if library == "trl":
        from datasets import Dataset  # here, so that no other way has them in its memory
        from trl import SFTConfig, SFTTrainer

        # a loss function instead would have TRL compute every row twice, once for its metrics
        at_once = {"compute_loss": Trainer.compute_loss} if WAYS[way].at_once else {}
        arguments |= dict(max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
        return type("Peer", (SFTTrainer,), at_once)(
            model,
            SFTConfig(**arguments),
            train_dataset=Dataset.from_list(steps),
            processing_class=load_tokenizer(SMOL),
        )
    collate = share_prefix if library == "ours" else collate_row
    return Trainer(
        model,
        TrainingArguments(**arguments, remove_unused_columns=False),
        train_dataset=steps,
        data_collator=lambda batch: collate(*batch),
        compute_loss_func=loss,
        optimizer_cls_and_kwargs=optimizer,
    )


def collate_row(row: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([ids]) for key, ids in row.items()}


def busy_seconds() -> float:
    """CPU time that the whole machine has spent, or that its host has taken away."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0)


def train(
    model_name: str,
    method: str,
    way: str,
    groups: list[dict],
    learning_rate: float = 0.0,
    callbacks: tuple[TrainerCallback, ...] = (),
) -> dict:
    """What training on `groups` took: seconds, shares of the cores, memory, losses.

    "seconds": per QA pair, of every step but the first. "rate": of matrix products in the
    same dtype, GFLOP/s, just after: before, it would leave memory that the steps use no more.
    """
    model = load_for_training(model_name, method, way)
    trainer = make_trainer(model, way, groups, learning_rate)
    trainer.remove_callback(PrinterCallback)
    for callback in (StepReport(groups, way), *callbacks):
        trainer.add_callback(callback)
    wall, cpu, busy = time.perf_counter(), time.process_time(), busy_seconds()
    ours = way.startswith("ours")
    with PeakMemory() as peak, disable_input_dtype_casting(model) if ours else nullcontext():
        trainer.train()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    pairs = [rows_of_step(way, group) for group in groups]
    return {
        "seconds": [e["seconds"] / n for e, n in zip(log[1:], pairs[1:], strict=True)],
        "rate": max(matrix_rates(WAYS[way].dtype)),
        "cpu": cpu / wall / torch.get_num_threads(),
        "others": max(busy_seconds() - busy - cpu, 0) / wall / os.cpu_count(),
        "peak_gb": peak.gb,
        "losses": [entry["loss"] for entry in log],
    }


class ProfileSecondStep(TrainerCallback):
    """A profile of what follows the first step, which also makes the optimizer's state."""

    def __init__(self):
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.profile.start()


def longest_operators(model_name: str, method: str, groups: list[dict]) -> dict[str, float]:
    """The ten operators that take most of our second step's time, with their share of it."""
    profiler = ProfileSecondStep()
    train(model_name, method, "ours", groups, callbacks=(profiler,))
    profiler.profile.stop()
    times = {event.key: event.self_cpu_time_total for event in profiler.profile.key_averages()}
    longest = sorted(times, key=times.get, reverse=True)[:10]
    return {name: times[name] / sum(times.values()) for name in longest}


def evaluate(model_name: str, rows: list[dict]) -> dict:
    """Seconds for perplexity and answers: one reading per article, or two usual ways.

    Each begins with an answer that is not counted.
    """
    model, tokenizer = load(model_name, choose_precision()[0]).eval(), load_tokenizer(SMOL)
    ways = {"ours": answer_together, "batched": generate_batched, "apart": generate_apart}
    seconds, answers = {}, {}
    for name, answer in ways.items():
        model.set_attn_implementation(ATTENTION if name == "ours" else "sdpa")
        answer(model, tokenizer, rows[:1])
        start = time.perf_counter()
        answers[name] = answer(model, tokenizer, rows)
        seconds[name] = time.perf_counter() - start
    same = {w: sum(map(str.__eq__, answers["ours"], answers[w])) for w in ("batched", "apart")}
    return seconds | {"same": same, "questions": len(rows)}


def answer_together(model, tokenizer, rows: list[dict]) -> list[str]:
    return [row["answer"] for row in answer_rows(model, tokenizer, rows, NEW_TOKENS)]


@torch.inference_mode()
def generate_batched(model, tokenizer, rows: list[dict]) -> list[str]:
    """The answers of the stock `generate`, after a forward pass for the losses; 12 rows a batch."""
    ends, answers = end_tokens(model.generation_config, tokenizer), []
    for start in range(0, len(rows), 12):
        batch = rows[start : start + 12]
        for group in bq.group_by_article(batch, tokenizer):
            reference_nll(model, group, separate_rows)
        prompts = [bq.prompt_ids(tokenizer, row["context"], row["question"]) for row in batch]
        ids, mask = pad_left(prompts)
        options = dict(do_sample=False, max_new_tokens=NEW_TOKENS, repetition_penalty=1.0)
        options |= dict(eos_token_id=ends, pad_token_id=ends[0])
        output = model.generate(input_ids=ids, attention_mask=mask, **options)
        new = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        answers += [text.strip() for text in new]
    return answers


@torch.inference_mode()
def generate_apart(model, tokenizer, rows: list[dict]) -> list[str]:
    """The answers, each after a forward pass for the loss and with a `generate` of its own."""
    answers = []
    for row in rows:
        model(**collate_row(bq.encode_example(tokenizer, row))).loss.item()
        question = row["context"], row["question"]
        ids = stream_answer(model, tokenizer, *question, NEW_TOKENS, Stamps())
        answers.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    return answers


def matrix_rates(dtype: torch.dtype) -> list[float]:
    """GFLOP/s of the fastest product of both models' layers with 1,100 tokens, in 40 rounds."""
    tokens, shapes = 1100, ((896, 896), (896, 4864), (4864, 896), (576, 1536), (1536, 576))
    rounds = [0.0] * 40
    for inputs, outputs in shapes:
        x, weights = (torch.randn(n, inputs).to(DEVICE, dtype) for n in (tokens, outputs))
        for number, fastest in enumerate(rounds):
            start = time.perf_counter()
            multiply(x, weights.t())
            torch.get_device_module(DEVICE).synchronize()
            rate = 2 * tokens * inputs * outputs / (time.perf_counter() - start) / 1e9
            rounds[number] = max(fastest, rate)
    return rounds


def rates() -> dict[str, float]:
    """`rates` in speed.py."""
    fp32, bf16 = matrix_rates(torch.float32), matrix_rates(torch.bfloat16)
    return {"fp32": max(fp32), "bf16": max(bf16), "bf16_median": median(bf16)}


def count_flops(model_name: str, method: str, group: dict) -> float:
    """Floating point operations that our way needs for `group`: a multiply-add is two of them.

    layers: 2 × weights × tokens, times 3 (full: forward, gradients of inputs and weights) or 2
    (LoRA, whose frozen weights need no gradient); head: the same, with the supervised tokens;
    attention: 4 × hidden × pairs of tokens that see each other, times 3.
    """
    qwen = model_name == QWEN
    config = QWEN_CONFIG if qwen else AutoConfig.from_pretrained(FOLDER)
    hidden, layers = config.hidden_size, config.num_hidden_layers
    key_share = config.num_key_value_heads / config.num_attention_heads
    weights = hidden * hidden * (2 + 2 * key_share) + 3 * hidden * config.intermediate_size
    batch, passes = share_prefix(group), 2 if METHODS[method] else 3
    return (
        2 * passes * layers * weights * batch["input_ids"].shape[1]
        + 2 * passes * config.vocab_size * hidden * len(batch["logits_to_keep"])
        + 4 * 3 * layers * hidden * batch["attention_mask"].sum().item()
    )
