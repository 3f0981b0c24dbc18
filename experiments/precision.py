"""Does full fine-tuning learn the same with its weights in bf16 as in fp32? Three seeds of each.

fp32 has torch's AdamW, with beta2 0.999 where bf16 has 0.99. "bf16 from zero" is with Kahan's sum
as optimi has it, see `DitheredAdamW`.

    python -m experiments.precision              two hours on two cores with bf16
    python -m experiments.precision --seeds 1    one seed of each

Each run is that of training.ipynb, with PRECISION and SEED changed. What is finished is not run
again. Writes experiments/precision.json and .png, and a section of experiments/README.md.

Keys of precision.json: machine; runs: of each, seed, way (of WAYS), losses (per step),
held_out_loss (after the last step), scores; difference [way]: in F1, less fp32, see
`paired_difference`.
"""

import argparse
from contextlib import nullcontext
from statistics import mean
from unittest.mock import patch

import matplotlib
import optimi
import pandas as pd

import bmwqa_utils as bq
from bmwqa.corpus import ROOT
from bmwqa.optimizer import DitheredAdamW
from bmwqa.report import markdown_table, page_with, with_interval
from bmwqa.scores import paired_difference
from experiments.learning_curve import (
    MODEL,
    PAGE,
    RUNS,
    SEEDS,
    Setting,
    do_run,
    f1_by_question,
    load_data,
    spread,
    with_deviation,
    without_answers,
)
from experiments.speed import describe_machine

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

RESULTS, PLOT = ROOT / "experiments" / "precision.json", ROOT / "experiments" / "precision.png"
FROM_ZERO = "bf16 from zero"
WAYS = ("bf16", "fp32", FROM_ZERO)  # of training


def run_one(way: str, seed: int, rows: list[dict], questions: list[dict]) -> dict:
    """A run of full: what `do_run` says of it, with the way and the losses."""
    name = f"precision-{in_name(way)}-{seed}"
    setting = Setting(parameters={"PRECISION": way.split()[0]})
    from_zero = patch.object(DitheredAdamW, "_init_state", optimi.AdamW._init_state)
    with from_zero if way == FROM_ZERO else nullcontext():
        run = do_run(name, "full", setting, seed, rows, questions) | {"way": way}
    training = bq.read_json(RUNS / "experiments" / name / "training.json")
    run |= {"losses": training["losses"]}
    return run | {"held_out_loss": training["eval_losses"][-1]["loss"]}


def in_name(way: str) -> str:
    return way.replace(" ", "-")


def run_all(rows: list[dict], questions: list[dict], seeds: tuple[int, ...]) -> dict:
    """The content of precision.json."""
    runs = [run_one(way, seed, rows, questions) for seed in seeds for way in WAYS]
    f1 = f1_by_question(runs, questions)
    means = {way: f1.filter(regex=rf"-{in_name(way)}-\d").mean(axis=1) for way in WAYS}
    articles = f1.index.get_level_values("article_id")
    others = [way for way in WAYS if way != "fp32"]
    return {
        "machine": describe_machine(),
        "runs": without_answers(runs),
        "difference": {w: paired_difference(means[w], means["fp32"], articles) for w in others},
    }


def runs_of(results: dict, way: str) -> list[dict]:
    return [run for run in results["runs"] if run["way"] == way]


def table_rows(results: dict) -> list[dict[str, str]]:
    """A row per way: means over seeds ± their standard deviation."""
    rows = []
    for way in WAYS:
        runs = runs_of(results, way)
        row = {"weights": way, "seeds": f"{len(runs)}"}
        early = [mean(run["losses"][2:8]) for run in runs]
        last = [mean(run["losses"][-10:]) for run in runs]
        row |= {"loss, steps 3 to 8": with_deviation(early, 3)}
        row |= {"loss, last ten steps": with_deviation(last, 3)}
        row |= {"held-out loss": with_deviation([run["held_out_loss"] for run in runs], 3)}
        row |= {"exact match / token F1": spread(runs, "exact_match", "f1")}
        rows.append(row)
    return rows


def precision_section(results: dict) -> str:
    """The section in markdown, from precision.json and nothing else."""
    differences = [
        f"{way} {with_interval(difference, 'difference', '+.2f')}, p = {difference['p']:.2g}"
        for way, difference in results["difference"].items()
    ]
    questions = results["difference"]["bf16"]
    of_seeds = zip(runs_of(results, "bf16"), runs_of(results, "fp32"), strict=True)
    gaps = [abs(one["held_out_loss"] / two["held_out_loss"] - 1) for one, two in of_seeds]
    sentence = (
        f"F1 less that of fp32, a question's being its mean over seeds: {'; '.join(differences)}. "
        f"n = {questions['n']} on {questions['clusters']} articles. "
        f"For the same seed, held-out losses in bf16 and fp32 differ by {max(gaps):.1%} at most."
    )
    plot = "![Losses of each run, per step](precision.png)"
    processor = "{cpu}, family {family}, model {model}, stepping {stepping}"
    place = f"{MODEL}, full, 50 steps, on {processor.format(**results['machine'])}."
    return "\n\n".join([place, markdown_table(table_rows(results)), sentence, plot])


def draw(results: dict) -> None:
    """Plot the losses per step, a colour per seed, and how far the two in bf16 are from fp32."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    styles = {"bf16": "-", "fp32": ":", FROM_ZERO: "--"}
    fp32 = {run["seed"]: pd.Series(run["losses"]) for run in runs_of(results, "fp32")}
    for run in results["runs"]:
        losses, way, seed = pd.Series(run["losses"]), run["way"], run["seed"]
        look = {"color": f"C{SEEDS.index(seed)}", "ls": styles[way], "label": f"{way}, seed {seed}"}
        steps = losses.index + 1
        axes[0].plot(steps, losses, **look)
        if way != "fp32":
            axes[1].plot(steps, losses - fp32[seed], **look)
    axes[0].set(xlabel="step", ylabel="loss of the step's article", yscale="log")
    axes[1].axhline(0, color="black", lw=0.6)
    axes[1].set(xlabel="step", ylabel="loss less that of fp32")
    for ax in axes:
        ax.legend(fontsize=8)
    fig.savefig(PLOT, dpi=110)
    plt.close(fig)


def readme(results: dict) -> str:
    """The text of experiments/README.md with this section written anew."""
    return page_with(PAGE, "precision", precision_section(results))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3, choices=(1, 2, 3), help="of each precision")
    seeds = SEEDS[: parser.parse_args().seeds]
    results = run_all(*load_data(), seeds)
    bq.write_json(RESULTS, results)
    draw(results)
    bq.write_text(PAGE, readme(results))


if __name__ == "__main__":
    main()
