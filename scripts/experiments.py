"""The defaults of training.ipynb against other questions and settings. Run it by `make experiments`.

Each trains in the notebook's own cells, with other parameters, in a kernel of its own; what is finished is not run
again. It needs the pairs of notebook 2 and the last `make refresh`, whose answers the second part compares with.

    search  settings, above all LoRA's, on all kinds of questions about training articles that are held out
    kinds   three kinds against all, and more steps, on the evaluation articles; base and the default run are those of
            results/

Either as an argument does that part alone; the first needs no refresh.
Writes results/experiments.json (each run with its settings), results/experiments.png and README's section on them.
"""

import ast
import hashlib
import re
import shutil
import sys
from pathlib import Path

import nbformat
import papermill
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script's own folder is there, the project's is not

import bmwqa_utils as bq  # noqa: E402
import qa_scores  # noqa: E402
from qa_report import markdown_table, readme_with, with_interval  # noqa: E402
from qa_rules import ORIGINAL_KINDS  # noqa: E402
from scripts.notebooks import RUNS, TRAINING, execute  # noqa: E402
from training_run import choose_precision  # noqa: E402

THREE = list(ORIGINAL_KINDS)
ORIGINAL = yaml.safe_load((ROOT / "scripts" / "original.yaml").read_text(encoding="utf-8"))
ADAPTER = {key: ORIGINAL[key] for key in ("LORA_R", "LORA_ALPHA", "LORA_TARGETS")}
LINEAR = {"LORA_R": 16, "LORA_ALPHA": 32, "LORA_TARGETS": "all-linear"}
PARTS = ("search", "kinds")
SEARCH_ALL = {"MAX_STEPS": 21, "EVAL_STEPS": 21, "HELD_OUT": 6}
SEARCH = {  # name: (variant, parameters)
    "full, 1.5e-4": ("full_ft", {"LEARNING_RATE_FULL": 1.5e-4}),
    "LoRA, r 8, q and v, 1e-4": ("lora", ADAPTER | {"LEARNING_RATE_LORA": 1e-4}),
    "LoRA, r 16, all linear, 3e-3": ("lora", LINEAR | {"LEARNING_RATE_LORA": 3e-3}),
    "LoRA, r 8, q and v, 3e-3": ("lora", ADAPTER | {"LEARNING_RATE_LORA": 3e-3}),
}
KINDS_ALL = {"MAX_STEPS": 50, "EVAL_STEPS": 25}  # more than fit into the time of the default run
KINDS = {
    "full, all kinds": ("full_ft", {}),
    "LoRA, all kinds": ("lora", {}),
    "full, three kinds": ("full_ft", {"TRAIN_KINDS": THREE}),
    "LoRA, three kinds": ("lora", {"TRAIN_KINDS": THREE}),
}
PUBLISHED = {"base": "base", "full, default run": "full", "LoRA, default run": "lora"}  # names in results/
PAIRS = [
    ("full, all kinds", "base"),
    ("full, all kinds", "full, default run"),
    ("full, all kinds", "full, three kinds"),
    ("LoRA, all kinds", "LoRA, three kinds"),
    ("full, all kinds", "LoRA, all kinds"),
]
HEADINGS = {"full_ft": "### Full fine-tuning", "lora": "### LoRA"}
MODEL, RESULTS = "smollm2-135m", ROOT / "results" / "experiments.json"


DEFAULTS = {  # the parameters of training.ipynb
    name: ast.literal_eval(found["default"]) for name, found in papermill.inspect_notebook(str(TRAINING)).items()
}


def train(name: str, variant: str, parameters: dict):
    """(folder, model) of a run: runs/experiments/<name> with training.json; in it the model, if not yet answered."""
    folder = RUNS / "experiments" / name.replace(", ", "-").replace(" ", "_")
    settings = {"variant": variant} | DEFAULTS | parameters | {"MODEL": MODEL}
    other = re.compile("SAVE|CHECKPOINT|" + ("FULL" if variant == "lora" else "LORA"))
    settings = {name: value for name, value in settings.items() if not other.search(name)}
    asked = [ROOT / "data/processed/train.jsonl", ROOT / "data/processed/eval.jsonl", ROOT / DEFAULTS["BENCHMARK"]]
    settings["questions"] = hashlib.sha256(b"".join(path.read_bytes() for path in asked)).hexdigest()[:8]
    if (folder / "settings.json").exists() and bq.read_json(folder / "settings.json") != settings:
        shutil.rmtree(folder)
    model = folder / f"{bq.short_name(MODEL)}_{variant}"
    if not (folder / "training.json").exists() and not model.exists():
        bq.write_json(folder / "settings.json", settings)
        notebook = nbformat.read(TRAINING, as_version=4)
        heads = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith("### ")]
        start = next(i for i in heads if notebook.cells[i].source.startswith(HEADINGS[variant]))
        end = heads[heads.index(start) + 1]
        notebook.cells = notebook.cells[: heads[0]] + notebook.cells[start:end]
        nbformat.write(notebook, folder / "cells.ipynb")
        where = {"MODEL": MODEL, "OUT_DIR": str(folder.relative_to(ROOT))}
        execute(folder / "cells.ipynb", folder / "run.ipynb", parameters | where)
    if not (folder / "training.json").exists():
        training = bq.read_json(model / "training.json") | {"weights_mb": bq.weights_mb(model)}
        bq.write_json(folder / "training.json", training)
    return folder, model


def answer(folder: Path, model: Path, questions: list[dict]) -> dict:
    """{question_id: answer} of a run as `train` gives it; its model is deleted when they are written."""
    made = folder / "answers.jsonl"
    if not made.exists():
        caps = [DEFAULTS["MAX_NEW_TOKENS_ABOUT" if q["kind"] == "about" else "MAX_NEW_TOKENS"] for q in questions]
        loaded = bq.load_model(model, dtype=choose_precision()[0], merge=True)
        found = bq.answer_rows(loaded, bq.load_tokenizer(MODEL), questions, caps)
        ids = [{"question_id": question["question_id"]} for question in questions]
        bq.write_jsonl(made, [key | row for key, row in zip(ids, found, strict=True)])
        shutil.rmtree(model)
    return {row["question_id"]: row for row in bq.read_jsonl(made)}


def describe(name: str, found: dict, scores) -> dict:
    """A run's figures: its settings, what it cost, and its scores with their intervals by slice."""
    own = scores[scores["variant"] == name]
    unanswerable = own["kind"] == "unanswerable"
    figures = {}
    for row in qa_scores.plain_rows(qa_scores.score_table(own)):
        if row["score"] in ("f1", "exact_match", "stopped"):
            figures.setdefault(row["slice"], {})[row["score"]] = {key: row[key] for key in ("mean", "low", "high", "n")}
    for part, some in own.groupby("slice", sort=False):
        for key, chosen in (("declined", unanswerable), ("declined_wrongly", ~unanswerable)):
            rows = some[chosen.loc[some.index]]
            if len(rows):
                figures[part][key] = qa_scores.interval(rows["declined"], rows["article_id"])
        figures[part]["exact_match_by_kind"] = some.groupby("kind", sort=False)["exact_match"].mean().to_dict()
    return {"run": name} | found | {"scores": figures}


def experiments(runs: dict, extra: dict, choose_questions, published: dict | None = None) -> tuple[list[dict], object]:
    """The figures of some runs on the same questions, and their scores; published: {name: {question_id: answer}}."""
    made, about = dict(published or {}), {}
    for name, (variant, parameters) in runs.items():
        folder, model = train(name, variant, extra | parameters)
        training = bq.read_json(folder / "training.json")
        questions = choose_questions(training)
        made[name] = answer(folder, model, questions)
        keep = ("learning_rate", "trainable_parameters", "seconds_a_step", "peak_memory_gb", "weights_mb")
        about[name] = {"variant": variant, "parameters": parameters, "steps": len(training["losses"])}
        about[name] |= {key: training[key] for key in keep}
        about[name] |= {"held_out_loss": training["eval_losses"][-1]["loss"]}
    records = [q | {name: found[q["question_id"]] for name, found in made.items()} for q in questions]
    scores = qa_scores.score_records(records, {q["article_id"]: q["context"] for q in questions}, list(made))
    return [describe(name, about.get(name, {}), scores) for name in made], scores


def main() -> None:
    train_rows = bq.load_rows(ROOT / "data/processed/train.jsonl")
    eval_rows = bq.load_rows(ROOT / "data/processed/eval.jsonl")
    contexts = {row["article_id"]: row["context"] for row in eval_rows}
    tokenizer = bq.load_tokenizer(MODEL)

    def held_out(training):
        some = bq.rule_made_questions([row for row in train_rows if row["article_id"] in training["held_out"]])
        return bq.drop_long(some, tokenizer, DEFAULTS["MAX_TOKENS"])[0]

    def evaluation(training):
        asked = bq.rule_made_questions(eval_rows) + bq.load_benchmark(ROOT / DEFAULTS["BENCHMARK"], contexts)
        return bq.drop_long(asked, tokenizer, DEFAULTS["MAX_TOKENS"])[0]

    results = (bq.read_json(RESULTS) if RESULTS.exists() else {}) | {"model": MODEL}
    parts = sys.argv[1:] or PARTS
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"There is no part {unknown.pop()!r}. There are: {', '.join(PARTS)}.")
    if "search" in parts:
        results["search"], _ = experiments(SEARCH, SEARCH_ALL, held_out)
        save(results)
    if "kinds" not in parts:
        return
    done = bq.read_json(ROOT / "results" / "results.json")
    wanted = {name.lower(): DEFAULTS[name] for name in ("MAX_STEPS", "LEARNING_RATE_FULL", "LEARNING_RATE_LORA")}
    if done["model"]["name"] != MODEL or not wanted.items() <= done["settings"].items():
        sys.exit(f"results/results.json is no run of {MODEL} with the defaults of training.ipynb. Run `make refresh`.")
    lines = bq.read_jsonl(ROOT / "results" / "eval_generations.jsonl")
    published = {name: {line["question_id"]: line[key] for line in lines} for name, key in PUBLISHED.items()}
    results["kinds"], scores = experiments(KINDS, KINDS_ALL, evaluation, published)
    for run in results["kinds"]:
        run.setdefault("steps", 0 if run["run"] == "base" else done["settings"]["max_steps"])
    results["differences"] = qa_scores.plain_rows(qa_scores.paired_table(scores, planned=PAIRS, others=()))
    results["defaults"] = done["settings"]
    draw(results)
    save(results)


def save(results: dict) -> None:
    bq.write_json(RESULTS, results)
    bq.write_text(ROOT / "README.md", readme(results))
    print(experiments_section(results))


def readme(results: dict) -> str:
    """README.md with its section of experiments written anew."""
    return readme_with("experiments", experiments_section(results))


def search_rows(search: list[dict]) -> list[dict[str, str]]:
    """The table of the search: a row a run, on the held-out training articles."""
    rows = []
    for run in search:
        scores = run["scores"]["rule_made"]
        rows.append(
            {
                "run": run["run"],
                "held-out loss": f"{run['held_out_loss']:.3f}",
                "token F1": with_interval(scores["f1"]),
                "declined, rightly": f"{scores['declined']['mean']:.2f}",
                "declined, wrongly": f"{scores['declined_wrongly']['mean']:.2f}",
                "trained parameters": f"{run['trainable_parameters']:,}",
                "MB": f"{run['weights_mb']:.1f}",
                "s a step": f"{run['seconds_a_step']:.1f}",
            }
        )
    return rows


def kinds_rows(results: dict) -> list[dict[str, str]]:
    """The table of the kinds: a row a run, on the evaluation articles."""
    rows = []
    for run in results["kinds"]:
        asked, made = run["scores"]["benchmark"], run["scores"]["rule_made"]
        rows.append(
            {
                "run": run["run"],
                "steps": f"{run['steps']}",
                "token F1": with_interval(asked["f1"]),
                "exact match": with_interval(asked["exact_match"]),
                "stopped": f"{asked['stopped']['mean']:.2f}",
                "declined, rightly": f"{asked['declined']['mean']:.2f}",
                "declined, wrongly": f"{asked['declined_wrongly']['mean']:.2f}",
                "exact match, title / date / about": " / ".join(
                    f"{made['exact_match_by_kind'][kind]:.2f}" for kind in THREE
                ),
            }
        )
    return rows


def experiments_section(results: dict) -> str:
    """The tables in markdown, of what results/experiments.json has, and of nothing else."""
    lines = []
    if "kinds" in results:
        gaps = [
            f"- {row['pair']}: {with_interval(row, 'difference', '+.2f')}, "
            f"{'shown' if row['shown'] else 'not shown'} (p {row['p_holm']:.2g} after Holm)"
            for row in results["differences"]
            if row["slice"] == "benchmark"
        ]
        lines += [
            f"On benchmark questions, {results['model']}:",
            "",
            markdown_table(kinds_rows(results)),
            "",
            "Paired differences in token F1:",
            "",
            *gaps,
            "",
            "![Token F1 on the benchmark](results/experiments.png)",
            "",
        ]
    if "search" in results:
        lines += [
            f"The search, {SEARCH_ALL['MAX_STEPS']} steps each, on all kinds of questions about "
            f"{SEARCH_ALL['HELD_OUT']} training articles that were held out:",
            "",
            markdown_table(search_rows(results["search"])),
        ]
    return "\n".join(lines)


def draw(results: dict) -> None:
    """Token F1 of each run on the benchmark, with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = results["kinds"][::-1]
    f1 = [run["scores"]["benchmark"]["f1"] for run in runs]
    fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    error = [[row["mean"] - row["low"] for row in f1], [row["high"] - row["mean"] for row in f1]]
    names = [f"{run['run']}, {run['steps']} steps" for run in runs]
    ax.barh(names, [row["mean"] for row in f1], xerr=error, capsize=2, error_kw={"lw": 0.8})
    ax.set(xlabel="token F1, with its 95 % interval", title=f"Benchmark questions, {results['model']}", xlim=(0, None))
    fig.savefig(ROOT / "results" / "experiments.png", dpi=110)
    plt.close(fig)


if __name__ == "__main__":
    main()
