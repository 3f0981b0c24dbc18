"""Run data_extraction.ipynb in place against the local PressClub, for the outputs that are committed.

The parameters of that run must not stay as code, or a reader's own run would go to the local site: they become prose.
"""

import shutil
import sys

import nbformat
from notebooks import ROOT, RUNS, execute, strip

sys.path.append(str(ROOT / "tests"))
from pressclub_site import PressClub, odd_articles, sample_articles  # noqa: E402

NOTEBOOK = ROOT / "data_extraction.ipynb"
RAW_DIR = "runs/local_raw"
NOTE = "The outputs in this notebook come from a run against the local site, with these in place of the above:\n\n"


def main() -> None:
    shutil.rmtree(RUNS / "local_raw", ignore_errors=True)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith(NOTE)]
    nbformat.write(notebook, NOTEBOOK)
    evaluated = [f"T{900101 + number:07d}EN" for number in range(12)]
    with PressClub(sample_articles() + odd_articles(), 8765) as site:
        wanted = {"BASE_URL": site.url, "TARGET": 86, "EVAL_IDS": evaluated, "RAW_DIR": RAW_DIR, "DELAY": 0}
        execute(NOTEBOOK, NOTEBOOK, wanted)

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.cell_type, cell.source = "markdown", NOTE + "\n".join(f"- `{k} = {v!r}`" for k, v in wanted.items())
            cell.metadata = {}
            del cell["outputs"], cell["execution_count"]
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
    nbformat.write(notebook, NOTEBOOK)
    strip(NOTEBOOK)


if __name__ == "__main__":
    main()
