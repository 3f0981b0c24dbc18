"""How many written questions, and how many steps, are worth their time? `make experiments`.

Each run trains as training.ipynb does, with other rows or parameters, and answers the benchmark.
What is finished is not run again. The answers of all runs are in learning_curve.jsonl.gz.

    mission    the settings this comparison began with, experiments/original.yaml
    questions  50 steps with 0, 300, 600, 1,200 and 2,400 written questions
    steps      25, 50, 100 steps, and one pass over all articles, with all written questions
    layers     the pruned model after 50 steps, without 3 to 15 of its layers

Names of parts as arguments do those alone; `--seeds 1` does one seed of three, `--variants full`
full alone. Writes experiments/learning_curve.json and .png, and a section of experiments/README.md.
"""

import argparse
import ast
import gzip
import hashlib
import json
import random
import re
import shutil
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import matplotlib
import pandas as pd
import papermill
import yaml

import bmwqa_utils as bq
from bmwqa.answers import answer_rows
from bmwqa.baselines import pick_span
from bmwqa.corpus import ROOT, whole_file
from bmwqa.dataset import tokenize_rows
from bmwqa.machine import choose_precision, machine
from bmwqa.models import load_model, load_tokenizer, resolve_model
from bmwqa.pairs import RULE_KINDS
from bmwqa.preflight import check_all
from bmwqa.pruning import HEALING
from bmwqa.report import markdown_table, page_with, with_interval
from bmwqa.run import Run, base_model, lora_model, plan_run, pruned_model, train
from bmwqa.scores import holm, paired_difference, score_records
from bmwqa.settings import Settings, read_settings
from experiments.notebooks import RUNS, TRAINING

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

MODEL, PAGE = "smollm2-135m", ROOT / "experiments" / "README.md"
SEEDS = (42, 43, 44)
RESULTS = ROOT / "experiments" / "learning_curve.json"
ANSWERS = ROOT / "experiments" / "learning_curve.jsonl.gz"
MISSION = yaml.safe_load((ROOT / "experiments" / "original.yaml").read_text(encoding="utf-8"))
DEFAULTS = {  # the parameters of training.ipynb
    name: ast.literal_eval(parameter["default"])
    for name, parameter in papermill.inspect_notebook(str(TRAINING)).items()
}
VARIANTS = {"full": "full_ft", "lora": "lora", "pruned": "pruned_ft"}
KEPT = ("learning_rate", "questions", "processor", "trainable_parameters")
SCORES = ("exact_match", "f1", "declined_rightly", "declined_wrongly", "yes_no", *RULE_KINDS)
ALL = None  # all written questions, or one pass over all articles


class Setting(NamedTuple):
    """What a run is made of, beside its variant and its seed."""

    written: int | None = ALL  # questions
    steps: int | None = 50
    parameters: dict = {}  # of training.ipynb
    share: float | None = None  # of the layers that "pruned" loses


PARTS = {
    "mission": [Setting(0, parameters={key: MISSION[key] for key in MISSION if key in DEFAULTS})],
    "questions": [Setting(written=count) for count in (0, 300, 600, 1200, 2400)],
    "steps": [Setting(steps=steps) for steps in (25, 50, 100, ALL)],
    "layers": [Setting(share=share) for share in (0.1, 0.2, 0.25, 0.4, 0.5)],
}

# --------------------------------------------------------------------------------------------------
# Runs


def choose_rows(rows: list[dict], count: int | None, seed: int) -> list[dict]:
    """The rows by rule, and those of `count` written questions on articles drawn by `seed`.

    None: all rows.
    """
    if count is None:
        return rows
    written = [row for row in rows if row["source"] == "written"]
    names = sorted({row["article_id"] for row in written})
    drawn = random.Random(seed).sample(names, len(names))
    kept = sorted(written, key=lambda row: drawn.index(row["article_id"]))[:count]
    return [row for row in rows if row["source"] == "rule"] + kept


def run_name(part: str, variant: str, setting: Setting, seed: int) -> str:
    """A run's folder: run_name("steps", "full", Setting(steps=25), 42) is "steps-full-all-25-42".

    A share stands after the part: "layers-0.1-pruned-all-50-42".
    """
    written = "all" if setting.written is None else setting.written
    steps = "pass" if setting.steps is None else setting.steps
    share = "" if setting.share is None else f"-{setting.share}"
    return f"{part}{share}-{variant}-{written}-{steps}-{seed}"


def processor() -> str:
    """What computes the steps: the GPU, or the CPU if there is none."""
    here = machine()
    return here["processor"] if here["device"] == "cpu" else here["device"]


def train_run(variant: str, rows: list[dict], settings: Settings, share: float | None) -> dict:
    """What training.json says of a variant that is trained on `rows`.

    share: of the layers that "pruned" loses.
    """
    used, (dtype, _) = resolve_model(MODEL), choose_precision(settings.precision)
    tokenizer, folder = load_tokenizer(MODEL), ROOT / settings.out_dir
    bq.write_jsonl(folder / "train.jsonl", sorted(rows, key=lambda row: row["article_id"]))
    limits = {"max_tokens": settings.max_tokens, "per_group": settings.questions_per_step}
    groups = tokenize_rows(folder / "train.jsonl", tokenizer, folder / "tokens", **limits)
    steps, held_out = plan_run(groups, settings)
    checks = check_all(load_model(MODEL), tokenizer, steps, settings, folder)
    lengths = [length for of_article in groups["lengths"] for length in of_article]
    too_long = sum(length > settings.max_tokens for length in lengths)
    notes = {"rows": len(lengths) - too_long, "rows_too_long": too_long}
    notes |= {"one_pass": checks.one_pass, "processor": processor()}
    run = Run(settings, used, tokenizer, dtype, checks, steps, held_out, notes)
    if variant == "lora":
        return train(run, VARIANTS[variant], lora_model(run), settings.learning_rate_lora)
    rate = settings.learning_rate_full
    training = train(run, VARIANTS["full"], base_model(run), rate)
    if variant == "pruned":
        model, teacher, notes = pruned_model(run, share)
        training = train(run, VARIANTS[variant], model, HEALING * rate, teacher, **notes)
    return training


def answer_run(folder: Path, variant: str, questions: list[dict], settings: Settings) -> list[dict]:
    """The answers of a run, in the order of the questions; its models are deleted after them."""
    if not (folder / "answers.jsonl").exists():
        model = folder / f"smollm2_{VARIANTS[variant]}"
        caps = [settings.max_new_tokens, settings.max_new_tokens_about]
        limits = [caps[question["kind"] == "about"] for question in questions]
        loaded = load_model(model, dtype=choose_precision(settings.precision)[0], merge=True)
        answers = answer_rows(loaded, load_tokenizer(MODEL), questions, limits, f"{variant} reads")
        bq.write_jsonl(folder / "answers.jsonl", answers)
        for trained in folder.glob("smollm2_*"):
            shutil.rmtree(trained)
    return bq.read_jsonl(folder / "answers.jsonl")


def do_run(
    name: str, variant: str, setting: Setting, seed: int, rows: list[dict], questions: list[dict]
) -> dict:
    """One run, trained and scored, see `run_record`. What is in its folder is not done again."""
    chosen, folder = choose_rows(rows, setting.written, seed), RUNS / "experiments" / name
    steps = one_pass_steps(chosen) if setting.steps is None else setting.steps
    parameters = (
        DEFAULTS | setting.parameters | {"MAX_STEPS": steps, "EVAL_STEPS": steps, "SEED": seed}
    )
    settings = read_settings(parameters | {"OUT_DIR": str(folder.relative_to(ROOT))})
    mark = json.dumps([chosen, settings.model_dump(), setting.share, questions, MODEL])
    mark = hashlib.sha256(mark.encode()).hexdigest()[:12]
    if (folder / "mark.json").exists() and bq.read_json(folder / "mark.json")["mark"] != mark:
        shutil.rmtree(folder)  # of other rows or settings
    if not (folder / "training.json").exists():
        bq.write_json(folder / "mark.json", {"mark": mark})
        training = train_run(variant, chosen, settings, setting.share)
        bq.write_json(folder / "training.json", training)
    training = bq.read_json(folder / "training.json")
    answers = answer_run(folder, variant, questions, settings)
    written = sum(row["source"] == "written" for row in chosen)
    return run_record(name, variant, written, seed, training, questions, answers)


def one_pass_steps(rows: list[dict]) -> int:
    """The steps in which each article with a row that is not too long comes once."""
    short, _ = bq.drop_long(rows, load_tokenizer(MODEL))
    return len({row["article_id"] for row in short}) - DEFAULTS["HELD_OUT"]


def run_record(name, variant, written, seed, training, questions, answers) -> dict:
    """{"name", "part", "variant", "written", "steps", "seed", …, "scores", "answers"} of a run.

    layers_removed: how many layers "pruned" lost.
    answers: by question_id, as `answer_rows` gives them.
    """
    run = {"name": name, "part": name.split("-")[0], "variant": variant, "written": written}
    run |= {"steps": len(training["losses"]), "seed": seed} | {key: training[key] for key in KEPT}
    run["layers_removed"] = len(training.get("layers_removed", []))
    by_question = {q["question_id"]: a for q, a in zip(questions, answers, strict=True)}
    return run | {"scores": scores_of(answers, questions), "answers": by_question}


def scores_of(answers: list[dict], questions: list[dict]) -> dict[str, float]:
    """The means of SCORES; exact match and F1 are those of answerable questions."""
    records = [q | {"run": answer} for q, answer in zip(questions, answers, strict=True)]
    contexts = {question["article_id"]: question["context"] for question in questions}
    scores = score_records(records, contexts, ["run"]).set_index("slice")
    benchmark, by_rule = scores.loc["benchmark"], scores.loc["rule_made"]
    means = {score: benchmark[score].astype(float).mean() for score in SCORES[:5]}
    return means | by_rule.groupby("kind")["exact_match"].mean().to_dict()


# --------------------------------------------------------------------------------------------------
# What experiments/README.md shows

COMPARED = {  # what the page calls a pair of settings: the beginnings of their runs' names
    "full − lora, 50 steps": ("steps-full-all-50-", "steps-lora-all-50-"),
    "full − lora, one pass": ("steps-full-all-pass-", "steps-lora-all-pass-"),
    "full, 50 steps − picker": ("steps-full-all-50-", "picker"),
    "full, one pass − 50 steps": ("steps-full-all-pass-", "steps-full-all-50-"),
    "lora, one pass − 50 steps": ("steps-lora-all-pass-", "steps-lora-all-50-"),
    "full, 2,400 − 300 questions": ("questions-full-2400-50-", "questions-full-300-50-"),
    "full, all − 2,400 questions": ("steps-full-all-50-", "questions-full-2400-50-"),
    "pruned, 6 layers out − full, 50 steps": ("layers-0.2-pruned-", "steps-full-all-50-"),
    "pruned, 6 layers out − full, 100 steps": ("layers-0.2-pruned-", "steps-full-all-100-"),
    "pruned, 8 layers out − full, 50 steps": ("layers-0.25-pruned-", "steps-full-all-50-"),
    "pruned, 8 layers out − picker": ("layers-0.25-pruned-", "picker"),
}


def differences(runs: list[dict], questions: list[dict]) -> list[dict]:
    """The `paired_difference` in F1 of the pairs in COMPARED whose runs are there.

    The F1 of a question is its mean over the seeds. Only answerable questions of the benchmark.
    """
    f1, rows = f1_by_question(runs, questions), []
    clusters = f1.index.get_level_values("article_id")
    for pair, (first, second) in COMPARED.items():
        sides = [f1.filter(regex=f"^{re.escape(start)}") for start in (first, second)]
        seeds = [side.shape[1] for side in sides]
        if all(seeds) and (second == "picker" or seeds[0] == seeds[1]):
            means = [side.mean(axis=1) for side in sides]
            rows.append({"pair": pair, "seeds": seeds} | paired_difference(*means, clusters))
    return rows


def f1_by_question(runs: list[dict], questions: list[dict]) -> pd.DataFrame:
    """F1 of the benchmark's answerable questions: a row per question, a column per run and picker.

    Runs that lack an answer, as those of an earlier benchmark, have no column.
    """
    contexts = {question["article_id"]: question["context"] for question in questions}
    ids = {question["question_id"] for question in questions}
    answers = {run["name"]: run["answers"] for run in runs if ids <= run["answers"].keys()}
    unscored = {"stopped": True, "nll": None, "nll_tokens": None}
    records = []
    for question in questions:
        if question["slice"] == "benchmark" and question["kind"] != "unanswerable":
            record = {name: given[question["question_id"]] for name, given in answers.items()}
            record["picker"] = unscored | {"answer": pick_span(question)}
            records.append(question | record)
    scores = score_records(records, contexts, [*answers, "picker"])
    f1 = scores.pivot(index=["article_id", "question_id"], columns="variant", values="f1")
    return f1.astype(float)


def difference_rows(rows: list[dict]) -> list[dict[str, str]]:
    """A row of the table per pair of settings; p after Holm over all of them."""
    corrected = holm([row["p"] for row in rows])
    return [
        {"pair": row["pair"], "seeds": " / ".join(map(str, row["seeds"]))}
        | {"difference in F1": with_interval(row, "difference", "+.2f")}
        | {"p, after Holm": f"{p:.2g}", "shown": "yes" if p <= 0.05 else "no"}
        for row, p in zip(rows, corrected, strict=True)
    ]


ORDER = ("steps", "questions", "layers", "mission")  # of parts in the table


def by_setting(runs: list[dict]) -> dict[tuple, list[dict]]:
    """{(part, variant, written, steps, layers removed): runs of several seeds}, as in ORDER."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        names = ("part", "variant", "written", "steps", "layers_removed")
        groups.setdefault(tuple(run[name] for name in names), []).append(run)
    return dict(sorted(groups.items(), key=lambda item: (ORDER.index(item[0][0]), *item[0][1:])))


def spread(runs: list[dict], *scores: str) -> str:
    """The mean over seeds, ± their standard deviation where there are several, of each score."""
    return " / ".join(with_deviation([run["scores"][score] for run in runs]) for score in scores)


def with_deviation(values: list[float], digits: int = 2) -> str:
    """Their mean, and ± their standard deviation if there are several."""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def table_rows(runs: list[dict]) -> list[dict[str, str]]:
    """A row per setting, over its seeds."""
    rows = []
    for (part, variant, written, steps, removed), group in by_setting(runs).items():
        settings = ", the mission’s settings" if part == "mission" else ""
        settings += f" without {removed} layers" if removed else ""
        name = f"{variant}{settings}, {written:,} questions, {steps} steps"
        row = {"run": name, "seeds": f"{len(group)}"}
        row |= {"exact match": spread(group, "exact_match"), "token F1": spread(group, "f1")}
        declined = spread(group, "declined_rightly", "declined_wrongly")
        row |= {"declined, rightly / wrongly": declined, "yes/no right": spread(group, "yes_no")}
        rows.append(row | {"title / date / about": spread(group, *RULE_KINDS)})
    return rows


def experiments_section(results: dict) -> str:
    """The table in markdown, from experiments/learning_curve.json and nothing else."""
    processors = " and ".join(sorted({run["processor"] for run in results["runs"]}))
    lines = [
        f"{results['model']}, on {processors}: exact match and token F1 of the "
        "benchmark's answerable questions, means over seeds ± their standard deviation. "
        "Questions are the written ones; title, date and first paragraph are always there.",
        "",
        markdown_table(table_rows(results["runs"])),
    ]
    if any(run["part"] == "questions" for run in results["runs"]):
        lines += [
            "",
            "![Token F1 by questions, by steps and by layers removed](learning_curve.png)",
        ]
    if results["differences"]:
        note = "Paired differences, a question's F1 being its mean over seeds:"
        lines += ["", note, "", markdown_table(difference_rows(results["differences"]))]
    return "\n".join(lines)


def readme(results: dict) -> str:
    """The text of experiments/README.md with this section written anew."""
    return page_with(PAGE, "experiments", experiments_section(results))


PANELS = [  # (part, variants, key of a run, what the axis says)
    ("questions", ("full", "lora"), "written", "written questions, 50 steps"),
    ("steps", ("full", "lora"), "steps", "steps, all questions"),
    ("layers", ("pruned",), "layers_removed", "layers removed of 30, healed for 50 steps"),
]
COLORS = {"full": "C0", "lora": "C1", "pruned": "C2"}


def draw(runs: list[dict]) -> None:
    """Plot F1 by questions, steps and layers removed; bands span all seeds."""
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained", sharey=True)
    groups = by_setting(runs)
    for ax, (part, variants, key, axis) in zip(axes, PANELS, strict=True):
        for variant in variants:
            draw_line(ax, [g for ids, g in groups.items() if ids[:2] == (part, variant)], key)
        ax.set(xlabel=axis, ylim=(0, 0.7))
    for steps, style in ((50, ":"), (100, "--")):
        full = [run for run in runs if run["name"].startswith(f"steps-full-all-{steps}-")]
        if full:
            level, name = mean(run["scores"]["f1"] for run in full), f"full, {steps} steps"
            axes[2].axhline(level, color="C0", lw=0.8, ls=style, label=name)
    axes[0].set_ylabel("token F1, benchmark")
    handles = {line.get_label(): line for ax in axes for line in ax.get_lines()}
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=5)
    fig.savefig(ROOT / "experiments" / "learning_curve.png", dpi=110)
    plt.close(fig)


def draw_line(ax, groups: list[list[dict]], key: str) -> None:
    """F1 of one variant against `key`; groups: the runs of each setting, or nothing."""
    if not groups:
        return
    variant, x = groups[0][0]["variant"], [group[0][key] for group in groups]
    f1 = [[run["scores"]["f1"] for run in group] for group in groups]
    ax.plot(x, [*map(mean, f1)], color=COLORS[variant], marker="o", ms=3, label=variant)
    ax.fill_between(x, [*map(min, f1)], [*map(max, f1)], color=COLORS[variant], alpha=0.15)


def save(runs: list[dict], questions: list[dict]) -> None:
    """Write answers, figures, plot and page; runs of earlier calls stay."""
    known = {run["name"]: run for run in [*read_runs(), *runs]}
    lines = [json.dumps(run, ensure_ascii=False) + "\n" for run in known.values()]
    with whole_file(ANSWERS) as file:
        file.write(gzip.compress("".join(lines).encode(), mtime=0))
    plain = without_answers(known.values())
    results = {"model": MODEL, "runs": plain}
    results["differences"] = differences(list(known.values()), questions)
    bq.write_json(RESULTS, results)
    if any(run["part"] == "questions" for run in plain):
        draw(plain)
    bq.write_text(PAGE, readme(bq.read_json(RESULTS)))


def without_answers(runs: Iterable[dict]) -> list[dict]:
    return [{key: run[key] for key in run if key != "answers"} for run in runs]


def read_runs() -> list[dict]:
    """The runs with their answers, as `save` wrote them."""
    if not ANSWERS.exists():
        return []
    with gzip.open(ANSWERS, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_options() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART")
    parser.add_argument("--seeds", type=int, default=3, choices=(1, 2, 3), help="of each run")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"There is no part {unknown.pop()!r}. There are: {', '.join(PARTS)}.")
    return options


def load_data() -> tuple[list[dict], list[dict]]:
    """The rows to train on, and the questions of the evaluation."""
    questions, _ = bq.evaluation_questions(load_tokenizer(MODEL), read_settings(DEFAULTS))
    return bq.load_rows(ROOT / "data/processed/train.jsonl"), questions


def main() -> None:
    options = read_options()
    rows, questions = load_data()
    seeds = SEEDS[: options.seeds]
    for part in options.parts:
        done = []
        variants = [v for v in options.variants if (v == "pruned") == (part == "layers")]
        for seed, setting, variant in product(seeds, PARTS[part], variants):
            name = run_name(part, variant, setting, seed)
            done.append(do_run(name, variant, setting, seed, rows, questions))
        save(done, questions)
    print(experiments_section(bq.read_json(RESULTS)))


if __name__ == "__main__":
    main()
