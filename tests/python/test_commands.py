"""The program's commands as functions."""

import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import types
import warnings

import pytest

import llamaprobe
from llamaprobe import _core, _progress

FUNCTIONS = ["analyze", "capture", "compare", "probe", "sweep", "train_lora", "train_prompt"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_flag_is_a_keyword(name):
    function = getattr(llamaprobe, name)
    help_text = subprocess.run([sys.executable, "-m", "llamaprobe", name.replace("_", "-"), "--help"], capture_output=True, text=True).stdout
    flags = re.findall(r"^ {2,6}(?:-\w, )?--([a-z0-9-]+)", help_text, re.MULTILINE)
    flags = {flag.replace("-", "_") for flag in flags} - {"help", "json", "version"}
    missing = flags - set(inspect.signature(function).parameters)
    assert len(flags) > 5 and not missing, missing
    assert all(f"{flag}: " in function.__doc__ for flag in flags)


def test_a_training_has_its_runs_and_its_log(tmp_path):
    seen = []
    out = tmp_path / "grid"
    result = llamaprobe.train_lora(
        model="embedded", device="cpu", out=out, r=[2, 4], max_steps=2, learning_rate=1e-3, progress=lambda *at: seen.append(at)
    )
    frame = result.to_pandas()
    assert list(frame["r"]) == [2, 4] and (frame["steps"] == 2).all() and result.out == out
    assert "<iframe srcdoc=" in result._repr_html_() and len(result.series()) > 3 and all(os.path.isdir(adapter) for adapter in result.adapters)
    lines = [json.loads(line) for line in (out / "trainer_log.jsonl").read_text().splitlines()]
    log = result.log()
    assert list(log["adapter"]) == [result.adapters[line["run"]] for line in lines] and list(log["loss"]) == [line["loss"] for line in lines]
    again = llamaprobe.report(out)
    assert isinstance(again, llamaprobe.TrainResult) and again.adapters == result.adapters
    assert list(again.to_pandas()["loss"]) == list(frame["loss"]) and again["best"] == result["best"]
    (out / "trainer_log.jsonl").write_text("{}\n{\n")
    with pytest.raises(ValueError, match=r"trainer_log\.jsonl:2: expected a line of JSON"):
        llamaprobe.report(out)
    assert llamaprobe.train_lora(model="embedded", device="cpu", output_dir=out / "alias", max_steps=1).out == out / "alias"
    assert all(total == 2 and unit == "steps" for _, _, total, unit in seen)
    adapted = llamaprobe.Model.load("embedded", adapter=result.adapters[0], device="cpu", dtype="f32")
    plain = llamaprobe.Model.load("embedded", device="cpu", dtype="f32")
    ids = plain.encode("Input: x\nOutput:")
    assert adapted(ids).shape == plain(ids).shape
    _, cache = adapted.run_with_cache(ids, names_filter="q_proj.hook_lora_a")
    assert cache["blocks.0.q_proj.hook_lora_a"].shape == (len(ids), 2)


def test_a_probe_is_its_page(tmp_path):
    result = llamaprobe.probe(device="cpu", out=tmp_path, queries=4, seeds=1, demos=2, epochs=1, measures="none", progress=False)
    frame = result.to_pandas()
    assert list(frame.columns) == ["figure", "series", "x", "mean", "sd"] and len(frame) > 5
    page = (tmp_path / "report.html").read_text()
    assert result.html() == page
    assert result._repr_html_().startswith("<iframe srcdoc=") and "&lt;svg" in result._repr_html_()
    again = llamaprobe.report(tmp_path)
    assert again.value == result.value and again["settings"] == json.loads((tmp_path / "report.json").read_text())["settings"]


def test_a_sweep_is_its_table(tmp_path):
    flags = {"queries": 2, "seeds": 1, "epochs": 0, "measures": "none", "device": "cpu"}
    grid = {"command": "probe", "flags": flags, "grid": {"demos": [1, 2], "labels": ["gold", "flipped"]}}
    result = llamaprobe.sweep(grid, out=tmp_path / "sweep", progress=False)
    frame = result.to_pandas()
    assert result["cells"] == result["done"] == len(frame) == 4 and set(frame["labels"]) == {"gold", "flipped"}
    assert "<iframe srcdoc=" in result._repr_html_() and len(result.series()) > 3
    again = llamaprobe.report(tmp_path / "sweep")
    assert isinstance(again, llamaprobe.SweepResult) and again.to_pandas().equals(frame)
    # A larger grid has these cells already, and processes of its own for the others.
    file = tmp_path / "grid.yaml"
    file.write_text(json.dumps({**grid, "grid": {**grid["grid"], "demos": [1, 2, 3]}}))
    more = llamaprobe.sweep(file, out=tmp_path / "sweep", jobs=2, progress=False).to_pandas()
    assert len(more) == 6 and set(frame["cell"]) < set(more["cell"])
    with pytest.raises(llamaprobe.Error, match="demo: expected a flag of probe"):
        llamaprobe.sweep({**grid, "grid": {"demo": [1]}}, out=tmp_path / "wrong")


def test_states_are_analysed(tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"Input: {word}\nOutput:"}) + "\n" for word in "abcdefghij"))
    for part in "ab":
        llamaprobe.capture(model="embedded", input=texts, tokens="last", out=tmp_path / part, device="cpu", progress=False)
    a, b = (tmp_path / part / "activations.safetensors" for part in "ab")
    result = llamaprobe.analyze(a, b, measures=["cka", "cosine"])
    frame = result.to_pandas()
    assert list(frame["cka"].round(6)) == [1.0] * len(frame) and "shuffled.cka" in frame
    assert "<table>" in result._repr_html_()
    with pytest.raises(llamaprobe.Error) as caught:
        llamaprobe.analyze(a, tmp_path / "missing.safetensors")
    assert caught.value.file.endswith("missing.safetensors")
    with pytest.raises(llamaprobe.UsageError, match="required"):
        llamaprobe.analyze()


def test_wrong_keywords_are_named():
    with pytest.raises(llamaprobe.Error, match=r"probe\(\): querys: expected a flag of probe \(nearest: queries\)"):
        llamaprobe.probe(querys=3)
    with pytest.raises(llamaprobe.Error, match="queries: expected a single value"):
        llamaprobe.probe(queries=[3, 4])
    with pytest.raises(llamaprobe.UsageError, match="invalid value"):
        llamaprobe.probe(queries="many")
    with pytest.raises(llamaprobe.Error, match="--epochs"):
        llamaprobe.train_lora(epochs=-1)
    with pytest.raises(llamaprobe.Error, match="command"):
        llamaprobe.run("capure")
    with pytest.raises(TypeError, match="a flag takes"):
        llamaprobe.probe(queries=object())


def test_notes_are_warnings(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "Input: x\nOutput: y"}) + "\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        llamaprobe.train_lora(
            model="embedded", device="cpu", train=rows, out=tmp_path / "a", max_steps=1, max_length=3, progress=False
        )
    said = [str(w.message) for w in caught]
    note = "1 examples truncated to --max-length, 0 of them skipped for lack of a label"
    assert any(text.endswith(note) for text in said), said
    assert all(w.filename == __file__ for w in caught)


def test_control_c_ends_a_training(tmp_path):
    out = tmp_path / "long"
    begun = threading.Event()

    def progress(*at):
        if not begun.is_set():
            begun.set()
            os.kill(os.getpid(), signal.SIGINT)

    # As at a terminal: what a shell starts in the background has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            llamaprobe.train_lora(model="embedded", device="cpu", out=out, max_steps=1_000_000, progress=progress)
    finally:
        signal.signal(signal.SIGINT, before)
    assert begun.is_set() and not (out / "adapter_model.safetensors").exists()
    result = llamaprobe.train_lora(model="embedded", device="cpu", out=tmp_path / "short", max_steps=1, progress=False)
    assert result["steps"] == 1


def test_progress_is_a_bar_or_a_line(monkeypatch):
    class Bar:
        made = []

        def __init__(self, total, unit, desc):
            self.total, self.unit, self.n, self.closed = total, unit, 0, False
            self.made.append(self)

        def set_description(self, desc, refresh):
            self.desc = desc

        def update(self, n):
            self.n += n

        def close(self):
            self.closed = True

    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Bar))
    told = _progress.listener(True)
    for at in [("a", 1, 3, "steps"), ("a", 3, 3, "steps"), ("b", 2, 4, "prompts")]:
        told(*at)
    told.close()
    assert [(bar.total, bar.n, bar.desc, bar.closed) for bar in Bar.made] == [(3, 3, "a", True), (4, 2, "b", True)]

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    line = _progress.listener(True)
    line("a", 1, 3, "steps")
    assert "a 1/3 steps" in sys.stderr.getvalue()
    assert _progress.listener(False) is None and _progress.listener(print) is print


def test_dry_runs_give_the_plan():
    plan = llamaprobe.train_lora(model="embedded", device="cpu", dry_run=True)
    parts = [value for key, value in plan["plan"].items() if key != "total"]
    assert plan["plan"]["total"] == sum(parts) > 1_000_000


def test_the_stub_names_what_is_there():
    stub = (llamaprobe.__path__[0] + "/_core.pyi")
    names = {line.split()[1].split("(")[0].rstrip(":") for line in open(stub) if line.startswith(("def ", "class "))}
    assert names and names <= set(dir(_core))
    assert set(dir(_core)) - names <= {"__all__", "__doc__", "__file__", "__loader__", "__name__", "__package__", "__spec__", "__version__"}
    assert os.path.exists(llamaprobe.__path__[0] + "/py.typed")
