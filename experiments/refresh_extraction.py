"""Run data_extraction.ipynb in place against the local PressClub, for the outputs that are committed.

The parameters of that run must not stay as code, or a reader's own run would go to the local site: they become prose.
"""

import shutil
import sys
from urllib.parse import urlsplit

import nbformat
import yaml

from experiments.notebooks import ROOT, execute, strip

sys.path.append(str(ROOT / "tests"))
from pressclub_site import PressClub, odd_articles, sample_articles  # noqa: E402

NOTEBOOK = ROOT / "data_extraction.ipynb"
NOTE = "The outputs in this notebook come from a run against the local site, with these in place of the above:\n\n"


def main() -> None:
    parameters = yaml.safe_load((ROOT / "tests" / "local_site.yaml").read_text(encoding="utf-8"))
    shutil.rmtree(ROOT / parameters["RAW_DIR"], ignore_errors=True)  # to show a first run
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith(NOTE)]
    nbformat.write(notebook, NOTEBOOK)
    with PressClub(sample_articles() + odd_articles(), urlsplit(parameters["BASE_URL"]).port):
        execute(NOTEBOOK, NOTEBOOK, parameters)

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.cell_type, cell.source = (
                "markdown",
                NOTE + "\n".join(f"- `{k} = {v!r}`" for k, v in parameters.items()),
            )
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
