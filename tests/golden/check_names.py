#!/usr/bin/env python3
"""`llamaprobe capture` under TransformerLens's names against TransformerLens 4.3.0 in its raw mode, live.

    python3 tests/golden/check_names.py BINARY [NAME...]     # needs torch, transformers, peft, safetensors, transformer-lens

Makes small models with norms off their defaults (LLaMA with grouped queries, GPT-2, OPT, BLOOM, those of check_families.py), captures three documents at every name of TransformerLens's cache that llamaprobe takes, under each
--names, makes caches of the file with the lines of src/hooks/names.md, and compares names, shapes and values. Prints the
largest difference as a share of the expected tensor's largest magnitude; exits 1 above 5e-6. A name that llamaprobe takes must be
the tensor that TransformerLens has under it; one that it refuses must not be answered with the name of another.
"""
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from check_families import make, models as recent
from transformers import (BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM,
                          PreTrainedTokenizerFast)

LIMIT = 5e-6
DOCUMENTS = [[1, 5, 9, 12, 33, 60, 7, 8, 95, 14, 2, 71, 40], [1, 44, 3, 17, 80, 21, 9], [64]]
# What is in the cache and no activation of ours: token ids, tables of the rotation, what a bridge was handed.
OTHER = re.compile(r"((pos_)?embed\.hook_in|rotary_emb\..*|.*\.hook_(cos|sin|hidden_states)|embed_ln\.hook_(scale|normalized))$")
# Where TransformerLens 4.3 errs or has another formula.
DIFFERS = {
    ("opt", "attn.hook_attn_scores"): "is the pattern there",
    ("bloom", "attn.hook_attn_scores"): "slope * key there, less slope * query here: the same softmax",
    ("bloom", "hook_embed"): "embed_ln.hook_out there",
}


# Gemma 3 with a cap of scores, which TransformerLens applies and transformers does not; GPT-NeoX without biases, which it cannot
# open.
LEFT_OUT = {"gemma3-capped", "neox-sequential"}
# Of a model that caps its logits this is what they were before.
REFUSED = {("gemma2", "unembed.hook_out"), ("gemma2", "hook_unembed")}


def rows_first(name, want, rows):
    """Qwen3's and Gemma 3's norms of queries and keys run after the transpose: TransformerLens has their heads before the rows."""
    return want.transpose(1, 2) if re.search(r"attn\.([qk]_norm|hook_[qk]_normed)", name) and want.dim() == 4 and want.shape[1] != rows else want


def page():
    """The code of the page, as it stands there."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "src", "hooks", "names.md")
    code = re.search(r"```python\n(.*?)```", open(path).read(), re.S).group(1)
    scope = {}
    exec(code, scope)
    return scope["tl_caches"]


def made(root):
    base = dict(vocab_size=97, num_hidden_layers=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
    llama = LlamaConfig(**base, hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, head_dim=12, rms_norm_eps=1e-3, tie_word_embeddings=False)
    gpt2 = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, layer_norm_epsilon=1e-3, bos_token_id=1, eos_token_id=2)
    opt = OPTConfig(**base, hidden_size=32, ffn_dim=40, num_attention_heads=4)
    bloom = BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4, layer_norm_epsilon=1e-3)
    for seed, (name, kind, config) in enumerate([("llama", LlamaForCausalLM, llama), ("gpt2", GPT2LMHeadModel, gpt2), ("opt", OPTForCausalLM, opt), ("bloom", BloomForCausalLM, bloom)]):
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for key, w in model.named_parameters():
                norm = "norm" in key or "ln_" in key
                centre = 1.0 if norm and not key.endswith("bias") else 0.0
                w.copy_(centre + (0.3 if norm or key.endswith("bias") else w.shape[-1] ** -0.5) * torch.randn_like(w))
        path = os.path.join(root, name)
        model.save_pretrained(path)
        yield name, path
    for name, (kind, config, _, _) in recent().items():
        path = os.path.join(root, name)
        make(kind, config, path, 0)
        yield name, path


def with_tokenizers(made, names):
    """The models with something that TransformerLens takes for a tokenizer."""
    for name, path in made:
        if name in LEFT_OUT or (names and name not in names):
            continue
        words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
        PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2").save_pretrained(path)
        yield name, path


def capture(binary, model, out, sites, *flags):
    lines = os.path.join(out, "input.jsonl")
    with open(lines, "w") as f:
        f.writelines(json.dumps({"input_ids": ids}) + "\n" for ids in DOCUMENTS)
    command = [binary, "capture", "--model", model, "--input", lines, "--sites", ",".join(sites), "--device", "cpu", "--out", os.path.join(out, "acts"), *flags]
    ran = subprocess.run(command, capture_output=True, text=True)
    return ran.returncode, ran.stderr, os.path.join(out, "acts", "activations.safetensors")


def share(got, want):
    """The largest difference as a share; what is masked is -inf here and the least float there."""
    seen = (got != -torch.inf) & (want > -1e30)
    assert torch.equal(got == -torch.inf, want < -1e30), "masked otherwise"
    return ((got - want)[seen].abs().max() / want[seen].abs().max()).item()


def main():
    binary, tl_caches, failed = sys.argv[1], page(), False
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as root:
        for family, path in with_tokenizers(made(root), sys.argv[2:]):
            bridge = TransformerBridge.boot_transformers(path, device="cpu")
            with torch.no_grad():
                expected = [bridge.run_with_cache(torch.tensor([ids]))[1] for ids in DOCUMENTS]
                if family not in ("opt",):
                    bridge.set_use_attn_result(True)
                    for cache, ids in zip(expected, DOCUMENTS):
                        more = bridge.run_with_cache(torch.tensor([ids]))[1]
                        cache.cache_dict.update({k: more[k] for k in more.keys() if k.endswith("hook_result")})
            names = [name for name in expected[0].keys() if not OTHER.match(name) and (family, name) not in REFUSED]
            local = lambda name: name.split(".", 2)[2] if name.startswith("blocks.") else name
            # One name at a time: which are taken, and is each the tensor of that name?
            worst, checked, refused, notes = 0.0, 0, [], []
            for name in names:
                with tempfile.TemporaryDirectory() as out:
                    code, error, file = capture(binary, path, out, [name])
                    if code:
                        refused.append(name)
                        if "nearest" in error:
                            failed = True
                            print(f"  {family} {name}: {error.strip()}")
                        continue
                    for ours, theirs, ids in zip(tl_caches(file), expected, DOCUMENTS):
                        (got,) = ours.cache_dict.values()
                        want = rows_first(name, theirs[name], len(ids)).reshape(got.shape)
                        if (family, local(name)) in DIFFERS:
                            notes.append(local(name))
                            continue
                        far = share(got, want)
                        worst, checked = max(worst, far), checked + 1
                        if far > LIMIT:
                            failed = True
                            print(f"  {family} {name}: {far:.1e}  FAILED")
            failed |= bool(refused)
            print(f"{family}: {len(names)} names, {checked} tensors, {worst:.1e}; refused: {refused or 'none'}; another formula: {sorted(set(notes)) or 'none'}")
            # All together: the names that are written are names of the cache, of its shapes.
            for choice in ["tl", "tl4"]:
                with tempfile.TemporaryDirectory() as out:
                    code, error, file = capture(binary, path, out, names, "--names", choice)
                    assert code == 0, error
                    for ours, theirs, ids in zip(tl_caches(file), expected, DOCUMENTS):
                        for name, got in ours.items():
                            if family == "opt" and "ln2" in name:  # TransformerLens loses the batch's axis there.
                                continue
                            if name not in theirs.cache_dict or got.shape != rows_first(name, theirs[name], len(ids)).shape:
                                failed = True
                                print(f"  {family} --names {choice}: {name} {tuple(got.shape)}  FAILED")
                        # A norm of the cache is applied as TransformerLens does with its own.
                        if choice == "tl":
                            of = lambda cache: type(theirs)(dict(cache.items()), bridge)
                            stack = theirs["resid_post", 0][None]
                            got, want = [of(cache).apply_ln_to_stack(stack, layer=-1).norm().item() for cache in (ours, theirs)]
                            ok = abs(got - want) <= LIMIT * want
                            failed |= not ok
                            print(f"  apply_ln_to_stack: {got:.4f}, TransformerLens's {want:.4f}{'' if ok else '  FAILED'}")
            # Shards give the same caches.
            with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as other:
                _, _, whole = capture(binary, path, out, names)
                code, error, _ = capture(binary, path, other, names, "--shard-tokens", "10")
                assert code == 0, error
                index = json.load(open(os.path.join(other, "acts", "activations.safetensors.index.json")))
                files = sorted(set(index["weight_map"].values()))
                caches = [cache for file in files for cache in tl_caches(os.path.join(other, "acts", file))]
                for a, b in zip(tl_caches(whole), caches, strict=True):
                    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a.keys()), "shards differ"
                rows = sum(len(load_file(os.path.join(other, "acts", file))["doc_id"]) for file in files)
                print(f"  {len(files)} shards, {rows} rows, the same bits")
    sys.exit(failed)


if __name__ == "__main__":
    main()
