"""The notebooks: a static contract, and a real run of each with small parameters."""

import ast
import inspect
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
import torch
import yaml
from peft import LoraConfig
from transformers import Trainer, TrainingArguments

import bmwqa_utils as bq
from bmwqa.models import load_model, load_tokenizer
from bmwqa.one_pass import answer_loss, share_prefix
from experiments.notebooks import tagged

NAMES = ["data_extraction.ipynb", "data_processing_prompt.ipynb", "training.ipynb"]
NOTEBOOKS = [nbformat.read(bq.ROOT / name, as_version=4) for name in NAMES]
each = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def output_text(notebook):
    texts = []
    for cell in code(notebook):
        for output in cell.outputs:
            texts.append(output.get("text", ""))
            texts += [str(v) for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return "\n".join(texts)


def parameters(notebook):
    (cell,) = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]
    return cell.source


def definitions(source):
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)}


@each
def test_valid_python_and_no_magic(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert cell.cell_type in ("code", "markdown")
        assert cell.source.strip()
    for cell in code(notebook):
        ast.parse(cell.source)
        assert not re.search(r"^\s*[!%]", cell.source, re.M)


LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not LARGE_PAGES.exists() or "[madvise]" not in LARGE_PAGES.read_text(),
    reason="the kernel gives no large pages on request",
)
@pytest.mark.parametrize("half", [0, 1], ids=["training", "evaluation"])
def test_the_imports_of_a_fresh_kernel_turn_on_large_pages(half):
    """The imports of peft and the Trainer make a tensor, and torch reads its switch only once."""
    cell = [cell for cell in code(NOTEBOOKS[2]) if "import bmwqa_utils" in cell.source][half]
    kinds = ast.Import | ast.ImportFrom
    lines = [ast.unparse(node) for node in ast.parse(cell.source).body if isinstance(node, kinds)]
    lines.append("import torch; kept = torch.ones(30_000_000)")
    lines.append("print(open('/proc/self/smaps_rollup').read())")
    command = [sys.executable, "-c", "\n".join(lines)]
    process = subprocess.run(command, cwd=bq.ROOT, capture_output=True, text=True, check=True)
    assert int(re.search(r"AnonHugePages: +(\d+) kB", process.stdout)[1]) > 100_000


@each
def test_opens_with_what_a_reader_needs(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert len(re.findall(r"^# ", first.source, re.M)) == 1
    for label in ("In:", "Out:", "Time:", "Network:"):
        assert f"**{label}**" in first.source


@each
def test_one_short_parameters_cell(notebook):
    source = parameters(notebook)
    assert len(source.splitlines()) <= 25
    for node in ast.parse(source).body:
        assert isinstance(node, ast.Assign)
        assert node.targets[0].id.isupper()


@pytest.mark.parametrize("name, notebook", zip(NAMES, NOTEBOOKS, strict=True), ids=NAMES)
def test_every_parameter_can_be_set_from_outside(name, notebook):
    """papermill reads the parameters cell by itself and skips a line with two equal signs."""
    names = [node.targets[0].id for node in ast.parse(parameters(notebook)).body]
    assert list(papermill.inspect_notebook(str(bq.ROOT / name))) == names


@each
def test_committed_as_one_clean_run(notebook):
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
        text = "".join(output.get("text", "") for output in cell.outputs)
        assert len(text.splitlines()) <= 30, cell.source
        assert len(cell.source.splitlines()) <= 25, cell.source
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_file(name):
    assert (bq.ROOT / name).stat().st_size <= 300_000


@each
def test_no_path_of_a_machine_no_device_no_dead_code(notebook):
    sources = "\n".join(cell.source for cell in code(notebook))
    assert not re.search(r"['\"](/(home|root|Users|work|tmp)/|[A-Z]:\\)", sources)
    assert not re.search(r"\b(cuda|mps|hf_[A-Za-z0-9]{20,})\b", sources)
    assert "if False" not in sources
    assert not re.search(r"^\s*#\s*\w+\(.*\)\s*$", sources, re.M)
    assert "/work/" not in output_text(notebook) and "/root/" not in output_text(notebook)


@each
def test_every_decimal_in_the_prose_comes_from_an_output(notebook):
    """A typed number goes stale. Links, versions, code and headings are no measurements."""
    no_measurement = r"`[^`]*`|\]\([^)]*\)|[A-Za-z]+\d+\.\d+\S*|^#+ .*"
    shown = output_text(notebook) + "\n".join(cell.source for cell in code(notebook))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            prose = re.sub(no_measurement, "", cell.source, flags=re.M)
            for number in re.findall(r"\d+\.\d+", prose):
                assert number in shown, f"{number} in: {cell.source}"


def test_nothing_is_defined_twice():
    owners, named_by_others = {}, {"__init__", "__enter__", "__exit__", "forward", "backward"}
    modules = [*bq.ROOT.glob("*.py"), *bq.ROOT.glob("bmwqa/*.py")]
    sources = {path.name: path.read_text(encoding="utf-8") for path in modules}
    for name, notebook in zip(NAMES, NOTEBOOKS, strict=True):
        sources[name] = "\n".join(cell.source for cell in code(notebook))
    for name, source in sources.items():
        for defined in definitions(source) - named_by_others:
            owner = owners.setdefault(defined, name)
            assert owner == name, f"{defined} is in {name} and in {owner}"


def test_keywords_of_the_libraries_exist():
    """A keyword that a library has renamed fails here, and not after minutes of training."""
    known = {
        "TrainingArguments": inspect.signature(TrainingArguments).parameters,
        "Trainer": inspect.signature(Trainer.__init__).parameters,
        "LoraConfig": inspect.signature(LoraConfig).parameters,
    }
    called = set()
    source = (bq.ROOT / "bmwqa" / "run.py").read_text(encoding="utf-8")
    for call in ast.walk(ast.parse(source)):
        name = getattr(call.func, "id", "") if isinstance(call, ast.Call) else ""
        name = "Trainer" if name == "trainer_class" else name  # or that of `Distillation`
        if name in known:
            called.add(name)
            for keyword in call.keywords:
                assert keyword.arg is None or keyword.arg in known[name], keyword.arg
    assert called == set(known)


def run(name, folder, **parameters):
    """Execute a notebook as `make run` does and return what it printed."""
    output = folder / Path(name).name
    folder.mkdir(exist_ok=True)
    kernel = dict(kernel_name="python3", cwd=str(bq.ROOT), progress_bar=False)
    papermill.execute_notebook(str(bq.ROOT / name), str(output), parameters, **kernel)
    return output_text(nbformat.read(output, as_version=4))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, tiny_model_folder):
    """Folder, parameters and prints of a small run: pairs, three steps per training, evaluation."""
    folder = tmp_path_factory.mktemp("run")
    processed = dict(PROCESSED_DIR=str(folder / "processed"))
    pairs = run("data_processing_prompt.ipynb", folder, ARTICLES_DIR="data/sample", **processed)
    parameters = processed | dict(MODEL=str(tiny_model_folder), OUT_DIR=str(folder))
    parameters |= dict(MAX_STEPS=3, EVAL_STEPS=2, MAX_NEW_TOKENS=3, MAX_NEW_TOKENS_ABOUT=4)
    training = run("training.ipynb", folder, **parameters)
    return folder, parameters, pairs, training


def test_pairs_say_which_corpus_and_what_was_left_out(small_run):
    folder, _, pairs, _ = small_run
    assert "Corpus: data/sample" in pairs
    assert "Fiction, written for bmwqa" in pairs
    rows = bq.load_rows(folder / "processed" / "train.jsonl")
    assert len({row["article_id"] for row in rows}) >= 160
    assert {row["source"] for row in rows} == {"rule", "written"}
    for row in rows:
        assert row["prompt"] == bq.format_prompt(row["context"], row["question"])
        if row["kind"] not in ("yes_no", "unanswerable"):
            assert row["answer"] in row["context"]


def test_training_leaves_whole_models_and_their_losses(small_run):
    folder, _, _, printed = small_run
    assert "same losses as separate rows" in printed
    for variant in ("tiny_full_ft", "tiny_lora", "tiny_pruned_ft"):
        training = json.loads((folder / variant / "training.json").read_text())
        assert len(training["losses"]) == len(training["articles"]) == 3
        assert [entry["step"] for entry in training["eval_losses"]] == [2, 3]
        load_model(folder / variant)
    assert not list((folder / "runs").glob("*/checkpoint-*"))


def test_early_stopping_ends_a_run_that_gets_worse_and_keeps_its_best_model(tmp_path, small_run):
    """The training half alone; at this learning rate the held-out loss soon rises."""
    _, parameters, _, _ = small_run
    notebook = nbformat.read(bq.ROOT / "training.ipynb", as_version=4)
    notebook.cells = notebook.cells[: tagged(notebook, "evaluation")]
    nbformat.write(notebook, tmp_path / "training.ipynb")
    changes = dict(MAX_STEPS=30, EVAL_STEPS=1, EARLY_STOPPING=2, LEARNING_RATE_FULL=1.0)
    changes |= dict(OUT_DIR=str(tmp_path))
    run(str(tmp_path / "training.ipynb"), tmp_path / "out", **parameters | changes)
    training = json.loads((tmp_path / "tiny_full_ft" / "training.json").read_text())
    held_out = [entry["loss"] for entry in training["eval_losses"]]
    assert len(training["losses"]) == len(training["articles"]) == len(held_out) < 30
    assert min(held_out[-2:]) > min(held_out) == held_out[-3]
    tokenizer = load_tokenizer(parameters["MODEL"])
    rows = bq.load_rows(f"{parameters['PROCESSED_DIR']}/train.jsonl", ["title", "date", "about"])
    watched = [row for row in rows if row["article_id"] in training["held_out"]]
    model, losses = load_model(tmp_path / "tiny_full_ft"), []
    with torch.no_grad():
        for group in bq.group_by_article(watched, tokenizer):
            batch = share_prefix(group)
            labels = batch.pop("labels")
            losses.append(answer_loss(model(**batch), labels))
    assert torch.stack(losses).mean().item() == pytest.approx(min(held_out), rel=0.02)


def test_results_hold_what_the_page_shows(small_run):
    folder, _, _, _ = small_run
    results = json.loads((folder / "results.json").read_text())
    lines = bq.read_jsonl(folder / "eval_generations.jsonl")
    assert results["model"]["revision"].startswith("local folder, ")
    for variant in ("base", "full", "lora", "pruned"):
        answers = [line[variant] for line in lines if line["slice"] == "rule_made"]
        nll, tokens = (sum(answer[key] for answer in answers) for key in ("nll", "nll_tokens"))
        perplexity = results["variants"][variant]["rule_made"]["perplexity"]["mean"]
        assert perplexity == pytest.approx(math.exp(nll / tokens), rel=1e-9)
        assert all({"answer", "stopped"} <= line[variant].keys() for line in lines)
        for kind, cap in (("about", 4), ("title", 3)):
            assert max(line[variant]["tokens"] for line in lines if line["kind"] == kind) == cap
    controls = [line["controls"] for line in lines if "controls" in line]
    answerable = [line for line in lines if line["kind"] != "unanswerable"]
    assert len(controls) == sum(line["slice"] == "benchmark" for line in answerable)
    for control in controls:
        assert control["no_article"]["nll_tokens"] == control["other_article"]["nll_tokens"]
    models = {"base", "full", "lora", "pruned", "full_int8"}
    assert results["trade_off"]["variants"].keys() == models | {"lora_merged"}
    assert results["variants"].keys() == models | {"chat", "constant", "picker"}


def notebooks(*arguments):
    """experiments/notebooks.py, which the make targets call, in a process of its own."""
    command = [sys.executable, "-m", "experiments.notebooks", *arguments]
    return subprocess.run(command, cwd=bq.ROOT, capture_output=True, text=True)


def options(parameters):
    return [word for name, value in parameters.items() for word in ("-p", name, str(value))]


def test_evaluation_alone_in_a_fresh_kernel_rebuilds_its_files(small_run):
    """Interrupted after four articles of LoRA, it asks the rest again, with the same results."""
    folder, parameters, _, _ = small_run
    paths = [folder / name for name in ("eval_generations.jsonl", "results.json")]
    lines, results = (path.read_text() for path in paths)
    (progress,) = (folder / "runs").glob("answers-lora-*.jsonl")
    records = bq.read_jsonl(progress)
    articles = [record["question_id"].split("-")[0] for record in records]
    kept = articles.index(list(dict.fromkeys(articles))[4])
    bq.write_jsonl(progress, records[:kept])
    for path in paths:
        path.unlink()
    done = notebooks("evaluate", *options(parameters))
    assert done.returncode == 0, done.stderr
    assert f"lora      {kept} of {len(records)} answers are there already" in done.stdout
    assert paths[0].read_text() == lines
    assert json.loads(paths[1].read_text())["variants"] == json.loads(results)["variants"]
    assert "perplexity base" in done.stdout


def test_rows_that_are_all_too_long_are_one_clear_error(small_run, tmp_path):
    _, parameters, _, _ = small_run
    changes = dict(MAX_TOKENS=10, OUT_DIR=str(tmp_path))
    message = r"have over MAX_TOKENS = 10 tokens.*Raise MAX_TOKENS"
    with pytest.raises(papermill.PapermillExecutionError, match=message):
        run("training.ipynb", tmp_path, **parameters | changes)


def test_evaluation_without_models_says_what_to_do(tmp_path, small_run):
    _, parameters, _, _ = small_run
    done = notebooks("evaluate", *options(parameters | {"OUT_DIR": str(tmp_path)}))
    assert done.returncode == 1
    assert re.search(r"tiny_full_ft\S* is missing\. ", done.stderr)


def test_an_unknown_parameter_is_refused_with_those_there_are():
    done = notebooks("run", "-p", "MAX_STEP", "2")
    assert done.returncode == 1
    assert "No notebook has the parameter MAX_STEP. There are:" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- MAX_STEPS", "found list, need lines NAME"),
        ("a: [", "cannot be read as YAML"),
        (None, "cannot be read"),
    ],
)
def test_a_parameter_file_that_is_none_is_refused(tmp_path, text, message):
    if text:
        (tmp_path / "some.yaml").write_text(text)
    done = notebooks("run", "-f", str(tmp_path / "some.yaml"))
    assert done.returncode == 1
    assert message in done.stderr


def test_the_original_settings_are_parameters_of_the_notebook():
    original = yaml.safe_load((bq.ROOT / "experiments/original.yaml").read_text())
    paths = [str(bq.ROOT / name) for name in NAMES[1:]]
    assert original.keys() <= {name for path in paths for name in papermill.inspect_notebook(path)}
