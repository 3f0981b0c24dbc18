"""The pages that show the committed run, README.md and experiments/README.md: `python -m experiments.tables`.

Every figure comes from results.json and eval_generations.jsonl beside this file, and tests/test_readme.py checks it.
"""

import pandas as pd

from bmwqa.corpus import ROOT, article_context, load_articles, read_json, read_jsonl, write_text
from bmwqa.report import (
    format_number,
    markdown_table,
    page_with,
    score_rows,
    trade_off_rows,
    verdict,
    with_interval,
)
from bmwqa.scores import answer_line, interval, score_records

HERE = ROOT / "experiments"
FRONT, PAGE = ROOT / "README.md", HERE / "README.md"
SHOWN = ("base", "full", "lora")


def front_section(results: dict, lines: list[dict]) -> str:
    """README's part: one question with three answers, what the run was, and a table of five columns."""
    asked = [line for line in lines if line["slice"] == results["headline"]]
    articles = len({line["article_id"] for line in asked})
    return "\n".join(
        [
            *example(asked),
            "",
            f"The committed run: {results['model']['name']}, {results['settings']['max_steps']} steps of one article, "
            f"on {results['machine']['threads']} threads of {results['machine']['processor']}; {len(asked)} benchmark "
            f"questions on {articles} articles that nobody trained on, with 95 % intervals. One seed.",
            "",
            markdown_table(headline_rows(results, asked)),
            "",
            "![Exact match and token F1](experiments/results.png)",
        ]
    )


def example(asked: list[dict]) -> list[str]:
    """The question that full answers better than base by the largest F1, the first of several, and what they wrote."""
    f1 = score_records(asked, {line["article_id"]: "" for line in asked}, ["base", "full"])
    f1 = f1.pivot(index="question_id", columns="variant", values="f1")
    gain = (f1["full"] - f1["base"]).reindex([line["question_id"] for line in asked])
    line = next(line for line in asked if line["question_id"] == gain.idxmax())
    article = next(a for a in load_articles(ROOT / "data/sample/eval") if a["id"] == line["article_id"])
    answers = [(name, " ".join(line[name]["answer"].split())[:140].replace("`", "'")) for name in SHOWN]
    return [
        "```text",
        f"{article['title']}",
        f"[…] {answer_line(article_context(article), line['references'], line['kind'])} […]",
        "",
        f"{line['question']}",
        *(f"  {name:<6}{answer}" for name, answer in answers),
        "```",
    ]


def headline_rows(results: dict, asked: list[dict]) -> list[dict[str, str]]:
    """A row for each variant: exact match, F1, yes/no, and what it declined, of the headline's questions."""
    rows = []
    for variant, slices in results["variants"].items():
        scores, declined = slices[results["headline"]], declined_shares(asked, variant)
        row = {"model": variant, "exact match": with_interval(scores["exact_match"])}
        row |= {
            "token F1": with_interval(scores["f1"]),
            "yes/no right": with_interval(scores["yes_no"]),
        }
        rows.append(row | {"declined, rightly / wrongly": " / ".join(map(with_interval, declined))})
    return rows


def declined_shares(asked: list[dict], variant: str) -> tuple[dict, dict]:
    """The shares, with intervals, of unanswerable and of answerable questions that a variant declines."""
    scores = score_records(asked, {line["article_id"]: "" for line in asked}, [variant])
    none = scores["kind"] == "unanswerable"
    right, wrong = (scores[none], scores[~none])
    return interval(right["declined"], right["article_id"]), interval(wrong["declined"], wrong["article_id"])


def results_section(results: dict) -> str:
    """The verdict and two tables with their 95 % intervals, from results.json and nothing else."""
    seconds = {name: training["seconds_a_step"] for name, training in results["training"].items()}
    pace = ", ".join(f"{name} {format_number(value, '.1f')}" for name, value in seconds.items())
    return "\n".join(
        [
            f"Seconds per step: {pace}; precision: {results['machine']['precision']}",
            "Rule-made: questions after title, date and first paragraph. Holm corrects p for three comparisons.",
            "",
            *(f"- {sentence}" for sentence in verdict(results)),
            "",
            markdown_table(score_rows(results)),
            "",
            "What it costs. The speeds are those of one short answer: base, full and *lora, merged* have the same "
            "shape and differ by noise. *lora* is the adapter without its base, *lora, merged* with it.",
            "",
            markdown_table([{k: v for k, v in row.items() if k != "perplexity"} for row in trade_off_rows(results)]),
        ]
    )


def pages(results: dict, lines: list[dict]) -> dict:
    """{path: text} of both pages, written anew."""
    front = page_with(FRONT, "results", front_section(results, lines))
    return {FRONT: front, PAGE: page_with(PAGE, "results", results_section(results))}


def draw(results: dict) -> None:
    """Exact match and token F1 of each variant on the headline's questions, with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = pd.DataFrame(
        {"model": variant, "score": name} | slices[results["headline"]][score]
        for variant, slices in results["variants"].items()
        for name, score in (("exact match", "exact_match"), ("token F1", "f1"))
    )
    means = table.pivot(index="model", columns="score", values="mean").loc[table["model"].unique()]
    errors = []
    for name in means:
        rows = table[table["score"] == name].set_index("model").loc[means.index]
        errors.append([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
    ax = means.plot.bar(yerr=errors, capsize=2, width=0.8, rot=0, figsize=(7, 3), error_kw={"lw": 0.8}, ylim=(0, 1))
    ax.set(xlabel="", title=f"Benchmark questions, with 95 % intervals, {results['model']['name']}")
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
