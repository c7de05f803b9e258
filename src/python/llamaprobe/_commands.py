"""The program's commands as functions, whose keyword arguments are the flags."""

from __future__ import annotations

import functools
import html
import inspect
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import _core
from ._model import _flags, _warn
from ._progress import ProgressFunction, listener


class Result(Mapping[str, Any]):
    """What a command has found: the JSON that it prints with `--json`, as a mapping."""

    def __init__(self, value: Mapping[str, Any], out: Path | None = None) -> None:
        self.value = dict(value)
        self.out = out
        """The directory of its files, if it wrote any."""

    def __getitem__(self, key: str) -> Any:
        return self.value[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def to_pandas(self) -> Any:
        """Its rows as a DataFrame."""
        import pandas

        return pandas.DataFrame(self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        return [self.value]

    def _repr_html_(self) -> str:
        rows = self._rows()
        columns = list(dict.fromkeys(key for row in rows for key in row))
        head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
        body = "".join("<tr>" + "".join(f"<td>{_cell(row.get(c))}</td>" for c in columns) + "</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        where = f", out={str(self.out)!r}" if self.out else ""
        return f"{type(self).__name__}({', '.join(self.value)}{where})"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


class _PageResult(Result):
    """A result whose directory has a page to show."""

    def _page(self) -> tuple[str, str]:
        return _core.page(os.fspath(self.out or "."))

    def html(self) -> str:
        """The page, which needs no network."""
        return self._page()[0]

    def series(self) -> Any:
        """The series of all plots of the page in tidy form: figure, series, x, mean, sd."""
        import io

        import pandas

        return pandas.read_csv(io.StringIO(self._page()[1]), dtype={"x": str})

    def _repr_html_(self) -> str:
        page = html.escape(self.html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 48em; border: 0"></iframe>'


class TrainResult(_PageResult):
    """What a training has come to, a row for each run: `adapter`, `steps`, `loss`, `tokens` and what was evaluated."""

    @property
    def adapters(self) -> list[str]:
        """The directories of the runs' adapters."""
        return [run["adapter"] for run in self._rows()]

    def log(self) -> Any:
        """The log of the training as a DataFrame, a row for each line of `trainer_log.jsonl`, with the run's directory."""
        import pandas

        assert self.out is not None, "a training has a directory"
        frame = pandas.read_json(self.out / "trainer_log.jsonl", lines=True)
        runs = frame["run"] if "run" in frame else [0] * len(frame)
        return frame.assign(adapter=[self.adapters[int(run)] for run in runs])

    def _rows(self) -> list[dict[str, Any]]:
        return self.value.get("runs", [self.value])


class AnalyzeResult(Result):
    """The measures of captured states, a row for each site, its baselines as columns `shuffled.*` and `gaussian.*`."""

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for layer in self.value["layers"]:
            row = {key: value for key, value in layer.items() if key != "baselines"}
            for baseline, values in layer["baselines"].items():
                row.update({f"{baseline}.{key}": value for key, value in values.items()})
            rows.append(row)
        return rows


class StudyResult(_PageResult):
    """The report of a probe or a comparison; in a notebook its page, with every plot."""

    def to_pandas(self) -> Any:
        """As `series`."""
        return self.series()


class SweepResult(_PageResult):
    """What a sweep has come to: `cells` and how many of them are `done`; in a notebook the page of all cells."""

    def to_pandas(self) -> Any:
        """The table of all cells, a row for each with the flags that the grid varies; there once all cells are done."""
        import pandas

        assert self.out is not None, "a sweep has a directory"
        return pandas.read_csv(self.out / _TABLE)


_TABLE = "table.csv"


def run(command: str, *, progress: bool | ProgressFunction = True, **flags: Any) -> Result:
    """Runs a command of the program, such as `capture` or `merge`, with its flags as keyword arguments.

    Notes are warnings, errors :class:`llamaprobe.Error` with the program's message. A command that prints no JSON gives its
    lines as `text`. `progress` is False for none, or a function `f(message, done, total, unit)`.
    """
    command = command.replace("_", "-")
    told = listener(progress)
    try:
        text, out = _core.call(command, _flags(flags), _warn, told)
    finally:
        if hasattr(told, "close"):
            told.close()
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = {"text": text}
    path = Path(out) if out is not None else None
    if flags.get("dry_run"):
        return Result(value)
    return _RESULTS.get(command, Result)(value, path)


_RESULTS: dict[str, type[Result]] = {
    "analyze": AnalyzeResult,
    "compare": StudyResult,
    "probe": StudyResult,
    "sweep": SweepResult,
    "train-lora": TrainResult,
    "train-prompt": TrainResult,
}


def report(path: str | os.PathLike[str]) -> StudyResult | SweepResult | TrainResult:
    """The report of a study or a sweep that has ended: of its directory, or of its report.json; or what a training's directory holds."""
    file = Path(path)
    if (file / "trainer_log.jsonl").exists() and not (file / "report.json").exists():
        return TrainResult(_trained(file), file)
    file = file / "report.json" if file.is_dir() else file
    kind = SweepResult if (file.parent / _TABLE).exists() else StudyResult
    return kind(json.loads(file.read_text(encoding="utf-8")), file.parent)


def _trained(out: Path) -> dict[str, Any]:
    """What the log of a training says of each run's last step, and of a grid its results.json."""
    log = out / "trainer_log.jsonl"
    last: dict[int, dict[str, Any]] = {}
    for number, text in enumerate(log.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            if "loss" in line:
                last[line.get("run", 0)] = line
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{log}:{number}: expected a line of JSON, found {text[:80]!r}") from error
    results = out / "results.json"
    if results.exists():
        value = json.loads(results.read_text(encoding="utf-8"))
        runs = [{**run, "adapter": str(out / run["run"])} for run in value["runs"]]
        return {"runs": runs, "best": value["best"] and str(out / value["best"])}
    several = len(last) > 1
    rows = [
        {
            "adapter": str(out / f"run-{run:03}") if several else str(out),
            "steps": line["current_steps"],
            "loss": line["loss"],
            "tokens": line.get("total_tokens"),
        }
        for run, line in sorted(last.items())
    ]
    return {"runs": rows} if several else rows[0] if rows else {}


def _described(command: str) -> dict[str, Any]:
    return json.loads(_core.describe(command))


def _function(command: str) -> Callable[..., Any]:
    described = _described(command)

    def call(*operands: Any, progress: bool | ProgressFunction = True, **flags: Any) -> Result:
        names = [flag["name"] for flag in described["flags"] if flag["operand"]]
        if len(operands) > len(names):
            raise TypeError(f"{name}() takes {len(names)} positional arguments, {len(operands)} were given")
        return run(command, progress=progress, **dict(zip(names, operands, strict=False)), **flags)

    name = command.replace("-", "_")
    call.__name__ = call.__qualname__ = name
    call.__module__ = "llamaprobe"
    call.__signature__ = _signature(described)  # type: ignore[attr-defined]
    call.__doc__ = _documentation(described)
    return call


def _signature(described: Mapping[str, Any]) -> inspect.Signature:
    kinds = {True: inspect.Parameter.POSITIONAL_OR_KEYWORD, False: inspect.Parameter.KEYWORD_ONLY}
    parameters = [
        inspect.Parameter(
            flag["name"],
            kinds[flag["operand"]],
            default=inspect.Parameter.empty if flag["operand"] and flag["required"] else None,
        )
        for flag in sorted(described["flags"], key=lambda flag: not flag["operand"])
    ]
    parameters.append(inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default=True))
    return inspect.Signature(parameters)


def _documentation(described: Mapping[str, Any]) -> str:
    lines = [f"{described['about']}", "", "The flags of the program are the keyword arguments:", ""]
    for flag in described["flags"]:
        default = ", ".join(flag["default"])
        default = f" [default: {default}]" if default and not flag["switch"] else ""
        choices = f" ({', '.join(flag['choices'])})" if flag["choices"] and not flag["switch"] else ""
        lines.append(f"{flag['name']}: {flag['help']}{choices}{default}")
    return "\n".join([*lines, "", described["examples"] or ""])


analyze: Callable[..., AnalyzeResult] = _function("analyze")
capture: Callable[..., Result] = _function("capture")
compare: Callable[..., StudyResult] = _function("compare")
probe: Callable[..., StudyResult] = _function("probe")
_sweep: Callable[..., SweepResult] = _function("sweep")
train_lora: Callable[..., TrainResult] = _function("train-lora")
train_prompt: Callable[..., TrainResult] = _function("train-prompt")


@functools.wraps(_sweep)
def sweep(grid: str | os.PathLike[str] | Mapping[str, Any], **flags: Any) -> SweepResult:
    if not isinstance(grid, Mapping):
        return _sweep(grid, **flags)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "grid.yaml")
        file.write_text(_flags(grid), encoding="utf-8")
        return _sweep(file, **flags)


sweep.__doc__ = f"{_sweep.__doc__}\n\ngrid may also be a mapping of what its file says."


def main() -> None:
    """The program `llamaprobe`."""
    # The program ends at once, as it does without an interpreter around it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_core.main(sys.argv))
