"""Which bf16 products torch leaves to one thread, and what halves gain: a table, on two threads.

    python -m experiments.products        about a minute, on a CPU with bf16

The shapes are those of Qwen2.5-0.5B's and SmolLM2's layers. Each figure is a ratio of medians of
ways that take turns, so that a machine whose speed drifts does not matter.
"""

import bmwqa_utils as bq  # noqa: F401  # isort: skip  (first: large pages, see bmwqa/__init__.py)
import time
from statistics import median

import torch

from bmwqa.linear import is_halved, multiply_halves
from bmwqa.report import markdown_table

SHAPES = ((4864, 896), (896, 896), (896, 4864), (1536, 576), (576, 576))  # inputs, outputs
ROWS = (512, 700, 1000, 1306, 2048)  # tokens
ROUNDS = 9


def ratios(rows: torch.Tensor, matrix: torch.Tensor) -> tuple[float, float]:
    """How many times as fast as the product on both threads: one thread, and halves."""
    ways = {"whole": (2, torch.mm), "one thread": (1, torch.mm), "halves": (2, multiply_halves)}
    seconds = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (threads, multiply) in ways.items():
            torch.set_num_threads(threads)
            start = time.perf_counter()
            multiply(rows, matrix)
            seconds[name].append(time.perf_counter() - start)
    middle = {name: median(times[1:]) for name, times in seconds.items()}
    return middle["whole"] / middle["one thread"], middle["whole"] / middle["halves"]


def main() -> None:
    table = []
    for inputs, outputs in SHAPES:
        matrix = torch.randn(inputs, outputs).bfloat16()
        for count in ROWS:
            one_thread, halves = ratios(torch.randn(count, inputs).bfloat16(), matrix)
            line = {"inputs": f"{inputs}", "outputs": f"{outputs}", "tokens": f"{count}"}
            line |= {"one thread": f"{one_thread:.2f} ×", "halves": f"{halves:.2f} ×"}
            table.append(line | {"in halves": "yes" if is_halved(count, outputs) else "no"})
    print("Speed, against the product in one call on both threads:\n")
    print(markdown_table(table))


if __name__ == "__main__":
    main()
