"""Training and answering in two or three processes equal one; what is killed goes on."""

import functools
import gc
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState, debug_launcher
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import (
    _validate_launch_command,
    launch_command,
    launch_command_parser,
)
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_multi_gpu_env
from conftest import PARAMETERS
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import ProcessException
from transformers import TrainerCallback

import bmwqa_utils as bq
from bmwqa import answers, checkpoints, parallel
from bmwqa import run as training
from bmwqa.corpus import ROOT
from bmwqa.dataset import tokenize_rows
from bmwqa.models import load_model, load_tokenizer
from bmwqa.preflight import Preflight
from bmwqa.run import Run, base_model, lora_model, make_trainer
from bmwqa.settings import read_settings
from bmwqa_utils import IGNORE
from experiments import processes
from experiments.notebooks import tagged


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """A thread per process: forked processes may hang with more, and have two cores together."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # else each forked process copies all that is here
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    gc.unfreeze()
    torch.set_num_threads(threads)


def make_group(number: int) -> dict:
    """An article of its own length, with `number` questions whose answers differ in length."""
    draw = torch.Generator().manual_seed(number)
    ids = torch.randint(100, 4000, (400,), generator=draw).tolist()
    branches = []
    for place in range(number):
        answer = ids[place : place + 1 + 3 * place + number]
        labels = [IGNORE] * 5 + answer
        branches.append({"input_ids": ids[50:55] + answer, "labels": labels})
    return {"article_id": f"T{number}", "prefix": ids[: 60 * number], "branches": branches}


def make_run(model: Path, out_dir: Path, groups: list[dict], **changes) -> Run:
    changes |= {"MODEL": str(model), "OUT_DIR": str(out_dir), "REVISION": None}
    settings = read_settings(PARAMETERS | {"MAX_STEPS": 1, "WARMUP_STEPS": 0} | changes)
    used = {"name": str(model), "revision": None, "why": ""}
    held_out = [make_group(number) for number in range(4, 4 + settings.held_out)]
    tokenizer = tokenizer_of(model)
    return Run(settings, used, tokenizer, torch.float32, Preflight(), groups, held_out, {})


tokenizer_of = functools.cache(load_tokenizer)


class Gradients(TrainerCallback):
    """The gradients of the first step, whole, by the names of the weights."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            gradients = {n: w.grad for n, w in model.named_parameters() if w.grad is not None}
            self.gradients = {name: whole(gradient) for name, gradient in gradients.items()}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def divide_models() -> None:
    """What `accelerate launch` with fsdp.yaml brings about in a process without a GPU."""
    options = ["--config_file", str(processes.CONFIGS / "fsdp.yaml"), "script.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(options))
    os.environ |= prepare_multi_gpu_env(arguments) | {"LOCAL_RANK": str(dist.get_rank())}
    processes.divide_among_cpus()


def three_steps(variant: str, model: Path, out_dir: Path, count: int, engine: str) -> None:
    """Train three steps of `count` articles; what is compared goes to a file in `out_dir`.

    engine: "ddp", "fsdp", or "" for one process that adds `count` articles up.
    """
    if engine == "fsdp":
        divide_models()
    groups = [make_group(number) for number in range(1, 3 * count + 1)]
    run = make_run(model, out_dir, groups, MAX_STEPS=3, HELD_OUT=3, EVAL_STEPS=3)
    loaded = lora_model(run) if variant == "lora" else base_model(run)
    for name, weight in loaded.named_parameters():
        if "lora_B" in name:  # it begins as 0, and then so is the gradient of lora_A
            torch.nn.init.normal_(weight, std=0.1)
    before = {name: weight.detach().clone() for name, weight in loaded.named_parameters()}
    trainer, watch = make_trainer(run, variant, loaded, 1e-3), Gradients()
    if not engine:
        trainer.train_dataset = parallel.similar_lengths(groups, count, run.settings.seed)
        trainer.args.gradient_accumulation_steps = count
    assert trainer.is_fsdp_enabled == (engine == "fsdp")
    trainer.args.max_grad_norm = 0.0
    trainer.add_callback(watch)
    trainer.train()
    moved = {n: whole(w.detach()) - before[n] for n, w in trainer.model.named_parameters()}
    log = trainer.state.log_history
    losses = [entry["loss"] for entry in log if "loss" in entry]
    held_out = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    if trainer.is_world_process_zero():
        torch.save((losses, held_out, watch.gradients, moved), out_dir / "steps.pt")


@pytest.mark.parametrize("variant", ["full_ft", "lora"])
@pytest.mark.parametrize("count, engine", [(2, "ddp"), (3, "ddp"), (2, "fsdp")])
def test_several_processes_train_as_one_does(variant, count, engine, tiny_model_folder, tmp_path):
    for name in ("one", "several"):
        (tmp_path / name).mkdir()
    three_steps(variant, tiny_model_folder, tmp_path / "one", count, "")
    arguments = (variant, tiny_model_folder, tmp_path / "several", count, engine)
    debug_launcher(three_steps, arguments, num_processes=count)
    one, several = (torch.load(tmp_path / name / "steps.pt") for name in ("one", "several"))
    (losses, held_out, gradients, moved), (_, _, other_gradients, other_moved) = one, several
    assert several[0] == pytest.approx(losses, rel=1e-5) and len(losses) == 3
    assert several[1] == pytest.approx(held_out, rel=1e-5) and len(held_out) == 1
    assert gradients.keys() == other_gradients.keys() and moved.keys() == other_moved.keys()
    for name, gradient in gradients.items():
        error = (gradient - other_gradients[name]).norm()
        assert 0 < gradient.norm() and error < 1e-4 * gradient.norm(), name
        assert (moved[name] - other_moved[name]).norm() < 1e-3 * moved[name].norm(), name


def in_dtype(run: Run, dtype: torch.dtype) -> tuple:
    """(the run, its base) with weights of that dtype; a fork cannot cast while it loads."""
    return replace(run, dtype=dtype), base_model(run).to(dtype)


def weights_in_bf16(model: Path, out_dir: Path) -> None:
    """Train three steps of full with weights in bf16; each process saves its weights."""
    groups = [make_group(number) for number in range(1, 7)]
    plain = make_run(model, out_dir, groups, MAX_STEPS=3, HELD_OUT=0)
    run, base = in_dtype(plain, torch.bfloat16)
    trainer = make_trainer(run, "full_ft", base, 1e-3)
    trainer.train()
    weights = {name: weight.detach() for name, weight in trainer.model.named_parameters()}
    torch.save(weights, out_dir / f"{dist.get_rank()}.pt")


def test_two_processes_keep_the_same_weights_in_bf16(tiny_model_folder, tmp_path):
    """They draw the same beginnings of Kahan's sum; nothing compares their weights."""
    debug_launcher(weights_in_bf16, (tiny_model_folder, tmp_path), num_processes=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    before = load_model(tiny_model_folder, dtype=torch.bfloat16).state_dict()
    for name, weight in one.items():
        name = name.removeprefix("module.")
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, other[name]) and not torch.equal(weight, before[name])


def train_divided(model: Path, out_dir: Path, dtype, killed_at: int | None = None) -> None:
    """Train four steps of a divided model; process 2 kills itself after `killed_at` steps."""

    class Killed(training.StepReport):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == killed_at and dist.get_rank() == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            super().on_step_begin(args, state, control)

    divide_models()
    training.StepReport, training.SAVE_STEPS = Killed, 2
    groups = [make_group(number) for number in range(1, 13)]
    run, base = in_dtype(make_run(model, out_dir, groups, MAX_STEPS=4, HELD_OUT=0), dtype)
    training.train(run, "full_ft", base, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_divided_among_three_goes_on_after_a_kill(tiny_model_folder, tmp_path, dtype):
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    with pytest.raises(ProcessException, match="SIGKILL|peer"):
        debug_launcher(train_divided, (tiny_model_folder, killed, dtype, 3), num_processes=3)
    assert not (killed / "tiny_full_ft").exists()
    (checkpoint,) = killed.glob("runs/tiny_full_ft-*-x3/checkpoint-2")
    assert (checkpoint / checkpoints.WHOLE).exists() and (checkpoint / "optimizer.bin").exists()
    # begun at step 0, the rerun would be killed
    debug_launcher(train_divided, (tiny_model_folder, killed, dtype, 0), num_processes=3)
    debug_launcher(train_divided, (tiny_model_folder, unbroken, dtype), num_processes=3)
    one, other = (folder / "tiny_full_ft" for folder in (killed, unbroken))
    losses, other_losses = (bq.read_json(f / "training.json")["losses"] for f in (one, other))
    assert losses == other_losses and len(losses) == 4
    weights, other_weights = (load_file(f / "model.safetensors") for f in (one, other))
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert "lm_head.weight" not in weights  # it is tied, and would lie there twice
    whole = load_model(one)
    assert torch.equal(whole.lm_head.weight, weights["model.embed_tokens.weight"])


# --------------------------------------------------------------------------------------------------
# A run of the notebook's cells: killed, gone on with, and asked


def written_rows(folder: Path) -> None:
    """train.jsonl and eval.jsonl with rows on articles of different lengths."""
    for split, count in (("train", 6), ("eval", 14)):
        rows = []
        for number in range(count):
            text = f"No. {number} of the {split} engines stands in Steyr. " * (1 + number % 5)
            article = {"id": f"{split}{number:02d}", "title": f"Engine {number}", "text": text}
            article |= {"date": "2025-05-12", "teaser": "", "category": "Press Release"}
            rows += bq.build_qa_pairs(article)
            pair = {"kind": "where", "question": "Where does it stand?", "answer": "Steyr"}
            rows.append(bq.make_row(article, pair, "written"))
        bq.write_jsonl(folder / f"{split}.jsonl", rows)


@pytest.fixture(scope="module")
def parameters(tmp_path_factory, tiny_model_folder):
    """Those of a short run on a few articles, without a benchmark."""
    folder = tmp_path_factory.mktemp("run")
    written_rows(folder)
    (folder / "benchmark.jsonl").touch()
    bq.write_json(folder / "manifest.json", {})
    changes = {"MODEL": str(tiny_model_folder), "REVISION": None, "PRECISION": "fp32"}
    changes |= {"PROCESSED_DIR": str(folder), "BENCHMARK": str(folder / "benchmark.jsonl")}
    changes |= {"MAX_STEPS": 24, "HELD_OUT": 1, "EVAL_STEPS": 12}
    changes |= {"MAX_NEW_TOKENS": 5, "MAX_NEW_TOKENS_ABOUT": 5, "OUT_DIR": str(folder / "out")}
    return changes


def start(what: str, parameters: dict) -> subprocess.Popen:
    """`make train PROCESSES=2`, with a thread per process."""
    command = [sys.executable, "-m", "experiments.processes", what, "--processes", "2"]
    for name, value in parameters.items():
        command += ["-p", name, json.dumps(value)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **streams)


@pytest.fixture(scope="module")
def killed(parameters):
    """(exit status, last line, names in OUT_DIR) of a run: one process was killed in the middle."""
    launcher, runs = start("train", parameters), Path(parameters["OUT_DIR"], "runs")
    while not list(runs.glob("tiny_full_ft-*-x2/checkpoint-10/whole")):
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.01)
    *_, process = psutil.Process(launcher.pid).children(recursive=True)
    process.kill()
    _, errors = launcher.communicate(timeout=120)
    return launcher.returncode, errors.splitlines()[-1], [p.name for p in runs.parent.iterdir()]


@pytest.fixture(scope="module")
def trained(parameters, killed):
    """What the rerun of the killed run printed."""
    rerun = start("train", parameters)
    output, errors = rerun.communicate(timeout=300)
    assert rerun.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def answered_by_one(parameters, trained, tmp_path_factory):
    """OUT_DIR after one process has answered."""
    folder = tmp_path_factory.mktemp("answered") / "out"
    shutil.copytree(parameters["OUT_DIR"], folder)
    answer_and_write(parameters | {"OUT_DIR": str(folder)})
    return folder


def answer_and_write(parameters: dict) -> None:
    """The cells from the evaluation on that answer and write eval_generations.jsonl."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "tagged", last_cell)
        processes.run_cells("answer", parameters)


def last_cell(notebook, tag: str) -> int:
    writing = 'write_jsonl(out_dir / "eval_generations.jsonl"'
    if tag == "answers":
        return next(i for i, cell in enumerate(notebook.cells) if writing in cell.source)
    return tagged(notebook, tag)


def answer_here(parameters: dict, count: int) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # that of the tests before, forked
    assert PartialState(cpu=True).num_processes == count
    answers.answer_missing = processes.answer_divided
    processes.run_cells("answer", parameters)


def test_a_killed_process_ends_the_others_and_leaves_nothing_half(killed):
    status, line, names = killed
    assert status == 1
    assert re.match("Process [01] was killed by signal 9, and the others ended. .* A rerun", line)
    assert names == ["runs"]


def test_a_rerun_goes_on_with_the_losses_of_an_unbroken_run(parameters, trained, tmp_path):
    debug_launcher(
        processes.run_cells, ("train", parameters | {"OUT_DIR": str(tmp_path)}), num_processes=2
    )
    for variant in ("full_ft", "lora", "pruned_ft"):
        rerun = bq.read_json(Path(parameters["OUT_DIR"], f"tiny_{variant}", "training.json"))
        unbroken = bq.read_json(tmp_path / f"tiny_{variant}" / "training.json")
        same = ("run", "losses", "eval_losses", "articles", "questions")
        assert [rerun[key] for key in same] == [unbroken[key] for key in same]
        assert (len(rerun["losses"]), len(rerun["articles"])) == (24, 48)
        assert trained.count(f"tiny_{variant}: ") == 1  # one process prints
    assert int(re.search(r"full_ft:.* (\d+)/24 \[00:00<\?", trained)[1]) >= 10  # where it began
    assert not list(Path(parameters["OUT_DIR"], "runs").glob("tiny_*"))


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_answer_as_one_does(
    count, parameters, trained, answered_by_one, tmp_path
):
    folder = tmp_path / "out"
    shutil.copytree(parameters["OUT_DIR"], folder)
    parameters = parameters | {"OUT_DIR": str(folder)}
    debug_launcher(answer_here, (parameters, count), num_processes=count)
    answered = {path.name: path.stat().st_mtime_ns for path in (folder / "runs").glob("answers-*")}
    assert len(answered) == 6
    answer_and_write(parameters)  # finds all answers there
    assert answered == {p.name: p.stat().st_mtime_ns for p in (folder / "runs").glob("answers-*")}
    name = "eval_generations.jsonl"
    assert (folder / name).read_bytes() == (answered_by_one / name).read_bytes()
    assert len(bq.read_jsonl(folder / name)) >= 14 * 3


def test_processes_end_with_their_launcher():
    reading, writing = os.pipe()
    if not (launcher := os.fork()):
        if not os.fork():
            processes.end_with_launcher()
            os.write(writing, str(os.getpid()).encode())
            time.sleep(60)
        signal.pause()
    worker = psutil.Process(int(os.read(reading, 20)))
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


# --------------------------------------------------------------------------------------------------
# Order, and bad input


def test_articles_of_similar_length_share_a_step_and_one_process_keeps_its_order():
    draw = random.Random(1)
    groups = [{"prefix": range(draw.randint(50, 2000)), "branches": []} for _ in range(400)]
    assert parallel.similar_lengths(groups, 1, seed=1) is groups
    lengths = [len(group["prefix"]) for group in parallel.similar_lengths(groups, 4, seed=1)]
    assert sorted(lengths) == sorted(len(group["prefix"]) for group in groups)
    assert sorted(lengths[:200]) == sorted(len(group["prefix"]) for group in groups[:200])
    steps = [lengths[start : start + 4] for start in range(0, 400, 4)]
    longest_first = sorted(steps[:50], reverse=True)
    assert all(min(one) >= max(other) for one, other in itertools.pairwise(longest_first))
    assert steps[:50] != longest_first


def test_more_processes_than_articles(embedded_tokenizer, tmp_path, monkeypatch):
    written_rows(tmp_path)
    groups = tokenize_rows(tmp_path / "train.jsonl", embedded_tokenizer, tmp_path / "tokens")
    monkeypatch.setattr(training, "processes", lambda: 5)
    with pytest.raises(ValueError, match="^There are 5 processes and 4 articles to train on, need"):
        training.plan_run(groups, read_settings(PARAMETERS | {"HELD_OUT": 2}))


def disagree(model: Path, out_dir: Path) -> None:
    steps = 1 + dist.get_rank()
    run = make_run(model, out_dir, [make_group(1), make_group(3)] * steps, MAX_STEPS=steps)
    with pytest.raises(ValueError, match="^MAX_STEPS: 1 in process 0, 2 in 1; need the same"):
        training.train(run, "full_ft", base_model(run), 1e-3)


def test_parameters_that_differ_between_processes(tiny_model_folder, tmp_path):
    debug_launcher(disagree, (tiny_model_folder, tmp_path), num_processes=2)


def test_a_checkpoint_from_another_number_of_processes(tiny_model_folder, tmp_path):
    run = make_run(tiny_model_folder, tmp_path, [make_group(1)])
    model = base_model(run)
    folder = Path(f"{make_trainer(run, 'full_ft', model, 1e-3).args.output_dir}-x3")
    (folder / "checkpoint-2").mkdir(parents=True)
    (folder / "checkpoint-2" / checkpoints.WHOLE).touch()
    need = "checkpoint-2 is from 3 processes, this run has 1. Set PROCESSES=3, or delete"
    with pytest.raises(ValueError, match=need):
        training.train(run, "full_ft", model, 1e-3)


def test_a_checkpoint_of_a_divided_model(tmp_path, monkeypatch):
    checkpoint = tmp_path / "tiny_full_ft-0123abcd-x2" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / checkpoints.WHOLE).touch()
    checkpoints.refuse_other_counts(checkpoint.parent)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="checkpoint-2 is not of a divided .* Start without fsdp"):
        checkpoints.refuse_other_counts(checkpoint.parent)
    (checkpoint / "optimizer.bin").touch()  # what a divided run writes
    checkpoints.refuse_other_counts(checkpoint.parent)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    with pytest.raises(ValueError, match="checkpoint-2 is of a divided .* Start with fsdp.yaml"):
        checkpoints.refuse_other_counts(checkpoint.parent)


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, config = server.getsockname()[1], processes.CONFIGS / "machines.yaml"
        options = ["--config_file", str(config), "--main_process_port", str(port)]
        arguments = launch_command_parser().parse_args([*options, "-m", "experiments.processes"])
        with pytest.raises(ConnectionError, match=f"port `{port}`, but another process"):
            launch_command(arguments)


@pytest.mark.parametrize("name", ["cpus", "fsdp", "gpus", "machines"])
def test_accelerate_knows_every_key_of_the_files(name):
    config = load_config_from_file(str(processes.CONFIGS / f"{name}.yaml"))  # refuses others
    options = launch_command_parser().parse_args(["script.py"])
    assert config.fsdp_config.keys() <= vars(options).keys()
