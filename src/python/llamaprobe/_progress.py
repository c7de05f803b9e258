"""How far a command is: a bar of tqdm where that is installed, else of the notebook or the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

ProgressFunction = Callable[[str, int, int, str], Any]


class _Bar:
    """A bar that begins anew where another phase does."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._phase: tuple[int, str] | None = None

    def __call__(self, message: str, done: int, total: int, unit: str) -> None:
        from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

        if self._phase != (total, unit) or self._bar is None or done < self._bar.n:
            self.close()
            self._bar = tqdm(total=total, unit=f" {unit}", desc=message or None)
            self._phase = (total, unit)
        if message:
            self._bar.set_description(message, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Line:
    """A line of the terminal, or a display of the notebook, that is written again."""

    def __init__(self) -> None:
        self._display: Any = None

    def __call__(self, message: str, done: int, total: int, unit: str) -> None:
        text = f"{message} {done}/{total} {unit}".strip()
        if "ipykernel" in sys.modules:
            from IPython.display import HTML, display  # type: ignore[import-not-found,unused-ignore]

            html = HTML(f'<progress value="{done}" max="{total}"></progress> {text}')
            if self._display is None:
                self._display = display(html, display_id=True)
            else:
                self._display.update(html)
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    def close(self) -> None:
        if "ipykernel" not in sys.modules and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")


def listener(progress: bool | ProgressFunction) -> Any:
    """What is told of progress; None for nobody."""
    if not progress:
        return None
    if callable(progress):
        return progress
    try:
        import tqdm.auto  # type: ignore[import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        return _Line()
    return _Bar()
