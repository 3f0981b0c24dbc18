"""Fine-tuning on this CPU: Hugging Face's Trainer, TRL's SFTTrainer and ours, on the same rows.

    python -m experiments.speed                       every section, about 45 minutes on two cores
    python -m experiments.speed --only speed memory   these sections; the others stay as they are
    python -m experiments.speed --quick               a smoke test: the embedded model, one round

`make bench` installs TRL and runs it. A real Trainer does each measurement, in a fresh process.
The ways take turns, round after round, one process at a time. Where time is measured, the learning
rate is 0: the optimizer does all its work, and every way shows its loss on the same weights. The
first article of a process is warm-up and not counted. SmolLM2's tokenizer counts the tokens.

Keys of speed.json, written after every section:
  machine    cpu, cores, memory_gb, versions, date, load (1-minute load at the start: above 0.5
             something else was running)
  rates      fp32, bf16: GFLOP/s, the largest over the models' matrix products
  tokens     separate, shared: of the articles in `speed`, with one row per question, per article
  speed      [model][method][way]: seconds_a_qa (per QA pair, median), spread (min, max), peak_gb,
             ratio (to ours), loss; cpu: the least share of the cores that a round got. Run it again
             if that is far below 0.9: something else was running. Of ours also share: its floating
             point operations per second (`count_flops`), over the bf16 rate
  fp32       [model][method]: the same for "ours" and "hf", all in fp32
  memory     [model][method]["ours", "ours checkpointed"]: as in `speed`, on an article of 2,048
             tokens; checkpointed: with CHECKPOINT_ABOVE of notebook 3 in every step
  attention  [model][method]["ours", "ours in one call"]: as in `speed`, on articles with 12
             questions; in one call: with torch's own kernel under the mask of the whole row
  profile    [model][method]: the operators that take most of our second step, and their share
  evaluation [model]: ours, generate: seconds for perplexity and answers; ratio; same: answers that
             are the same text; questions
  loss       hf, ours: the losses of 20 steps of one QA pair each, in fp32; difference: the largest,
             relative
  questions  [model][method][questions]: seconds per QA pair
  length     [model][method][way][tokens]: seconds per QA pair
"""

import bmwqa_utils as bq  # isort: skip  (first: large pages, see bmwqa/__init__.py)
import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import product
from statistics import fmean, median

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

from bmwqa.answers import Stamps, answer_rows, stream_answer
from bmwqa.machine import PeakMemory, choose_precision, machine
from bmwqa.models import load_model, load_tokenizer
from bmwqa.one_pass import ATTENTION, answer_loss, share_prefix
from bmwqa.run import StepReport, checkpoint_above, optimizer_for
from experiments.speed_page import ARTICLE_TOKENS, HERE, write_page

QWEN, SMOL = "Qwen2.5-0.5B's shape", "smollm2-135m"
ROUNDS = {QWEN: 2, SMOL: 3}
METHODS = ("full", "lora")
LENGTHS = (250, 500, 1000, 2000)  # tokens
LONG_TOKENS = (2048, 4000)  # of the articles that are cut to a length
QUESTIONS = (1, 3, 6, 12)  # per article
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
    "trl bf16": Way("bf16"),
    "trl fp32": Way("fp32"),
    "trl bf16, logits at once": Way("bf16", loss=all_logits_loss),
}
ARGUMENTS = dict(  # of every Trainer
    output_dir=str(bq.ROOT / "runs" / "bench"),
    per_device_train_batch_size=1,
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
    """A model of ROUNDS; Qwen's shape has random weights."""
    torch.manual_seed(0)
    if model_name == QWEN:
        return AutoModelForCausalLM.from_config(QWEN_CONFIG, dtype=dtype)
    return load_model(model_name, dtype=dtype)


def load_for_training(model_name: str, method: str, name: str):
    """The model with its adapter, attention and checkpointing, for a way of WAYS."""
    way = WAYS[name]
    fp32_weights = method == "full" and not name.startswith("ours")
    model = load(model_name, torch.float32 if fp32_weights else way.dtype)
    set_seed(0)
    if method == "lora":
        targets = ["q_proj", "v_proj"]
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    model.set_attn_implementation(way.attention)
    if way.checkpointed:
        checkpoint_above(model, 0)
    return model


def separate_rows(groups: list[dict], warm: int) -> list[dict]:
    """One row per question; of the first `warm` articles only `warm` rows, which are enough."""
    rows = [
        {
            "input_ids": group["prefix"] + branch["input_ids"],
            "labels": [bq.IGNORE] * len(group["prefix"]) + branch["labels"],
        }
        for group in groups
        for branch in group["branches"]
    ]
    return rows[count_pairs(groups[:warm]) - warm :]


def count_pairs(groups: list[dict]) -> int:
    return sum(len(group["branches"]) for group in groups)


def make_trainer(model, way: str, groups: list[dict], warm: int, learning_rate: float) -> Trainer:
    """The Trainer of a way; a step is one article in ours, one row in the others."""
    library, dtype, loss = way.split()[0], WAYS[way].dtype, WAYS[way].loss
    steps, collate = separate_rows(groups, warm), collate_row
    if library == "ours":
        steps, collate = groups, share_prefix
    arguments = ARGUMENTS | dict(max_steps=len(steps), learning_rate=learning_rate)
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


def train(
    model_name: str,
    method: str,
    way: str,
    groups: list[dict],
    warm: int = 1,
    learning_rate: float = 0.0,
    callbacks: tuple[TrainerCallback, ...] = (),
) -> dict:
    """What training on `groups` took: seconds per QA pair, share of the cores, memory, losses.

    "seconds" and "loss" leave out the first `warm` articles.
    """
    model = load_for_training(model_name, method, way)
    trainer = make_trainer(model, way, groups, warm, learning_rate)
    trainer.remove_callback(PrinterCallback)
    for callback in (StepReport(groups, way), *callbacks):
        trainer.add_callback(callback)
    wall, cpu = time.perf_counter(), time.process_time()
    ours = way.startswith("ours")
    with PeakMemory() as peak, disable_input_dtype_casting(model) if ours else nullcontext():
        trainer.train()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses = [entry["loss"] for entry in log]
    return {
        "seconds": sum(entry["seconds"] for entry in log[warm:]) / count_pairs(groups[warm:]),
        "cpu": cpu / wall / torch.get_num_threads(),
        "peak_gb": peak.gb,
        "loss": fmean(losses[warm:]),
        "losses": losses,
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
    """Seconds for perplexity and answers: one reading per article, or the usual way."""
    model, tokenizer = load(model_name, choose_precision()[0]).eval(), load_tokenizer(SMOL)
    model.set_attn_implementation(ATTENTION)
    start = time.perf_counter()
    answers = [row["answer"] for row in answer_rows(model, tokenizer, rows, NEW_TOKENS)]
    ours = time.perf_counter() - start
    model.set_attn_implementation("sdpa")
    start = time.perf_counter()
    usual_answers = [evaluate_question(model, tokenizer, row) for row in rows]
    usual = time.perf_counter() - start
    return {
        "ours": ours,
        "generate": usual,
        "ratio": usual / ours,
        "same": sum(a == b for a, b in zip(answers, usual_answers, strict=True)),
        "questions": len(rows),
    }


@torch.inference_mode()
def evaluate_question(model, tokenizer, row: dict) -> str:
    """The answer, after a forward pass for the loss and a `generate` of its own."""
    model(**collate_row(bq.encode_example(tokenizer, row))).loss.item()
    question = row["context"], row["question"]
    ids = stream_answer(model, tokenizer, *question, NEW_TOKENS, Stamps())
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def matrix_rates() -> dict[str, float]:
    """GFLOP/s in fp32 and bf16, the largest over both models' layers with 1,100 tokens."""
    tokens, shapes = 1100, ((896, 896), (896, 4864), (4864, 896), (576, 1536), (1536, 576))
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    rates = dict.fromkeys(dtypes, 0.0)
    for name, (inputs, outputs) in product(rates, shapes):
        x = torch.randn(tokens, inputs).to(dtypes[name])
        weights = torch.randn(outputs, inputs).to(dtypes[name])
        for _ in range(12):
            start = time.perf_counter()
            x @ weights.t()
            seconds = time.perf_counter() - start
            rates[name] = max(rates[name], 2 * tokens * inputs * outputs / seconds / 1e9)
    return rates


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
    batch, passes = share_prefix(group), 3 if method == "full" else 2
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
    """`train` in a fresh process, and a line about it."""
    run = alone(train, model, method, way, groups)
    figures = f"{run['seconds']:.2f} s per QA pair, cpu {run['cpu']:.2f}"
    say(f"{model}, {method}, {way}, {title}: {figures}")
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
    """The same, encoded; `cut`: the tokens of the article with its longest question and answer."""
    tokenizer, groups = load_tokenizer(SMOL), []
    for rows in article_rows(questions, tokens):
        (group,) = bq.group_by_article(rows, tokenizer)
        if cut:
            longest = max(len(branch["input_ids"]) for branch in group["branches"])
            group["prefix"] = group["prefix"][: max(cut - longest, 1)]
        groups.append(group)
    return groups


def compare(
    model: str,
    method: str,
    ways: list[str],
    groups: list[dict],
    rounds: int,
    bf16_rate: float | None = None,
) -> dict:
    """{way: figures}, the first way ours: the ways take turns, each round on the next of `groups`.

    The first group is for warm-up. Of TRL's ways only the fastest goes on after the first round.
    With bf16_rate, our figures have "share".
    """
    runs = {way: [] for way in ways}
    for number in range(1, rounds + 1):
        articles = [groups[0], groups[number]]
        for way in ways:
            runs[way].append(train_alone(model, method, way, articles, f"round {number}"))
        trl = [way for way in ways if way.startswith("trl")]
        slower = sorted(trl, key=lambda way: runs[way][0]["seconds"])[1:]
        ways = [way for way in ways if way not in slower]
    figures = {way: summarise(way_runs) for way, way_runs in runs.items()}
    ours, *_ = figures.values()
    for entry in figures.values():
        entry["ratio"] = entry["seconds_a_qa"] / ours["seconds_a_qa"]
    if bf16_rate:
        rates = [
            count_flops(model, method, group) / count_pairs([group]) / run["seconds"]
            for group, run in zip(groups[1 : rounds + 1], runs["ours"], strict=True)
        ]
        ours["share"] = median(rates) / 1e9 / bf16_rate
    return figures


def summarise(runs: list[dict]) -> dict:
    seconds = [run["seconds"] for run in runs]
    return {
        "seconds_a_qa": median(seconds),
        "spread": [min(seconds), max(seconds)],
        "cpu": min(run["cpu"] for run in runs),
        "peak_gb": max(run["peak_gb"] for run in runs),
        "loss": fmean(run["loss"] for run in runs),
    }


# --------------------------------------------------------------------------------------------------
# The sections: each gives the value of its key in speed.json


def for_each_method(models: dict, measure: Callable) -> dict:
    """{model: {method: measure(model, method)}}"""
    return {model: {method: measure(model, method) for method in METHODS} for model in models}


def measure_tokens(models: dict, results: dict) -> dict[str, int]:
    groups = article_groups()
    return {
        "separate": sum(len(row["input_ids"]) for row in separate_rows(groups, warm=0)),
        "shared": sum(share_prefix(group)["input_ids"].numel() for group in groups),
    }


def measure_speed(models: dict, results: dict) -> dict:
    def measure(model, method):
        trl = [way for way in WAYS if way.startswith("trl") and (model == SMOL or "bf16" in way)]
        ways, rate = ["ours", "hf fp32", *trl], results["rates"]["bf16"]
        return compare(model, method, ways, article_groups(), models[model], rate)

    return for_each_method(models, measure)


def measure_two(ways: list[str], groups: list[dict], rounds: int, models: dict) -> dict:
    return for_each_method(models, lambda *names: compare(*names, ways, groups, rounds))


def measure_fp32(models: dict, results: dict) -> dict:
    return measure_two(["ours fp32", "hf fp32"], article_groups(), 1, models)


def measure_memory(models: dict, results: dict) -> dict:
    article, *_ = article_groups(tokens=LONG_TOKENS, cut=2048)
    return measure_two(["ours", "ours checkpointed"], [article] * 3, 2, models)


def measure_attention(models: dict, results: dict) -> dict:
    return measure_two(["ours", "ours in one call"], article_groups(12), 2, models)


def measure_profile(models: dict, results: dict) -> dict:
    groups = article_groups()[:2]
    return for_each_method(models, lambda *names: alone(longest_operators, *names, groups))


def measure_evaluation(models: dict, results: dict) -> dict:
    rows = [row for rows in article_rows()[:2] for row in rows]
    return {model: alone(evaluate, model, rows) for model in models}


def measure_loss(models: dict, results: dict) -> dict:
    pairs = [
        group | {"branches": [branch]}
        for group in article_groups(tokens=(100, 1250))
        for branch in group["branches"]
    ]
    options = dict(warm=0, learning_rate=2e-5)
    hf, ours = (
        alone(train, SMOL, "full", way, pairs[:20], **options)["losses"]
        for way in ("hf fp32", "ours fp32")
    )
    difference = max(abs(one - other) / one for one, other in zip(hf, ours, strict=True))
    return {"hf": hf, "ours": ours, "difference": difference}


def measure_questions(models: dict, results: dict) -> dict:
    seconds = for_each_method(models, lambda *names: {})
    articles = article_groups(12)[:2]
    for count, model, method in product(QUESTIONS, models, METHODS):
        groups = [group | {"branches": group["branches"][:count]} for group in articles]
        run = train_alone(model, method, "ours", groups, f"{count} questions")
        seconds[model][method][str(count)] = run["seconds"]
    return seconds


def measure_length(models: dict, results: dict) -> dict:
    """Of the embedded model alone: the other takes too long for every length."""
    ways = ("ours", "hf fp32", "trl bf16")
    seconds = for_each_method({SMOL: 1}, lambda *names: {way: {} for way in ways})
    for tokens in LENGTHS:
        groups = article_groups(tokens=LONG_TOKENS, cut=tokens)[:2]
        for method, way in product(METHODS, ways):
            run = train_alone(SMOL, method, way, groups, f"{tokens} tokens")
            seconds[SMOL][method][way][str(tokens)] = run["seconds"]
    return seconds


SECTIONS = {
    "rates": lambda models, results: alone(matrix_rates),
    "tokens": measure_tokens,
    "speed": measure_speed,
    "memory": measure_memory,
    "attention": measure_attention,
    "profile": measure_profile,
    "evaluation": measure_evaluation,
    "fp32": measure_fp32,
    "loss": measure_loss,
    "questions": measure_questions,
    "length": measure_length,
}


def describe_machine() -> dict:
    here = machine()
    packages = ("python", "torch", "transformers", "peft", "accelerate")
    return {
        "cpu": here["processor"],
        "precision": choose_precision()[1],
        "cores": os.cpu_count(),
        "memory_gb": here["memory_gb"],
        "versions": {name: here[name] for name in packages} | {"trl": version("trl")},
        "date": date.today().isoformat(),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # of the processes that measure
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as experiments/notebooks.py has it
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    quick = "the embedded model, one round; writes speed_quick.json"
    parser.add_argument("--quick", action="store_true", help=quick)
    options = parser.parse_args()
    models = {SMOL: 1} if options.quick else ROUNDS
    path = HERE / ("speed_quick.json" if options.quick else "speed.json")
    results = bq.read_json(path) if path.exists() else {}
    results["machine"] = describe_machine()
    if "rates" not in [*results, *options.only]:
        options.only.insert(0, "rates")
    for name in options.only:
        start = time.perf_counter()
        results[name] = SECTIONS[name](models, results)
        bq.write_json(path, results)
        say(f"{name} took {(time.perf_counter() - start) / 60:.1f} minutes")
    if not options.quick and "speed" in results:
        write_page(results)


if __name__ == "__main__":
    main()
