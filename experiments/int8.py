"""int8.json: full with int8 weights against full, on this CPU; `python -m experiments.int8`."""

import io
import warnings
from statistics import median

import torch
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

from bmwqa.answers import answer_rows, answer_speed
from bmwqa.corpus import ROOT, article_context, load_articles, read_jsonl, write_json
from bmwqa.machine import machine
from bmwqa.models import load_model, load_tokenizer
from bmwqa.report import with_interval
from bmwqa.scores import paired_difference, score_records

FOLDER, HERE, PER_ARTICLE = ROOT / "smollm2_full_ft", ROOT / "experiments", 8
KEPT = {"int8": (), "int8 but down_proj": ("down_proj",)}  # the layers that stay in fp32
COSTS = ("weights_mb", "first_token_seconds", "tokens_per_second")


def load_int8(kept: tuple[str, ...]):
    """full on the CPU, in int8 its linear layers, but those whose names end with one of `kept`.

    A scale per row of a matrix, and one for all inputs of a product. The embedding stays fp32.
    """
    model = load_model(FOLDER).cpu()
    linear = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    layers = {n: per_channel_dynamic_qconfig for n in linear if not n.endswith(kept)}
    with warnings.catch_warnings(action="ignore"):  # torch says that torchao will replace this
        return quantize_dynamic(model, layers, torch.qint8, inplace=True)


def measure() -> dict:
    """int8.json: {model: size, median speeds, scores with `paired_difference` to full}."""
    tokenizer, models = load_tokenizer(FOLDER), {"full": load_model(FOLDER).cpu()}
    models |= {name: load_int8(kept) for name, kept in KEPT.items()}
    articles = {a["id"]: article_context(a) for a in load_articles(ROOT / "data/sample/eval")}
    lines = read_jsonl(HERE / "eval_generations.jsonl")
    lines = [q for q in lines if q["slice"] == "benchmark"]
    asked = [[q for q in lines if q["article_id"] == article] for article in articles]
    lines = [q for of_article in asked for q in of_article[:: len(of_article) // PER_ARTICLE or 1]]
    rows = [q | {"context": articles[q["article_id"]], "answer": q["reference"]} for q in lines]
    figures = {name: [] for name in models}
    for row in rows[:: len(rows) // 5 or 1][:5]:  # the models take turns
        for name, model in models.items():
            figures[name].append(answer_speed(model, tokenizer, row["context"], row["question"]))
    for name, model in models.items():
        file, speeds = io.BytesIO(), figures[name]
        torch.save(model.state_dict(), file)
        figures[name] = {key: median(speed[key] for speed in speeds) for key in speeds[0]}
        figures[name]["weights_mb"] = file.tell() / 1e6
        for line, answer in zip(lines, answer_rows(model, tokenizer, rows, 40, name), strict=True):
            line[name] = answer
    scores = score_records(lines, articles, list(models))
    for score in ("exact_match", "f1"):
        wide = scores.pivot(index=["article_id", "question_id"], columns="variant", values=score)
        for name in models:
            pair = (wide[name], wide["full"], wide.index.get_level_values("article_id"))
            figures[name][score] = paired_difference(*pair)
    return figures | {"machine": machine()}


def sentence(figures: dict) -> str:
    """What int8 weights save and cost against full; figures: int8.json."""
    clauses, full = [], figures["full"]
    for name, row in ((name, figures[name]) for name in KEPT):
        em, f1 = (with_interval(row[s], "difference", "+.2f") for s in ("exact_match", "f1"))
        size, first, speed = (f"{row[key] / full[key]:.2f}" for key in COSTS)
        clauses.append(
            f"*{name}* has {size} of full's size, takes {first} of its time to the first token and "
            f"writes {speed} times as fast; exact match {em}, token F1 {f1}, n = {row['f1']['n']}"
        )
    return f"{'; '.join(clauses)}."


if __name__ == "__main__":
    write_json(HERE / "int8.json", figures := measure())
    print(sentence(figures))
