"""Tables and sentences from results.json, for the notebook and README.

Both show figures through this file alone, so neither can say what the run did not measure.
"""

import re
from pathlib import Path

from bmwqa.scores import BASELINES, TRAINED

NAMES = {"rule_made": "rule-made", "benchmark": "benchmark", "lora_merged": "lora, merged"}
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
    rows = []
    for variant, slices in results["variants"].items():
        row = {"model": variant}
        for name, scores in slices.items():
            for score, title in (("exact_match", "exact match"), ("f1", "token F1")):
                row[f"{title}, {NAMES[name]}"] = with_interval(scores[score])
        scores = slices[results["headline"]]
        row[f"perplexity, {NAMES[results['headline']]}"] = with_interval(scores["perplexity"])
        row["stopped"] = with_interval(scores["stopped"])
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
    rows = []
    for name, scores in results["controls"]["conditions"].items():
        cells = {title: with_interval(scores[score]) for score, title in titles.items()}
        rows.append({"asked with": CONTEXTS[name]} | cells)
    return rows


def trade_off_rows(results: dict) -> list[dict[str, str]]:
    """A row per variant: what it costs, and its F1 on the headline's questions."""
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
        # a merged adapter answers as beside its base, see tests/test_models.py
        row["token F1"] = with_interval(scores["f1"]) if scores else "as lora"
        rows.append(row)
    return rows


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Rows of strings as a markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page_with(path: Path, name: str, section: str) -> str:
    """The text of `path` with `section` between `<!-- name: … -->` and `<!-- /name -->`."""
    pattern = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    old = path.read_text(encoding="utf-8")
    text, count = pattern.subn(lambda match: f"{match[1]}{section}\n{match[2]}", old)
    if count != 1:
        problem = f"found {count} places for {name!r}, need one"
        raise ValueError(f"{path}: {problem}. Restore its two comments.")
    return text


def find_pair(results: dict, one: str, other: str) -> dict:
    """The paired difference one - other in F1 on the headline's questions, from either order."""
    headline = results["headline"]
    rows = {row["pair"]: row for row in results["differences"] if row["slice"] == headline}
    if row := rows.get(f"{one} - {other}"):
        return row
    row = rows[f"{other} - {one}"]
    low, high = (None if row[key] is None else 0 - row[key] for key in ("high", "low"))
    return row | {"difference": 0 - row["difference"], "low": low, "high": high}


def verdict(results: dict) -> list[str]:
    """Five paragraphs for someone who must choose a model.

    They say whether training is worth its price, whether full or LoRA is better, what both cost,
    what the smaller model gives, and what the controls show. "Best" is the highest mean F1 on the
    headline's questions; "shown" is as in `scores.paired_table`.
    """
    headline = results["headline"]
    scores = {variant: slices[headline] for variant, slices in results["variants"].items()}

    def best_of(variants: tuple[str, ...]) -> str:
        return max(variants, key=lambda variant: scores[variant]["f1"]["mean"])

    def figures(variant: str) -> str:
        exact_match, f1 = (with_interval(scores[variant][key]) for key in ("exact_match", "f1"))
        return f"{variant}: exact match {exact_match}, token F1 {f1}"

    trained = tuple(variant for variant in TRAINED if variant in scores)
    best, rival = best_of(trained), best_of(BASELINES)
    gain, full_lora = find_pair(results, best, rival), find_pair(results, "full", "lora")
    worth = "is" if gain["shown"] and gain["difference"] > 0 else "is not"
    ahead = f"{'full' if full_lora['difference'] > 0 else 'lora'} is the better one"
    return [
        f"Training {worth} shown to beat the best answer without it, on the {NAMES[headline]} "
        f"questions. **{figures(best)}**; {figures(rival)}. {_gap(gain, 'The difference in F1')}",
        f"{ahead if full_lora['shown'] else 'full and lora are not told apart'}. "
        f"{_gap(full_lora, 'full - lora')}",
        f"The price: {_price(results, 'full')}; {_price(results, 'lora')}.",
        _smaller(results),
        _controls(results),
    ]


def _gap(row: dict, name: str) -> str:
    p, after = (row["p"], "") if row["p_holm"] is None else (row["p_holm"], " after Holm")
    p = f"p {format_number(p, '.2g')}{after}"
    shown = "shown" if row["shown"] else "not shown"
    sentence = f"{name}, {with_interval(row, 'difference', '+.2f')}, is {shown} ({p})"
    if row["shown"] or row["smallest_detectable"] is None:
        return f"{sentence}."
    smallest = format_number(row["smallest_detectable"])
    return f"{sentence}; an evaluation of this size shows {smallest} in four of five cases."


def _price(results: dict, variant: str) -> str:
    cost = results["trade_off"]["variants"][variant]
    training = f"{cost['seconds_per_step']:,.2f} s per step, {cost['peak_memory_gb']:.1f} GB"
    return (
        f"{variant}, {cost['trainable_parameters']:,} parameters trained ({training}), "
        f"{cost['weights_mb']:,.1f} MB on disk, {cost['tokens_per_second']:.1f} tokens per second"
    )


def _smaller(results: dict) -> str:
    if "pruned" not in results["variants"]:
        return "No smaller model: layers cannot be cut out of this one."
    clauses = []
    for other in ("full", "picker"):
        row = find_pair(results, "pruned", other)
        is_how = "better than" if row["difference"] > 0 else "worse than"
        is_how = is_how if row["shown"] else "not shown to differ from"
        clauses.append(f"{is_how} {other} ({with_interval(row, 'difference', '+.2f')})")
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
    f1 = {name: with_interval(scores["f1"]) for name, scores in controls["conditions"].items()}
    figures = ", ".join(f"{f1[name]} with {CONTEXTS[name]}" for name in f1)
    gap = _gap(controls["differences"][0], "What its own article adds")
    return f"The controls, full's F1 on answerable questions: {figures}. {gap}"
