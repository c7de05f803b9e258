"""A loaded model: runs with a cache, with hooks and with edits, and generation."""

from __future__ import annotations

import itertools
import json
import numbers
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np

from . import _core
from ._array import Cache, Tensor, _shaped

Inputs = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | np.ndarray
NamesFilter = str | Sequence[str] | Callable[[str], bool] | None
Edits = str | os.PathLike[str] | Sequence[Mapping[str, Any]] | None
HookFunction = Callable[[Tensor, "Hook"], Any]


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=_outside())


def _outside() -> int:
    """The stack level of whoever called the package, for a warning of :func:`_warn`."""
    import sys

    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("llamaprobe"):
        level, frame = level + 1, frame.f_back
    return level


def _flags(keywords: Mapping[str, Any]) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, (np.generic, np.ndarray)):
            return value.tolist()
        raise TypeError(f"a flag takes texts, numbers, lists and mappings, not {type(value).__name__}")

    return json.dumps({key: value for key, value in keywords.items() if value is not None}, default=plain)


@dataclass(frozen=True)
class Hook:
    """Where a hook function is called."""

    name: str
    """`blocks.3.hook_resid_post`."""
    first_doc: int = 0
    """The number of the first document whose rows it is given: passes take documents together, up to `batch_tokens` rows."""
    ctx: dict[str, Any] = field(default_factory=dict)
    """Whatever functions leave for later calls at this hook in the same run."""

    def layer(self) -> int:
        """The layer; an error outside the blocks."""
        return int(self.name.split(".")[1])


@dataclass(frozen=True)
class Generation:
    """A continuation."""

    prompt_ids: list[int]
    ids: list[int]
    """The new tokens."""
    text: str | None
    """The new text; None of a model without a tokenizer."""

    def __str__(self) -> str:
        return self.text if self.text is not None else str(self.ids)


class Model:
    """A model on a device; :meth:`load` opens one."""

    def __init__(self, session: _core.Session) -> None:
        self._session = session
        self.info: dict[str, Any] = json.loads(session.info())
        """Its path, family and sizes, in TransformerLens's words: `n_layers`, `d_model`, ..."""

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = "embedded",
        *,
        adapter: str | os.PathLike[str] | None = None,
        dtype: str = "auto",
        device: str = "auto",
        revision: str | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        load_in: str | None = None,
        load_in_cache: str | os.PathLike[str] | None = None,
        threads: int | None = None,
    ) -> Model:
        """Opens a model.

        `model` is a directory as transformers saves it, a GGUF file, `org/name` in the local Hugging Face cache, or `embedded`;
        `tokenizer` a directory whose tokenizer is taken in place of the model's own; `adapter` a PEFT directory; `dtype` one of auto, f32, f32x3, bf16, f16; `device` auto, cpu or cuda:N;
        `load_in` nf4 or int8 quantises the weights while they are loaded, kept in the directory `load_in_cache`. They are the flags of the program.
        """
        keywords = {
            "model": model,
            "adapter": adapter,
            "dtype": dtype,
            "device": device,
            "revision": revision,
            "tokenizer": tokenizer,
            "load_in": load_in,
            "load_in_cache": load_in_cache,
            "threads": threads,
        }
        return cls(_core.Session.load(_flags(keywords), _warn))

    @property
    def device(self) -> str:
        """`cpu` or `cuda:N`."""
        return self.info["device"]

    @property
    def dtype(self) -> str:
        """Of the matrix products."""
        return self.info["dtype"]

    def close(self) -> None:
        """Frees its memory; a closed model refuses calls. A model that nobody has any more is closed by itself."""
        self._session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text."""
        return self._session.encode(text, add_special_tokens)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return self._session.decode(_token_ids(ids, "ids"), skip_special_tokens)

    def hook_names(self, names: str = "tl") -> list[str]:
        """The names of the model's hooks, in the order of the forward, by the convention `names` (tl, tl4, llamaprobe1)."""
        return self._session.hook_names(names)

    def run_with_cache(
        self,
        inputs: Inputs,
        *,
        names_filter: NamesFilter = None,
        pos_slice: int | slice | Sequence[int] | None = None,
        return_type: str | None = "logits",
        names: str = "tl",
        edits: Edits = None,
        batch_tokens: int = 2048,
    ) -> tuple[Tensor | None, Cache]:
        """Runs texts or token ids, and keeps the rows of hooks.

        `inputs` is a text, a list of texts, a list of token ids or a list of such lists; documents of different lengths stand one
        after another, without padding. `names_filter` is a name in any spelling (`resid_post` stands for every layer), a list of
        names, or a function of a name; None takes all of :meth:`hook_names`. `pos_slice` chooses positions of each document, those
        of a soft prompt counted: an integer, a slice or a list. With `return_type=None` there are no logits, and what nobody reads
        is not computed. `edits` is as in :meth:`run_with_hooks`; what is recorded at an edited hook is what the edit left.

        Returns the logits `[rows, d_vocab]` after every token of all documents (`logits.doc(i)` of one), and the cache.
        """
        chosen = self._chosen(names_filter, names)
        result, doc_len = self._run(inputs, chosen, pos_slice, return_type, names, edits, batch_tokens, [])
        logits = self._logits(result, doc_len)
        heads = self._heads()
        starts = result["starts"]
        tensors = {}
        for name, (array, axes) in result["arrays"].items():
            array, words = _shaped(array, axes, heads)
            tensors[name] = Tensor(array, name, words, starts, doc_len)
        labels = {
            "pos": np.asarray(result["positions"], dtype=np.int64),
            "token_id": np.asarray(result["tokens"], dtype=np.int64),
        }

        def resolve(name: str) -> list[str]:
            return self._session.resolve([name], names)

        return logits, Cache(list(tensors), tensors.__getitem__, starts, doc_len, labels, resolve, n_layers=self.info["n_layers"])

    def run_with_hooks(
        self,
        inputs: Inputs,
        *,
        fwd_hooks: Sequence[tuple[NamesFilter, HookFunction]] = (),
        edits: Edits = None,
        return_type: str | None = "logits",
        names: str = "tl",
        batch_tokens: int = 2048,
    ) -> Tensor | None:
        """Runs texts or token ids past functions that read and edit.

        `fwd_hooks` are pairs of names (as `names_filter` of :meth:`run_with_cache`) and functions `f(value, hook)`. `value` is a
        :class:`Tensor` `[rows, ...]` of the documents of a pass (`value.docs`). What a function writes into it, or an array of its
        shape that it returns, takes the place of the rows; several functions at one hook come one after another. Hooks are the sites
        that edits may have. `edits` is the path of a YAML file as `--edit` takes it, or a list of mappings with its keys, in
        which `value` may be an array `[width]` or `[rows, width]`; they come before the functions.

        Returns the logits `[rows, d_vocab]`, or None with `return_type=None`.
        """
        functions: dict[str, list[HookFunction]] = {}
        for named, function in fwd_hooks:
            for name in self._session.resolve(self._chosen(named, names), names):
                functions.setdefault(name, []).append(function)
        hooks = list(functions.items())
        result, doc_len = self._run(inputs, [], None, return_type, names, edits, batch_tokens, hooks)
        return self._logits(result, doc_len)

    def __call__(self, inputs: Inputs, **keywords: Any) -> Tensor:
        """The logits `[rows, d_vocab]` after every token."""
        logits = self.run_with_hooks(inputs, **keywords)
        assert logits is not None, "return_type is logits"
        return logits

    def generate(
        self,
        prompts: Inputs,
        *,
        edits: Edits = None,
        on_token: Callable[[int, int], Any] | None = None,
        **flags: Any,
    ) -> Any:
        """Continues a text or token ids, or a list of such: a :class:`Generation`, or a list of them.

        `flags` are those of `llamaprobe generate`: `max_new_tokens`, `min_new_tokens`, `repetition_penalty`, `max_length`, `stop`,
        `num_beams`, `length_penalty`, `temperature`, `top_k`, `top_p`, `seed`. `on_token(prompt, id)` hears of every token.
        """
        documents, single = self._documents(prompts)
        if other := sorted(_ELSEWHERE & set(flags)):
            raise TypeError(f"generate(): expected what is the model's in Model.load(), prompts, and edits=, found {', '.join(other)}")
        known = {"model": "given", **flags}
        done = self._session.generate(
            documents, _flags(known), _warn, edits=_edits(edits), on_token=on_token
        )
        all_of_them = [Generation(ids, new, text) for ids, (new, text) in zip(documents, done, strict=True)]
        return all_of_them[0] if single else all_of_them

    def __repr__(self) -> str:
        path, device, dtype = (self.info[key] for key in ("path", "device", "dtype"))
        return f"Model({path}: {self.info['family']}, {self.info['n_layers']} layers, {device} {dtype})"

    def _heads(self) -> dict[str, int]:
        """How many there are of what axes may count."""
        return {"head": self.info["n_heads"], "kv_head": self.info["n_kv_heads"]}

    def _chosen(self, names_filter: Any, names: str) -> list[str]:
        if names_filter is None:
            return self.hook_names(names)
        if callable(names_filter):
            return [name for name in self.hook_names(names) if names_filter(name)]
        return [names_filter] if isinstance(names_filter, str) else list(names_filter)

    def _documents(self, inputs: Any) -> tuple[list[list[int]], bool]:
        """Token ids of each document, and whether it was given alone."""
        if isinstance(inputs, str):
            return [self.encode(inputs)], True
        if isinstance(inputs, (bytes, bytearray)):
            raise _refused("inputs", inputs)
        if hasattr(inputs, "tolist"):
            inputs = inputs.tolist()
        inputs = list(inputs)
        if inputs and all(isinstance(token, (numbers.Number, np.number)) for token in inputs):
            return [_token_ids(inputs, "inputs")], True
        encoded = lambda i, item: self.encode(item) if isinstance(item, str) else _token_ids(item, f"inputs[{i}]")  # noqa: E731
        return [encoded(i, item) for i, item in enumerate(inputs)], False

    def _run(
        self,
        inputs: Any,
        recorded: list[str],
        pos_slice: Any,
        return_type: str | None,
        names: str,
        edits: Any,
        batch_tokens: int,
        hooks: list[tuple[str, list[HookFunction]]],
    ) -> tuple[dict[str, Any], list[int]]:
        if return_type not in ("logits", None):
            raise ValueError(f"return_type: expected 'logits' or None, found {return_type!r}")
        documents, _ = self._documents(inputs)
        doc_len = [self.info["prompt_rows"] + len(ids) for ids in documents]
        ask = _Ask(self, hooks, doc_len, names) if hooks else None
        result = self._session.run(
            documents,
            _warn,
            recorded=recorded,
            names_of=names,
            rows=None if pos_slice is None else [_positions(pos_slice, n) for n in doc_len],
            logits=return_type == "logits",
            edits=_edits(edits),
            batch_tokens=batch_tokens,
            asked=[name for name, _ in hooks],
            ask=ask,
        )
        return result, doc_len

    def _logits(self, result: dict[str, Any], doc_len: list[int]) -> Tensor | None:
        if result["logits"] is None:
            return None
        return Tensor(result["logits"], "logits", ["d_vocab"], result["all_starts"], doc_len)


#: Flags of the program's `generate` that a model has been loaded with, or that have arguments of their own.
_ELSEWHERE = frozenset(
    "model revision tokenizer load_in load_in_cache adapter device dtype threads profile prompt input add_generation_prompt edit config json".split()
)


class _Ask:
    """Answers the engine's questions by the functions of a run."""

    def __init__(
        self, model: Model, hooks: list[tuple[str, list[HookFunction]]], doc_len: list[int], names: str
    ) -> None:
        # The engine counts hooks in the order of the forward.
        order = model._session.resolve([name for name, _ in hooks], names)
        functions = dict(hooks)
        axes = model._session.axes(order, names)
        self._hooks = [(name, of_row, functions[name], Hook(name)) for name, of_row in zip(order, axes, strict=True)]
        self._heads = model._heads()
        self._doc_len = doc_len

    def __call__(self, number: int, array: _core.Array, first: int, starts: list[int]) -> bytes | None:
        name, axes, functions, hook = self._hooks[number]
        hook = Hook(name, first, hook.ctx)
        width = array.shape[1]
        shaped, words = _shaped(array, axes, self._heads)
        value = Tensor(shaped, name, words, starts, self._doc_len[first : first + len(starts) - 1])
        raw = np.asarray(array)
        before = raw.copy()
        for function in functions:
            answer = function(value, hook)
            if answer is None:
                continue
            new = _float32(answer)
            if new.size != value._array.shape[0] * width or new.shape[0] != value.shape[0]:
                raise ValueError(f"{name}: expected an array of shape {value.shape}, found {new.shape}")
            _store(value, new.reshape(value.shape))
        # Bits, since a NaN is not itself.
        if raw.view(np.uint8).tobytes() == before.view(np.uint8).tobytes():
            return None
        return np.ascontiguousarray(value.float()).tobytes()


def _token_ids(tokens: Iterable[Any], name: str) -> list[int]:
    """Whole numbers that a token may have; which of them the model has, the engine says."""
    ids = []
    if isinstance(tokens, (bytes, bytearray)):
        raise _refused(name, tokens)
    for i, token in enumerate(tokens):
        if isinstance(token, (bool, np.bool_)):
            raise _refused(f"{name}[{i}]", token)
        try:
            token = operator.index(token)
        except TypeError:
            raise _refused(f"{name}[{i}]", token) from None
        if not 0 <= token < 1 << 32:
            raise _refused(f"{name}[{i}]", token)
        ids.append(token)
    return ids


def _refused(name: str, token: Any) -> _core.Error:
    error = _core.Error(f"{name}: expected a token id, found {token!r}")
    error.file, error.field, error.expected, error.found = None, name, "a token id", repr(token)
    return error


def _float32(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.float()
    if hasattr(value, "detach"):  # PyTorch's, which may be bfloat16 or on a device
        value = value.detach().cpu().float().numpy()
    if np.iscomplexobj(value):
        raise TypeError("expected real numbers, found complex ones")
    return np.asarray(value, dtype=np.float32)


def _store(value: Tensor, new: np.ndarray) -> None:
    raw = np.asarray(value._array)
    if value.dtype == "bf16":
        bits = np.ascontiguousarray(new).view(np.uint32)
        # To the nearest, ties to even; a NaN stays one.
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        raw[...] = np.where(np.isnan(new), np.uint16(0x7FC0), rounded)
    else:
        raw[...] = new


def _positions(pos_slice: Any, n: int) -> list[int]:
    every = range(n)
    if isinstance(pos_slice, slice):
        found = list(every[pos_slice])
    else:
        found = []
        for position in [pos_slice] if isinstance(pos_slice, (int, np.integer)) else pos_slice:
            if not -n <= position < n:
                raise IndexError(f"pos_slice: {position} of a document of {n} rows")
            found.append(every[operator.index(position)])
    if any(after <= before for before, after in itertools.pairwise(found)):
        raise ValueError(f"pos_slice: expected ascending positions, each once, found {found} of a document of {n} rows")
    return found


def _edits(edits: Edits) -> tuple[str | None, list[tuple[list[float], int]]]:
    """A path, or a list in JSON whose arrays are numbers of the values beside it."""
    if edits is None or isinstance(edits, (str, os.PathLike)):
        return (None if edits is None else os.fspath(edits)), []
    values: list[tuple[list[float], int]] = []
    entries = []
    for entry in edits:
        entry = dict(entry)
        value = entry.get("value")
        if value is not None and not isinstance(value, (str, os.PathLike)):
            rows = np.atleast_2d(_float32(value))
            if rows.ndim != 2:
                raise ValueError(f"edits: a value of shape [width] or [rows, width], not {list(rows.shape)}")
            entry["value"] = len(values)
            values.append((rows.ravel().tolist(), rows.shape[1]))
        elif isinstance(value, os.PathLike):
            entry["value"] = os.fspath(value)
        for key in ("layers", "positions"):
            if isinstance(entry.get(key), (range, tuple, np.ndarray)):
                entry[key] = np.asarray(entry[key]).tolist()
        entries.append(entry)
    return json.dumps(entries), values
