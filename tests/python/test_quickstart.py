"""The newcomer's notebook runs as it stands."""

import json
import os

from conftest import ROOT

NOTEBOOK = ROOT / "tests" / "python" / "quickstart.ipynb"


def test_quickstart_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sum(len(source.splitlines()) for source in code) < 60
    namespace = {}
    for i, source in enumerate(code):
        exec(compile(source, f"quickstart.ipynb[{i}]", "exec"), namespace)
    assert namespace["report"]._repr_html_() and os.path.exists("run/report.html")
