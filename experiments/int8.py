"""int8 weights without training: full as it is and in three int8 forms, on this CPU.

`python -m experiments.int8` measures, and writes int8.json, int8.jsonl and a part of README.md.
"""

from statistics import median

import pandas as pd

from bmwqa.answers import answer_rows, answer_speed
from bmwqa.corpus import (
    ROOT,
    article_context,
    load_articles,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)
from bmwqa.int8 import saved_mb, to_int8
from bmwqa.machine import machine
from bmwqa.models import load_model, load_tokenizer
from bmwqa.report import markdown_table, page_with, with_interval
from bmwqa.scores import paired_difference, score_records

HERE, FOLDER = ROOT / "experiments", ROOT / "smollm2_full_ft"
PER_ARTICLE, SPEEDS = 8, 5  # questions per article that are answered; answers that are timed
ANSWERED = ("full", "torch int8", "torch int8, down_proj in fp32")
WAYS = (*ANSWERED, "torchao int8 weights")  # too slow here to be worth its answers
SPEED_KEYS = {"time to the first token": "first_token_seconds"}
SPEED_KEYS |= {"tokens per second": "tokens_per_second"}


def load_way(way: str):
    """full on the CPU, its linear layers in int8 as `way` says, see `to_int8`.

    torchao's: the weights alone are int8, and become fp32 for each product.
    """
    model = load_model(FOLDER).cpu()
    if way == "full":
        return model
    if way == "torchao int8 weights":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # experiments alone

        quantize_(model, Int8WeightOnlyConfig())
        return model
    return to_int8(model, ("down_proj",) if "down_proj" in way else ())


def chosen_rows() -> list[dict]:
    """PER_ARTICLE of the benchmark's questions on each article, evenly spread, as rows."""
    lines = [q for q in read_jsonl(HERE / "eval_generations.jsonl") if q["slice"] == "benchmark"]
    of_article = pd.DataFrame(lines).groupby("article_id").indices.values()
    places = [i for rows in of_article for i in rows[:: len(rows) // PER_ARTICLE][:PER_ARTICLE]]
    contexts = contexts_by_id()
    lines = [lines[place] for place in places]
    return [q | {"context": contexts[q["article_id"]], "answer": q["reference"]} for q in lines]


def contexts_by_id() -> dict[str, str]:
    return {a["id"]: article_context(a) for a in load_articles(ROOT / "data/sample/eval")}


def measure() -> None:
    """Write int8.json, what each way costs, and int8.jsonl, what each answers."""
    tokenizer, rows = load_tokenizer(FOLDER), chosen_rows()
    models = {way: load_way(way) for way in WAYS}
    speeds, costs = {way: [] for way in WAYS}, {}
    for row in rows[:: len(rows) // SPEEDS][:SPEEDS]:
        for way, model in models.items():  # they take turns
            speeds[way].append(answer_speed(model, tokenizer, row["context"], row["question"]))
    keys = ("slice", "article_id", "question_id", "kind", "references")
    lines = [{key: row[key] for key in keys} for row in rows]
    for way, model in models.items():
        costs[way] = {key: median(speed[key] for speed in speeds[way]) for key in speeds[way][0]}
        costs[way]["weights_mb"] = saved_mb(model)
    for way in ANSWERED:
        answers = answer_rows(models[way], tokenizer, rows, 40, way)
        for line, answer in zip(lines, answers, strict=True):
            line[way] = answer
    write_json(HERE / "int8.json", {"machine": machine(), "costs": costs})
    write_jsonl(HERE / "int8.jsonl", lines)


def section() -> str:
    """The part of README.md, from int8.json and int8.jsonl."""
    figures, lines = read_json(HERE / "int8.json"), read_jsonl(HERE / "int8.jsonl")
    scores = score_records(lines, contexts_by_id(), ANSWERED)
    wide = scores.pivot(index=["article_id", "question_id"], columns="variant")
    articles, rows = wide.index.get_level_values("article_id"), []
    full = figures["costs"]["full"]
    for way in WAYS:
        cost = figures["costs"][way]
        row = {"weights": way, "MB": f"{cost['weights_mb']:.0f}"}
        for title, key in SPEED_KEYS.items():
            row[title] = f"{cost[key] / full[key]:.2f} ×"
        row |= {"exact match": "–", "F1": "–", "F1 against full": "–"}
        if way in ANSWERED:
            exact_match, f1 = wide["exact_match"][way], wide["f1"][way]
            row |= {"exact match": f"{exact_match.mean():.2f}", "F1": f"{f1.mean():.2f}"}
        if way in ANSWERED[1:]:
            gap = paired_difference(f1, wide["f1"]["full"], articles)
            row["F1 against full"] = with_interval(gap, "difference", "+.2f")
        rows.append(row)
    where, n = figures["machine"], gap["n"]
    return (
        f"On {where['threads']} threads of {where['processor']}, in fp32 beside the int8 "
        f"weights; {n} answerable benchmark questions, {PER_ARTICLE} questions per article; speeds "
        f"are medians of {SPEEDS} answers, the ways taking turns.\n\n{markdown_table(rows)}"
    )


def readme() -> str:
    """README.md with this part."""
    return page_with(HERE / "README.md", "int8", section())


if __name__ == "__main__":
    measure()
    write_text(HERE / "README.md", readme())
