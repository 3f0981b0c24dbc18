"""Runs data_extraction.ipynb's code cells in this process: tests of faults then need no kernel."""

import matplotlib

matplotlib.use("Agg")

import nbformat
import pandas  # noqa: F401  (a fork server preloads this module, and the imports take seconds)

import bmwqa.chrome  # noqa: F401
import bmwqa_utils

NOTEBOOK = bmwqa_utils.ROOT / "data_extraction.ipynb"


def run_cells(parameters: dict, until: str = "") -> dict:
    """The names after the cells ran with `parameters`, as papermill would run them.

    `until` is a tag of the last cell to run.
    """
    names: dict = {"__name__": "__main__"}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        exec(compile(cell.source, f"{NOTEBOOK.name}, {cell.id}", "exec"), names)
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags:
            names.update(parameters)
        if until in tags:
            return names
    assert not until, f"no cell has the tag {until!r}"
    return names
