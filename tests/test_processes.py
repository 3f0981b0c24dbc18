"""Training and answering in two processes equal one process; what is killed goes on."""

import itertools
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState, debug_launcher
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from conftest import PARAMETERS
from transformers import TrainerCallback

import bmwqa_utils as bq
from bmwqa import answers, checkpoints, parallel
from bmwqa import run as training
from bmwqa.corpus import ROOT
from bmwqa.dataset import tokenize_rows
from bmwqa.models import load_tokenizer
from bmwqa.preflight import Preflight
from bmwqa.run import Run, base_model, lora_model, make_trainer
from bmwqa.settings import read_settings
from bmwqa_utils import IGNORE
from experiments import processes


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """A thread per process: forked processes may hang with more, and have two cores together."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
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
    tokenizer = load_tokenizer(model)
    return Run(settings, used, tokenizer, torch.float32, Preflight(), groups, held_out, {})


class Gradients(TrainerCallback):
    """The gradients of the last step, by the names of the weights."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = {n: w.grad for n, w in model.named_parameters() if w.grad is not None}
        self.gradients = {name: gradient.clone() for name, gradient in gradients.items()}


def first_step(variant: str, model: Path, out_dir: Path, accumulated: int = 1) -> None:
    """Train a step on two articles; its loss, held-out loss and gradients go to a file."""
    run = make_run(model, out_dir, [make_group(1), make_group(3)], HELD_OUT=3, EVAL_STEPS=1)
    loaded = lora_model(run) if variant == "lora" else base_model(run)
    for name, weight in loaded.named_parameters():
        if "lora_B" in name:  # it begins as 0, and then so is the gradient of lora_A
            torch.nn.init.normal_(weight, std=0.1)
    trainer, watch = make_trainer(run, variant, loaded, 1e-3), Gradients()
    trainer.args.gradient_accumulation_steps, trainer.args.max_grad_norm = accumulated, 0.0
    trainer.add_callback(watch)
    trainer.train()
    log = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    if trainer.is_world_process_zero():
        torch.save((log["loss"], log["eval_loss"], watch.gradients), out_dir / "step.pt")


@pytest.mark.parametrize("variant", ["full_ft", "lora"])
def test_two_processes_give_the_loss_and_gradients_of_one(variant, tiny_model_folder, tmp_path):
    """With DDP. FSDP needs GPUs: on CPUs, accelerate 1.15 ignores it, see its state.py."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first_step(variant, tiny_model_folder, tmp_path / "one", accumulated=2)
    debug_launcher(first_step, (variant, tiny_model_folder, tmp_path / "two"), num_processes=2)
    loss, held_out, gradients = torch.load(tmp_path / "one" / "step.pt")
    loss_of_two, held_out_of_two, gradients_of_two = torch.load(tmp_path / "two" / "step.pt")
    assert loss_of_two == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == gradients_of_two.keys()
    for name, gradient in gradients.items():
        error = (gradient - gradients_of_two[name]).norm()
        assert 0 < gradient.norm() and error < 1e-4 * gradient.norm(), name
    assert held_out_of_two == pytest.approx(held_out, rel=1e-4)


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
    changes = {"MODEL": str(tiny_model_folder), "REVISION": None, "PRECISION": "fp32"}
    changes |= {"PROCESSED_DIR": str(folder), "BENCHMARK": str(folder / "benchmark.jsonl")}
    changes |= {"MAX_STEPS": 40, "HELD_OUT": 1, "EVAL_STEPS": 20}
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
    output, errors = rerun.communicate()
    assert rerun.returncode == 0, errors
    return output


def answer_here(parameters: dict) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # that of the tests before, forked
    assert PartialState(cpu=True).num_processes == 2
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
        assert (len(rerun["losses"]), len(rerun["articles"])) == (40, 80)
        assert trained.count(f"tiny_{variant}: ") == 1  # one process prints
    assert int(re.search(r"full_ft:.* (\d+)/40 \[00:00<\?", trained)[1]) >= 4  # where it began
    assert not list(Path(parameters["OUT_DIR"], "runs").glob("tiny_*"))


def test_two_processes_answer_as_one_does(parameters, trained, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(parameters["OUT_DIR"], tmp_path / name)
    processes.run_cells("answer", parameters | {"OUT_DIR": str(tmp_path / "one")})
    debug_launcher(answer_here, (parameters | {"OUT_DIR": str(tmp_path / "two")},), num_processes=2)
    files = sorted(path.name for path in (tmp_path / "one" / "runs").glob("answers-*"))
    assert files == sorted(path.name for path in (tmp_path / "two" / "runs").glob("answers-*"))
    assert len(files) == 5
    for file in files:
        one, two = (bq.read_jsonl(tmp_path / name / "runs" / file) for name in ("one", "two"))
        assert len(one) >= 14 * 3
        first, second = (
            {(line["variant"], line["question_id"]): line | {"seconds": 0} for line in lines}
            for lines in (one, two)
        )
        assert first == second and len(one) == len(first) == len(two)


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


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, config = server.getsockname()[1], processes.CONFIGS / "machines.yaml"
        options = ["--config_file", str(config), "--main_process_port", str(port)]
        arguments = launch_command_parser().parse_args([*options, "-m", "experiments.processes"])
        with pytest.raises(ConnectionError, match=f"port `{port}`, but another process"):
            launch_command(arguments)
