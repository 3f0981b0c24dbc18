"""How far notebooks 2 and 3 reach: `python -m experiments.scale` measures, and reckons the rest.

The sample's training articles are repeated under new ids. Notebook 2's own cells make the rows, and
`tokenize_rows` reads, filters and tokenizes them for training; each in a fresh process. "3": three
questions by rule on each article, and the sample's written ones; "all": those on every copy, too.
Sizes as arguments do those alone, as `100000:3`. Writes experiments/scale.json and .png, and a
section of experiments/README.md. Scratch files lie in runs/scale and are deleted.
"""

import json
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import matplotlib
import nbformat
import pandas as pd

import bmwqa_utils as bq
from bmwqa.corpus import ROOT
from bmwqa.report import markdown_table, page_with
from experiments.notebooks import PAIRS, RUNS, tagged

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE, SCRATCH = ROOT / "experiments", RUNS / "scale"
PAGE, RESULTS = HERE / "README.md", HERE / "scale.json"
SIZES = ("1000:3", "10000:3", "100000:3", "1000:all", "10000:all")
SAMPLE, QUESTIONS = ROOT / "data/sample", ROOT / "data/questions/train.jsonl"

# --------------------------------------------------------------------------------------------------
# What is measured


def copies(articles: int) -> list[tuple[str, str]]:
    """(new id, id) for `articles` copies of the sample's training articles."""
    ids = [path.stem for path in sorted((SAMPLE / "train").glob("*.json"))]
    return [(f"T{number:07}EN", ids[number % len(ids)]) for number in range(articles)]


def write_corpus(articles: int) -> None:
    """The copies as a corpus folder; each text ends with its id, so that no two are the same."""
    shutil.copytree(SAMPLE / "eval", SCRATCH / "corpus/eval")
    (SCRATCH / "corpus/train").mkdir()
    sample = {article["id"]: article for article in bq.load_articles(SAMPLE / "train")}
    for new, old in copies(articles):
        article = sample[old] | {"id": new, "text": f"{sample[old]['text']}\n\n{new}"}
        path = SCRATCH / "corpus/train" / f"{new}.json"
        path.write_text(json.dumps(article, ensure_ascii=False), encoding="utf-8")


def write_questions(articles: int) -> None:
    """The sample's written questions on every copy."""
    lines_of = {}
    for line in bq.read_jsonl(QUESTIONS):
        lines_of.setdefault(line["article_id"], []).append(line)
    copied = (
        line | {"id": f"{new}-{line['id']}", "article_id": new}
        for new, old in copies(articles)
        for line in lines_of.get(old, [])
    )
    bq.write_jsonl(SCRATCH / "questions.jsonl", copied)


def make_pairs(size: str) -> dict:
    """Notebook 2's cells as they are, on the copies."""
    notebook = nbformat.read(PAIRS, as_version=4)
    names = {"ARTICLES_DIR": str(SCRATCH / "corpus"), "PROCESSED_DIR": str(SCRATCH / "processed")}
    names["QUESTIONS"] = [str(QUESTIONS)]
    if size.endswith(":all"):
        names["QUESTIONS"] = [str(SCRATCH / "questions.jsonl")]
    space, parameters = {}, tagged(notebook, "parameters")
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            exec(cell.source, space)
        if number == parameters:
            space |= names
    rows = sum(sum(counts.values()) for counts in space["manifest"]["pairs"].values())
    return {"rows": rows, "rows_gb": folder_gb(SCRATCH / "processed")}


def tokenize(size: str) -> dict:
    """What training reads, and 500 steps of it in random order, as the Trainer asks for them."""
    from bmwqa.dataset import tokenize_rows
    from bmwqa.models import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m")
    path = SCRATCH / "processed/train.jsonl"
    groups = tokenize_rows(path, tokenizer, SCRATCH / "tokens")
    order = random.Random(0).choices(range(len(groups)), k=500)
    start = time.process_time()
    steps = [groups[number] for number in order]
    milliseconds = (time.process_time() - start) / len(order) * 1000
    tokens = [
        len(step["prefix"]) + sum(len(branch["input_ids"]) for branch in step["branches"])
        for step in steps
        if step["branches"]
    ]
    figures = {"tokens_gb": folder_gb(SCRATCH / "tokens"), "read_ms": milliseconds}
    return figures | {"tokens_per_step": sum(tokens) / len(tokens)}


def folder_gb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


PARTS = {"pairs": make_pairs, "tokens": tokenize}


def alone(part: str, size: str) -> dict:
    """A part in a fresh process: its figures, seconds, CPU seconds, and peak GB of a process."""
    command = [sys.executable, "-m", "experiments.scale", part, size]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure_here(part: str, size: str) -> None:
    start = time.perf_counter()
    figures = PARTS[part](size)
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    figures["seconds"] = time.perf_counter() - start
    figures["cpu_seconds"] = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    figures["peak_gb"] = max(usage.ru_maxrss for usage in usages) * 1024 / 1e9
    print(json.dumps(figures))


def measure(size: str) -> dict:
    """Both parts of one size, such as "1000:all"."""
    articles = int(size.split(":")[0])
    shutil.rmtree(SCRATCH, ignore_errors=True)
    try:
        write_corpus(articles)
        if size.endswith(":all"):
            write_questions(articles)
        return {"articles": articles} | {part: alone(part, size) for part in PARTS}
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)


# --------------------------------------------------------------------------------------------------
# What is reckoned from it

WEIGHTS = {"0.5B": 494e6, "7B": 7.62e9}  # Qwen2.5's
SETUPS = {  # machines, FLOP/s of each (None: measured), GB of each, bytes per second between them
    "1 CPU machine": (1, None, 25, None),
    "16 CPU machines": (16, None, 25, 1.25e9),  # 10 Gbit/s
    "1 H100": (1, 989e12, 80, None),  # its data sheet: bf16 without sparsity, 80 GB
    "8 H100": (8, 989e12, 80, 450e9),  # NVLink, one direction
}
UTILISATION = 0.35  # of an H100's peak, assumed
PASSES = (10_000, 100_000, 1_000_000)  # articles, each read once


def cpu_rate(speed: dict) -> float:
    """Measured FLOP/s of full fine-tuning, 0.5B, on two cores with bf16, from speed.json."""
    ours = speed["speed"]["Qwen2.5-0.5B's shape"]["full"]["ours"]
    return ours["share"] * median(ours["rates"]) * 1e9


def step_cost(weights: float, setup: tuple, tokens: float, measured_rate: float) -> dict:
    """{"method", "compute", "network"} of a step of one article per machine, in seconds.

    Full: 6 FLOPs per weight and token (Kaplan et al., arXiv 2001.08361), 16 bytes per weight. If
    memory is too small for it, LoRA: 4 FLOPs, because a frozen weight needs no gradient, and 2
    bytes. Machines exchange 8 bytes per weight and step (fp32 gradients, ring all-reduce); if each
    keeps a share of the weights, three times these weights (FSDP), 4 bytes each, on GPUs 2.
    """
    machines, peak, gigabytes, bandwidth = setup
    rate = peak * UTILISATION if peak else measured_rate
    room, need = gigabytes * 1e9, 16 * weights
    method = "full" if need < room else "full, FSDP" if need / machines < room else "LoRA"
    flops = 4 if method == "LoRA" else 6
    traffic = {"full": 8, "full, FSDP": 6 if peak else 12, "LoRA": 0}[method] * weights
    seconds = traffic / bandwidth if bandwidth else 0.0
    return {"method": method, "compute": flops * weights * tokens / rate, "network": seconds}


def paper_rows(results: dict, speed: dict) -> list[dict[str, str]]:
    """A row per model and setup: seconds per step, hours of a pass, and what saturates first."""
    tokens, rows = largest(results, "all")["tokens"]["tokens_per_step"], []
    for model, weights in WEIGHTS.items():
        for name, setup in SETUPS.items():
            cost = step_cost(weights, setup, tokens, cpu_rate(speed))
            seconds = cost["compute"] + cost["network"]
            hours = {f"hours, {n:,}": n / setup[0] * seconds / 3600 for n in PASSES}
            hours = {name: f"{h:,.0f}" if h >= 9.5 else f"{h:.1g}" for name, h in hours.items()}
            row = {"model, on": f"{model}, {name}", "method": cost["method"]} | hours
            row["s per step: compute + network"] = f"{cost['compute']:.3g} + {cost['network']:.2g}"
            first = "network" if cost["network"] > cost["compute"] else "compute"
            row["first"] = f"memory, then {first}" if cost["method"] != "full" else first
            rows.append(row)
    return rows


# --------------------------------------------------------------------------------------------------
# The page


def measured_rows(results: dict) -> list[dict[str, str]]:
    rows = []
    for size, figures in results.items():
        row = {"articles, questions": f"{figures['articles']:,}, {size.split(':')[1]}"}
        pairs, tokens = figures["pairs"], figures["tokens"]
        row["rows"] = f"{pairs['rows']:,}"
        row["GB: rows / tokens"] = f"{pairs['rows_gb']:.2f} / {tokens['tokens_gb']:.2f}"
        for title, part in (("pairs", pairs), ("tokens", tokens)):
            row[f"{title}: CPU s (wall)"] = f"{part['cpu_seconds']:,.0f} ({part['seconds']:,.0f})"
            row[f"{title}: peak GB"] = f"{part['peak_gb']:.2f}"
        rows.append(row)
    return rows


def largest(results: dict, questions: str) -> dict:
    """The figures of the largest size with "3" or "all" questions."""
    sizes = [figures for size, figures in results.items() if size.endswith(f":{questions}")]
    return max(sizes, key=lambda figures: figures["articles"])


def growth(results: dict, part: str) -> str:
    """How much CPU time grows from the smallest size to the largest with 3 questions."""
    first, last = results["1000:3"], largest(results, "3")
    times = last[part]["cpu_seconds"] / first[part]["cpu_seconds"]
    return f"{times:.0f} × the CPU time for {last['articles'] // first['articles']} × the articles"


def scale_section(results: dict, speed: dict, gpu: dict) -> str:
    """The page's part: a table of what was measured, and one of what is reckoned from it."""
    return "\n".join(
        [
            "Measured on two cores that other work shared, so CPU seconds say more than wall time. "
            "*3*: three questions by rule on each article; *all*: the written ones on each, too.",
            "",
            markdown_table(measured_rows(results)),
            "",
            "![CPU seconds and peak memory by articles](scale.png)",
            "",
            measured_words(results),
            "",
            "**Reckoned, not measured:** hours of one pass over the articles by the method named, "
            "a step being one article per machine, with fp32 weights and bf16 products.",
            "",
            markdown_table(paper_rows(results, speed)),
            "",
            assumed_words(results, speed, gpu),
            saturated_words(results),
        ]
    )


def measured_words(results: dict) -> str:
    """How time and memory grow."""
    most, everything = largest(results, "3"), largest(results, "all")
    return (
        f"Pairs take {growth(results, 'pairs')}, tokens {growth(results, 'tokens')}; imports "
        "are in both. Articles and rows are read one after the other; what grows with their "
        f"number is a table of questions without their texts: {most['pairs']['peak_gb']:.2f} "
        f"GB at {most['articles']:,} articles. Written questions and the articles they ask "
        f"about are held in memory: {everything['pairs']['peak_gb']:.2f} GB at "
        f"{everything['articles']:,} articles with all questions on each."
    )


def assumed_words(results: dict, speed: dict, gpu: dict) -> str:
    """What the table of hours is reckoned from."""
    tokens, rate = largest(results, "all")["tokens"]["tokens_per_step"], cpu_rate(speed) / 1e9
    step = 14 * gpu["speed"]["14"]["full"]["ours"]["seconds_a_qa"]
    return (
        f"Measured are {tokens:,.0f} tokens per article with all questions, and {rate:.0f} "
        "GFLOP/s on two cores with bf16 (the section on speed). Assumed are 6 FLOPs per weight "
        f"and token (4 for LoRA), {UTILISATION:.0%} of an H100's 989 TFLOP/s, 10 Gbit/s "
        "between CPU machines, 450 GB/s between H100s, no overlap of computing and "
        "sending, and no waiting for the longest article.\n"
        f"A GPU needs more than one article a step for that: on an {gpu['stamp']['device']}, a "
        f"step of one article with 14 questions took {step:.2f} s, because it waited for the "
        "processor (the section on a GPU)."
    )


def saturated_words(results: dict) -> str:
    """What saturates first, a line each: cores, memory, the network, data."""
    everything = largest(results, "all")
    pairs, tokens = everything["pairs"], everything["tokens"]
    eight = step_cost(WEIGHTS["7B"], SETUPS["8 H100"], tokens["tokens_per_step"], 0)
    waits, millions = eight["network"] / eight["compute"], 1e6 / everything["articles"]
    return (
        "On CPUs computing saturates first: a machine with more cores shortens it about in "
        "proportion, until memory bandwidth ends that. The network comes second, and is first "
        "at 1 Gbit/s.\n"
        "A 7B model meets memory first: full fine-tuning with AdamW keeps 122 GB. One machine "
        "trains its adapter instead, and several share the weights (FSDP).\n"
        f"Eight H100s send for {waits:.0%} of the time they compute 7B, as an article is a "
        "small step. Several articles per process (`gradient_accumulation_steps`) make that "
        "share small; they also change what a step learns from.\n"
        f"Data is not the limit: reading a step takes {tokens['read_ms']:.1f} ms of CPU time. "
        f"A million articles with all questions are {pairs['rows_gb'] * millions:.0f} GB of rows "
        f"and {tokens['tokens_gb'] * millions:.0f} GB of tokens on disk. Several cores tokenize a "
        "file of more than 1 GB."
    )


def draw(results: dict) -> None:
    """Plot CPU seconds and peak memory against the number of articles."""
    rows = [
        {"articles": figures["articles"], "line": f"{part}, {size.split(':')[1]} questions"}
        | {key: figures[part][key] for key in ("cpu_seconds", "peak_gb")}
        for size, figures in results.items()
        for part in PARTS
    ]
    table = pd.DataFrame(rows)
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for ax, key in zip(axes, ("cpu_seconds", "peak_gb"), strict=True):
        lines = table.pivot(index="articles", columns="line", values=key)
        lines.plot(ax=ax, style="o-", markersize=3, logx=True, logy=key == "cpu_seconds")
        ax.legend(fontsize=7)
    axes[0].set(ylabel="CPU seconds", title="Time")
    axes[1].set(ylabel="GB", title="Peak memory of a process", ylim=(0, None))
    axes[1].axhline(1.5, color="tab:red", lw=0.8)
    fig.savefig(HERE / "scale.png", dpi=100)
    plt.close(fig)


def page(results: dict, speed: dict, gpu: dict) -> str:
    """experiments/README.md with this section written anew."""
    return page_with(PAGE, "scale", scale_section(results, speed, gpu))


def write_page() -> None:
    """The plot and the page, from scale.json, speed.json and speed_gpu.json."""
    files = (RESULTS, HERE / "speed.json", HERE / "speed_gpu.json")
    results, speed, gpu = map(bq.read_json, files)
    draw(results)
    bq.write_text(PAGE, page(results, speed, gpu))


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in PARTS:
        measure_here(*sys.argv[1:])
        return
    results = bq.read_json(RESULTS) if RESULTS.exists() else {}
    for size in sys.argv[1:] or SIZES:
        results[size] = measure(size)
        bq.write_json(RESULTS, {size: results[size] for size in SIZES if size in results})
        print(size, json.dumps(results[size]), flush=True)
        write_page()


if __name__ == "__main__":
    main()
