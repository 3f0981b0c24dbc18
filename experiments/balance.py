"""What waiting costs: processes wait for the longest article of their step. A simulation.

An article's seconds come from what experiments/speed.json measured at several lengths, a step's are
those of its longest article. Exchanging gradients is left out. Lengths are those of the sample
corpus, and of real releases, from the percentiles of 500. Articles over MAX_TOKENS are left out.
Three orders: `plan` takes articles as they come, `window` is bmwqa/parallel.py `similar_lengths`,
`sampler` the LengthGroupedSampler of transformers. Writes experiments/balance.json and .png,
and a section of experiments/README.md: `python -m experiments.balance`.
"""

import random
from statistics import mean

import matplotlib
import numpy as np
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

import bmwqa_utils as bq
from bmwqa.corpus import ROOT, read_json, write_json, write_text
from bmwqa.models import EMBEDDED, load_tokenizer
from bmwqa.parallel import similar_lengths
from bmwqa.report import markdown_table, page_with
from experiments.learning_curve import DEFAULTS

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = ROOT / "experiments"
COUNTS = [2**power for power in range(1, 10)]
IN_TABLE = (2, 8, 64, 512)  # of them, in the table
ARTICLES = 512 * 200  # of one pass, so that 512 processes have 200 steps
# characters of 500 releases of PressClub Global, newest first, November 2024 to early 2026
SHARES = [0, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 1]
CHARACTERS = [0, 205, 922, 2738, 4249, 6107, 9252, 12119, 29044]


def sample_tokens(order: random.Random) -> tuple[list[int], float, float]:
    """(tokens of ARTICLES drawn articles, tokens per character, tokens of an article's questions).

    The tokens of an article are those of its row: prompt, text, all questions and answers.
    """
    rows = bq.load_rows(ROOT / DEFAULTS["PROCESSED_DIR"] / "train.jsonl")
    tokenizer = load_tokenizer(EMBEDDED)
    kept, _ = bq.drop_long(rows, tokenizer, DEFAULTS["MAX_TOKENS"])
    groups = bq.group_by_article(kept, tokenizer)
    questions = [sum(len(branch["input_ids"]) for branch in g["branches"]) for g in groups]
    texts = [len(group["prefix"]) for group in groups]
    tokens = [text + question for text, question in zip(texts, questions, strict=True)]
    characters = sum(map(len, {row["context"] for row in kept}))
    return order.choices(tokens, k=ARTICLES), sum(texts) / characters, mean(questions)


def release_tokens(order: random.Random, per_character: float, questions: float) -> list[int]:
    """The tokens of ARTICLES rows as long as real releases, with the sample's questions."""
    tokens = []
    while len(tokens) < ARTICLES:
        text = np.interp(order.random(), SHARES, CHARACTERS) * per_character
        if text <= DEFAULTS["MAX_TOKENS"]:
            tokens.append(round(text + questions))
    return tokens


def seconds_per_article() -> tuple[float, float]:
    """(a, b): an article of n tokens takes a + b n seconds of full fine-tuning on two cores.

    Fitted to speed.json, which has the seconds of a pair on articles with three. Longer ones than
    are trained on are left out: there, attention takes more than its share.
    """
    sections = read_json(HERE / "speed.json")
    if "length" not in sections:
        need = "Run `python -m experiments.speed --missing` first."
        raise ValueError(f"speed.json has no section on length. {need}")
    measured = sections["length"][EMBEDDED]["full"]["ours"]
    pairs = {int(n): pair for n, pair in measured.items() if int(n) <= DEFAULTS["MAX_TOKENS"]}
    slope, fixed = np.polyfit([*pairs], [3 * pair for pair in pairs.values()], 1)
    return float(fixed), float(slope)


def busy_share(seconds: np.ndarray, count: int) -> float:
    """The share of `count` processes' time in which they compute; `seconds`: in step order."""
    steps = seconds[: len(seconds) // count * count].reshape(-1, count)
    return float(steps.mean() / steps.max(axis=1).mean())


def simulate(tokens: list[int]) -> dict[str, list[float]]:
    """{order: busy share for each of COUNTS}."""
    fixed, slope = seconds_per_article()
    seconds = fixed + slope * np.array(tokens)
    groups = [{"prefix": range(length), "branches": []} for length in tokens]
    shares = {"plan": [], "window": [], "sampler": []}
    for count in COUNTS:
        draw = torch.Generator().manual_seed(DEFAULTS["SEED"])
        places = {
            "plan": range(len(tokens)),
            "window": similar_lengths(groups, count, DEFAULTS["SEED"]).indices,
            "sampler": get_length_grouped_indices(tokens, count, generator=draw),
        }
        for name, shares_of_order in shares.items():
            shares_of_order.append(busy_share(seconds[list(places[name])], count))
    return shares


def draw(results: dict) -> None:
    """balance.png: the busy share of the processes by their number, an axis per set of lengths."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    labels = {"plan": "as planned", "window": "similar lengths, within 50 steps"}
    labels["sampler"] = "LengthGroupedSampler"
    for ax, (name, shares) in zip(axes, results["busy"].items(), strict=True):
        for order, style in zip(labels, ("o-", "s-", "x:"), strict=True):
            ax.plot(COUNTS, shares[order], style, label=labels[order])
        ax.set_xscale("log", base=2)
        ax.set(xlabel="processes", title=f"Lengths of {name}", ylim=(0, 1.03))
        ax.set_xticks(COUNTS, COUNTS)
    axes[0].set_ylabel("share of the time spent computing")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    fig.savefig(HERE / "balance.png", dpi=110)


def readme(results: dict) -> str:
    """The text of experiments/README.md with this section written anew, from balance.json alone."""
    names, rows = {"plan": "as planned", "window": "similar lengths"}, []
    for lengths, shares in results["busy"].items():
        for order, title in names.items():
            share = dict(zip(results["processes"], shares[order], strict=True))
            cells = {f"{count} processes": f"{share[count]:.2f}" for count in IN_TABLE}
            rows.append({"lengths of": lengths, "order": title} | cells)
    section = [markdown_table(rows), "", "![Share of the time spent computing](balance.png)"]
    return page_with(HERE / "README.md", "balance", "\n".join(section))


def main() -> None:
    order = random.Random(DEFAULTS["SEED"])
    sample, per_character, questions = sample_tokens(order)
    releases = release_tokens(order, per_character, questions)
    results = {"processes": COUNTS, "articles": ARTICLES}
    results["seconds_per_article"] = seconds_per_article()
    results["mean_tokens"] = {"the sample": mean(sample), "real releases": mean(releases)}
    results["busy"] = {"the sample": simulate(sample), "real releases": simulate(releases)}
    write_json(HERE / "balance.json", results)
    draw(results)
    write_text(HERE / "README.md", readme(results))


if __name__ == "__main__":
    main()
