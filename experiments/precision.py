"""Does full fine-tuning learn the same with its weights in bf16 as in fp32? Three seeds of each.

    python -m experiments.precision              an hour and a half on two cores with bf16
    python -m experiments.precision --seeds 1    one seed of each

Each run is that of training.ipynb, with PRECISION and SEED changed. What is finished is not run
again. Writes experiments/precision.json and .png, and a section of experiments/README.md.

Keys of precision.json: machine; runs: of each, seed, precision, losses (per step), held_out_loss
(after the last step), seconds_per_step (median), peak_memory_gb, scores; difference: in F1, bf16
less fp32, see `paired_difference`.
"""

import argparse
from itertools import product
from statistics import mean

import matplotlib
import pandas as pd

import bmwqa_utils as bq
from bmwqa.corpus import ROOT
from bmwqa.report import markdown_table, page_with
from bmwqa.scores import paired_difference
from experiments.learning_curve import (
    MODEL,
    PAGE,
    RUNS,
    Setting,
    do_run,
    f1_by_question,
    load_data,
    spread,
    with_deviation,
    with_interval,
)
from experiments.speed import describe_machine

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

RESULTS, PLOT = ROOT / "experiments" / "precision.json", ROOT / "experiments" / "precision.png"
PRECISIONS, SEEDS = ("bf16", "fp32"), (42, 43, 44)
FROM_TRAINING = ("losses", "seconds_per_step", "peak_memory_gb", "processor")


def run_all(rows: list[dict], questions: list[dict], seeds: tuple[int, ...]) -> dict:
    """The content of precision.json."""
    runs = []
    for seed, precision in product(seeds, PRECISIONS):
        name = f"precision-{precision}-{seed}"
        setting = Setting(parameters={"PRECISION": precision})
        run = do_run(name, "full", setting, seed, rows, questions) | {"precision": precision}
        training = bq.read_json(RUNS / "experiments" / name / "training.json")
        run |= {key: training[key] for key in FROM_TRAINING}
        runs.append(run | {"held_out_loss": training["eval_losses"][-1]["loss"]})
    f1 = f1_by_question(runs, questions)
    sides = [f1.filter(regex=f"-{precision}-").mean(axis=1) for precision in PRECISIONS]
    difference = paired_difference(*sides, f1.index.get_level_values("article_id"))
    plain = [{key: run[key] for key in run if key != "answers"} for run in runs]
    return {"machine": describe_machine(), "runs": plain, "difference": difference}


def with_precision(results: dict, precision: str) -> list[dict]:
    return [run for run in results["runs"] if run["precision"] == precision]


def table_rows(results: dict) -> list[dict[str, str]]:
    """A row per precision: means over seeds ± their standard deviation."""
    rows = []
    for precision in PRECISIONS:
        runs = with_precision(results, precision)
        held_out = [run["held_out_loss"] for run in runs]
        last = [mean(run["losses"][-10:]) for run in runs]
        rows.append(
            {
                "weights": precision,
                "seeds": f"{len(runs)}",
                "loss of the last ten steps": with_deviation(last, 3),
                "held-out loss": with_deviation(held_out, 3),
                "exact match": spread(runs, "exact_match"),
                "token F1": spread(runs, "f1"),
                "peak GB": f"{max(run['peak_memory_gb'] for run in runs):.1f}",
            }
        )
    return rows


def precision_section(results: dict) -> str:
    """The section in markdown, from precision.json and nothing else."""
    difference = results["difference"]
    bf16, fp32 = (with_precision(results, precision) for precision in PRECISIONS)
    of_seeds = zip(bf16, fp32, strict=True)
    gaps = [abs(one["held_out_loss"] / two["held_out_loss"] - 1) for one, two in of_seeds]
    sentence = (
        "F1 of bf16 less that of fp32, a question's being its mean over seeds: "
        f"{with_interval(difference)}, p = {difference['p']:.2g}, n = {difference['n']}. "
        f"Held-out losses of one seed differ by {max(gaps):.1%} at most."
    )
    plot = "![Losses of both, per step](precision.png)"
    place = f"{MODEL}, full, 50 steps, on {results['machine']['cpu']}."
    return "\n\n".join([place, markdown_table(table_rows(results)), sentence, plot])


def draw(results: dict) -> None:
    """Plot the losses per step, a colour per seed."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for color, seed in enumerate(sorted({run["seed"] for run in results["runs"]})):
        losses = {}
        for precision, style in zip(PRECISIONS, ("-", ":"), strict=True):
            (run,) = (r for r in with_precision(results, precision) if r["seed"] == seed)
            losses[precision] = pd.Series(run["losses"], index=range(1, len(run["losses"]) + 1))
            label = f"{precision}, seed {seed}"
            axes[0].plot(losses[precision], color=f"C{color}", ls=style, label=label)
        axes[1].plot(losses["bf16"] - losses["fp32"], color=f"C{color}", label=f"seed {seed}")
    axes[0].set(xlabel="step", ylabel="loss of the step's article", yscale="log")
    axes[1].axhline(0, color="black", lw=0.6)
    axes[1].set(xlabel="step", ylabel="bf16 less fp32")
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
