"""Several processes that train together: how many, which articles share a step, do they agree?

experiments/processes.py starts them; a step is one article in each.
"""

import random

import torch.distributed as dist
from accelerate.utils import gather_object
from torch.utils.data import Subset


def processes() -> int:
    """How many processes train together; 1 in a notebook."""
    return dist.get_world_size() if dist.is_initialized() else 1


WINDOW = 50  # steps whose articles are sorted by length together, as LengthGroupedSampler does


def similar_lengths(groups, count: int, seed: int):
    """The groups in the order for `count` processes: groups of similar length share a step.

    Processes wait for the longest article of their step: experiments/balance.py has what that
    costs. Articles change places within WINDOW steps, whose order is random. For one process,
    `groups` stays as it is; else this is a `Subset`.
    """
    if count == 1:
        return groups
    order, places = random.Random(seed), []
    lengths = [len(g["prefix"]) + sum(len(b["input_ids"]) for b in g["branches"]) for g in groups]
    for start in range(0, len(groups), WINDOW * count):
        window = range(start, min(start + WINDOW * count, len(groups)))
        by_length = sorted(window, key=lengths.__getitem__)
        steps = [by_length[first : first + count] for first in range(0, len(window), count)]
        places += [place for step in order.sample(steps, len(steps)) for place in step]
    return Subset(groups, places)


def require_agreement(values: dict) -> None:
    """ValueError names the first of the values that is not the same in all processes."""
    first, *others = gather_object([values])
    for number, other in enumerate(others, start=1):
        for name in first:
            if first[name] != other[name]:
                problem = f"{name}: {first[name]!r} in process 0, {other[name]!r} in {number}"
                need = "need the same in all. Give every machine the same files, and one OUT_DIR."
                raise ValueError(f"{problem}; {need}")
