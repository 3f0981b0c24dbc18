"""Fine-tuning on this CPU: Hugging Face's Trainer, TRL's SFTTrainer and ours, on the same rows.

    python -m experiments.speed                       every section, about an hour on two cores
    python -m experiments.speed --only speed memory   these sections; the others stay as they are
    python -m experiments.speed --missing             those that this code and processor lack
    python -m experiments.speed --quick               a smoke test: the embedded model, one round

`make bench` installs TRL and runs it. A real Trainer does each measurement, in a fresh process.
The ways take turns, round after round, one process at a time. A machine's speed may double within
minutes, as its neighbours come and go: a ratio is the median over rounds of two ways in turn.
Where time is measured, the learning rate is 0: the optimizer does all its work. The first step of a
process is warm-up and not counted. SmolLM2's tokenizer counts the tokens.
Where other work took more than 5 % of the cores, a measurement is repeated, twice at most.

Keys of speed.json, written after every section:
  stamps     [section]: processor, family, model, stepping, flags, cores, memory_gb, versions, date,
             commit (the last one that changed this code; "+" after it: changed since)
  rates      fp32, bf16: GFLOP/s, the largest over the models' matrix products; bf16_median: of bf16
             the median over rounds, of the largest over products
  tokens     separate, shared: of the articles in `speed`, with one row per question, per article
  speed      [model][method][way]: seconds_a_qa (per QA pair, median), spread (min, max), rounds,
             ratio (to ours: median, lowest, highest), peak_gb; cpu: the least share of the cores;
             others: the largest share that other work took; repeats. Of ours also share: its
             floating point operations per second (`count_flops`), over the bf16 rate.
             After the first round, only ours and the fastest peer go on.
  many       [model][method]: the same with 14 questions per article; TRL with three rows a batch
  fp32       [model][method]: the same, all in fp32
  memory     [model][method]["ours", "ours checkpointed"]: as in `speed`, on an article of 2,048
             tokens; checkpointed: with CHECKPOINT_ABOVE of notebook 3 in every step
  attention  [model][method]["ours", "ours in one call"]: as in `speed`, on articles with 12
             questions; in one call: with torch's own kernel under the mask of the whole row
  profile    [model][method]: the operators that take most of our second step, and their share
  evaluation [model]: ours, batched, apart: seconds for perplexity and answers of `questions`, in
             one pass, with 12 prompts a batch, one by one; same: answers that are ours, word for
             word, of batched and apart
  loss       hf, ours: the losses of 20 steps of one QA pair each, in fp32; difference: the largest,
             relative
  questions  [model][method][way][questions]: seconds per QA pair, of ours and the fastest peer
  length     [model][method][way][tokens]: the same
"""

import bmwqa_utils as bq  # isort: skip  (first: large pages, see bmwqa/__init__.py)
import argparse
import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median

import psutil
import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch.nn.functional import cross_entropy
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

from bmwqa.answers import Stamps, answer_rows, end_tokens, stream_answer
from bmwqa.linear import HalvedLinear, multiply, use_all_threads
from bmwqa.machine import PeakMemory, choose_precision, machine
from bmwqa.models import load_model, load_tokenizer
from bmwqa.one_pass import (
    ATTENTION,
    answer_loss,
    pad_left,
    reference_nll,
    separate_rows,
    share_prefix,
)
from bmwqa.run import StepReport, checkpoint_above, optimizer_for
from experiments.speed_page import ARTICLE_TOKENS, HERE, fastest, what_measured, write_page

QWEN, SMOL = "Qwen2.5-0.5B's shape", "smollm2-135m"
ROUNDS = {QWEN: 5, SMOL: 5}
METHODS = {  # the adapter of each
    "full": {},
    "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "lora, r 8, q and v": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
}
MAIN = ("full", "lora")
LENGTHS = (250, 500, 1000, 2000, 4000, 8000)  # tokens
LONG_TOKENS = (1200, 4000)  # of the articles that are cut, or repeated, to a length
QUESTIONS = (1, 3, 6, 12, 24)  # per article
MANY = 14
OTHERS = 0.05  # the share of the cores that other work may take
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

# --------------------------------------------------------------------------------------------------
# The ways to train


def all_logits_loss(outputs, labels, num_items_in_batch=None):
    """The loss of a row from all its logits at once."""
    return cross_entropy(outputs.logits[0, :-1].float(), labels[0, 1:])


@dataclass(frozen=True)
class Way:
    precision: str  # see `choose_precision`
    attention: str = "sdpa"
    loss: Callable | None = None  # None: the Trainer's own
    checkpointed: bool = False
    rows: int = 1  # per step, of the peers

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products and of frozen weights; in ours, of all but the adapter's."""
        return choose_precision(self.precision)[0]


WAYS = {  # the first word says whose Trainer and rows
    "ours": Way("auto", ATTENTION, answer_loss),
    "ours fp32": Way("fp32", ATTENTION, answer_loss),
    "ours checkpointed": Way("auto", ATTENTION, answer_loss, checkpointed=True),
    "ours in one call": Way("auto", loss=answer_loss),
    "hf fp32": Way("fp32"),
    "hf bf16": Way("bf16"),
    "trl bf16": Way("bf16"),
    "trl bf16, 3 rows": Way("bf16", rows=3),
    "trl bf16, logits at once": Way("bf16", loss=all_logits_loss),
    "trl fp32": Way("fp32"),
    "trl fp32, 3 rows": Way("fp32", rows=3),
}
PEERS = [way for way in WAYS if way.startswith("trl bf16") or way.startswith("hf")]
ARGUMENTS = dict(  # of every Trainer
    output_dir=str(bq.ROOT / "runs" / "bench"),
    train_sampling_strategy="sequential",
    gradient_checkpointing=False,
    logging_steps=1,
    save_strategy="no",
    use_cpu=True,
    dataloader_pin_memory=False,
    report_to="none",
    disable_tqdm=True,
)

# --------------------------------------------------------------------------------------------------
# In a fresh process: one model, one way, some articles


def load(model_name: str, dtype: torch.dtype):
    """A model of ROUNDS, as `load_model` gives it; Qwen's shape has random weights."""
    torch.manual_seed(0)
    if model_name == QWEN:
        return use_all_threads(AutoModelForCausalLM.from_config(QWEN_CONFIG, dtype=dtype))
    return load_model(model_name, dtype=dtype)


def load_for_training(model_name: str, method: str, name: str):
    """The model with its adapter, attention and checkpointing, for a way of WAYS."""
    way = WAYS[name]
    fp32_weights = method == "full" and not name.startswith("ours")
    model = load(model_name, torch.float32 if fp32_weights else way.dtype)
    if not name.startswith("ours"):
        for layer in model.modules():
            if isinstance(layer, HalvedLinear):
                layer.__class__ = torch.nn.Linear
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


def count_pairs(groups: list[dict]) -> int:
    return sum(len(group["branches"]) for group in groups)


def make_trainer(model, way: str, groups: list[dict], learning_rate: float) -> Trainer:
    """The Trainer of a way, a step per group.

    A step is an article with all its questions in ours, its first `Way.rows` rows in the others.
    """
    library, dtype, loss, count = way.split()[0], WAYS[way].dtype, WAYS[way].loss, WAYS[way].rows
    steps = groups if library == "ours" else first_rows(groups, count)
    arguments = ARGUMENTS | dict(max_steps=len(groups), learning_rate=learning_rate)
    arguments["per_device_train_batch_size"] = 1 if library == "ours" else count
    optimizer = optimizer_for(model, learning_rate) if library == "ours" else None
    arguments["bf16"] = dtype == torch.bfloat16 and optimizer is None
    if library == "trl":
        from datasets import Dataset  # here, so that no other way has them in its memory
        from trl import SFTConfig, SFTTrainer

        arguments |= dict(max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
        return SFTTrainer(
            model,
            SFTConfig(**arguments),
            train_dataset=Dataset.from_list(steps),
            processing_class=load_tokenizer(SMOL),
            compute_loss_func=loss,
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
    """What training on `groups` took: seconds per QA pair, shares of the cores, memory, losses.

    "seconds" leaves out the first step.
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
    most = None if ours else WAYS[way].rows
    pairs = sum(len(group["branches"][:most]) for group in groups[1:])
    return {
        "seconds": sum(entry["seconds"] for entry in log[1:]) / max(pairs, 1),
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
    train(model_name, method, "ours", groups[:2], callbacks=(profiler,))
    profiler.profile.stop()
    times = {event.key: event.self_cpu_time_total for event in profiler.profile.key_averages()}
    longest = sorted(times, key=times.get, reverse=True)[:10]
    return {name: times[name] / sum(times.values()) for name in longest}


def evaluate(model_name: str, rows: list[dict]) -> dict:
    """Seconds for perplexity and answers: one reading per article, or two usual ways."""
    model, tokenizer = load(model_name, choose_precision()[0]).eval(), load_tokenizer(SMOL)
    seconds, answers = {}, {}
    for name, answer in (("ours", answer_together), ("batched", generate_batched)) * 2:
        model.set_attn_implementation(ATTENTION if name == "ours" else "sdpa")
        start = time.perf_counter()
        answers[name] = answer(model, tokenizer, rows)
        seconds[name] = min(time.perf_counter() - start, seconds.get(name, float("inf")))
    start = time.perf_counter()
    answers["apart"] = [evaluate_question(model, tokenizer, row) for row in rows]
    seconds["apart"] = time.perf_counter() - start
    ways = ("batched", "apart")
    same = {w: sum(map(str.__eq__, answers["ours"], answers[w])) for w in ways}
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
def evaluate_question(model, tokenizer, row: dict) -> str:
    """The answer, after a forward pass for the loss and a `generate` of its own."""
    model(**collate_row(bq.encode_example(tokenizer, row))).loss.item()
    question = row["context"], row["question"]
    ids = stream_answer(model, tokenizer, *question, NEW_TOKENS, Stamps())
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def matrix_rates() -> dict[str, float]:
    """GFLOP/s in fp32 and bf16 of both models' layers with 1,100 tokens, see the top."""
    tokens, shapes = 1100, ((896, 896), (896, 4864), (4864, 896), (576, 1536), (1536, 576))
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    rounds = {name: [0.0] * 40 for name in dtypes}
    for (name, dtype), (inputs, outputs) in product(dtypes.items(), shapes):
        x, weights = (torch.randn(n, inputs).to(dtype) for n in (tokens, outputs))
        for number in range(40):
            start = time.perf_counter()
            multiply(x, weights.t())
            rate = 2 * tokens * inputs * outputs / (time.perf_counter() - start) / 1e9
            rounds[name][number] = max(rounds[name][number], rate)
    rates = {name: max(values) for name, values in rounds.items()}
    return rates | {"bf16_median": median(rounds["bf16"])}


def count_flops(model_name: str, method: str, group: dict) -> float:
    """Floating point operations that our way needs for `group`: a multiply-add is two of them.

    layers: 2 × weights × tokens, times 3 (full: forward, gradients of inputs and weights) or 2
    (LoRA, whose frozen weights need no gradient); head: the same, with the supervised tokens;
    attention: 4 × hidden × pairs of tokens that see each other, times 3.
    """
    qwen = model_name == QWEN
    config = QWEN_CONFIG if qwen else AutoConfig.from_pretrained(bq.ROOT / "models" / model_name)
    hidden, layers = config.hidden_size, config.num_hidden_layers
    key_share = config.num_key_value_heads / config.num_attention_heads
    weights = hidden * hidden * (2 + 2 * key_share) + 3 * hidden * config.intermediate_size
    batch, passes = share_prefix(group), 2 if METHODS[method] else 3
    return (
        2 * passes * layers * weights * batch["input_ids"].shape[1]
        + 2 * passes * config.vocab_size * hidden * len(batch["logits_to_keep"])
        + 4 * 3 * layers * hidden * batch["attention_mask"].sum().item()
    )


# --------------------------------------------------------------------------------------------------
# In the parent: which articles, and whose turn


def alone(function: Callable, *arguments, **options):
    """The value of a function that ran in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments, options)


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def train_alone(model: str, method: str, way: str, groups: list[dict], title: str) -> dict:
    """`train` in a fresh process, again while other work disturbs it, and a line about each."""
    for repeats in range(3):
        run = alone(train, model, method, way, groups) | {"repeats": repeats}
        figures = f"{run['seconds']:.2f} s per QA pair, cpu {run['cpu']:.2f}"
        say(f"{model}, {method}, {way}, {title}: {figures}, others {run['others']:.2f}")
        if run["others"] <= OTHERS:
            break
    return run


def article_rows(questions: int = 3, tokens: tuple[int, int] = ARTICLE_TOKENS) -> list[list[dict]]:
    """The first `questions` rows of each article in data/sample/train that has as many.

    tokens: (fewest, most) of the longest of these rows.
    """
    files = bq.check_corpus(bq.ROOT / "data" / "sample")["train"]
    written = bq.written_pairs([bq.ROOT / "data" / "questions" / "train.jsonl"], files)
    tokenizer, chosen = load_tokenizer(SMOL), []
    for file in files.values():
        rows = list(bq.corpus_rows([file], 42, written))
        lengths = bq.token_lengths(rows[:questions], tokenizer)
        if len(lengths) == questions and tokens[0] <= max(lengths) <= tokens[1]:
            chosen.append(rows[:questions])
    return chosen


def article_groups(
    questions: int = 3, tokens: tuple[int, int] = ARTICLE_TOKENS, cut: int | None = None
) -> list[dict]:
    """The same, encoded; `cut`: the tokens of the article with its longest question and answer.

    An article that is too short for that is repeated.
    """
    tokenizer, groups = load_tokenizer(SMOL), []
    for rows in article_rows(questions, tokens):
        (group,) = bq.group_by_article(rows, tokenizer)
        if cut:
            longest = max(len(branch["input_ids"]) for branch in group["branches"])
            wanted = max(cut - longest, 1)
            group["prefix"] = (group["prefix"] * (wanted // len(group["prefix"]) + 1))[:wanted]
        groups.append(group)
    return groups


def compare(model: str, method: str, ways: list[str], groups: list[dict], rounds: int) -> dict:
    """{way: figures}, the first way ours: the ways take turns, each round on the next of `groups`.

    The first group is for warm-up. Only the fastest peer goes on after the first round.
    """
    runs, left = {way: [] for way in ways}, ways
    for number in range(1, rounds + 1):
        articles = [groups[0], groups[number]]
        for way in left:
            runs[way].append(train_alone(model, method, way, articles, f"round {number}"))
        left = [ways[0], min(ways[1:], key=lambda way: runs[way][0]["seconds"])]
    return {way: summarise(way_runs, runs[ways[0]]) for way, way_runs in runs.items()}


def summarise(runs: list[dict], ours: list[dict]) -> dict:
    seconds = [run["seconds"] for run in runs]
    ratios = [run["seconds"] / our["seconds"] for run, our in zip(runs, ours, strict=False)]
    return {
        "seconds_a_qa": median(seconds),
        "spread": [min(seconds), max(seconds)],
        "rounds": len(runs),
        "ratio": [median(ratios), min(ratios), max(ratios)],
        "cpu": min(run["cpu"] for run in runs),
        "others": max(run["others"] for run in runs),
        "repeats": sum(run["repeats"] for run in runs),
        "peak_gb": max(run["peak_gb"] for run in runs),
    }


# --------------------------------------------------------------------------------------------------
# The sections: each gives the value of its key in speed.json


def for_each_method(models: dict, measure: Callable) -> dict:
    """{model: {method: measure(model, method)}}"""
    return {model: {method: measure(model, method) for method in MAIN} for model in models}


def measure_tokens(models: dict, results: dict) -> dict[str, int]:
    groups = article_groups()
    return {
        "separate": sum(len(row["input_ids"]) for row in first_rows(groups, 3)),
        "shared": sum(share_prefix(group)["input_ids"].numel() for group in groups),
    }


def measure_speed(models: dict, results: dict) -> dict:
    """All peers; with the adapter of the mission, only the one that is fastest with ours."""
    groups, rate, figures = article_groups(), results["rates"]["bf16"], {}
    for model, rounds in models.items():
        figures[model] = {}
        for method in METHODS:
            known = method in MAIN
            peers = PEERS if known else [fastest(figures[model]["lora"])]
            ways = compare(model, method, ["ours", *peers], groups, rounds)
            # a share of the largest rate, so of the fastest round
            flops = count_flops(model, method, groups[1]) / count_pairs(groups[1:2])
            ways["ours"]["share"] = flops / ways["ours"]["spread"][0] / 1e9 / rate
            figures[model][method] = ways
    return figures


def measure_many(models: dict, results: dict) -> dict:
    """Two rounds; TRL on three of the rows, which all have the article in them."""
    ways, groups = ["ours", "trl bf16, 3 rows"], article_groups(MANY, tokens=(900, 1500))
    rounds = min(2, *models.values())
    return for_each_method(models, lambda *names: compare(*names, ways, groups, rounds))


def measure_fp32(models: dict, results: dict) -> dict:
    ways, groups = ["ours fp32", "hf fp32", "trl fp32", "trl fp32, 3 rows"], article_groups()

    def measure(model, method):
        return compare(model, method, ways if model == SMOL else ways[:3], groups, 1)

    return for_each_method(models, measure)


def measure_memory(models: dict, results: dict) -> dict:
    article, *_ = article_groups(tokens=LONG_TOKENS, cut=2048)
    ways, groups = ["ours", "ours checkpointed"], [article] * 3
    rounds = min(2, *models.values())
    return for_each_method(models, lambda *names: compare(*names, ways, groups, rounds))


def measure_attention(models: dict, results: dict) -> dict:
    ways, groups, rounds = ["ours", "ours in one call"], article_groups(12), min(*models.values())
    few = min(2, rounds)
    return for_each_method(models, lambda *names: compare(*names, ways, groups, few))


def measure_profile(models: dict, results: dict) -> dict:
    groups = article_groups()[:2]
    return for_each_method(models, lambda *names: alone(longest_operators, *names, groups))


def measure_evaluation(models: dict, results: dict) -> dict:
    rows = [row for rows in article_rows(12)[:2] for row in rows]
    return {model: alone(evaluate, model, rows) for model in models}


def measure_loss(models: dict, results: dict) -> dict:
    pairs = [
        group | {"branches": [branch]}
        for group in article_groups(tokens=(100, 1250))
        for branch in group["branches"]
    ]
    hf, ours = (
        alone(train, SMOL, "full", way, pairs[:20], learning_rate=2e-5)["losses"]
        for way in ("hf fp32", "ours fp32")
    )
    difference = max(abs(one - other) / one for one, other in zip(hf, ours, strict=True))
    return {"hf": hf, "ours": ours, "difference": difference}


def grow(results: dict, title: str, groups_of: dict[int, list[dict]]) -> dict:
    """[model][method][way][size]: seconds per QA pair, of ours and of the fastest peer.

    Of the embedded model alone: the other takes too long for every size.
    """

    def measure(model, method):
        seconds = {"ours": {}, fastest(results["speed"][model][method]): {}}
        for (size, groups), way in product(groups_of.items(), seconds):
            run = train_alone(model, method, way, groups, f"{size} {title}")
            seconds[way][str(size)] = run["seconds"]
        return seconds

    return for_each_method({SMOL: 1}, measure)


def measure_questions(models: dict, results: dict) -> dict:
    """More questions than an article has are those of the next one: their time is the same."""
    groups = article_groups(12)[:4]
    for group, other in zip(groups[:2], groups[2:], strict=True):
        group["branches"] += other["branches"]
    sizes = {
        count: [group | {"branches": group["branches"][:count]} for group in groups[:2]]
        for count in QUESTIONS
    }
    return grow(results, "questions", sizes)


def measure_length(models: dict, results: dict) -> dict:
    sizes = {cut: article_groups(tokens=LONG_TOKENS, cut=cut)[:2] for cut in LENGTHS}
    return grow(results, "tokens", sizes)


SECTIONS = {
    "rates": lambda models, results: alone(matrix_rates),
    "tokens": measure_tokens,
    "speed": measure_speed,
    "many": measure_many,
    "evaluation": measure_evaluation,
    "memory": measure_memory,
    "fp32": measure_fp32,
    "profile": measure_profile,
    "length": measure_length,
    "questions": measure_questions,
    "loss": measure_loss,
    "attention": measure_attention,
}
CODE = ("bmwqa", "bmwqa_utils.py", "experiments/speed.py")  # what a figure depends on
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe_machine() -> dict:
    """What a section was measured on, and by which code; see `stamps` at the top."""
    here, cpuinfo = machine(), Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    about = dict(map(str.strip, line.split(":", 1)) for line in reversed(lines) if ":" in line)
    packages = ("python", "torch", "transformers", "peft", "accelerate")
    flags = about.get("flags", "").split()
    return {
        "cpu": about.get("model name", here["processor"]),
        "family": about.get("cpu family", "unknown"),
        "model": about.get("model", "unknown"),
        "stepping": about.get("stepping", "unknown"),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "memory_gb": here["memory_gb"],
        "versions": {name: here[name] for name in packages} | {"trl": version("trl")},
        "date": date.today().isoformat(),
        "commit": git("log", "-1", "--format=%h") + ("+" if git("status", "--porcelain") else ""),
    }


def git(*arguments: str) -> str:
    """What git says of CODE, or "unknown"."""
    command = ["git", *arguments, "--", *CODE]
    try:
        done = subprocess.run(command, cwd=bq.ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--missing", action="store_true", help="leave out what is there")
    quick = "the embedded model, one round; writes speed_quick.json"
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser.parse_args()


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # of the processes that measure
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as experiments/notebooks.py has it
    options = read_options()
    models = {SMOL: 1} if options.quick else ROUNDS
    path = HERE / ("speed_quick.json" if options.quick else "speed.json")
    results = bq.read_json(path) if path.exists() else {}
    stamps = results.setdefault("stamps", {})
    here = describe_machine()
    there = {name for name, stamp in stamps.items() if what_measured(stamp) == what_measured(here)}
    for name in options.only:
        if options.missing and name in there:
            continue
        start = time.perf_counter()
        results[name] = SECTIONS[name](models, results)
        stamps[name] = here
        bq.write_json(path, results)
        say(f"{name} took {(time.perf_counter() - start) / 60:.1f} minutes")
    if not options.quick:
        write_page(results)


if __name__ == "__main__":
    main()
