"""Runs with a cache, with hooks, with edits; generation; errors; interrupts."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import llamaprobe

SITES = ["hook_embed", "resid_post", "attn.hook_z", "pattern", "attn_scores", "ln1.hook_scale", "ln_final.hook_out", "mlp_post"]


def bits(tensor):
    return np.asarray(tensor._array).tobytes()


@pytest.mark.parametrize("names", ["tl", "tl4"])
def test_cache_is_what_capture_writes(model, docs, tmp_path, names):
    texts = tmp_path / "ids.jsonl"
    texts.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in docs))
    llamaprobe.capture(
        model="embedded", input=texts, sites=[*SITES, "logits"], names=names, out=tmp_path, device="cpu", dtype="f32", progress=False
    )
    file = llamaprobe.Cache.read(tmp_path / "activations.safetensors")
    logits, cache = model.run_with_cache(docs, names_filter=SITES, names=names)
    assert set(file) == {*cache, "logits" if names == "tl" else "unembed.hook_out"}
    for name in cache:
        ours, theirs = cache[name], file[name]
        assert (ours.shape, ours.axes, ours.doc_start) == (theirs.shape, theirs.axes, theirs.doc_start), name
        assert bits(ours) == bits(theirs), name
    assert bits(logits) == bits(file["logits" if names == "tl" else "unembed.hook_out"])
    assert np.array_equal(cache.pos, file.pos) and np.array_equal(cache.token_id, file.token_id)
    assert [doc.doc_len for doc in file.docs] == [[len(ids)] for ids in docs]
    # Attention of a document ends where the document does.
    pattern = file[1]["blocks.0.attn.hook_pattern"]
    assert file[1]["attn.hook_pattern", -1].name == f"blocks.{model.info['n_layers'] - 1}.attn.hook_pattern"
    assert pattern.shape == (3, model.info["n_heads"], 3)
    assert np.allclose(pattern.numpy().sum(-1), 1)


def test_documents_do_not_see_each_other(model, docs):
    logits, cache = model.run_with_cache(docs)
    assert list(cache) == model.hook_names()
    for i, ids in enumerate(docs):
        alone_logits, alone = model.run_with_cache(ids)
        assert bits(logits.doc(i)) is not None and np.array_equal(logits.doc(i), alone_logits)
        for name in cache:
            assert np.array_equal(cache[i][name], alone[name], equal_nan=True), name
    # Passes of a document each give the same bits.
    small, _ = model.run_with_cache(docs, names_filter="resid_post", batch_tokens=1)
    assert bits(small) == bits(logits)


def test_positions_are_chosen(model, docs):
    _, every = model.run_with_cache(docs, names_filter="resid_post", return_type=None)
    for pos_slice in (-1, slice(0, 2), [0, -1], slice(None, None, 2)):
        logits, cache = model.run_with_cache(docs, names_filter="resid_post", pos_slice=pos_slice, return_type=None)
        assert logits is None
        for i, ids in enumerate(docs):
            rows = np.arange(len(ids))[pos_slice]
            rows = np.atleast_1d(rows)
            assert np.array_equal(cache[i].pos, rows)
            name = f"blocks.{model.info['n_layers'] - 1}.hook_resid_post"
            assert np.array_equal(cache[i][name], every[i][name].numpy()[rows])
    with pytest.raises(IndexError):
        model.run_with_cache(docs, pos_slice=5)
    for pos_slice in ([1, 0], [1, 1], slice(None, None, -1)):
        with pytest.raises(ValueError, match="pos_slice: expected ascending positions, each once"):
            model.run_with_cache([[1, 2, 3]], pos_slice=pos_slice)
    with pytest.raises(llamaprobe.Error, match="pos_slice"):
        model.run_with_cache(docs, pos_slice=slice(4, 5))


def test_names_are_found_in_every_spelling(model, docs):
    _, cache = model.run_with_cache(docs[0], names_filter=lambda name: name.endswith("hook_resid_post"))
    assert len(cache) == model.info["n_layers"]
    for name in ("resid_post1", "blocks.1.hook_out", ("resid_post", 1), "blocks.1.hook_resid_post"):
        assert cache[name].name == "blocks.1.hook_resid_post"
    last = model.info["n_layers"] - 1
    assert cache["resid_post", -1].name == f"blocks.{last}.hook_resid_post"
    assert ("resid_post", -last - 2) not in cache
    assert cache.stack("resid_post").shape == (model.info["n_layers"], len(docs[0]), model.info["d_model"])
    assert "blocks.0.hook_attn_out" not in cache
    with pytest.raises(KeyError):
        cache["blocks.0.hook_attn_out"]


def test_hooks_that_only_read_change_nothing(model, docs):
    plain = model(docs)
    seen = {}

    def look(value, hook):
        seen[hook.name] = value.float()

    logits = model.run_with_hooks(docs, fwd_hooks=[("resid_post", look), ("z", look)])
    assert bits(logits) == bits(plain)
    _, cache = model.run_with_cache(docs, names_filter=["resid_post", "z"])
    assert set(seen) == set(cache)
    assert all(np.array_equal(seen[name], cache[name]) for name in cache)


@pytest.mark.parametrize("site", ["hook_embed", "blocks.1.hook_resid_post", "blocks.0.attn.hook_z", "blocks.1.mlp.hook_post", "ln_final.hook_out"])
def test_a_function_edits_as_an_edit_does(model, docs, site):
    _, cache = model.run_with_cache(docs, names_filter=site)
    width = int(np.prod(cache[site].shape[1:]))
    value = np.random.default_rng(3).standard_normal(width).astype(np.float32)
    declared = model.run_with_hooks(docs, edits=[{"site": site, "positions": [1], "op": "replace", "value": value}])

    def write(tensor, hook):
        for doc in tensor.docs:
            doc[1] = value.reshape(doc.shape[1:])

    def answer(tensor, hook):
        new = tensor.float()
        for start in tensor.doc_start[:-1]:
            new[start + 1] = value.reshape(tensor.shape[1:])
        return new

    plain = model(docs)
    assert np.abs(declared.float() - plain.float()).max() > 1e-3
    for function in (write, answer):
        assert bits(model.run_with_hooks(docs, fwd_hooks=[(site, function)])) == bits(declared)
        # A pass for each document asks for each.
        split = model.run_with_hooks(docs, fwd_hooks=[(site, function)], batch_tokens=1)
        assert bits(split) == bits(declared)


def test_functions_of_one_hook_follow_each_other(model, docs):
    order = []

    def double(value, hook):
        order.append("double")
        return value.float() * 2

    def halve(value, hook):
        order.append("halve")
        value[...] = value.numpy() / 2

    logits = model.run_with_hooks(docs, fwd_hooks=[("resid_mid0", double), ("resid_mid0", halve)])
    assert order == ["double", "halve"] and bits(logits) == bits(model(docs))


def test_functions_edit_in_bfloat16(docs):
    with llamaprobe.Model.load("embedded", device="cpu", dtype="bf16") as model:
        value = np.full(model.info["d_model"], 0.3, np.float32)

        def write(tensor, hook):
            assert tensor.dtype == "bf16"
            return np.broadcast_to(value, tensor.shape)

        edit = [{"site": "mlp_out0", "positions": "all", "op": "replace", "value": value}]
        declared = model.run_with_hooks(docs, edits=edit)
        assert bits(model.run_with_hooks(docs, fwd_hooks=[("mlp_out0", write)])) == bits(declared)
        assert bits(declared) != bits(model(docs))


def test_quantised_weights_of_a_model_have_the_values_of_those_that_are_captured(docs, tmp_path):
    # A model has them in memory as they are generated with, a capture reads them as they are stored.
    given = {"device": "cpu", "dtype": "bf16", "load_in": "int8"}
    texts = tmp_path / "ids.jsonl"
    texts.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in docs))
    llamaprobe.capture(model="embedded", input=texts, sites=["resid_post", "logits"], out=tmp_path, progress=False, **given)
    file = llamaprobe.Cache.read(tmp_path / "activations.safetensors")
    with llamaprobe.Model.load("embedded", **given) as model:
        logits, cache = model.run_with_cache(docs, names_filter=["resid_post"])
    assert all(bits(cache[name]) == bits(file[name]) for name in cache) and len(cache) > 1
    assert bits(logits) == bits(file["logits"])


def test_errors_are_the_programs(model, docs, tmp_path):
    with pytest.raises(llamaprobe.Error) as caught:
        model.run_with_cache(docs, names_filter="blocks.0.hook_resid_pots")
    program = subprocess.run(
        [sys.executable, "-m", "llamaprobe", "capture", "--model", "embedded", "--input", os.devnull, "--sites", "blocks.0.hook_resid_pots", "--out", tmp_path],
        capture_output=True, text=True,
    )
    assert program.returncode == 1 and str(caught.value).removeprefix("sites") in program.stderr
    assert caught.value.field == "sites" and caught.value.found == "`blocks.0.hook_resid_pots`"
    with pytest.raises(llamaprobe.Error, match="embeded"):
        llamaprobe.Model.load("embeded")
    with pytest.raises(llamaprobe.UsageError, match="int8"):
        llamaprobe.Model.load("embedded", dtype="int8")
    with pytest.raises(llamaprobe.UsageError, match="int9"):
        llamaprobe.Model.load("embedded", load_in="int9")
    with pytest.raises(llamaprobe.Error, match="token ids below"):
        model([1, 2, 1 << 20])
    for ids, name, found in [(b"a", "inputs", "b'a'"), ([[True, 6]], "inputs[0][0]", "True"), ([[5.5, 6]], "inputs[0][0]", "5.5"), ([5, -1], "inputs[1]", "-1"), ([[1], [1 << 32]], "inputs[1][0]", "4294967296")]:
        with pytest.raises(llamaprobe.Error) as caught:
            model(ids)
        assert str(caught.value) == f"{name}: expected a token id, found {found}"
        assert (caught.value.field, caught.value.found) == (name, found)
    with pytest.raises(llamaprobe.Error, match="token id"):
        model.decode([1.5])
    with pytest.raises(llamaprobe.Error, match=r"inputs\[1\]: expected at least one token"):
        model([[1], []])
    with pytest.raises(llamaprobe.Error, match="fwd_hooks|site"):
        model.run_with_hooks(docs, fwd_hooks=[("pattern", lambda value, hook: None)])
    with pytest.raises(llamaprobe.Error, match="rows of"):
        model.run_with_hooks(docs, edits=[{"site": "resid_post", "positions": "last", "op": "add", "value": np.ones(3)}])
    with pytest.raises(llamaprobe.Error, match="nearest: max_new_tokens"):
        model.generate(docs[0], max_new_token=3)
    with pytest.raises(TypeError, match="edits=, found edit"):
        model.generate(docs[0], edit="steering.yaml")


def test_a_function_sees_the_axes_of_the_cache(model, docs):
    names = ["q0", "k0", "v0", "z0", "mlp_post0", "resid_post0"]
    seen = {}

    def look(value, hook):
        seen[hook.name] = value.axes, value.shape[1:]

    model.run_with_hooks(docs, fwd_hooks=[(names, look)])
    _, cache = model.run_with_cache(docs, names_filter=names)
    assert seen == {name: (tensor.axes, tensor.shape[1:]) for name, tensor in cache.items()}


def test_an_exception_of_a_function_ends_the_run_alone(model, docs):
    def fail(value, hook):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        model.run_with_hooks(docs, fwd_hooks=[("resid_post0", fail)])
    with pytest.raises(ValueError, match="shape"):
        model.run_with_hooks(docs, fwd_hooks=[("resid_post0", lambda value, hook: np.zeros(3))])
    with pytest.raises(llamaprobe.Error, match="in a pass"):
        model.run_with_hooks(docs, fwd_hooks=[("resid_post0", lambda value, hook: model(docs))])
    assert model(docs).shape[0] == sum(map(len, docs))
    with llamaprobe.Model.load("embedded", device="cpu") as closed:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        closed(docs)


def test_generation_is_the_programs(model):
    prompts = ["Input: x\nOutput:", "Input: y z\nOutput:"]
    tokens = []
    done = model.generate(prompts, max_new_tokens=6, on_token=lambda prompt, token: tokens.append((prompt, token)))
    result = llamaprobe.run("generate", model="embedded", prompt=prompts, max_new_tokens=6, device="cpu", dtype="f32")
    assert [(g.prompt_ids, g.ids, g.text) for g in done] == [(r["prompt_ids"], r["ids"], r["text"]) for r in result["results"]]
    assert sorted(tokens) == sorted((i, token) for i, g in enumerate(done) for token in g.ids)
    alone = model.generate(prompts[0], max_new_tokens=6)
    assert alone == done[0]
    changed = model.generate(prompts, max_new_tokens=6, edits=[{"site": "resid_post", "positions": "all", "op": "zero"}])
    assert [g.ids for g in changed] != [g.ids for g in done]


def test_control_c_ends_a_run(model, docs):
    """In a function at once, and in a run that calls none where the next layer begins; the model goes on to be of use."""
    calls = []

    def ask(value, hook):
        calls.append(hook.first_doc)
        os.kill(os.getpid(), signal.SIGINT)

    # So many passes that nobody would wait for their end.
    many = docs * 2000
    with pytest.raises(KeyboardInterrupt):
        model.run_with_hooks(many, fwd_hooks=[("resid_post0", ask)], batch_tokens=64, return_type=None)
    assert len(calls) == 1
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        model.run_with_cache(many * 10, names_filter="resid_post", batch_tokens=64)
    assert time.monotonic() - started < 20
    assert model(docs[0]).shape[0] == len(docs[0])


def test_other_threads_run_meanwhile(model, docs):
    count, stop = [0], threading.Event()

    def work():
        while not stop.is_set():
            count[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    started = time.monotonic()
    model.run_with_cache(docs * 12, names_filter="resid_post0", batch_tokens=256)
    elapsed = time.monotonic() - started
    stop.set()
    thread.join()
    assert elapsed > 0.02 and count[0] > 10 * elapsed, (count, elapsed)
