"""Tensors that share their memory with the engine, and caches of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core

if TYPE_CHECKING:
    import numpy.typing as npt



class Tensor:
    """Rows of one hook, `[rows, ...]`: those of all documents, one after another, without padding.

    It is the memory that the engine wrote. `np.asarray` and `np.from_dlpack`, `torch.from_dlpack` and whatever else knows DLPack
    take it without a copy, and keep it alive; what they write, this tensor shows. numpy has no bfloat16 of its own: with ml_dtypes
    installed `np.asarray` gives that library's, without a copy, and else `float()` converts.
    """

    __slots__ = ("_array", "axes", "doc_len", "doc_start", "name")

    name: str
    """Of the hook."""
    axes: tuple[str, ...]
    """Of the axes behind the first, in TransformerLens's words: `("head", "d_head")`."""
    doc_start: list[int]
    """The first row of each document, and behind them all the number of rows."""
    doc_len: list[int]
    """Positions of each document, those without a row included."""

    def __init__(
        self, array: _core.Array, name: str, axes: Sequence[str], doc_start: Sequence[int], doc_len: Sequence[int]
    ) -> None:
        self._array = array
        self.name = name
        self.axes = tuple(axes)
        self.doc_start = list(doc_start)
        self.doc_len = list(doc_len)

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, and the sizes of `axes`."""
        return tuple(self._array.shape)

    @property
    def dtype(self) -> str:
        """`f32`, `bf16`, `f16`, `f64` or `i64`."""
        return self._array.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return int(np.prod(self.shape)) * {"f64": 8, "i64": 8, "f32": 4}.get(self.dtype, 2)

    def data_ptr(self) -> int:
        """The address of the first element."""
        return self._array.data_ptr()

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        own = np.asarray(self._array)
        if self.dtype == "bf16":
            own = own.view(_bfloat16())
        if dtype is not None and own.dtype != np.dtype(dtype):
            if copy is False:
                raise ValueError(f"{self.name}: {own.dtype} as {np.dtype(dtype)} needs a copy")
            return own.astype(dtype)
        return own.copy() if copy else own

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        return self._array.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def numpy(self) -> np.ndarray:
        """The same memory as a numpy array (of bfloat16 with ml_dtypes)."""
        return self.__array__()

    def torch(self) -> Any:
        """The same memory as a tensor of PyTorch."""
        import torch  # type: ignore[import-not-found,unused-ignore]

        return torch.from_dlpack(self)

    def float(self) -> np.ndarray:
        """A numpy array of 32-bit floats: a copy, of f32 as well, exact for f32, f16 and bf16."""
        raw = np.asarray(self._array)
        if self.dtype == "bf16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)

    @property
    def n_docs(self) -> int:
        """Number of documents."""
        return len(self.doc_start) - 1

    def doc(self, i: int) -> Tensor:
        """The rows of document `i`, a view: of scores and patterns with the positions that it has."""
        i = _index(i, self.n_docs, "documents")
        start, end = self.doc_start[i : i + 2]
        shape, strides = list(self._array.shape), list(self._array.strides)
        shape[0] = end - start
        if self.axes and self.axes[-1] == "position":
            shape[-1] = self.doc_len[i]
        array = self._array.view(start * strides[0], shape, strides)
        return Tensor(array, self.name, self.axes, [0, end - start], [self.doc_len[i]])

    @property
    def docs(self) -> list[Tensor]:
        """A view of the rows of each document."""
        return [self.doc(i) for i in range(self.n_docs)]

    def __getitem__(self, key: Any) -> Any:
        """As of the numpy array."""
        return self.__array__()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__array__()[key] = value

    def __repr__(self) -> str:
        sizes = ", ".join(f"{size} {axis}" for size, axis in zip(self.shape, ("rows", *self.axes), strict=True))
        return f"Tensor({self.name}: {self.dtype} [{sizes}], documents={self.n_docs})"


def _bfloat16() -> npt.DTypeLike:
    try:
        import ml_dtypes
    except ImportError as error:
        raise TypeError(
            "numpy has no bfloat16: install ml_dtypes, use from_dlpack of a library that has it, or convert with .float()"
        ) from error
    return ml_dtypes.bfloat16


def _index(i: int, count: int, of: str) -> int:
    if not -count <= i < count:
        raise IndexError(f"{i} of {count} {of}")
    return i % count


def _shaped(array: _core.Array, axes: str, heads: Mapping[str, int]) -> tuple[_core.Array, list[str]]:
    """Rows `[rows, width]` with the axes into which a row is to be split."""
    rows, width = array.shape
    words = axes.split()
    if len(words) != 2 or words[0] not in heads or width % max(heads[words[0]], 1):
        return array, [axes]
    first = heads[words[0]]
    return array.view(0, [rows, first, width // first], [width, width // first, 1]), words


class Cache(Mapping[str, Tensor]):
    """The recorded rows of hooks by name, of one or several documents.

    `cache["blocks.3.hook_resid_post"]` is a :class:`Tensor` `[rows, d_model]` of all documents; any other name that the hook has
    (`resid_post3`, TransformerLens 4's `blocks.3.hook_out`, `("resid_post", 3)`) finds it too, and `("resid_post", -1)` the last
    block's; in a cache that was read from a file the file's own names do, and these with the block's number behind them.
    `cache[i]`, of an integer, is the cache of document i: views of the same memory, of its own length.
    """

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[str], Tensor],
        doc_start: Sequence[int],
        doc_len: Sequence[int],
        labels: Mapping[str, np.ndarray],
        resolve: Callable[[str], list[str]] | None = None,
        metadata: Mapping[str, str] | None = None,
        n_layers: int = 0,
    ) -> None:
        self._names = list(names)
        self._load = load
        self._loaded: dict[str, Tensor] = {}
        self._resolve = resolve
        self._n_layers = n_layers
        self.doc_start = list(doc_start)
        """The first row of each document, and behind them all the number of rows."""
        self.doc_len = list(doc_len)
        """Positions of each document, those without a row included."""
        self.pos = labels["pos"]
        """Position of each row in its document `[rows]`, a soft prompt's included."""
        self.token_id = labels["token_id"]
        """Token of each row `[rows]`; -1 for a soft prompt's."""
        self.metadata = dict(metadata or {})
        """What a file says of itself."""

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Cache:
        """The file that `capture` wrote, `activations.safetensors` or the index of its shards, split by document.

        A tensor is read, in the file's dtype, when it is asked for first. Rows of files of other programs without `doc_id` are
        one document.
        """
        states = _core.States(os.fspath(path))
        metadata = json.loads(states.metadata())
        names = states.names()
        rows = states.tensor(names[0]).shape[0] if names else 0
        column = states.labels("doc_id")
        docs = np.asarray(column if column is not None else np.zeros(rows), dtype=np.int64)
        starts = [0, *(np.flatnonzero(np.diff(docs)) + 1).tolist(), len(docs)] if len(docs) else [0]
        column = states.labels("pos")
        pos = np.asarray(column, dtype=np.int64) if column is not None else _counted(starts)
        column = states.labels("token_id")
        token_id = np.asarray(column if column is not None else np.full(rows, -1), dtype=np.int64)
        doc_len = [int(pos[a:b].max()) + 1 for a, b in zip(starts, starts[1:], strict=False)]
        layout = json.loads(metadata.get("layout", "{}"))
        heads = {"head": int(metadata.get("n_heads", 0)), "kv_head": int(metadata.get("n_kv_heads", 0))}

        def load(name: str) -> Tensor:
            local = name.split(".", 2)[2] if name.startswith("blocks.") else name
            array, axes = _shaped(states.tensor(name), layout.get(local, "d_model"), heads)
            return Tensor(array, name, axes, starts, doc_len)

        return cls(names, load, starts, doc_len, {"pos": pos, "token_id": token_id}, None, metadata, int(metadata.get("n_layers", 0)))

    @property
    def n_docs(self) -> int:
        """Number of documents."""
        return len(self.doc_start) - 1

    @property
    def docs(self) -> list[Cache]:
        """A cache of each document."""
        return [self[i] for i in range(self.n_docs)]

    def _name(self, key: str | tuple[Any, ...]) -> str:
        if isinstance(key, tuple):
            word, layer, *rest = key
            if isinstance(layer, (int, np.integer)) and layer < 0:
                # From the last one, of a model or of a file that says how many there are.
                if layer < -self._n_layers:
                    raise KeyError(f"{key!r}: {self._n_layers or 'an unknown number of'} layers")
                layer += self._n_layers
            key = word if layer is None else f"{word}{layer}{rest[0] if rest and rest[0] else ''}"
        if key in self._names:
            return key
        found = []
        if self._resolve is not None:
            found = [name for name in self._resolve(key) if name in self._names]
        else:
            word = key.rstrip("0123456789")
            layer = key[len(word) :]
            ends = (f".hook_{word}", f".{word}") if layer else ()
            found = [n for n in self._names if n.startswith(f"blocks.{layer}.") and n.endswith(ends)] if ends else []
        if len(found) != 1:
            there = ", ".join(self._names[:8]) + (", ..." if len(self._names) > 8 else "")
            raise KeyError(f"{key!r}: {'several hooks' if found else 'not recorded'}; there are {there}")
        return found[0]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, np.integer)):
            return self._doc(int(key))
        name = self._name(key)
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _doc(self, i: int) -> Cache:
        i = _index(i, self.n_docs, "documents")
        start, end = self.doc_start[i : i + 2]
        labels = {"pos": self.pos[start:end], "token_id": self.token_id[start:end]}
        return Cache(
            self._names,
            lambda name: self[name].doc(i),
            [0, end - start],
            [self.doc_len[i]],
            labels,
            self._resolve,
            self.metadata,
            self._n_layers,
        )

    def __contains__(self, key: object) -> bool:
        try:
            self._name(key)  # type: ignore[arg-type]
        except (KeyError, TypeError, _core.Error):
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def stack(self, name: str) -> np.ndarray:
        """The rows of a hook of every layer, a copy `[layers, rows, ...]`: `cache.stack("resid_post")`."""
        names = self._resolve(name) if self._resolve else [n for n in self._names if n.endswith((f".hook_{name}", f".{name}"))]
        return np.stack([self[n].numpy() for n in names if n in self._names])

    def __repr__(self) -> str:
        return f"Cache({len(self)} hooks, {self.doc_start[-1]} rows, {self.n_docs} documents)"


def _counted(starts: Sequence[int]) -> np.ndarray:
    return np.concatenate([np.arange(b - a) for a, b in zip(starts, starts[1:], strict=False)] or [np.zeros(0, np.int64)])
