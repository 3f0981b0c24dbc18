"""Run data_extraction.ipynb in place against the local PressClub, for the committed outputs.

That run's parameters become prose: as code they would send a reader's own run to the local site.
"""

import shutil
import sys
from urllib.parse import urlsplit

import nbformat
import yaml
from nbformat.v4 import new_markdown_cell

from experiments.notebooks import ROOT, execute, strip

sys.path.append(str(ROOT / "tests"))
from pressclub_site import PressClub, odd_articles, sample_articles  # noqa: E402

NOTEBOOK = ROOT / "data_extraction.ipynb"
NOTE = "The outputs below come from a run on the local site, with these parameters instead:\n\n"
NOTE_TAG = "local-run"


def main() -> None:
    parameters = yaml.safe_load((ROOT / "tests" / "local_site.yaml").read_text(encoding="utf-8"))
    shutil.rmtree(ROOT / parameters["RAW_DIR"], ignore_errors=True)  # to show a first run
    with PressClub(sample_articles() + odd_articles(), urlsplit(parameters["BASE_URL"]).port):
        execute(NOTEBOOK, NOTEBOOK, parameters)

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    text = NOTE + "\n".join(f"- `{name} = {value!r}`" for name, value in parameters.items())
    note = new_markdown_cell(text, metadata={"tags": [NOTE_TAG]})
    cells = [cell for cell in notebook.cells if NOTE_TAG not in tags(cell)]
    notebook.cells = [note if "injected-parameters" in tags(cell) else cell for cell in cells]
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code_cells, start=1):
        for counted in (cell, *cell.outputs):
            if "execution_count" in counted:
                counted.execution_count = number
    nbformat.write(notebook, NOTEBOOK)
    strip(NOTEBOOK)


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


if __name__ == "__main__":
    main()
