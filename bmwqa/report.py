"""Tables and sentences from results.json, for the notebook and README.

Both show figures through this file alone, so neither can say what the run did not measure.
"""

import re
from pathlib import Path

NAMES = {"rule_made": "rule-made", "benchmark": "benchmark", "lora_merged": "lora, merged"}
NAMES |= {"full_int8": "full, int8"}
CONTEXTS = {"own_article": "its own article", "no_article": "no article"}
CONTEXTS |= {"other_article": "another article"}


def format_number(number: float | None, form: str = ",.2f") -> str:
    """The number in the format `form`, "–" for None."""
    return "–" if number is None else f"{number:{form}}"


def with_interval(figure: dict, key: str = "mean", form: str = ".2f") -> str:
    """A mean, or a difference, and its 95 % interval.

    >>> with_interval({"mean": 0.126, "low": 0.1, "high": 0.15})
    '0.13 [0.10, 0.15]'
    """
    limits = "" if figure["low"] is None else f" [{figure['low']:{form}}, {figure['high']:{form}}]"
    return format_number(figure[key], form) + limits


def score_rows(results: dict) -> list[dict[str, str]]:
    """A row per variant: exact match, F1, perplexity, and the share of answers that stopped."""
    rows, headline = [], results["headline"]
    for variant, slices in results["variants"].items():
        row = {"model": variant}
        for name, scores in slices.items():
            row[f"exact match, {NAMES[name]}"] = with_interval(scores["exact_match"])
            row[f"token F1, {NAMES[name]}"] = with_interval(scores["f1"])
        row[f"perplexity, {NAMES[headline]}"] = with_interval(slices[headline]["perplexity"])
        row["stopped"] = with_interval(slices[headline]["stopped"])
        rows.append(row)
    return rows


def pair_rows(differences: list[dict]) -> list[dict[str, str]]:
    """A row per paired difference in F1."""
    return [
        {
            "questions": NAMES[row["slice"]],
            "pair": row["pair"],
            "difference": with_interval(row, "difference", "+.2f"),
            "wins / ties / losses": f"{row['wins']} / {row['ties']} / {row['losses']}",
            "p": format_number(row["p"], ".2g"),
            "p, Holm": format_number(row["p_holm"], ".2g"),
            "shown": "yes" if row["shown"] else "no",
            "smallest detectable": format_number(row["smallest_detectable"]),
        }
        for row in differences
    ]


def control_rows(results: dict) -> list[dict[str, str]]:
    """A row per context in which the full variant was asked the answerable questions."""
    return [
        {
            "asked with": CONTEXTS[name],
            "token F1": with_interval(scores["f1"]),
            "exact match": with_interval(scores["exact_match"]),
            "declined": with_interval(scores["declined_wrongly"]),
            "perplexity": with_interval(scores["perplexity"]),
        }
        for name, scores in results["controls"]["conditions"].items()
    ]


def trade_off_rows(results: dict) -> list[dict[str, str]]:
    """A row per variant: what it costs, and its F1 on the headline's questions."""
    f1 = {name: slices[results["headline"]]["f1"] for name, slices in results["variants"].items()}
    rows = []
    for variant, cost in results["trade_off"]["variants"].items():
        pace, peak = (format_number(cost[k], ".1f") for k in ("seconds_per_step", "peak_memory_gb"))
        row = {
            "model": NAMES.get(variant, variant),
            "trained parameters": format_number(cost["trainable_parameters"], ",d"),
            "s per step / peak GB": f"{pace} / {peak}",
            "MB on disk": format_number(cost["weights_mb"], ",.1f"),
            "s to first token": format_number(cost["first_token_seconds"]),
            "tokens per second": format_number(cost["tokens_per_second"], ".1f"),
            # a merged adapter answers as beside its base, see tests/test_models.py
            "token F1": with_interval(f1[variant]) if variant in f1 else "as lora",
        }
        rows.append(row)
    return rows


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Rows of strings as a markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page_with(path: Path, name: str, section: str) -> str:
    """The text of `path` with `section` between `<!-- name: … -->` and `<!-- /name -->`."""
    pattern = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    text = path.read_text(encoding="utf-8")
    text, count = pattern.subn(lambda match: f"{match[1]}{section}\n{match[2]}", text)
    if count != 1:
        problem = f"found {count} places for {name!r}, need one"
        raise ValueError(f"{path}: {problem}. Restore its two comments.")
    return text


def verdict(results: dict) -> list[str]:
    """Five paragraphs for someone who must choose a model.

    Is training worth its price? Is full or LoRA better? What do both cost? What does the smaller
    model give? What do the controls show? "Best" is the highest mean F1 on the headline's
    questions; "shown" is as in `scores.paired_table`.
    """
    headline = results["headline"]
    scores = {variant: slices[headline] for variant, slices in results["variants"].items()}
    pairs = {row["pair"]: row for row in results["differences"] if row["slice"] == headline}
    costs = results["trade_off"]["variants"]
    ranked = sorted(scores, key=lambda name: scores[name]["f1"]["mean"], reverse=True)
    best = next(name for name in ranked if name in results["training"])
    rival = next(name for name in ranked if name not in {*results["training"], "full_int8"})
    gain, full_lora = pairs[f"{best} - {rival}"], pairs["full - lora"]
    worth = "is" if gain["shown"] and gain["difference"] > 0 else "is not"
    better = "full and lora are not told apart"
    if full_lora["shown"]:
        better = f"{'full' if full_lora['difference'] > 0 else 'lora'} is the better one"
    return [
        f"Training {worth} shown to beat the best answer without it, on the {NAMES[headline]} "
        f"questions. **{best}: {_headlines(scores[best])}**; {rival}: {_headlines(scores[rival])}. "
        f"{_gap(gain, 'The difference in F1')}",
        f"{better}. {_gap(full_lora, 'full - lora')}",
        f"The price: full, {_price(costs['full'])}; lora, {_price(costs['lora'])}.",
        _smaller(results, pairs),
        _controls(results["controls"]),
    ]


def _headlines(scores: dict) -> str:
    exact_match, f1 = (with_interval(scores[name]) for name in ("exact_match", "f1"))
    return f"exact match {exact_match}, token F1 {f1}"


def _gap(row: dict, name: str) -> str:
    p = f"p {row['p']:.2g}" if row["p_holm"] is None else f"p {row['p_holm']:.2g} after Holm"
    shown = "shown" if row["shown"] else "not shown"
    sentence = f"{name}, {with_interval(row, 'difference', '+.2f')}, is {shown} ({p})"
    if row["shown"] or row["smallest_detectable"] is None:
        return f"{sentence}."
    smallest = format_number(row["smallest_detectable"])
    return f"{sentence}; an evaluation of this size shows {smallest} in four of five cases."


def _price(cost: dict) -> str:
    training = f"{cost['seconds_per_step']:,.2f} s per step, {cost['peak_memory_gb']:.1f} GB"
    return (
        f"{cost['trainable_parameters']:,} parameters trained ({training}), "
        f"{cost['weights_mb']:,.1f} MB on disk, {cost['tokens_per_second']:.1f} tokens per second"
    )


def _smaller(results: dict, pairs: dict[str, dict]) -> str:
    if "pruned" not in results["variants"]:
        return "No smaller model: layers cannot be cut out of this one."
    clauses = []
    for other in ("full", "picker"):
        row = pairs[f"pruned - {other}"]
        better = "better than" if row["difference"] > 0 else "worse than"
        compared = better if row["shown"] else "not shown to differ from"
        clauses.append(f"{compared} {other} ({with_interval(row, 'difference', '+.2f')})")
    full, pruned = (results["trade_off"]["variants"][name] for name in ("full", "pruned"))
    disk = pruned["weights_mb"] / full["weights_mb"]
    rate = pruned["tokens_per_second"] / full["tokens_per_second"]
    removed = len(results["training"]["pruned"]["layers_removed"])
    return (
        f"The smaller model, pruned (layers removed: {removed}), is {' and '.join(clauses)} in F1; "
        f"it takes {disk:.2f} of full's disk and writes {rate:.2f} times as fast."
    )


def _controls(controls: dict) -> str:
    conditions = controls["conditions"].items()
    f1 = [f"{with_interval(row['f1'])} with {CONTEXTS[name]}" for name, row in conditions]
    return (
        f"The controls, full's F1 on answerable questions: {', '.join(f1)}. "
        f"{_gap(controls['differences'][0], 'What its own article adds')}"
    )
