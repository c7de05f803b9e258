"""Arrays share their memory with the engine."""

import gc
import sys

import numpy as np
import pytest

import llamaprobe

DTYPES = {"f32": np.float32, "f16": np.float16}
SITE = "blocks.0.attn.hook_q"


def address(array):
    return array.__array_interface__["data"][0]


@pytest.fixture(scope="module", params=["f32", "f16", "bf16"])
def tensor(request, docs):
    with llamaprobe.Model.load("embedded", device="cpu", dtype=request.param) as model:
        _, cache = model.run_with_cache(docs, names_filter=[SITE, "resid_post"])
    return cache[SITE]


def test_numpy_shares_the_memory(tensor):
    array = np.asarray(tensor)
    assert address(array) == tensor.data_ptr()
    assert array.shape == tensor.shape and array.shape[1:] == (tensor.shape[1], tensor.shape[2])
    again = tensor.numpy()
    before = float(again[1, 0, 0])
    array[1, 0, 0] = before + 1
    assert float(again[1, 0, 0]) == float(array[1, 0, 0]) != before
    array[1, 0, 0] = before


def test_dlpack_shares_the_memory(tensor):
    if tensor.dtype == "bf16":
        # numpy itself has no such type in DLPack either.
        with pytest.raises((BufferError, RuntimeError, TypeError, ValueError)):
            np.from_dlpack(tensor)
        return
    array = np.from_dlpack(tensor)
    assert address(array) == tensor.data_ptr() and array.dtype == DTYPES[tensor.dtype]
    assert np.array_equal(array, tensor.numpy())


def test_float_is_exact(tensor):
    wide = tensor.float()
    assert wide.dtype == np.float32 and address(wide) != tensor.data_ptr()
    assert np.array_equal(wide, np.asarray(tensor).astype(np.float32))
    assert np.abs(wide).max() > 0.01


def test_bfloat16_is_never_copied_in_silence(tensor, monkeypatch):
    if tensor.dtype != "bf16":
        return
    import ml_dtypes

    assert np.asarray(tensor).dtype == ml_dtypes.bfloat16
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match=r"\.float\(\)"):
        np.asarray(tensor)
    assert tensor.float().dtype == np.float32


def test_capsules_live_as_long_as_somebody_has_them(docs):
    with llamaprobe.Model.load("embedded", device="cpu", dtype="f32") as model:
        _, cache = model.run_with_cache(docs, names_filter="resid_post")
    tensor = cache["blocks.0.hook_resid_post"]
    expected = tensor.float()
    kept = np.from_dlpack(tensor)
    unread = [tensor.__dlpack__(), tensor.__dlpack__(max_version=(1, 0)), tensor.doc(1).__dlpack__()]
    del model, cache, tensor, unread
    gc.collect()
    fill = [np.ones(expected.size, np.float32) for _ in range(8)]
    assert np.array_equal(kept, expected) and len(fill) == 8


def test_dlpack_refuses_what_it_cannot_do(tensor):
    with pytest.raises(BufferError):
        tensor.__dlpack__(copy=True)
    with pytest.raises(BufferError):
        tensor.__dlpack__(dl_device=(2, 0))
    assert tensor.__dlpack_device__() == (1, 0)


def test_documents_are_views_without_padding(tensor, docs):
    assert tensor.n_docs == len(docs) and [len(doc) for doc in tensor.docs] == [len(ids) for ids in docs]
    row = tensor.nbytes // len(tensor)
    starts = np.cumsum([0, *map(len, docs)])
    assert [doc.data_ptr() - tensor.data_ptr() for doc in tensor.docs] == [row * start for start in starts[:-1]]
    assert np.array_equal(tensor.doc(-1).float(), tensor.float()[starts[-2] :])
    with pytest.raises(IndexError):
        tensor.doc(3)
