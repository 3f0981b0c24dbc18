"""Fine-tuning on this CPU: Hugging Face's Trainer, TRL's SFTTrainer and ours, on the same rows.

    python -m experiments.speed                       every section, two hours on two cores
    python -m experiments.speed --only speed memory   these sections; the others stay as they are
    python -m experiments.speed --missing             those that this code and processor lack
    python -m experiments.speed --quick               a smoke test: the embedded model, one round

`make bench` installs TRL and runs it. A real Trainer does each measurement, in a fresh process.
The ways take turns, round after round, one process at a time. A machine's speed may double within
minutes, as its neighbours come and go: a ratio is the median over rounds of two ways in turn.
Where time is measured, the learning rate is 0: the optimizer does all its work. The first step of a
process is warm-up, on the first article that is measured, and not counted. SmolLM2's tokenizer
counts the tokens.
Where other work took more than 5 % of the cores, a measurement is repeated, twice at most.

Keys of speed.json, written after every section:
  stamps     [section]: cpu, device, family, model, stepping, flags, cores, memory_gb, versions,
             date, commit (the last one that changed this code; "+" after it: changed since)
  checks     [section]: measured, repeated, failed: trainings, those that were done again because of
             other work, and those that it disturbed to the end
  rates      fp32, bf16: GFLOP/s, the largest over the models' matrix products; bf16_median: of bf16
             the median over rounds, of the largest over products
  tokens     separate, shared: of the articles in `speed`, with one row per question, per article
  speed      [model][method][way]: seconds (per QA pair, of each round), seconds_a_qa (their
             median), spread (min, max), rounds, ratio (to ours: median, lowest, highest),
             peak_gb; cpu: the least share of the cores; others: the largest share that other
             work took; rates: of matrix products, beside each round. Of ours also share:
             its floating point operations per second (`ways.count_flops`) over that rate, the
             median over rounds.
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
  questions  [model][method][way][questions]: seconds per QA pair, of ours and TRL's three rows a
             batch, or as many as there are; one above ROWS_UP_TO tokens
  length     [model][method][way][tokens]: the same
"""

import bmwqa_utils as bq  # isort: skip  (first: large pages, see bmwqa/__init__.py)
import argparse
import multiprocessing
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import groupby
from operator import mul, truediv
from pathlib import Path
from statistics import median

from bmwqa.machine import machine
from bmwqa.models import load_tokenizer
from bmwqa.one_pass import share_prefix
from experiments.speed_page import (
    ARTICLE_TOKENS,
    HERE,
    OTHERS,
    PEERS,
    fastest,
    what_measured,
    write_page,
)
from experiments.ways import (
    BATCH,
    DEVICE,
    METHODS,
    QWEN,
    SMOL,
    count_flops,
    evaluate,
    first_rows,
    longest_operators,
    rates,
    rows_of_step,
    train,
)

ROUNDS = {QWEN: 5, SMOL: 5}
MAIN = ("full", "lora")
LENGTHS = (250, 500, 1000, 2000, 4000, 8000)  # tokens
LONG_TOKENS = (1200, 4000)  # of the articles that are cut, or repeated, to a length
QUESTIONS = (1, 3, 6, 12, 24)  # per article
MANY = 14

# --------------------------------------------------------------------------------------------------
# Which articles, and whose turn


def alone(function: Callable, *arguments, **options):
    """The value of a function that ran in a fresh process; BrokenProcessPool if that was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.ways"])  # imports once, and has computed nothing
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments, **options).result()


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


CHECKS = Counter()  # of the section that is being measured, see the top


def train_alone(model: str, method: str, way: str, groups: list[dict], title: str) -> dict | None:
    """`train` in a fresh process after a warm-up, repeated while other work disturbs it.

    Of the repeats, the least disturbed one counts. None: the process was killed, for its memory.
    """
    steps, runs = [groups[0], *groups], []
    while len(runs) < 3 and all(run["others"] > OTHERS for run in runs):
        try:
            run = alone(train, model, method, way, steps)
        except BrokenProcessPool:
            return say(f"{model}, {method}, {way}, {title}: was killed, probably for its memory")
        seconds = ", ".join(f"{value:.2f}" for value in run["seconds"])
        figures = f"{seconds} s per QA pair, cpu {run['cpu']:.2f}, others {run['others']:.2f}"
        say(f"{model}, {method}, {way}, {title}: {figures}")
        runs.append(run)
    best = min(runs, key=lambda run: run["others"])
    CHECKS.update(measured=1, repeated=len(runs) - 1, failed=int(best["others"] > OTHERS))
    return best


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

    Only the fastest peer goes on after the first round. A way for which the memory did not do is
    left out.
    """
    runs, left = {way: [] for way in ways}, ways
    for number, group in enumerate(groups[:rounds], start=1):
        for way in left:
            if run := train_alone(model, method, way, [group], f"round {number}"):
                runs[way].append(run)
        peers = [way for way in ways[1:] if len(runs[way]) == number]
        left = [ways[0], *sorted(peers, key=lambda way: runs[way][0]["seconds"])[:1]]
    return {way: summarise(done, runs[ways[0]]) for way, done in runs.items() if done}


def summarise(runs: list[dict], ours: list[dict]) -> dict:
    seconds = [run["seconds"][0] for run in runs]
    ratios = [one / our["seconds"][0] for one, our in zip(seconds, ours, strict=False)]
    return {
        "seconds": seconds,
        "seconds_a_qa": median(seconds),
        "spread": [min(seconds), max(seconds)],
        "rounds": len(runs),
        "ratio": [median(ratios), min(ratios), max(ratios)],
        "rates": [run["rate"] for run in runs],
        "cpu": min(run["cpu"] for run in runs),
        "others": max(run["others"] for run in runs),
        "peak_gb": max(run["peak_gb"] for run in runs),
    }


# --------------------------------------------------------------------------------------------------
# The sections: each gives the value of its key in speed.json


@dataclass(frozen=True)
class Plan:
    models: dict[str, int]  # with their rounds
    methods: tuple[str, ...] = tuple(METHODS)

    def for_each(self, measure: Callable) -> dict:
        """{model: {method: measure(model, method)}}, without the adapter of the mission."""
        methods = [method for method in self.methods if method in MAIN]
        return {model: {m: measure(model, m) for m in methods} for model in self.models}


def measure_tokens(plan: Plan, results: dict) -> dict[str, int]:
    groups = article_groups()
    return {
        "separate": sum(len(row["input_ids"]) for row in first_rows(groups, 3)),
        "shared": sum(share_prefix(group)["input_ids"].numel() for group in groups),
    }


def measure_speed(plan: Plan, results: dict) -> dict:
    """All peers; with the adapter of the mission, only the one that is fastest with ours."""
    groups, figures = article_groups(), {}
    for model, rounds in plan.models.items():
        figures[model] = {}
        for method in plan.methods:
            known = method in MAIN
            peers = PEERS if known else [fastest(figures[model]["lora"])]
            ways = compare(model, method, ["ours", *peers], groups, rounds)
            work = [count_flops(model, method, g) / len(g["branches"]) for g in groups[:rounds]]
            possible = map(mul, ways["ours"]["seconds"], ways["ours"]["rates"])
            ways["ours"]["share"] = median(map(truediv, work, possible)) / 1e9
            figures[model][method] = ways
    return figures


def measure_many(plan: Plan, results: dict) -> dict:
    """Two rounds; TRL on three of the rows, which all have the article in them."""
    groups = article_groups(MANY)
    return plan.for_each(lambda *names: compare(*names, ["ours", BATCH], groups, 2))


def measure_fp32(plan: Plan, results: dict) -> dict:
    ways, groups = ["ours fp32", "hf fp32", "trl fp32", "trl fp32, 3 rows"], article_groups()

    def measure(model, method):
        most, rounds = (4, 2) if model == SMOL else (3, 1)  # the other takes too long
        return compare(model, method, ways[:most], groups, rounds)

    return plan.for_each(measure)


def measure_memory(plan: Plan, results: dict) -> dict:
    ways, groups = ["ours", "ours checkpointed"], article_groups(tokens=LONG_TOKENS, cut=2048)
    return plan.for_each(lambda *names: compare(*names, ways, groups, 1))


def measure_attention(plan: Plan, results: dict) -> dict:
    ways, groups = ["ours", "ours in one call"], article_groups(12)
    return plan.for_each(lambda *names: compare(*names, ways, groups, 1))


def measure_profile(plan: Plan, results: dict) -> dict:
    article, *_ = article_groups()
    groups = [article, article]
    return plan.for_each(lambda *names: alone(longest_operators, *names, groups))


def measure_evaluation(plan: Plan, results: dict) -> dict:
    first, second, *_ = article_rows(12)
    rows = {SMOL: first + second, QWEN: first}
    return {model: alone(evaluate, model, rows[model]) for model in plan.models}


def measure_loss(plan: Plan, results: dict) -> dict:
    pairs = [
        group | {"branches": [branch]}
        for group in article_groups(tokens=(100, 600))
        for branch in group["branches"]
    ]
    hf, ours = (
        alone(train, SMOL, "full", way, pairs[:20], learning_rate=2e-5)["losses"]
        for way in ("hf fp32", "ours fp32")
    )
    difference = max(abs(one - other) / one for one, other in zip(hf, ours, strict=True))
    return {"hf": hf, "ours": ours, "difference": difference}


def grow(plan: Plan, words: str, groups_of: dict[int, dict]) -> dict:
    """[model][method][way][size]: seconds per QA pair, the sizes one after another.

    Of the embedded model alone: the other takes too long for every size.
    """

    def measure(model, method):
        seconds = {"ours": {}, BATCH: {}}
        for way, of_way in seconds.items():
            # a Trainer's batches all have the same number of rows
            rows = {n: way == "ours" or rows_of_step(way, g) for n, g in groups_of.items()}
            for _, sizes in groupby(rows, rows.get):
                groups = {str(size): groups_of[size] for size in sizes}
                title = f"{', '.join(groups)} {words}"
                if run := train_alone(model, method, way, [*groups.values()], title):
                    of_way |= zip(groups, run["seconds"], strict=True)
        return seconds

    return Plan({SMOL: 1}, plan.methods).for_each(measure)


def measure_questions(plan: Plan, results: dict) -> dict:
    """More questions than an article has are those of the next one: their time is the same."""
    group, other, *_ = article_groups(12)
    branches = group["branches"] + other["branches"]
    sizes = {count: group | {"branches": branches[:count]} for count in QUESTIONS}
    return grow(plan, "questions", sizes)


def measure_length(plan: Plan, results: dict) -> dict:
    sizes = {cut: article_groups(tokens=LONG_TOKENS, cut=cut)[0] for cut in LENGTHS}
    return grow(plan, "tokens", sizes)


SECTIONS = {
    "rates": lambda plan, results: alone(rates),
    "tokens": measure_tokens,
    "speed": measure_speed,
    "many": measure_many,
    "evaluation": measure_evaluation,
    "memory": measure_memory,
    "fp32": measure_fp32,
    "loss": measure_loss,
    "profile": measure_profile,
    "length": measure_length,
    "questions": measure_questions,
    "attention": measure_attention,
}
QUICK = ("rates", "tokens", "speed", "questions")
CODE = ("bmwqa", "bmwqa_utils.py", "experiments/speed.py", "experiments/ways.py")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe_machine(*others: str) -> dict:
    """What a section was measured on, and by which code; see `stamps` at the top.

    others: packages whose versions count, too.
    """
    here, cpuinfo = machine(), Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    about = dict(map(str.strip, line.split(":", 1)) for line in reversed(lines) if ":" in line)
    packages = ("python", "torch", "transformers", "peft", "accelerate")
    flags = about.get("flags", "").split()
    return {
        "cpu": about.get("model name", here["processor"]),
        "device": here["device"],
        "family": about.get("cpu family", "unknown"),
        "model": about.get("model", "unknown"),
        "stepping": about.get("stepping", "unknown"),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "memory_gb": here["memory_gb"],
        "versions": {name: here[name] for name in packages} | {n: version(n) for n in others},
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
    parser.add_argument("--only", nargs="+", choices=SECTIONS)
    parser.add_argument("--missing", action="store_true", help="leave out what is there")
    quick = f"{', '.join(QUICK)} of the embedded model with LoRA; writes speed_quick.json"
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser.parse_args()


def main() -> None:
    if DEVICE.type != "cpu":
        raise SystemExit("This measures a CPU; there is a GPU. Run `python -m experiments.gpu`.")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # of the processes that measure
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as experiments/notebooks.py has it
    options = read_options()
    plan = Plan({SMOL: 1}, ("lora", "lora, r 8, q and v")) if options.quick else Plan(ROUNDS)
    path = HERE / ("speed_quick.json" if options.quick else "speed.json")
    results, here = bq.read_json(path) if path.exists() else {}, describe_machine("trl")
    stamps, checks = results.get("stamps", {}), results.get("checks", {})
    # what has no stamp is of the format before this one
    results = {name: value for name, value in results.items() if name in stamps}
    results |= {"stamps": stamps, "checks": checks}
    there = {name for name, stamp in stamps.items() if what_measured(stamp) == what_measured(here)}
    for name in options.only or (QUICK if options.quick else SECTIONS):
        if options.missing and name in there:
            continue
        start = time.perf_counter()
        CHECKS.clear()
        results[name] = SECTIONS[name](plan, results)
        results["stamps"][name], results["checks"][name] = here, dict(CHECKS)
        bq.write_json(path, results)
        say(f"{name} took {(time.perf_counter() - start) / 60:.1f} minutes")
    if not options.quick:
        write_page(results)


if __name__ == "__main__":
    main()
