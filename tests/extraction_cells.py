"""Runs the code cells of data_extraction.ipynb in this process, so that tests of faults need no kernel of their own."""

import matplotlib

matplotlib.use("Agg")

import nbformat
import pandas  # noqa: F401  (what the notebook imports takes seconds; a fork server preloads it with this module)
import selenium.webdriver  # noqa: F401

import bmwqa_utils

NOTEBOOK = bmwqa_utils.ROOT / "data_extraction.ipynb"


def run_cells(parameters: dict, until: str = "", changes: dict | None = None) -> dict:
    """The names after the cells ran with `parameters`, as papermill would run them.

    `until` is a piece of the last cell to run; `changes` replaces names as soon as the notebook has defined them.
    """
    names: dict = {"__name__": "__main__"}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        exec(compile(cell.source, f"{NOTEBOOK.name}, {cell.id}", "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names.update(parameters)
        names.update({name: value for name, value in (changes or {}).items() if name in names})
        if until and until in cell.source:
            return names
    assert not until, f"no cell has {until!r}"
    return names
