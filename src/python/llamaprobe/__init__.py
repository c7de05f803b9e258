"""In-context learning, LoRA tuning and soft prompts compared inside language models.

>>> import llamaprobe
>>> model = llamaprobe.Model.load("embedded")
>>> logits, cache = model.run_with_cache("a: x\nb:", names_filter="resid_post")
>>> cache["blocks.0.hook_resid_post"].numpy()          # [rows, d_model], the engine's own memory
"""

from . import _core
from ._array import Cache, Tensor
from ._commands import (
    AnalyzeResult,
    Result,
    StudyResult,
    SweepResult,
    TrainResult,
    analyze,
    capture,
    compare,
    probe,
    report,
    run,
    sweep,
    train_lora,
    train_prompt,
)
from ._core import Error, UsageError
from ._model import Generation, Hook, Model

__version__: str = _core.__version__

__all__ = [
    "AnalyzeResult",
    "Cache",
    "Error",
    "Generation",
    "Hook",
    "Model",
    "Result",
    "StudyResult",
    "SweepResult",
    "Tensor",
    "TrainResult",
    "UsageError",
    "analyze",
    "capture",
    "compare",
    "probe",
    "report",
    "run",
    "sweep",
    "train_lora",
    "train_prompt",
]
