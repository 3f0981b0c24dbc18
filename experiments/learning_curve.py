"""How many written questions, and how many steps, are worth their time? `make experiments`.

Each run trains in the cells of training.ipynb, in a kernel of its own, with other rows or parameters, and answers the
benchmark. What is finished is not run again; answers of every run are kept in experiments/learning_curve.jsonl.gz.

    committed  full and LoRA of `make refresh`: read from its files, not trained again
    mission    the settings this comparison began with, experiments/original.yaml, one seed
    questions  50 steps with 0, 300, 600, 1,200 and 2,400 written questions
    steps      25, 50, 100 steps, and one pass over all articles, with all written questions

Names of parts as arguments do those alone; `--seeds 1` does one seed of three, `--variants full` full alone.
Writes experiments/learning_curve.json, experiments/learning_curve.png and the section of experiments/README.md on them.
"""

import argparse
import ast
import gzip
import hashlib
import json
import random
import shutil
from statistics import mean, stdev

import nbformat
import papermill
import yaml

import bmwqa_utils as bq
from bmwqa.answers import answer_rows
from bmwqa.corpus import ROOT
from bmwqa.models import load_model, load_tokenizer, short_name
from bmwqa.pairs import RULE_KINDS
from bmwqa.report import markdown_table, page_with
from bmwqa.run import choose_precision, machine
from bmwqa.scores import score_records
from experiments.notebooks import RUNS, TRAINING, execute

MODEL, RESULTS = "smollm2-135m", ROOT / "experiments" / "learning_curve.json"
ANSWERS = ROOT / "experiments" / "learning_curve.jsonl.gz"
MISSION = yaml.safe_load((ROOT / "experiments" / "original.yaml").read_text(encoding="utf-8"))
DEFAULTS = {  # the parameters of training.ipynb
    name: ast.literal_eval(given["default"]) for name, given in papermill.inspect_notebook(str(TRAINING)).items()
}
PAGE = ROOT / "experiments" / "README.md"
HEADINGS = {"full": "### Full fine-tuning", "lora": "### LoRA"}
FOLDERS = {"full": "full_ft", "lora": "lora"}
KEPT = ("learning_rate", "questions", "seconds_a_step", "trainable_parameters")  # of training.json
ALL = None  # all written questions, or one pass over all articles
PART_RUNS = {  # (written questions, steps, parameters)
    "committed": [],
    "mission": [
        (
            0,
            50,
            {name: value for name, value in MISSION.items() if name not in ("QUESTIONS", "MAX_STEPS")},
        )
    ],
    "questions": [(count, 50, {}) for count in (0, 300, 600, 1200, 2400)],
    "steps": [(ALL, steps, {}) for steps in (25, 50, 100, ALL)],
}


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def choose_rows(rows: list[dict], count: int | None, seed: int) -> list[dict]:
    """The rows by rule, and those of `count` written questions on articles drawn by `seed`; None: all rows."""
    written = [row for row in rows if row["source"] == "written"]
    if count is None:
        return rows
    names = sorted({row["article_id"] for row in written})
    place = {name: number for number, name in enumerate(random.Random(seed).sample(names, len(names)))}
    kept = sorted(written, key=lambda row: place[row["article_id"]])[:count]
    return [row for row in rows if row["source"] == "rule"] + kept


def run_name(part: str, variant: str, count: int | None, steps: int | None, seed: int) -> str:
    """The folder of a run: run_name("steps", "full", None, 25, 42) is "steps-full-all-25-42"."""
    return f"{part}-{variant}-{'all' if count is None else count}-{'pass' if steps is None else steps}-{seed}"


def train(name: str, variant: str, rows: list[dict], parameters: dict) -> dict:
    """What training.json of a run says; its model is in runs/experiments/<name> until it has answered."""
    folder = RUNS / "experiments" / name
    mark = hashlib.sha256(json.dumps([rows, parameters]).encode()).hexdigest()[:12]
    if (folder / "mark.json").exists() and bq.read_json(folder / "mark.json")["mark"] != mark:
        shutil.rmtree(folder)  # of other rows or settings
    if not (folder / "training.json").exists():
        bq.write_json(folder / "mark.json", {"mark": mark})
        bq.write_jsonl(folder / "rows" / "train.jsonl", rows)
        notebook = nbformat.read(TRAINING, as_version=4)
        heads = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith("### ")]
        start = next(i for i in heads if notebook.cells[i].source.startswith(HEADINGS[variant]))
        end = heads[heads.index(start) + 1]
        notebook.cells = notebook.cells[: heads[0]] + notebook.cells[start:end]
        nbformat.write(notebook, folder / "cells.ipynb")
        where = {
            name: str(path.relative_to(ROOT))
            for name, path in {"OUT_DIR": folder, "PROCESSED_DIR": folder / "rows"}.items()
        }
        execute(folder / "cells.ipynb", folder / "run.ipynb", parameters | where | {"MODEL": MODEL})
        model = folder / f"{short_name(MODEL)}_{FOLDERS[variant]}"
        bq.write_json(folder / "training.json", bq.read_json(model / "training.json"))
    return bq.read_json(folder / "training.json")


def answer(name: str, variant: str, questions: list[dict]) -> list[dict]:
    """The answers of a run, in the order of the questions; its model is deleted when they are written."""
    folder = RUNS / "experiments" / name
    if not (folder / "answers.jsonl").exists():
        model = folder / f"{short_name(MODEL)}_{FOLDERS[variant]}"
        caps = [DEFAULTS["MAX_NEW_TOKENS_ABOUT" if q["kind"] == "about" else "MAX_NEW_TOKENS"] for q in questions]
        loaded = load_model(model, dtype=choose_precision()[0], merge=True)
        answers = answer_rows(loaded, load_tokenizer(MODEL), questions, caps)
        bq.write_jsonl(folder / "answers.jsonl", answers)
        shutil.rmtree(model)
    return bq.read_jsonl(folder / "answers.jsonl")


def evaluation_questions() -> list[dict]:
    """What training.ipynb asks: the rules' questions on the evaluation articles, and the benchmark."""
    made = bq.load_rows(ROOT / "data/processed/eval.jsonl")
    contexts = {row["article_id"]: row["context"] for row in made}
    asked = bq.rule_made_questions(made) + bq.load_benchmark(ROOT / DEFAULTS["BENCHMARK"], contexts)
    return bq.drop_long(asked, load_tokenizer(MODEL), DEFAULTS["MAX_TOKENS"])[0]


def do_run(part: str, variant: str, setting: tuple, seed: int, rows: list[dict], questions: list[dict]) -> dict:
    """One run, trained and scored: {"name", "part", "variant", "written", "steps", "seed", …, "scores"}."""
    count, steps, parameters = setting
    chosen = choose_rows(rows, count, seed)
    articles = len({row["article_id"] for row in bq.drop_long(chosen, load_tokenizer(MODEL))[0]})
    steps = steps or articles - DEFAULTS["HELD_OUT"]
    name = run_name(part, variant, *setting[:2], seed)
    parameters = parameters | {"MAX_STEPS": steps, "EVAL_STEPS": steps, "SEED": seed}
    training = train(name, variant, chosen, parameters)
    answers = answer(name, variant, questions)
    written = sum(row["source"] == "written" for row in chosen)
    run = {
        "name": name,
        "part": part,
        "variant": variant,
        "written": written,
        "steps": steps,
        "seed": seed,
    }
    run |= {key: training[key] for key in KEPT}
    by_question = {question["question_id"]: made for question, made in zip(questions, answers, strict=True)}
    return run | {"scores": scores_of(answers, questions), "answers": by_question}


def scores_of(answers: list[dict], questions: list[dict]) -> dict[str, float]:
    """The means that the table and the plot show, of the benchmark and of the three questions by rule."""
    records = [question | {"run": made} for question, made in zip(questions, answers, strict=True)]
    scores = score_records(records, {q["article_id"]: q["context"] for q in questions}, ["run"])
    asked, by_rule = scores[scores["slice"] == "benchmark"], scores[scores["slice"] == "rule_made"]
    none = asked["kind"] == "unanswerable"
    found = {score: asked.loc[~none, score].mean() for score in ("exact_match", "f1")}
    found |= {
        "declined_rightly": asked.loc[none, "declined"].mean(),
        "declined_wrongly": asked.loc[~none, "declined"].mean(),
    }
    found["yes_no"] = asked["yes_no"].mean()
    return found | {kind: by_rule.loc[by_rule["kind"] == kind, "exact_match"].mean() for kind in RULE_KINDS}


def committed_runs() -> list[dict]:
    """Full and LoRA of the committed run, as `do_run` gives its own; they are runs of the part "steps"."""
    results = bq.read_json(ROOT / "experiments" / "results.json")
    lines = bq.read_jsonl(ROOT / "experiments" / "eval_generations.jsonl")
    contexts = {a["id"]: bq.article_context(a) for a in bq.load_articles(ROOT / "data/sample/eval")}
    questions = [line | {"context": contexts[line["article_id"]]} for line in lines]
    written, seed = results["data"]["pairs"]["train"]["written"], results["settings"]["seed"]
    runs = []
    for variant in HEADINGS:
        training, answers = results["training"][variant], [line[variant] for line in lines]
        steps = len(training["losses"])
        run = {
            "name": run_name("steps", variant, ALL, steps, seed),
            "part": "steps",
            "variant": variant,
        }
        run |= {"written": written, "steps": steps, "seed": seed}
        run |= {key: training[key] for key in KEPT}
        by_question = {line["question_id"]: line[variant] for line in lines}
        runs.append(run | {"scores": scores_of(answers, questions), "answers": by_question})
    return runs


# ---------------------------------------------------------------------------------------------------------------------
# What experiments/README.md shows


def grouped(runs: list[dict]) -> dict[tuple, list[dict]]:
    """The runs that differ by their seed alone, under (part, variant, written, steps)."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        groups.setdefault(tuple(run[key] for key in ("part", "variant", "written", "steps")), []).append(run)
    return groups


def spread(runs: list[dict], score: str) -> str:
    """The mean over seeds, and their standard deviation where there are several."""
    values = [run["scores"][score] for run in runs]
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def table_rows(runs: list[dict]) -> list[dict[str, str]]:
    """A row for each setting, over its seeds."""
    rows = []
    for (part, variant, written, steps), same in sorted(grouped(runs).items()):
        name = f"{variant}, the mission’s settings" if part == "mission" else variant
        rows.append(
            {
                "run": name,
                "written questions": f"{written:,}",
                "steps": f"{steps}",
                "seeds": f"{len(same)}",
            }
        )
        rows[-1] |= {"exact match": spread(same, "exact_match"), "token F1": spread(same, "f1")}
        rows[-1] |= {
            "declined, rightly / wrongly": " / ".join(
                spread(same, score) for score in ("declined_rightly", "declined_wrongly")
            )
        }
        rows[-1] |= {"yes/no right": spread(same, "yes_no")}
        rows[-1] |= {"title / date / about": " / ".join(spread(same, kind) for kind in RULE_KINDS)}
    return rows


def experiments_section(results: dict) -> str:
    """The table in markdown, of what experiments/learning_curve.json has, and of nothing else."""
    lines = [
        f"{results['model']}, on {results['processor']}: exact match and token F1 of the answerable questions of the "
        "benchmark, means over seeds ± their standard deviation.",
        "",
        markdown_table(table_rows(results["runs"])),
    ]
    if any(run["part"] == "questions" for run in results["runs"]):
        lines += ["", "![Exact match and token F1 against questions and steps](learning_curve.png)"]
    return "\n".join(lines)


def readme(results: dict) -> str:
    """experiments/README.md with this section written anew."""
    return page_with(PAGE, "experiments", experiments_section(results))


def draw(runs: list[dict]) -> None:
    """Exact match and F1 against written questions and against steps: lines of means, bands from lowest to highest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for ax, part, key in zip(axes, ("questions", "steps"), ("written", "steps"), strict=True):
        for variant, color in (("full", "C0"), ("lora", "C1")):
            for score, style in (("exact_match", "-"), ("f1", "--")):
                points = sorted(
                    (same[0][key], [run["scores"][score] for run in same])
                    for (its_part, its_variant, *_), same in grouped(runs).items()
                    if (its_part, its_variant) == (part, variant)
                )
                if points:
                    x, values = zip(*points, strict=True)
                    ax.plot(
                        x,
                        list(map(mean, values)),
                        color + style,
                        marker="o",
                        ms=3,
                        label=f"{variant}, {score}",
                    )
                    ax.fill_between(x, list(map(min, values)), list(map(max, values)), color=color, alpha=0.15)
        ax.set(xlabel="written questions, 50 steps" if key == "written" else "steps", ylim=(0, 1))
    axes[0].set_ylabel("benchmark, answerable")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    fig.savefig(ROOT / "experiments" / "learning_curve.png", dpi=110)
    plt.close(fig)


def save(runs: list[dict]) -> None:
    """Write answers, figures, plot and page; runs of earlier calls stay where this one has no newer."""
    known = {run["name"]: run for run in read_runs()} | {run["name"]: run for run in runs}
    with gzip.GzipFile(ANSWERS, "wb", mtime=0) as file:
        file.write("".join(json.dumps(run, ensure_ascii=False) + "\n" for run in known.values()).encode())
    plain = [{key: value for key, value in run.items() if key != "answers"} for run in known.values()]
    processor = machine()["processor"]
    bq.write_json(RESULTS, {"model": MODEL, "processor": processor, "runs": plain})
    if any(run["part"] == "questions" for run in plain):
        draw(plain)
    bq.write_text(PAGE, readme(bq.read_json(RESULTS)))


def read_runs() -> list[dict]:
    """The runs with their answers, as `save` wrote them."""
    if not ANSWERS.exists():
        return []
    with gzip.open(ANSWERS, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PART_RUNS), metavar="PART", help=", ".join(PART_RUNS))
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds of each run (mission: always one)")
    parser.add_argument("--variants", nargs="+", choices=HEADINGS, default=list(HEADINGS))
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PART_RUNS):
        parser.error(f"There is no part {unknown.pop()!r}. There are: {', '.join(PART_RUNS)}.")
    committed = {run["name"]: run for run in committed_runs()} if "committed" in options.parts else {}
    if committed:
        save(list(committed.values()))
    if options.parts == ["committed"]:
        return
    rows, questions = bq.load_rows(ROOT / "data/processed/train.jsonl"), evaluation_questions()
    for part in options.parts:
        seeds = [42] if part == "mission" else [42, 43, 44][: options.seeds]
        for seed in seeds:
            for setting in PART_RUNS[part]:
                for variant in options.variants:
                    if run_name(part, variant, *setting[:2], seed) not in committed:
                        save([do_run(part, variant, setting, seed, rows, questions)])
    print(experiments_section(bq.read_json(RESULTS)))


if __name__ == "__main__":
    main()
