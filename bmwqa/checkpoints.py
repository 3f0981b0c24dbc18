"""Checkpoints of a run: which is whole, and is it from this number of processes?"""

import os
import re
import shutil
from pathlib import Path

from accelerate.utils.constants import OPTIMIZER_NAME

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
    """ValueError if this run was begun in another way, and not finished.

    That is by another number of processes, or its model was divided among them (FSDP) and now is
    not, or the reverse.
    """
    name = without_count(checkpoints.name)
    for mark in checkpoints.parent.glob(f"{name}*/checkpoint-*/{WHOLE}"):
        begun = mark.parents[1]
        if begun != checkpoints:
            count = begun.name.removeprefix(f"{name}-x") if begun.name != name else 1
            problem = f"{mark.parent} is from {count} processes, this run has {processes()}"
            raise ValueError(f"{problem}. Set PROCESSES={count}, or delete {begun}.")
        divided = mark.with_name(f"{OPTIMIZER_NAME}.bin").exists()
        if divided != ("ACCELERATE_USE_FSDP" in os.environ):
            problem = f"{mark.parent} is {'' if divided else 'not '}of a divided model (FSDP)"
            need = "with" if divided else "without"
            raise ValueError(f"{problem}. Start {need} fsdp.yaml, or delete {begun}.")
