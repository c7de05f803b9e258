"""Beside torch and transformers, where they are installed."""

import numpy as np
import pytest
from conftest import need

import llamaprobe

LIMIT = 2e-5


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_torch_reads_every_dtype_without_a_copy(request, docs, dtype):
    need("torch", request)
    import torch

    with llamaprobe.Model.load("embedded", device="cpu", dtype=dtype) as model:
        _, cache = model.run_with_cache(docs, names_filter=["q", "pattern"])
    tensor = cache["blocks.0.attn.hook_q"]
    ours = torch.from_dlpack(tensor)
    assert ours.dtype == {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert ours.data_ptr() == tensor.data_ptr() and ours.shape == tensor.shape
    assert np.array_equal(ours.float().numpy(), tensor.float())
    view = tensor.doc(2)
    assert torch.from_dlpack(view).data_ptr() == view.data_ptr() and view.torch().shape == view.shape
    # The positions of a document are a part of each row.
    pattern = cache["blocks.0.attn.hook_pattern"].doc(1)
    assert torch.equal(pattern.torch(), torch.from_numpy(pattern.numpy().copy()))
    ours[0] = 0
    assert not tensor.float()[0].any()


FAMILIES = ["model-gqa-llama3", "model-gpt2", "model-qwen3", "model-gemma3"]


@pytest.mark.parametrize("name", FAMILIES)
def test_hook_edits_are_those_of_transformers(request, golden, name):
    need("transformers", request)
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(golden / name, dtype=torch.float32, attn_implementation="eager")
    theirs.eval()
    blocks = theirs.transformer.h if hasattr(theirs, "transformer") else theirs.model.layers
    ids = [[3, 5, 7, 2, 9], [4, 4, 8]]
    with llamaprobe.Model.load(golden / name, device="cpu", dtype="f32") as ours:
        width = ours.info["d_model"]
        vector = np.random.default_rng(1).standard_normal(width).astype(np.float32)

        def steer(value, hook):
            for doc in value.docs:
                doc[1:] = doc[1:] * 0.5 + vector

        def run(layer, edited=True):
            hooks = [(f"blocks.{layer}.hook_resid_post", steer)] if edited else []
            return ours.run_with_hooks(ids, fwd_hooks=hooks)

        def steer_theirs(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = torch.cat([hidden[:, :1], hidden[:, 1:] * 0.5 + torch.from_numpy(vector)], dim=1)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = blocks[0].register_forward_hook(steer_theirs)
        with torch.no_grad():
            expected = [theirs(torch.tensor([document])).logits[0].numpy() for document in ids]
        handle.remove()

        def error(logits):
            of_all = [np.abs(logits.doc(i).numpy() - expected[i]).max() / np.abs(expected[i]).max() for i in range(2)]
            return max(of_all)

        found = error(run(0))
        print(f"{name}: {found:.1e} of {LIMIT:.0e}")
        assert found < LIMIT
        # Another layer, or none, is beyond the limit.
        assert min(error(run(0, edited=False)), error(run(1))) > 10 * LIMIT
