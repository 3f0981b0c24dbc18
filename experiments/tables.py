"""Both pages that show the committed run, from its files: `python -m experiments.tables`.

Every figure comes from results.json and eval_generations.jsonl beside this file;
tests/test_readme.py checks it.
"""

import matplotlib
import pandas as pd

from bmwqa.corpus import ROOT, article_context, load_article, read_json, read_jsonl, write_text
from bmwqa.report import (
    markdown_table,
    page_with,
    score_rows,
    trade_off_rows,
    verdict,
    with_interval,
)
from bmwqa.scores import answer_line, token_f1

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = ROOT / "experiments"
FRONT, PAGE = ROOT / "README.md", HERE / "README.md"
SHOWN = ("chat", "full", "lora")


def front_section(results: dict, lines: list[dict]) -> str:
    """README's part: one question with three answers, what the run was, a table, a plot."""
    benchmark = [line for line in lines if line["slice"] == results["headline"]]
    articles = len({line["article_id"] for line in benchmark})
    answerable = sum(line["kind"] != "unanswerable" for line in benchmark)
    machine, settings = results["machine"], results["settings"]
    trainings = results["training"].values()
    seconds = settings["max_steps"] * sum(row["seconds_per_step"] for row in trainings)
    minutes = (seconds + sum(results["evaluation_seconds"].values())) / 60
    return f"""{example(benchmark)}

The first question on which full most beats chat. The committed run trains \
{results["model"]["name"]} for {settings["max_steps"]} steps of one article each, on \
{machine["threads"]} threads of {machine["processor"]}; three trainings and the evaluation took \
{minutes:.0f} minutes and at most {max(row["peak_memory_gb"] for row in trainings):.1f} GB. \
{len(benchmark)} questions on {articles} articles that nobody trained on measure it; brackets are \
95 % intervals. Exact match and F1 count the {answerable} questions with an answer. The first \
four rows are untrained. \
{seeds_sentence()}

{markdown_table(headline_rows(results))}

![Exact match and token F1](experiments/results.png)"""


def seeds_sentence() -> str:
    """What one seed is worth, and what more steps give, from experiments/learning_curve.json."""
    runs = pd.DataFrame(read_json(HERE / "learning_curve.json")["runs"])
    runs["f1"], runs["exact"] = (runs["scores"].str[key] for key in ("f1", "exact_match"))
    settings = ["part", "variant", "written", "steps", "layers_removed"]
    spread = runs.groupby(settings)["f1"].var().mean() ** 0.5
    full = runs[(runs["part"] == "steps") & (runs["variant"] == "full")]
    longest = full[full["steps"] == (steps := full["steps"].max())]
    scores = " and ".join(f"{longest[key].mean():.2f}" for key in ("exact", "f1"))
    return (
        f"This is one seed; seeds of one setting differ by {spread:.2f} in F1 on average (SD). One "
        f"pass over all articles ({steps} steps, on {longest['processor'].max()}) brings full to "
        f"exact match and token F1 {scores}, the mean of {len(longest)} seeds."
    )


def example(benchmark: list[dict]) -> str:
    """The first question with a span that full answers best and chat worst, with answers."""

    def best_f1(line: dict, variant: str) -> float:
        return max(token_f1(line[variant]["answer"], text) for text in line["references"])

    spans = [line for line in benchmark if line["kind"] not in ("yes_no", "unanswerable")]
    line = max(spans, key=lambda line: best_f1(line, "full") - best_f1(line, "chat"))
    article = load_article(ROOT / "data/sample/eval" / f"{line['article_id']}.json")
    answers = {name: " ".join(line[name]["answer"].split())[:140] for name in SHOWN}
    shown = "\n".join(f"  {name:<6}{answer}" for name, answer in answers.items())
    return f"""```text
{article["title"]}
[…] {answer_line(article_context(article), line["references"], line["kind"])} […]

{line["question"]}
{shown.replace("`", "'")}
```"""


def headline_rows(results: dict) -> list[dict[str, str]]:
    """A row per variant: exact match, F1, yes/no, and what it declined, of the headline."""
    variants = {name: slices[results["headline"]] for name, slices in results["variants"].items()}
    variants["full, article retrieved"] = results["retrieval"]["scores"]["full_retrieved"]
    rows = []
    for variant, scores in variants.items():
        cells = {name: with_interval(score) for name, score in scores.items()}
        row = {"model": variant, "exact match": cells["exact_match"], "token F1": cells["f1"]}
        row["yes/no right"] = cells["yes_no"]
        declined = f"{cells['declined_rightly']} / {cells['declined_wrongly']}"
        rows.append(row | {"declined, rightly / wrongly": declined})
    return rows


def results_section(results: dict) -> str:
    """The verdict and two tables with their 95 % intervals, from results.json and nothing else."""
    paces = {name: row["seconds_per_step"] for name, row in results["training"].items()}
    pace = ", ".join(f"{name} {seconds:.1f}" for name, seconds in paces.items())
    sentences = "\n".join(f"- {sentence}" for sentence in verdict(results))
    return f"""\
Seconds per step: {pace}; precision: {results["machine"]["precision"]}
Rule-made: questions after title, date and first paragraph. Baselines: *base* with the prompt of \
training, *chat* with its own template, *constant* (No, or the sentence that declines), *picker* \
(a span of the right type in the nearest sentence). Holm corrects p for three comparisons.

{sentences}

{markdown_table(score_rows(results))}

What it costs. The speeds are medians of five answers, the models taking turns: base, full and \
*lora, merged* have the same shape and differ by noise. *lora* is the adapter without its base, \
*lora, merged* with it.

{markdown_table(trade_off_rows(results))}"""


def pages(results: dict, lines: list[dict]) -> dict:
    """{path: text} of both pages, written anew."""
    front = page_with(FRONT, "results", front_section(results, lines))
    return {FRONT: front, PAGE: page_with(PAGE, "results", results_section(results))}


def draw(results: dict) -> None:
    """Plot exact match and F1 of each variant on the headline's questions, with intervals."""
    table = pd.DataFrame(
        {"model": variant, "score": title} | slices[results["headline"]][score]
        for variant, slices in results["variants"].items()
        for title, score in (("exact match", "exact_match"), ("token F1", "f1"))
    )
    models = table["model"].unique()
    means, low, high = (
        table.pivot(index="model", columns="score", values=key).loc[models]
        for key in ("mean", "low", "high")
    )
    errors = [[(means - low)[name], (high - means)[name]] for name in means]
    style = {"capsize": 2, "width": 0.8, "rot": 0, "error_kw": {"lw": 0.8}, "ylim": (0, 1)}
    ax = means.plot.bar(yerr=errors, figsize=(7, 3), **style)
    ax.set(xlabel="", title=f"Benchmark, with 95 % intervals, {results['model']['name']}")
    ax.figure.savefig(HERE / "results.png", dpi=100, bbox_inches="tight")
    plt.close(ax.figure)


def write_pages() -> None:
    """Both pages and the plot, from the files of the committed run."""
    results, lines = read_json(HERE / "results.json"), read_jsonl(HERE / "eval_generations.jsonl")
    draw(results)
    for path, text in pages(results, lines).items():
        write_text(path, text)


if __name__ == "__main__":
    write_pages()
