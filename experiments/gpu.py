"""One pass per article on a GPU, against Trainer and TRL on the same rows: seconds and exactness.

    pip install -r experiments/requirements.txt
    python -m experiments.gpu     minutes on a GPU; writes speed_gpu.json and its part of README.md
    python -m experiments.gpu     without a GPU: the part of README.md alone, from speed_gpu.json

The model has Qwen2.5-0.5B's shape and random weights. The ways of experiments/ways.py take turns in
one process, ROUNDS times; a round is STEPS steps after WARM_UP others, and counts as their median.

Keys of speed_gpu.json:
  stamp  as in experiments/speed.py
  rate   of matrix products in bf16, TFLOP/s: the largest, over shapes and rounds
  speed  [questions per article][method][way]: as in experiments/speed.py, but for ours, share: its
         floating point operations per second over the largest of `rates`
  exact  [dtype]: loss, gradient: how far one pass is from separate rows, relative; in bf16, how far
         each of them is from separate rows in fp32: one_pass, separate_rows
"""

import bmwqa_utils as bq  # isort: skip  (first: large pages, see bmwqa/__init__.py)
import gc
from itertools import cycle, islice
from statistics import median

import torch
from accelerate.utils import send_to_device

from bmwqa.one_pass import ATTENTION, answer_loss, separate_rows, share_prefix
from bmwqa.report import page_with
from experiments.speed import MAIN, article_groups, describe_machine, say, summarise
from experiments.speed_page import (
    ARTICLE_TOKENS,
    HERE,
    PAGE,
    Column,
    against_fastest,
    fastest,
    ratio,
    table,
)
from experiments.ways import (
    BATCH,
    DEVICE,
    LARGE_BATCH,
    QWEN,
    count_flops,
    load,
    matrix_rates,
    train,
)

ROUNDS, WARM_UP, STEPS = 3, 4, 10
PEERS = {  # by questions per article
    3: ["hf bf16", "trl bf16", "trl bf16, logits at once", BATCH],
    14: [BATCH, LARGE_BATCH],
}


def measure_speed(questions: int, method: str) -> dict:
    """{way: figures}, the first way ours."""
    groups = list(islice(cycle(article_groups(questions)), WARM_UP + STEPS))
    runs = {way: [] for way in ("ours", *PEERS[questions])}
    for number in range(1, ROUNDS + 1):
        for way, done in runs.items():
            gc.collect()  # the last Trainer is a circle of references
            torch.cuda.empty_cache()
            run = train(QWEN, method, way, groups)
            middle = median(run["seconds"][WARM_UP - 1 :])
            say(f"{questions} questions, {method}, {way}, round {number}: {middle:.4f} s per pair")
            done.append(run | {"seconds": [middle]})
    ways = {way: summarise(done, runs["ours"]) for way, done in runs.items()}
    counted = groups[WARM_UP:]
    work = median(count_flops(QWEN, method, g) / len(g["branches"]) for g in counted)
    ways["ours"]["share"] = work / ways["ours"]["seconds_a_qa"] / max(ways["ours"]["rates"]) / 1e9
    return ways


def loss_and_gradient(model, batch: dict, attention: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and all gradients as one vector, both in fp32."""
    model.zero_grad()
    model.set_attn_implementation(attention)
    batch = send_to_device(batch, DEVICE)
    labels = batch.pop("labels")
    loss = answer_loss(model(**batch), labels)
    loss.backward()
    return loss.detach(), torch.cat([w.grad.flatten().float() for w in model.parameters()])


def measure_exactness(group: dict) -> dict:
    """`exact` of the keys at the top."""
    one_pass, rows = (share_prefix(group), ATTENTION), (separate_rows(group), "sdpa")
    model = load(QWEN, torch.float32)
    exact = loss_and_gradient(model, *rows)

    def distances(way: tuple) -> dict[str, float]:
        pairs = zip(loss_and_gradient(model, *way), exact, strict=True)
        relative = [((one - other).norm() / other.norm()).item() for one, other in pairs]
        return dict(zip(("loss", "gradient"), relative, strict=True))

    figures = {"fp32": distances(one_pass)}
    model.to(torch.bfloat16)
    figures["bf16"] = {"one_pass": distances(one_pass), "separate_rows": distances(rows)}
    return figures


def milliseconds(entry: dict) -> str:
    low, high = (1000 * value for value in entry["spread"])
    return f"{1000 * entry['seconds_a_qa']:.0f} [{low:.0f}, {high:.0f}]"


def both_peaks(ways: dict) -> str:
    return " / ".join(f"{ways[way]['peak_gb']:.1f}" for way in ("ours", fastest(ways)))


COLUMNS: list[Column] = [
    ("ms per QA pair", lambda ways: milliseconds(ways["ours"])),
    ("fastest peer", fastest),
    ("its ms", lambda ways: milliseconds(ways[fastest(ways)])),
    ("ratio", against_fastest),
    ("GB", both_peaks),
]


def other_peers(results: dict) -> str:
    lines = ["The peers that were measured, in times of ours:"]
    for questions, methods in results["speed"].items():
        for method, ways in methods.items():
            ratios = [f"{way} {ratio(entry)}" for way, entry in ways.items() if way != "ours"]
            lines.append(f"- {questions} questions, {method}: {'; '.join(ratios)}")
    return "\n".join(lines)


def gpu_section(results: dict) -> str:
    """The page's part on a GPU."""
    stamp, versions = results["stamp"], results["stamp"]["versions"]
    fp32, bf16 = results["exact"]["fp32"], results["exact"]["bf16"]
    (fewest, most), exact = ARTICLE_TOKENS, max(fp32.values())
    shares = [ways["ours"]["share"] for m in results["speed"].values() for ways in m.values()]
    introduction = (
        f"{stamp['device']}, {stamp['cores']} cores; torch {versions['torch']}, TRL "
        f"{versions['trl']}; commit {stamp['commit']}, {stamp['date']}. Qwen2.5-0.5B's shape, "
        f"articles of {fewest:,} to {most:,} tokens; the median of the rounds, the lowest and the "
        "highest. GB: ours / the peer's."
    )
    rates = (
        f"A single product of a layer's matrices reaches {results['rate']:.0f} TFLOP/s, its start "
        f"counted in; our steps {min(shares):.0%} to {max(shares):.0%} of that."
    )
    exactness = (
        "Exactness, on one article of three questions: in fp32, loss and gradient in one pass and "
        f"in separate rows differ by {exact:.0e} at most, relative. In bf16, the gradient differs "
        f"from the one in fp32 by {bf16['one_pass']['gradient']:.1%} in one pass, and by "
        f"{bf16['separate_rows']['gradient']:.1%} in separate rows."
    )
    rows = table(results, "speed", COLUMNS, "questions")
    return "\n\n".join([introduction, rows, other_peers(results), rates, exactness])


def page(results: dict) -> str:
    """experiments/README.md with this part written anew."""
    return page_with(PAGE, "gpu", gpu_section(results))


def main() -> None:
    path = HERE / "speed_gpu.json"
    if DEVICE.type != "cpu":
        results = {"stamp": describe_machine("trl"), "speed": {}}
        results["exact"] = measure_exactness(article_groups(3)[0])
        results["rate"] = max(matrix_rates(torch.bfloat16)) / 1e3
        for count in PEERS:
            results["speed"][str(count)] = {}
            for method in MAIN:
                results["speed"][str(count)][method] = measure_speed(count, method)
                bq.write_json(path, results)
    bq.write_text(PAGE, page(bq.read_json(path)))


if __name__ == "__main__":
    main()
