"""The section of experiments/README.md on speed, and its plots: `python -m experiments.speed_page`.

Every figure comes from speed.json beside this file; experiments/speed.py says what its keys are.
"""

from collections.abc import Callable

from bmwqa.corpus import ROOT, read_json, write_text
from bmwqa.report import markdown_table, page_with

HERE = ROOT / "experiments"
PAGE = HERE / "README.md"
ARTICLE_TOKENS = (1000, 1300)  # of the articles in every section but `length`, `memory` and `loss`

# --------------------------------------------------------------------------------------------------
# The table


def seconds_with_spread(ways: dict) -> str:
    ours = ways["ours"]
    return "{:.2f} [{:.2f}, {:.2f}]".format(ours["seconds_a_qa"], *ours["spread"])


def best_trl(ways: dict) -> str:
    ratios = [entry["ratio"] for way, entry in ways.items() if way.startswith("trl")]
    return f"{min(ratios):.1f} ×"


def checkpointed(ways: dict) -> str:
    return "{peak_gb:.1f}, {ratio:.2f} × the time".format(**ways["ours checkpointed"])


def one_call(ways: dict) -> str:
    return f"{ways['ours in one call']['ratio']:.2f} × the time"


COLUMNS: list[tuple[str, str, Callable]] = [  # section, head, cell of its [model][method]
    ("speed", "s per QA pair", seconds_with_spread),
    ("speed", "against Trainer, fp32", lambda ways: f"{ways['hf fp32']['ratio']:.1f} ×"),
    ("speed", "against TRL's best", best_trl),
    ("speed", "of the bf16 rate", lambda ways: f"{ways['ours']['share']:.0%}"),
    ("speed", "peak GB", lambda ways: f"{ways['ours']['peak_gb']:.1f}"),
    ("fp32", "against Trainer, both fp32", lambda ways: f"{ways['hf fp32']['ratio']:.1f} ×"),
    ("memory", "GB at 2,048 tokens", lambda ways: f"{ways['ours']['peak_gb']:.1f}"),
    ("memory", "the same, checkpointed", checkpointed),
    ("attention", "attention in one call", one_call),
    ("questions", "per pair at 12 questions, to 3", lambda s: f"{s['12'] / s['3']:.2f}"),
]


def table_rows(results: dict, columns: list) -> list[dict[str, str]]:
    """A row per model and method, with those columns whose sections speed.json has."""
    return [
        {"model": model, "method": method}
        | {head: cell(results[key][model][method]) for key, head, cell in columns if key in results}
        for model, methods in results["speed"].items()
        for method in methods
    ]


# --------------------------------------------------------------------------------------------------
# The text


def introduction(results: dict) -> str:
    machine, rates, (fewest, most) = results["machine"], results["rates"], ARTICLE_TOKENS
    return (
        f"{machine['cpu']}, {machine['cores']} cores; GFLOP/s: {rates['fp32']:.0f} in fp32, "
        f"{rates['bf16']:.0f} in bf16; three questions each of {fewest:,} to {most:,} tokens; "
        "in brackets the fastest and the slowest round."
    )


def tokens_and_rates(results: dict) -> str:
    fewer = results["tokens"]["separate"] / results["tokens"]["shared"]
    faster = results["rates"]["bf16"] / results["rates"]["fp32"]
    return (
        f"What limits the gain: a pass per article reads {fewer:.1f} times fewer tokens, "
        f"and this processor's bf16 is {faster:.1f} times as fast as its fp32. That is "
        f"{fewer * faster:.1f} times together, if a step were only matrix products. "
        "Matrix units (AMX) raise the second factor."
    )


def evaluation(results: dict) -> str:
    ratios = [f"{entry['ratio']:.1f} × ({model})" for model, entry in results["evaluation"].items()]
    return f"Perplexity and answers, against one `generate` per question: {', '.join(ratios)}."


def losses(results: dict) -> str:
    loss = results["loss"]
    return (
        f"Losses of {len(loss['hf'])} steps on the same rows, the Trainer's and ours, both in "
        f"fp32: they differ by {loss['difference']:.0e} at most, relative ([plot](speed_loss.png))."
    )


def operators(results: dict) -> str:
    lines = ["Where the time of our steps goes:"]
    for model, methods in results["profile"].items():
        for method, shares in methods.items():
            longest = [f"`{name}` {share:.0%}" for name, share in list(shares.items())[:5]]
            lines.append(f"- {model}, {method}: {', '.join(longest)}")
    return "\n".join(lines)


PARAGRAPHS: dict[str, Callable] = {  # of each section, in the order of the page
    "tokens": tokens_and_rates,
    "evaluation": evaluation,
    "loss": losses,
    "profile": operators,
    "questions": lambda results: "![Seconds per pair by questions](speed_by_questions.png)",
    "length": lambda results: "![Seconds per pair by length](speed_by_length.png)",
}


def speed_section(results: dict) -> str:
    """README's part on speed, from the sections that speed.json has, and from nothing else."""
    tables = [table_rows(results, columns) for columns in (COLUMNS[:5], COLUMNS[5:])]
    parts = [introduction(results), *map(markdown_table, tables)]
    parts += [paragraph(results) for key, paragraph in PARAGRAPHS.items() if key in results]
    return "\n\n".join(parts)


def write_readme(results: dict) -> str:
    """experiments/README.md with this section written anew."""
    return page_with(PAGE, "speed", speed_section(results))


# --------------------------------------------------------------------------------------------------
# The plots


def plot(file: str, curves: dict[str, dict], **axes) -> None:
    """Write lines of {x: y} under their labels to a file."""
    import matplotlib  # here, so that the processes that measure do not hold it in memory
    import pandas as pd

    matplotlib.use("Agg")
    lines = pd.DataFrame(curves)
    lines.index = lines.index.astype(float)
    ax = lines.plot(style="o-", markersize=3, figsize=(7, 4), **axes)
    ax.legend(fontsize=8)
    ax.figure.savefig(HERE / file, dpi=110, bbox_inches="tight")


def plot_time(results: dict, section: str, xlabel: str, logy: bool) -> None:
    """Write the plot of seconds per QA pair against questions or tokens."""
    curves = {}
    for model, methods in results[section].items():
        for method, seconds in methods.items():
            ways = seconds if section == "length" else {"ours": seconds}
            curves |= {f"{model}, {method}, {way}": points for way, points in ways.items()}
    labels = {"xlabel": xlabel, "ylabel": "seconds per QA pair", "title": f"Time against {xlabel}"}
    plot(f"speed_by_{section}.png", curves, logy=logy, **labels)


def draw(results: dict) -> None:
    """Write the plots of the sections that speed.json has."""
    if "length" in results:
        plot_time(results, "length", "tokens of a row", logy=True)
    if "questions" in results:
        plot_time(results, "questions", "questions per article", logy=False)
    if "loss" in results:
        curves = {name: dict(enumerate(results["loss"][name], start=1)) for name in ("hf", "ours")}
        title = "Same rows, same order: smollm2-135m, full, fp32"
        plot("speed_loss.png", curves, xlabel="step (one QA pair)", ylabel="loss", title=title)


def write_page(results: dict) -> None:
    """Write the plots and the page."""
    draw(results)
    write_text(PAGE, write_readme(results))


if __name__ == "__main__":
    write_page(read_json(HERE / "speed.json"))
