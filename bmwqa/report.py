"""The tables and sentences that are made from results.json.

The notebook and README show these figures through this file, so neither can say what the run did
not measure.
"""

import re
from pathlib import Path

# --------------------------------------------------------------------------------------------------
# Tables, as rows of strings

NAMES = {"rule_made": "rule-made", "benchmark": "benchmark", "lora_merged": "lora, merged"}
CONTEXTS = {
    "own_article": "its own article",
    "no_article": "no article",
    "other_article": "another article",
}


def format_number(number: float | None, form: str = ",.2f") -> str:
    """A number in a format, "–" for None."""
    return "–" if number is None else f"{number:{form}}"


def with_interval(figure: dict, key: str = "mean", form: str = ".2f") -> str:
    """A mean, or a difference, and its 95 % interval.

    >>> with_interval({"mean": 0.126, "low": 0.1, "high": 0.15})
    '0.13 [0.10, 0.15]'
    """
    limits = "" if figure["low"] is None else f" [{figure['low']:{form}}, {figure['high']:{form}}]"
    return format_number(figure[key], form) + limits


def score_rows(results: dict) -> list[dict[str, str]]:
    """A row per variant: perplexity and F1 of each slice, and the share of answers that stopped."""
    rows = []
    for variant, slices in results["variants"].items():
        row = {"model": variant}
        for score, title in (("perplexity", "perplexity"), ("f1", "token F1")):
            for name, scores in slices.items():
                row[f"{title}, {NAMES[name]}"] = with_interval(scores[score])
        headline = results["headline"]
        row[f"stopped, {NAMES[headline]}"] = with_interval(slices[headline]["stopped"])
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
    titles = {"f1": "token F1", "exact_match": "exact match", "declined_wrongly": "declined"}
    titles |= {"perplexity": "perplexity"}
    return [
        {"asked with": CONTEXTS[name]}
        | {title: with_interval(scores[score]) for score, title in titles.items()}
        for name, scores in results["controls"]["conditions"].items()
    ]


def trade_off_rows(results: dict) -> list[dict[str, str]]:
    """A row per variant: what it costs, and its F1 on the headline's questions.

    LoRA merged into its base answers as beside it (tests/test_models.py): it is not scored again.
    """
    rows = []
    for variant, cost in results["trade_off"]["variants"].items():
        scores = results["variants"].get(variant, {}).get(results["headline"])
        pace = format_number(cost["seconds_per_step"], ".1f")
        row = {"model": NAMES.get(variant, variant)}
        row["trained parameters"] = format_number(cost["trainable_parameters"], ",d")
        row["s per step / peak GB"] = f"{pace} / {format_number(cost['peak_memory_gb'], '.1f')}"
        row["MB on disk"] = format_number(cost["weights_mb"], ",.1f")
        row["s to first token"] = format_number(cost["first_token_seconds"])
        row["tokens per second"] = format_number(cost["tokens_per_second"], ".1f")
        row["token F1"] = with_interval(scores["f1"]) if scores else "as lora"
        rows.append(row)
    return rows


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Rows of strings as a table of README."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page_with(path: Path, name: str, section: str) -> str:
    """The text of `path` with `section` between `<!-- name: … -->` and `<!-- /name -->`."""
    pattern = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    old = path.read_text(encoding="utf-8")
    text, count = pattern.subn(lambda match: f"{match[1]}{section}\n{match[2]}", old)
    if count != 1:
        raise ValueError(
            f"{path}: found {count} places for {name!r}, need one. Restore its two comments."
        )
    return text


# --------------------------------------------------------------------------------------------------
# The verdict, in sentences


def find_pair(results: dict, one: str, other: str) -> dict:
    """The paired difference one - other in F1 on the headline's questions.

    It is turned round where results.json has other - one.
    """
    headline = results["headline"]
    rows = {row["pair"]: row for row in results["differences"] if row["slice"] == headline}
    if row := rows.get(f"{one} - {other}"):
        return row
    row = rows[f"{other} - {one}"]
    low, high = (None if row[key] is None else 0 - row[key] for key in ("high", "low"))
    return row | {"difference": 0 - row["difference"], "low": low, "high": high}


def verdict(results: dict) -> list[str]:
    """What someone who must choose a model needs to know: best, price, smaller, controls.

    "Best" is the highest mean F1 on the headline's questions, the first variant among equals. It is
    compared with the next one by the paired difference, "shown" as in `scores.paired_table`.
    """
    headline, variants = results["headline"], results["variants"]
    f1 = {variant: slices[headline]["f1"] for variant, slices in variants.items()}
    best, second = sorted(f1, key=lambda variant: f1[variant]["mean"], reverse=True)[:2]
    return [
        f"Best is **{best}**, with a token F1 of {with_interval(f1[best])} on the "
        f"{NAMES[headline]} questions; next is {second}, with {with_interval(f1[second])}. "
        f"{_gap(find_pair(results, best, second), 'The difference')}",
        f"The price: {_price(results, best)}; {_price(results, second)}.",
        _smaller(results),
        _controls(results),
    ]


def _gap(row: dict, name: str) -> str:
    p = f"p {format_number(row['p'], '.2g')}"
    if row["p_holm"] is not None:
        p = f"p {format_number(row['p_holm'], '.2g')} after Holm"
    shown = "shown" if row["shown"] else "not shown"
    sentence = f"{name}, {with_interval(row, 'difference', '+.2f')}, is {shown} ({p})"
    if row["shown"] or row["smallest_detectable"] is None:
        return f"{sentence}."
    smallest = format_number(row["smallest_detectable"])
    return f"{sentence}; an evaluation of this size shows {smallest} in four of five cases."


def _price(results: dict, variant: str) -> str:
    cost, trained = results["trade_off"]["variants"][variant], "nothing trained"
    if cost["trainable_parameters"] is not None:
        pace = f"{format_number(cost['seconds_per_step'])} s per step"
        memory = f"{format_number(cost['peak_memory_gb'], '.1f')} GB"
        trained = f"{cost['trainable_parameters']:,} parameters trained ({pace}, {memory})"
    disk = format_number(cost["weights_mb"], ",.1f")
    rate = format_number(cost["tokens_per_second"], ".1f")
    return f"{variant}, {trained}, {disk} MB on disk, {rate} tokens per second"


def _smaller(results: dict) -> str:
    clauses = []
    for other in ("full", "base"):
        row = find_pair(results, "pruned", other)
        better = "better than" if row["difference"] > 0 else "worse than"
        word = better if row["shown"] else "not shown to differ from"
        clauses.append(f"{word} {other} ({with_interval(row, 'difference', '+.2f')})")
    costs = results["trade_off"]["variants"]
    disk = costs["pruned"]["weights_mb"] / costs["full"]["weights_mb"]
    rate = costs["pruned"]["tokens_per_second"] / costs["full"]["tokens_per_second"]
    removed = len(results["training"]["pruned"]["layers_removed"])
    return (
        f"The smaller model, pruned (layers removed: {removed}), is {' and '.join(clauses)} in F1; "
        f"it takes {disk:.2f} of full's disk and writes {rate:.2f} times as fast."
    )


def _controls(results: dict) -> str:
    controls = results["controls"]
    if not controls["differences"]:
        return "No control was asked: no question has an answer."
    scores = ", ".join(
        f"{with_interval(scores['f1'])} with {CONTEXTS[name]}"
        for name, scores in controls["conditions"].items()
    )
    gap = _gap(controls["differences"][0], "What its own article adds")
    return f"The controls, full's F1 on answerable questions: {scores}. {gap}"
