"""Run the notebooks: `python -m experiments.notebooks run|evaluate|refresh [-f FILE] …`.

run       pairs and training, the notebooks' copies with their outputs in runs/
evaluate  of training.ipynb the parameters and the cells under "Evaluation" alone
refresh   notebooks 2 and 3 in place, as they are committed; results.json and README's tables too
"""

import argparse
import base64
import io
import os
import shutil
import sys
from pathlib import Path

import nbformat
import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from PIL import Image

from bmwqa.corpus import ROOT, read_json
from bmwqa.report import format_number
from experiments.tables import write_pages

# waiting threads sleep: one that spins costs tenfold where something else runs on its core
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

RUNS = ROOT / "runs"
PAIRS, TRAINING = ROOT / "data_processing_prompt.ipynb", ROOT / "training.ipynb"


def execute(notebook: Path, output: Path, parameters: dict) -> None:
    """Run one notebook with those of the parameters that it has, its prints shown as they come."""
    known = papermill.inspect_notebook(str(notebook))
    output.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n{notebook.name} -> {output.relative_to(ROOT)}", flush=True)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(output),
            parameters={name: value for name, value in parameters.items() if name in known},
            kernel_name="python3",
            cwd=str(ROOT),
            progress_bar=False,
            stdout_file=sys.stdout,
            coalesce_streams=True,
        )
    except papermill.PapermillExecutionError as error:
        place = f"{notebook.name}, cell {error.exec_count}"
        sys.exit(f"\n{place}: {error.ename}: {error.evalue}\nAll of it: {output}")
    except DeadKernelError:
        sys.exit(
            f"\n{notebook.name}: its process was killed, most likely because memory ran out. Close "
            "other programs, set CHECKPOINT_ABOVE 1000, or take a smaller MODEL. A rerun goes on "
            "at the last checkpoint."
        )


def read_parameters(path: Path) -> dict:
    """The parameters of a YAML file; one line says what is wrong with it."""
    try:
        parameters = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        sys.exit(f"{path} cannot be read as YAML ({error}). Correct it, or leave -f out.")
    if not isinstance(parameters, dict):
        got = type(parameters).__name__
        sys.exit(f"{path}: found {got}, need lines NAME: VALUE. See experiments/original.yaml.")
    return parameters


def check_names(parameters: dict, notebooks: list[Path]) -> None:
    known = {name for notebook in notebooks for name in papermill.inspect_notebook(str(notebook))}
    if unknown := sorted(set(parameters) - known):
        there = ", ".join(sorted(known))
        sys.exit(f"No notebook has the parameter {unknown[0]}. There are: {there}.")


def tagged(notebook: nbformat.NotebookNode, tag: str) -> int:
    """The number of the cell with a tag."""
    return next(i for i, c in enumerate(notebook.cells) if tag in c.metadata.get("tags", []))


def evaluation_only() -> Path:
    """A copy of training.ipynb with its parameters and all from the cell "evaluation" on."""
    notebook = nbformat.read(TRAINING, as_version=4)
    parameters = notebook.cells[tagged(notebook, "parameters")]
    notebook.cells = [parameters, *notebook.cells[tagged(notebook, "evaluation") :]]
    path = RUNS / "evaluation.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


def strip(path: Path) -> None:
    """Take times, paths and papermill's notes out of a notebook; give its plots a palette."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03d}"
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = with_palette(output.data["image/png"])
    nbformat.write(notebook, path)


def with_palette(png: str) -> str:
    """A PNG in base64 with 128 colours: a third of its size, and plots have few colours."""
    image, small = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    image.convert("RGB").quantize(128).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def closing_words(results: dict) -> None:
    print(f"\nModel: {results['model']['name']} ({results['model']['revision']})")
    for variant, figures in results["variants"].items():
        perplexity = format_number(figures["rule_made"]["perplexity"]["mean"], ".3f")
        print(f"perplexity {variant:<9}{perplexity:>10}")
    print("\n".join(results["verdict"]))
    print("Files: " + ", ".join(results["files"]))


def option_parser(description: str, choices: list[str]) -> argparse.ArgumentParser:
    """A parser of what to do and of parameters, see `parameters_of`."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    parser.add_argument("what", choices=choices)
    pairs = {"dest": "parameters", "nargs": 2, "action": "append", "default": []}
    parser.add_argument("-p", **pairs, metavar=("NAME", "VALUE"))
    parser.add_argument("-f", dest="file", type=Path, metavar="FILE", help="parameters in YAML")
    return parser


def parameters_of(options: argparse.Namespace) -> dict:
    """The parameters from the file and from the options, checked; -p goes before -f."""
    parameters = read_parameters(options.file) if options.file else {}
    parameters |= {name: yaml.safe_load(value) for name, value in options.parameters}
    check_names(parameters, [PAIRS, TRAINING])
    return parameters


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that has no ▸ goes on without it
    options = option_parser(__doc__, ["run", "evaluate", "refresh"]).parse_args()
    what, parameters = options.what, parameters_of(options)
    out_dir = ROOT / parameters.get("OUT_DIR", ".")
    if what == "evaluate":
        execute(evaluation_only(), RUNS / "evaluation.ipynb", parameters)
    else:
        for notebook in (PAIRS, TRAINING):
            output = RUNS / notebook.name if what == "run" else notebook
            execute(notebook, output, parameters)
    if what == "refresh":
        for notebook in (PAIRS, TRAINING):
            strip(notebook)
        for name in ("results.json", "eval_generations.jsonl"):
            shutil.copy(out_dir / name, ROOT / "experiments" / name)
        write_pages()
    closing_words(read_json(out_dir / "results.json"))


if __name__ == "__main__":
    main()
