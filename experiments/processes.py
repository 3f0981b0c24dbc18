"""Run a part of training.ipynb in several processes: `python -m experiments.processes train`.

train   the cells above "Evaluation": a step is one article per process
answer  the cells from there to the answers; the notebook then finds all of them there

--processes N starts N processes on this machine, with accelerate/gpus.yaml where it has GPUs, else
with accelerate/cpus.yaml. For several machines, the files there name the command.
"""

import ctypes
import os
import signal
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import matplotlib
import nbformat
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import DistributedType
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from bmwqa import answers
from bmwqa_utils import write_jsonl
from experiments.notebooks import TRAINING, option_parser, parameters_of, tagged

CONFIGS = Path(__file__).parent / "accelerate"
answer_missing = answers.answer_missing


def launch(count: int) -> None:
    """Start this command in `count` processes, and wait for them; one line says what ended them."""
    file = CONFIGS / ("gpus.yaml" if torch.accelerator.is_available() else "cpus.yaml")
    options = ["--config_file", str(file), "--num_processes", str(count)]
    command = ["-m", "experiments.processes", *sys.argv[1:]]
    try:
        launch_command(launch_command_parser().parse_args(options + command))
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        for rank, code in codes.items():
            if code < 0 and code != -signal.SIGTERM:  # that one ends the others
                killed = f"Process {rank} was killed by signal {-code}, and the others ended"
                sys.exit(f"{killed}. Was there enough memory? A rerun goes on where it stopped.")
        sys.exit(1)  # a process has said why


def answer_divided(
    load, tokenizer, pairs: list, caps: list[int], records: dict, path: Path, **options
) -> None:
    """`answer_missing`, divided among the processes by article.

    Each answers whole batches of articles, those of one process, so the answers are the same.
    Until all are there, each keeps its own in a file beside `path`, for a rerun.
    """
    state = PartialState()
    for file in path.parent.glob(f"{path.stem}.*.jsonl"):
        records |= answers.kept_answers(file)
    state.wait_for_everyone()
    missing = [(name, row) for name, row in pairs if (name, row["question_id"]) not in records]
    rows = []
    for number, batch in enumerate(answers.article_batches([row for _, row in missing])):
        if number % state.num_processes == state.process_index:
            rows += [missing[index] for index, _ in batch]
    file = path.with_name(f"{path.stem}.{state.process_index}.jsonl")
    answer_missing(load, tokenizer, rows, caps, records, file, **options)
    state.wait_for_everyone()
    files = list(path.parent.glob(f"{path.stem}.*.jsonl"))
    for file in files:
        records |= answers.kept_answers(file)
    state.wait_for_everyone()
    if state.is_main_process:
        write_jsonl(path, [records[name, row["question_id"]] for name, row in pairs])
        for file in files:
            file.unlink()


def run_cells(what: str, parameters: dict) -> None:
    """Run the cells of training.ipynb that `what` names, as they are, with these parameters."""
    notebook = nbformat.read(TRAINING, as_version=4)
    first, evaluation = tagged(notebook, "parameters"), tagged(notebook, "evaluation")
    sources = {n: cell.source for n, cell in enumerate(notebook.cells) if cell.cell_type == "code"}
    chosen = range(evaluation)
    if what == "answer":
        chosen = [first, *range(evaluation, tagged(notebook, "answers") + 1)]
    names = {}
    for number in chosen:
        if number in sources:
            exec(compile(sources[number], f"{TRAINING.name}, cell {number}", "exec"), names)
        names |= parameters if number == first else {}


def divide_among_cpus() -> None:
    """Let accelerate divide a model among CPUs; its state.py does so among "MULTI_GPU" alone.

    FSDP itself needs only gloo.
    """
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *arguments: ("gloo", DistributedType.MULTI_GPU)


def end_with_launcher() -> None:
    """Have Linux end this process when the one that started it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, see prctl(2)


def work(what: str, parameters: dict) -> None:
    """One of the processes; the main one prints, and says in one line what is wrong."""
    end_with_launcher()
    matplotlib.use("Agg")
    warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
    # the others may wait long for the one that saves or answers; the death of one is seen at once
    cpu, timeout = not torch.accelerator.is_available(), timedelta(days=1)
    if cpu and "ACCELERATE_USE_FSDP" in os.environ:
        dist.init_process_group("gloo", timeout=timeout)
        divide_among_cpus()
    state = PartialState(cpu=cpu, timeout=timeout)
    if not state.is_main_process:
        sys.stdout = open(os.devnull, "w")
    answers.answer_missing = answer_divided
    try:
        run_cells(what, parameters)
    except (ValueError, FloatingPointError) as error:
        if not state.is_main_process:
            time.sleep(5)  # if all have the same error, the main one ends them after its line
        sys.exit(f"process {state.process_index}: {error}")
    state.destroy_process_group()


def main() -> None:
    parser = option_parser(__doc__, ["train", "answer"])
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    options = parser.parse_args()
    parameters = parameters_of(options)
    if "LOCAL_RANK" in os.environ:  # started by `accelerate launch`
        work(options.what, parameters)
    else:
        launch(options.processes)


if __name__ == "__main__":
    main()
