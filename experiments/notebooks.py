"""Run the notebooks: `python -m experiments.notebooks run|evaluate|refresh [-f FILE] [-p NAME VALUE] …`.

run       pairs and training, the notebooks' copies with their outputs in runs/
evaluate  of training.ipynb the parameters and the cells under "Evaluation" alone
refresh   all notebooks in place, their outputs as they are committed, and results.json and README's tables from them
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
from PIL import Image

from bmwqa.corpus import ROOT, read_json
from experiments.tables import write_pages

# a thread that waits for the others sleeps: where something else runs on its core, one that spins costs tenfold
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
        sys.exit(f"\n{notebook.name}, cell {error.exec_count}: {error.ename}: {error.evalue}\nAll of it: {output}")


def read_parameters(path: Path) -> dict:
    """The parameters of a YAML file; one line says what is wrong with it."""
    try:
        parameters = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        sys.exit(f"{path} cannot be read as YAML ({error}). Correct it, or leave -f out.")
    if not isinstance(parameters, dict):
        sys.exit(f"{path}: found {type(parameters).__name__}, need lines NAME: VALUE. See experiments/original.yaml.")
    return parameters


def check_names(parameters: dict, notebooks: list[Path]) -> None:
    known = {name for notebook in notebooks for name in papermill.inspect_notebook(str(notebook))}
    if unknown := sorted(set(parameters) - known):
        sys.exit(f"No notebook has the parameter {unknown[0]}. There are: {', '.join(sorted(known))}.")


def evaluation_start(notebook: nbformat.NotebookNode) -> int:
    """The number of the cell with the heading "Evaluation"."""
    return next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith("## Evaluation"))


def evaluation_only() -> Path:
    """A copy of training.ipynb with its parameters and what stands under the heading "Evaluation"."""
    notebook = nbformat.read(TRAINING, as_version=4)
    start = evaluation_start(notebook)
    parameters = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    notebook.cells = parameters + notebook.cells[start:]
    path = RUNS / "evaluation.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


def strip(path: Path) -> None:
    """Take times, paths and papermill's notes out of a notebook that is to be committed; plots get a palette."""
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
    """A PNG in base64 with 128 colours, about a third of its size: plots have few, and notebooks are to stay small."""
    image, small = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    image.convert("RGB").quantize(128).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def closing_words(results: dict) -> None:
    print(f"\nModel: {results['model']['name']} ({results['model']['revision']})")
    for variant, figures in results["variants"].items():
        print(f"perplexity {variant:<7}{figures['rule_made']['perplexity']['mean']:10.3f}")
    print("\n".join(results["verdict"]))
    print("Files: " + ", ".join(results["files"]))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=["run", "evaluate", "refresh"])
    arguments.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    arguments.add_argument("-f", dest="file", type=Path, metavar="FILE", help="parameters in YAML; -p goes before them")
    arguments = arguments.parse_args()
    parameters = read_parameters(arguments.file) if arguments.file else {}
    parameters |= {name: yaml.safe_load(value) for name, value in arguments.parameters}
    check_names(parameters, [PAIRS, TRAINING])
    out_dir = ROOT / parameters.get("OUT_DIR", ".")
    if arguments.what == "evaluate":
        execute(evaluation_only(), RUNS / "evaluation.ipynb", parameters)
    for notebook in [PAIRS, TRAINING] if arguments.what != "evaluate" else []:
        output = RUNS / notebook.name if arguments.what == "run" else notebook
        execute(notebook, output, parameters)
    if arguments.what == "refresh":
        for notebook in (PAIRS, TRAINING):
            strip(notebook)
        for name in ("results.json", "eval_generations.jsonl"):
            shutil.copy(out_dir / name, ROOT / "experiments" / name)
        write_pages()
    closing_words(read_json(out_dir / "results.json"))


if __name__ == "__main__":
    main()
