"""The section of experiments/README.md on speed, and its plots: `python -m experiments.speed_page`.

Every figure comes from speed.json beside this file; experiments/speed.py says what its keys are.
"""

from collections.abc import Callable

from bmwqa.corpus import ROOT, read_json, write_text
from bmwqa.report import markdown_table, page_with

HERE = ROOT / "experiments"
PAGE = HERE / "README.md"
SHOWN = "smollm2-135m"  # the model of the plots
PEERS = ("hf fp32", "hf bf16", "trl bf16", "trl bf16, 3 rows", "trl bf16, logits at once")
OTHERS = 0.05  # the share of the cores that other work may take beside a measurement
ARTICLE_TOKENS = (1000, 1300)  # of the articles in every section but `length`, `memory` and `loss`

# --------------------------------------------------------------------------------------------------
# What was measured


def what_measured(stamp: dict) -> tuple:
    """What all sections of a page have in common: the processor and the code."""
    return tuple(stamp[key] for key in ("cpu", "family", "model", "stepping", "commit"))


def one_stamp(results: dict) -> dict:
    """The stamp of all sections; ValueError: they are of several processors or commits, or none."""
    stamps = results.get("stamps", {})
    kinds = {what_measured(stamp): name for name, stamp in stamps.items()}
    if bare := [name for name in results if name in PARTS and name not in stamps]:
        kinds["no stamp",] = ", ".join(bare)
    if len(kinds) != 1 or not stamps:
        there = "; ".join(f"{name}: {', '.join(kind)}" for kind, name in kinds.items())
        need = "Need one processor and commit: run `python -m experiments.speed --missing` there."
        raise ValueError(f"speed.json has sections that do not compare ({there}). {need}")
    return max(stamps.values(), key=lambda stamp: stamp["date"])


def fastest(ways: dict) -> str:
    """The peer that took the least time, of those that went on after the first round."""
    _, *peers = ways
    most = max(ways[peer]["rounds"] for peer in peers)
    return min((p for p in peers if ways[p]["rounds"] == most), key=lambda p: ways[p]["ratio"][0])


# --------------------------------------------------------------------------------------------------
# The table


def seconds_with_spread(ways: dict) -> str:
    ours = next(iter(ways.values()))
    mark = " (disturbed)" if ours["others"] > OTHERS else ""
    return "{:.2f} [{:.2f}, {:.2f}]".format(ours["seconds_a_qa"], *ours["spread"]) + mark


def ratio(entry: dict) -> str:
    """The median of paired ratios, with the lowest and the highest if there are several."""
    middle, low, high = entry["ratio"]
    spread = f" [{low:.1f}, {high:.1f}]" if entry["rounds"] > 1 else ""
    return f"{middle:.1f} ×{spread}" + (" (disturbed)" if entry["others"] > OTHERS else "")


def against_fastest(ways: dict) -> str:
    return ratio(ways[fastest(ways)])


def against(way: str) -> Callable[[dict], str]:
    return lambda ways: ratio(ways[way]) if way in ways else "–"


def checkpointed(ways: dict) -> str:
    entry = ways["ours checkpointed"]
    return f"{entry['peak_gb']:.1f}, {entry['ratio'][0]:.2f} × the time"


Column = tuple[str, Callable]
SPEED: list[Column] = [
    ("s per QA pair", seconds_with_spread),
    ("against the fastest peer", against_fastest),
    ("which is", fastest),
    ("of the bf16 rate", lambda ways: f"{ways['ours']['share']:.0%}"),
    ("peak GB", lambda ways: f"{ways['ours']['peak_gb']:.1f}"),
]
PEER_RATIOS: list[Column] = [(way, against(way)) for way in PEERS]
MANY: list[Column] = [
    ("s per QA pair", seconds_with_spread),
    ("against TRL, 3 rows a batch", against("trl bf16, 3 rows")),
]
FP32: list[Column] = [
    ("s per QA pair", seconds_with_spread),
    *((way, against(way)) for way in ("hf fp32", "trl fp32", "trl fp32, 3 rows")),
]
MEMORY: list[Column] = [
    ("GB at 2,048 tokens", lambda ways: f"{ways['ours']['peak_gb']:.1f}"),
    ("the same, checkpointed", checkpointed),
]
ATTENTION: list[Column] = [
    ("attention in one call", lambda w: f"{w['ours in one call']['ratio'][0]:.2f} × the time")
]


def table(results: dict, section: str, columns: list[Column], first: str = "model") -> str:
    """A row per model and method of a section; `first`: the head of the first column."""
    rows = [
        {first: model, "method": method} | {head: cell(ways) for head, cell in columns}
        for model, methods in results[section].items()
        for method, ways in methods.items()
    ]
    return markdown_table(rows)


def checks(results: dict) -> str:
    """How many measurements other work disturbed."""
    measured, repeated, failed = (
        sum(counts.get(key, 0) for counts in results["checks"].values())
        for key in ("measured", "repeated", "failed")
    )
    return (
        f"On this page are {measured} measurements; {repeated} more were thrown away, because "
        f"other work took more than {OTHERS:.0%} of the cores. It disturbed {failed} to the end, "
        "which the tables mark."
    )


# --------------------------------------------------------------------------------------------------
# The text


def introduction(results: dict) -> str:
    here, rates, (fewest, most) = one_stamp(results), results["rates"], ARTICLE_TOKENS
    return (
        f"{here['cpu']}, family {here['family']}, model {here['model']}, stepping "
        f"{here['stepping']} ({', '.join(here['flags'])}), {here['cores']} cores; torch "
        f"{here['versions']['torch']}, TRL {here['versions']['trl']}; commit {here['commit']}, "
        f"{here['date']}. GFLOP/s: {rates['fp32']:.0f} in fp32, {rates['bf16']:.0f} in bf16 "
        f"(the largest of any product; the median over rounds is {rates['bf16_median']:.0f}). "
        f"Articles of {fewest:,} to {most:,} tokens, three questions on each. In brackets the "
        "lowest and the highest round; a ratio is the median over rounds of two ways in turn. "
        "A share of the bf16 rate is of that measured beside each round."
    )


def tokens_and_rates(results: dict) -> str:
    fewer = results["tokens"]["separate"] / results["tokens"]["shared"]
    faster = results["rates"]["bf16"] / results["rates"]["fp32"]
    return (
        f"What limits the gain: a pass per article reads {fewer:.1f} times fewer tokens, "
        f"and this processor's bf16 is {faster:.1f} times as fast as its fp32. That is "
        f"{fewer * faster:.1f} times together, against fp32, if a step were only matrix products."
    )


def evaluation(results: dict) -> str:
    lines = []
    for model, entry in results["evaluation"].items():
        batched, apart = (entry[way] / entry["ours"] for way in ("batched", "apart"))
        lines.append(
            f"{model}: {batched:.1f} × as fast as 12 prompts a batch, {apart:.1f} × as fast as "
            f"one at a time (of {entry['questions']} answers, {entry['same']['batched']} and "
            f"{entry['same']['apart']} are the same)"
        )
    return f"Perplexity and answers, against the stock `generate`. {'; '.join(lines)}."


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


def growth(results: dict, section: str, first: int, words: str) -> str:
    """How the time per pair grows from `first` to the last size, in words, and the plot."""
    lines = ["The time per pair grows so:"]
    for model, methods in results[section].items():
        for method, ways in methods.items():
            for way, seconds in ways.items():
                last = max(map(int, seconds))
                factor = seconds[str(last)] / seconds[str(first)]
                sizes = f"from {first:,} to {last:,} {words}, {last / first:.0f} times as many"
                lines.append(f"- {model}, {method}, {way}: {sizes}, by a factor of {factor:.2f}")
    text = "\n".join(lines)
    return f"{text}\n\n![Seconds per pair by {section}](speed_by_{section}.png)"


PARTS: dict[str, Callable] = {  # of each section, in the order of the page
    "speed": lambda r: table(r, "speed", SPEED) + "\n\n" + checks(r),
    "tokens": tokens_and_rates,
    "many": lambda r: "With 14 questions an article:\n\n" + table(r, "many", MANY),
    "memory": lambda r: table(r, "memory", MEMORY),
    "evaluation": evaluation,
    "fp32": lambda r: "All in fp32, for a CPU without bf16:\n\n" + table(r, "fp32", FP32),
    "attention": lambda r: table(r, "attention", ATTENTION),
    "loss": losses,
    "profile": operators,
    "questions": lambda r: growth(r, "questions", 1, "questions an article"),
    "length": lambda r: growth(r, "length", 1000, "tokens"),
}


def speed_section(results: dict) -> str:
    """The page's part on speed, from the sections that speed.json has, and from nothing else."""
    parts = [part(results) for key, part in PARTS.items() if key in results]
    peers = "How long each peer takes, in times of ours:\n\n" + table(results, "speed", PEER_RATIOS)
    return "\n\n".join([introduction(results), *parts[:1], peers, *parts[1:]])


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
    if axes.get("loglog"):
        ax.set_xticks(lines.index, [f"{x:,.0f}" for x in lines.index])
        ax.set_xticks([], minor=True)
    ax.legend(fontsize=8)
    ax.figure.savefig(HERE / file, dpi=110, bbox_inches="tight")


def plot_time(results: dict, section: str, xlabel: str) -> None:
    """Write the plot of seconds per QA pair against questions or tokens."""
    curves = {}
    for methods in results[section].values():
        for method, seconds in methods.items():
            curves |= {f"{method}, {way}": points for way, points in seconds.items()}
    labels = {
        "xlabel": xlabel,
        "ylabel": "seconds per QA pair",
        "title": f"{SHOWN}: time against {xlabel}",
    }
    plot(f"speed_by_{section}.png", curves, loglog=True, **labels)


def draw(results: dict) -> None:
    """Write the plots of the sections that speed.json has."""
    if "length" in results:
        plot_time(results, "length", "tokens of a row")
    if "questions" in results:
        plot_time(results, "questions", "questions per article")
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
