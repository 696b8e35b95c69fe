"""demo.ipynb runs from its first cell to its last."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "demo.ipynb"


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own
def test_the_notebook_runs_top_to_bottom(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    monkeypatch.setenv("PRIVACY_METER_DEMO", str(tmp_path / "demo"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert all(word in shown for word in ("image/png", "Gap", "null test"))
    assert (tmp_path / "demo/run/report/index.html").is_file()


def test_elsewhere_its_first_cell_fetches_the_repository_that_one_line_names(tmp_path):
    """In an empty folder, as on Colab; from this checkout instead of the net, and without installing anything."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout of git")
    source = next("".join(c["source"]) for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code")
    (line,) = [line for line in source.splitlines() if line.startswith("REPOSITORY = ")]
    assert NOTEBOOK.read_text().count("github.com") == 1
    source = source.replace(line, f"REPOSITORY = {str(ROOT)!r}")
    source = source.partition("import torch")[0].replace("[sys.executable, ", "['true', ")
    shown = "\nprint(Path.cwd().name, Path('main.py').exists(), sys.path[0] == os.getcwd())"
    done = subprocess.run([sys.executable, "-c", source + shown], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["privacy_meter", "True", "True"], done.stderr
