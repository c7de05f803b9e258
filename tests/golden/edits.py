#!/usr/bin/env python3
"""Golden files of edits: what transformers computes when forward hooks change its tensors, and how it goes on under steering.

    edits.py edits           # writes edits/ from the models of this folder (needs torch, transformers, safetensors)

`values.safetensors` holds for each model and width one, two and three rows of values. `cases.json` lists for each model the
sites and operations of its cases; `expected.safetensors` has a tensor `[cases, 2, V]` for each: the logits after the second
and the last token, which are the edited ones. Additions, factors and projections are of both layers, the rest of the first.
"""
import json
import os
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

HERE = pathlib.Path(__file__).resolve().parent
MODELS = ["gqa-llama3", "gpt2", "opt-behind", "bloom"]
OPS = ["add", "replace", "scale", "zero", "mean", "project_out"]
IDS = [5, 9, 12, 20, 8, 6, 15]
ROWS = [1, len(IDS) - 1]
PROMPTS = [[3, 7, 11, 4], [5, 9], [12, 20, 8, 6, 15, 3]]
ADDED, FACTOR, STEER = 0.7, -0.5, 2.0


def edited(x, op, values, width):
    """An operation on rows `[2, width]`."""
    if op == "add":
        return x + ADDED * values[f"{width}.two"]
    if op == "replace":
        return values[f"{width}.one"].expand_as(x)
    if op == "scale":
        return FACTOR * x
    if op == "zero":
        return torch.zeros_like(x)
    if op == "mean":
        return values[f"{width}.three"].mean(0).expand_as(x)
    v = values[f"{width}.one"]
    return x - (x @ v)[:, None] * v / (v @ v)


class Model:
    """A model, and where each of its sites is."""

    def __init__(self, name):
        self.name = name
        self.model = AutoModelForCausalLM.from_pretrained(HERE / f"model-{name}", attn_implementation="eager", dtype=torch.float32).eval()
        c = self.model.config
        self.heads = c.num_attention_heads
        if name == "gqa-llama3":
            body = self.model.model
            self.blocks, norm, self.embed = body.layers, body.norm, body.embed_tokens
            self.kv_heads, self.head_dim = c.num_key_value_heads, c.head_dim
            self.final = (norm, "out")
        elif name == "opt-behind":
            body = self.model.model.decoder
            self.blocks, self.embed, self.final = body.layers, body.embed_tokens, (body.project_out, "in")
            self.kv_heads, self.head_dim = self.heads, c.hidden_size // self.heads
        else:
            body = self.model.transformer
            self.blocks, self.final = body.h, (body.ln_f, "out")
            self.embed = body.wte if name == "gpt2" else body.word_embeddings
            self.kv_heads, self.head_dim = self.heads, c.hidden_size // self.heads

    def parts(self, block):
        """Site -> module, whether its input or output, and the columns of a fused projection."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.name == "gqa-llama3":
            a, m = block.self_attn, block.mlp
            return {
                "ln1.hook_out": (block.input_layernorm, "out", None),
                "attn.hook_q": (a.q_proj, "out", None), "attn.hook_k": (a.k_proj, "out", None), "attn.hook_v": (a.v_proj, "out", None),
                "attn.hook_z": (a.o_proj, "in", None), "hook_attn_out": (a.o_proj, "out", None),
                "hook_resid_mid": (block.post_attention_layernorm, "in", None), "ln2.hook_out": (block.post_attention_layernorm, "out", None),
                "mlp.hook_pre": (m.gate_proj, "out", None), "mlp.hook_pre_linear": (m.up_proj, "out", None),
                "mlp.hook_post": (m.down_proj, "in", None), "hook_mlp_out": (m.down_proj, "out", None),
            }
        if self.name == "gpt2":
            a, m, fused = block.attn, block.mlp, lambda i: list(range(i * q, (i + 1) * q))
            return {
                "ln1.hook_out": (block.ln_1, "out", None),
                "attn.hook_q": (a.c_attn, "out", fused(0)), "attn.hook_k": (a.c_attn, "out", fused(1)), "attn.hook_v": (a.c_attn, "out", fused(2)),
                "attn.hook_z": (a.c_proj, "in", None), "hook_attn_out": (a.c_proj, "out", None),
                "hook_resid_mid": (block.ln_2, "in", None), "ln2.hook_out": (block.ln_2, "out", None),
                "mlp.hook_pre": (m.c_fc, "out", None), "mlp.hook_post": (m.c_proj, "in", None), "hook_mlp_out": (m.c_proj, "out", None),
            }
        if self.name == "opt-behind":
            a = block.self_attn
            return {
                # The norms stand after the sums: the streams are their outputs.
                "ln1.hook_out": (block.self_attn_layer_norm, "out", None), "hook_resid_mid": (block.self_attn_layer_norm, "out", None),
                "ln2.hook_out": (block.final_layer_norm, "out", None),
                "attn.hook_q": (a.q_proj, "out", None), "attn.hook_k": (a.k_proj, "out", None), "attn.hook_v": (a.v_proj, "out", None),
                "attn.hook_z": (a.out_proj, "in", None), "hook_attn_out": (a.out_proj, "out", None),
                "mlp.hook_pre": (block.fc1, "out", None), "mlp.hook_post": (block.fc2, "in", None), "hook_mlp_out": (block.fc2, "out", None),
            }
        a, m, d = block.self_attention, block.mlp, self.head_dim
        fused = lambda i: [(3 * h + i) * d + j for h in range(self.heads) for j in range(d)]
        return {
            "ln1.hook_out": (block.input_layernorm, "out", None),
            "attn.hook_q": (a.query_key_value, "out", fused(0)), "attn.hook_k": (a.query_key_value, "out", fused(1)), "attn.hook_v": (a.query_key_value, "out", fused(2)),
            "attn.hook_z": (a.dense, "in", None), "hook_attn_out": (a.dense, "out", None),
            "hook_resid_mid": (block.post_attention_layernorm, "in", None), "ln2.hook_out": (block.post_attention_layernorm, "out", None),
            "mlp.hook_pre": (m.dense_h_to_4h, "out", None), "mlp.hook_post": (m.dense_4h_to_h, "in", None), "hook_mlp_out": (m.dense_4h_to_h, "out", None),
        }

    def sites(self):
        rotated = ["attn.hook_rot_q", "attn.hook_rot_k"] if self.name == "gqa-llama3" else []
        return ["hook_embed", "hook_resid_pre", *self.parts(self.blocks[0]), *rotated, "hook_resid_post", "ln_final.hook_out"]

    def width(self, site):
        c = self.model.config
        if site == "hook_embed":
            return self.embed.weight.shape[1]
        if site in ("attn.hook_q", "attn.hook_rot_q", "attn.hook_z"):
            return self.heads * self.head_dim
        if site in ("attn.hook_k", "attn.hook_v", "attn.hook_rot_k"):
            return self.kv_heads * self.head_dim
        if site.startswith("mlp."):
            return {"gqa-llama3": 32, "gpt2": 20, "opt-behind": 20, "bloom": 48}[self.name]
        return c.hidden_size

    def hooks(self, site, layers, change):
        """Hooks by which `change` is made, in place, of the rows `[T, width]` of a site."""
        def of(module, side, columns=None):
            def run(x):
                x = x[0] if isinstance(x, tuple) else x
                rows = x.view(-1, x.shape[-1])
                if columns is None:
                    change(rows)
                else:
                    part = rows[:, columns]
                    change(part)
                    rows[:, columns] = part
            if side == "out":
                return module.register_forward_hook(lambda m, a, out: run(out))
            # In place: what is added to the stream later is the same tensor.
            return module.register_forward_pre_hook(lambda m, a, k: run(a[0] if a else k["hidden_states"]), with_kwargs=True)
        if site == "hook_embed":
            return [of(self.embed, "out")]
        if site == "ln_final.hook_out":
            return [of(*self.final)]
        if site in ("hook_resid_pre", "hook_resid_post"):
            return [of(self.blocks[layer], "in" if site.endswith("pre") else "out") for layer in layers]
        if site.startswith("attn.hook_rot_"):
            return [Rotation(0 if site.endswith("q") else 1, layers, change)]
        return [of(*self.parts(self.blocks[layer])[site]) for layer in layers]


class Rotation:
    """Changes the queries or keys that come out of the rotation, which is a function and no module."""

    def __init__(self, which, layers, change):
        self.original, calls = modeling_llama.apply_rotary_pos_emb, [0]

        def rotated(*arguments, **more):
            both = list(self.original(*arguments, **more))
            if calls[0] in layers:
                heads = both[which].transpose(1, 2)
                rows = heads.reshape(-1, heads.shape[2] * heads.shape[3]).clone()
                change(rows)
                both[which] = rows.view(heads.shape).transpose(1, 2)
            calls[0] += 1
            return tuple(both)

        modeling_llama.apply_rotary_pos_emb = rotated

    def remove(self):
        modeling_llama.apply_rotary_pos_emb = self.original


def steered(model, values, positions, ids):
    """The greedy continuation under a vector added to what the first block leaves."""
    seen = [0]
    v = STEER * values[f"{model.width('hook_resid_post')}.one"]

    def change(rows):
        first, seen[0] = seen[0], seen[0] + len(rows)
        if positions == "all":
            rows += v
        elif positions == "last":
            rows[-1] += v
        elif first == 0:
            for position in {position % len(rows) for position in positions}:
                rows[position] += v

    hooks = model.hooks("hook_resid_post", [0], change)
    made = model.model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    for hook in hooks:
        hook.remove()
    return made[0, len(ids):].tolist()


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    torch.manual_seed(7)
    out = pathlib.Path(sys.argv[1])
    os.makedirs(out, exist_ok=True)
    tensors, expected, cases, generations = {}, {}, {}, []
    for name in MODELS:
        model = Model(name)
        values = {}
        for width in sorted({model.width(site) for site in model.sites()}):
            values |= {f"{width}.one": torch.randn(width), f"{width}.two": torch.randn(2, width), f"{width}.three": torch.randn(3, width)}
        tensors |= {f"{name}.{key}": value for key, value in values.items()}
        listed, logits = [], []
        for site in model.sites():
            for op in OPS:
                layers = [0, 1] if op in ("add", "scale", "project_out") else [0]

                def change(rows):
                    rows[ROWS] = edited(rows[ROWS], op, values, model.width(site))

                hooks = model.hooks(site, layers, change)
                logits.append(model.model(input_ids=torch.tensor([IDS])).logits[0, ROWS].clone())
                for hook in hooks:
                    hook.remove()
                listed.append([site, op])
        expected[name] = torch.stack(logits)
        cases[name] = listed
        for positions in ["last", "all", [0, -1]]:
            made = [steered(model, values, positions, ids) for ids in PROMPTS]
            plain = [model.model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[0, len(ids):].tolist() for ids in PROMPTS]
            generations.append({"model": name, "positions": positions, "prompts": PROMPTS, "steered": made, "plain": plain})
    save_file(tensors, out / "values.safetensors", metadata={"format": "pt"})
    save_file(expected, out / "expected.safetensors", metadata={"format": "pt"})
    written = {"ids": IDS, "positions": [1, -1], "added": ADDED, "factor": FACTOR, "steer": STEER, "cases": cases, "generations": generations}
    (out / "cases.json").write_text(json.dumps(written, separators=(",", ":")) + "\n")


main()
