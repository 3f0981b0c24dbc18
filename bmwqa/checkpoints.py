"""Checkpoints of a run: which is whole, and is it from this number of processes?"""

import re
import shutil
from pathlib import Path

from bmwqa.parallel import processes

WHOLE = "whole"  # an empty file, written to a checkpoint after all others


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest whole checkpoint of a run, or None; half-written checkpoints are deleted."""
    whole = []
    for checkpoint in Path(folder).glob("checkpoint-*"):
        if (checkpoint / WHOLE).exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def without_count(name: str) -> str:
    """The name of a run without its number of processes, "-x2"."""
    return re.sub(r"-x\d+$", "", name)


def refuse_other_counts(checkpoints: Path) -> None:
    """ValueError if this run was begun by another number of processes, and not finished."""
    name = without_count(checkpoints.name)
    for mark in checkpoints.parent.glob(f"{name}*/checkpoint-*/{WHOLE}"):
        begun = mark.parents[1]
        if begun != checkpoints:
            count = begun.name.removeprefix(f"{name}-x") if begun.name != name else 1
            problem = f"{mark.parent} is from {count} processes, this run has {processes()}"
            raise ValueError(f"{problem}. Set PROCESSES={count}, or delete {begun}.")
