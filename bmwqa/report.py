"""results.json: what it must hold, and the tables and sentences that are made from it.

The notebook and README show these figures through this file, so neither can say what the run did not measure.
"""

import json
import re
from pathlib import Path

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

SCHEMA = Path(__file__).with_name("results.schema.json")


def check_results(results: dict) -> dict:
    """`results` as they are; ValueError names the field that results.schema.json does not know, misses or refuses."""
    try:
        plain = json.loads(json.dumps(results, allow_nan=False))
    except ValueError as error:
        raise ValueError(f"results.json: found NaN or infinity, need a number or None. {error}.") from error
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    if error := best_match(Draft202012Validator(schema).iter_errors(plain)):
        need = "Correct the value, or describe the new field in bmwqa/results.schema.json."
        raise ValueError(f"results.json, {error.json_path}: {error.message[:300]}. {need}")
    return results


# ---------------------------------------------------------------------------------------------------------------------
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
    """A row a variant: perplexity and F1 of each slice, and the share of answers that stopped by themselves."""
    part, rows = results["headline"], []
    for variant, slices in results["variants"].items():
        cells = {f"perplexity, {NAMES[name]}": with_interval(found["perplexity"]) for name, found in slices.items()}
        cells |= {f"token F1, {NAMES[name]}": with_interval(found["f1"]) for name, found in slices.items()}
        rows.append({"model": variant} | cells | {f"stopped, {NAMES[part]}": with_interval(slices[part]["stopped"])})
    return rows


def pair_rows(differences: list[dict]) -> list[dict[str, str]]:
    """A row a paired difference in F1."""
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
    """A row a context in which the full variant was asked the answerable questions."""
    columns = {
        "f1": "token F1",
        "exact_match": "exact match",
        "declined": "declined",
        "perplexity": "perplexity",
    }
    return [
        {"asked with": CONTEXTS[name]} | {title: with_interval(found[score]) for score, title in columns.items()}
        for name, found in results["controls"]["conditions"].items()
    ]


def trade_off_rows(results: dict) -> list[dict[str, str]]:
    """A row a variant, and one for LoRA merged into its base: what it costs, and what it gives on the headline slice.

    Merged, LoRA answers as beside its base (tests/test_models.py), so it is not scored again.
    """
    rows = []
    for variant, cost in results["trade_off"]["variants"].items():
        scores = results["variants"].get(variant, {}).get(results["headline"])
        rows.append(
            {
                "model": NAMES.get(variant, variant),
                "trained parameters": format_number(cost["trainable_parameters"], ",d"),
                "s a step": format_number(cost["seconds_a_step"]),
                "peak GB in training": format_number(cost["peak_memory_gb"], ".1f"),
                "MB on disk": format_number(cost["weights_mb"], ",.1f"),
                "s to first token": format_number(cost["first_token_seconds"]),
                "tokens a second": format_number(cost["tokens_per_second"], ".1f"),
                "perplexity": with_interval(scores["perplexity"]) if scores else "as lora",
                "token F1": with_interval(scores["f1"]) if scores else "as lora",
            }
        )
    return rows


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Rows of strings as a table of README."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page_with(path: Path, name: str, section: str) -> str:
    """The page at `path` with `section` between its comments `<!-- name: … -->` and `<!-- /name -->`."""
    pattern = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    text, count = pattern.subn(lambda match: f"{match[1]}{section}\n{match[2]}", path.read_text(encoding="utf-8"))
    if count != 1:
        raise ValueError(f"{path}: found {count} places for {name!r}, need one. Restore its two comments.")
    return text


# ---------------------------------------------------------------------------------------------------------------------
# The verdict, in sentences


def find_pair(results: dict, one: str, other: str) -> dict:
    """The paired difference one - other in F1 on the headline slice, turned round if results.json has other - one."""
    rows = {row["pair"]: row for row in results["differences"] if row["slice"] == results["headline"]}
    if row := rows.get(f"{one} - {other}"):
        return row
    row = rows[f"{other} - {one}"]
    low, high = (None if row[key] is None else 0 - row[key] for key in ("high", "low"))
    return row | {"difference": 0 - row["difference"], "low": low, "high": high}


def verdict(results: dict) -> list[str]:
    """What someone who must choose a model needs to know, a sentence or two each: best, price, smaller, controls.

    "Best" is the highest mean F1 on the headline slice; it is compared with the next by the paired difference, which
    is "shown" as in `scores.paired_table`. Of equals, the first in the order of the variants is the better one.
    """
    f1 = {variant: slices[results["headline"]]["f1"] for variant, slices in results["variants"].items()}
    best, second = sorted(f1, key=lambda variant: f1[variant]["mean"], reverse=True)[:2]
    asked, first, then = (
        NAMES[results["headline"]],
        with_interval(f1[best]),
        with_interval(f1[second]),
    )
    return [
        f"Best is **{best}**, with a token F1 of {first} on the {asked} questions; next is {second}, with {then}. "
        + _gap(find_pair(results, best, second)),
        f"The price: {_price(results, best)}; {_price(results, second)}.",
        _smaller(results),
        _controls(results),
    ]


def _gap(row: dict, what: str = "The difference") -> str:
    plain = row["p_holm"] is None
    p = f"p {format_number(row['p' if plain else 'p_holm'], '.2g')}{'' if plain else ' after Holm'}"
    found = f"{what}, {with_interval(row, 'difference', '+.2f')}, is {'' if row['shown'] else 'not '}shown ({p})"
    if row["shown"] or row["smallest_detectable"] is None:
        return f"{found}."
    return (
        f"{found}; an evaluation of this size finds {format_number(row['smallest_detectable'])} in four of five cases."
    )


def _price(results: dict, variant: str) -> str:
    cost = results["trade_off"]["variants"][variant]
    trained = "nothing trained"
    if cost["trainable_parameters"] is not None:
        pace = f"{format_number(cost['seconds_a_step'])} s a step, {format_number(cost['peak_memory_gb'], '.1f')} GB"
        trained = f"{cost['trainable_parameters']:,} parameters trained ({pace})"
    disk, rate = (
        format_number(cost["weights_mb"], ",.1f"),
        format_number(cost["tokens_per_second"], ".1f"),
    )
    return f"{variant}, {trained}, {disk} MB on disk, {rate} tokens a second"


def _smaller(results: dict) -> str:
    found = []
    for other in ("full", "base"):
        row = find_pair(results, "pruned", other)
        word = (
            ("better than" if row["difference"] > 0 else "worse than") if row["shown"] else "not shown to differ from"
        )
        found.append(f"{word} {other} ({with_interval(row, 'difference', '+.2f')})")
    costs = results["trade_off"]["variants"]
    disk, rate = (costs["pruned"][key] / costs["full"][key] for key in ("weights_mb", "tokens_per_second"))
    removed = len(results["training"]["pruned"]["layers_removed"])
    return (
        f"The smaller model, pruned (layers removed: {removed}), is {' and '.join(found)} in F1; "
        f"it takes {disk:.2f} of full's disk and writes {rate:.2f} times as fast."
    )


def _controls(results: dict) -> str:
    controls = results["controls"]
    if not controls["differences"]:
        return "No control was asked: no question has an answer."
    found = ", ".join(
        f"{with_interval(scores['f1'])} with {CONTEXTS[name]}" for name, scores in controls["conditions"].items()
    )
    gap = _gap(controls["differences"][0], "What its own article adds")
    return f"The controls, full's F1 on answerable questions: {found}. {gap}"
