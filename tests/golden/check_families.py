#!/usr/bin/env python3
"""Every family of RMS norms, caps, windows and parallel blocks against transformers and peft, live, on random checkpoints.

    check_families.py BINARY [NAME...]     # needs torch, transformers, peft, safetensors

For each model, in this order:
- capture in f32: states, final norm, logits; largest difference as a share of the largest magnitude, at most 2e-5; a
  sequence alone has the same bytes as in a pack;
- capture in bf16: the same differences from f32, at most twice transformers' own in bf16;
- 64 greedy tokens from prompts on both sides of a window, the same as transformers' with its cache;
- capture in f32 with a random prefix: logits as peft's, within 2e-5;
- LoRA on every linear module and a soft prompt, twelve steps from peft's start: losses within 1e-5 relative, final
  tensors within twice the distance (Euclidean, over all elements) of peft's f32 from peft's f64; peft loads what was
  written and gives the same logits.
Exits 1 if anything is beyond.
"""
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings

import torch
import transformers as T
from peft import LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

LIMIT = 2e-5
STEPS = 12
SEEDS = [2, 3, 4]
# Large enough that the sign of a gradient of almost nothing decides nothing.
EPS = 1e-4
SITES = "blocks.0.hook_resid_pre,resid_post,hidden_states[{depth}],logits"
BASE = dict(vocab_size=331, intermediate_size=100, num_hidden_layers=4, max_position_embeddings=512, bos_token_id=1, eos_token_id=None, pad_token_id=None)
WINDOWS = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
ROPES = {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}, "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8.0, "beta_slow": 1.0}
LONG = {"rope_type": "longrope", "rope_theta": 1000.0, "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5], "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 9.0]}


def models():
    """Class, configuration, linear modules, longest sequence."""
    seven = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    starcoder = ["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"]
    gptj = ["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"]
    phi = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
    gemma = dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=24, query_pre_attn_scalar=20, sliding_window=9)
    return {
        "qwen3": (T.Qwen3ForCausalLM, T.Qwen3Config(**BASE, hidden_size=60, num_attention_heads=6, num_key_value_heads=2, head_dim=14, tie_word_embeddings=True), seven, 200),
        "qwen3-window": (T.Qwen3ForCausalLM, T.Qwen3Config(**BASE, hidden_size=64, num_attention_heads=4, num_key_value_heads=4, head_dim=16, attention_bias=True, use_sliding_window=True,
                                                          sliding_window=11, max_window_layers=1, tie_word_embeddings=False), seven, 200),
        "gemma2": (T.Gemma2ForCausalLM, T.Gemma2Config(**BASE, **gemma, attn_logit_softcapping=3.0, final_logit_softcapping=4.0), seven, 200),
        "gemma2-wide-uncapped": (T.Gemma2ForCausalLM, T.Gemma2Config(**BASE, hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=256, attn_logit_softcapping=None,
                                                                    final_logit_softcapping=None, sliding_window=70, tie_word_embeddings=False), seven, 200),
        "gemma3": (T.Gemma3ForCausalLM, T.Gemma3TextConfig(**BASE, **gemma, layer_types=WINDOWS, rope_parameters=ROPES), seven, 200),
        "gemma3-capped": (T.Gemma3ForCausalLM, T.Gemma3TextConfig(**BASE, **gemma, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, tie_word_embeddings=False), seven, 200),
        # The text part; capture, generation and adapters of texts do not touch the images' part.
        "gemma3-images": (T.Gemma3ForConditionalGeneration, T.Gemma3Config(text_config=T.Gemma3TextConfig(**BASE, **gemma, layer_types=WINDOWS), mm_tokens_per_image=1, image_token_index=330,
                                                                          vision_config=dict(hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, image_size=4, patch_size=2)),
                          r"model\.language_model\..*_proj", 200),
        "olmo2": (T.Olmo2ForCausalLM, T.Olmo2Config(**BASE, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False), seven, 200),
        "olmo2-mha-tied": (T.Olmo2ForCausalLM, T.Olmo2Config(**BASE, hidden_size=60, num_attention_heads=5, attention_bias=True, tie_word_embeddings=True), seven, 200),
        "olmo3": (T.Olmo3ForCausalLM, T.Olmo3Config(**BASE, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, sliding_window=9, layer_types=WINDOWS,
                                                   rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}, "full_attention": YARN}), seven, 200),
        "neox": (T.GPTNeoXForCausalLM, T.GPTNeoXConfig(**BASE, hidden_size=64, num_attention_heads=4, rotary_pct=0.25), ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], 200),
        "neox-sequential": (T.GPTNeoXForCausalLM, T.GPTNeoXConfig(**BASE, hidden_size=60, num_attention_heads=3, rotary_pct=0.4, use_parallel_residual=False, tie_word_embeddings=True,
                                                                 attention_bias=False), ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], 200),
        "gptj": (T.GPTJForCausalLM, T.GPTJConfig(vocab_size=331, n_embd=64, n_inner=100, n_layer=4, n_head=4, n_positions=512, rotary_dim=12, bos_token_id=1, eos_token_id=None), gptj, 200),
        "starcoder2": (T.Starcoder2ForCausalLM, T.Starcoder2Config(**BASE, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, sliding_window=13), starcoder, 200),
        "stablelm": (T.StableLmForCausalLM, T.StableLmConfig(**BASE, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, use_qkv_bias=True), seven, 200),
        "stablelm-parallel": (T.StableLmForCausalLM, T.StableLmConfig(**BASE, hidden_size=64, num_attention_heads=4, num_key_value_heads=4, partial_rotary_factor=0.5, use_parallel_residual=True), seven, 200),
        "smollm3": (T.SmolLM3ForCausalLM, T.SmolLM3Config(**BASE, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, no_rope_layers=[1, 0, 1, 0], tie_word_embeddings=False), seven, 200),
        "phi": (T.PhiForCausalLM, T.PhiConfig(**BASE, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, partial_rotary_factor=0.4), phi, 200),
        "phi3": (T.Phi3ForCausalLM, T.Phi3Config(**BASE, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, sliding_window=13), ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], 200),
        "phi3-long": (T.Phi3ForCausalLM, T.Phi3Config(**BASE, hidden_size=64, num_attention_heads=4, num_key_value_heads=4, original_max_position_embeddings=48, tie_word_embeddings=True,
                                                     rope_parameters={**LONG, "partial_rotary_factor": 0.75}), ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], 200),
    }


def make(kind, config, path, seed):
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = kind(config)
    with torch.no_grad():
        for key, w in model.named_parameters():
            if "norm" in key or "ln_" in key:
                centre = 0.0 if "gemma" in config.model_type or key.endswith("bias") else 1.0
                w.copy_(centre + 0.3 * torch.randn_like(w))
            else:
                w.copy_((0.3 if key.endswith("bias") else w.shape[-1] ** -0.5) * torch.randn_like(w))
    model.save_pretrained(path)
    try:
        os.remove(os.path.join(path, "generation_config.json"))
    except FileNotFoundError:
        pass


def load(path, dtype):
    return T.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def capture(binary, path, sequences, depth, out, dtype="f32"):
    lines = os.path.join(out, "input.jsonl")
    with open(lines, "w") as f:
        f.writelines(json.dumps({"input_ids": ids}) + "\n" for ids in sequences)
    run(binary, "capture", "--model", path, "--input", lines, "--sites", SITES.format(depth=depth), "--layers", "all", "--tokens", "all", "--dtype", dtype, "--device", "cpu", "--out", os.path.join(out, "acts"))
    return load_file(os.path.join(out, "acts", "activations.safetensors"))


def expected(model, sequences):
    """Streams, the final norm's output and logits, by our names; the last stream is not in hidden_states."""
    found = {}
    body = getattr(model, model.base_model_prefix)
    text = getattr(body, "language_model", body)
    blocks = text.h if hasattr(text, "h") else text.layers
    last = []
    hook = blocks[-1].register_forward_hook(lambda m, a, out: last.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        for ids in sequences:
            out = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
            states = [*out.hidden_states[:-1], last.pop()]
            parts = {"blocks.0.hook_resid_pre": states[0], "logits": out.logits, "final": out.hidden_states[-1]}
            parts |= {f"blocks.{i}.hook_resid_post": x for i, x in enumerate(states[1:])}
            for name, x in parts.items():
                found.setdefault(name, []).append(x[0].float())
    hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def named(got):
    """The final norm is whatever is neither a block's nor the logits."""
    final = [name for name in got if name.startswith("ln_final")]
    assert len(final) == 1, sorted(got)
    return {("final" if name == final[0] else name): x.float() for name, x in got.items() if name not in ("doc_id", "pos", "token_id")}


def apart(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def check_capture(binary, path, longest, note):
    reference = load(path, torch.float32)
    config = reference.config.get_text_config()
    g = torch.Generator().manual_seed(0)
    lengths = [1, 2, 17, longest, 64, 30, longest // 2]
    sequences = [torch.randint(3, config.vocab_size, (n,), generator=g).tolist() for n in lengths]
    want = expected(reference, sequences)
    with tempfile.TemporaryDirectory() as out:
        got = named(capture(binary, path, sequences, config.num_hidden_layers, out))
    assert want.keys() == got.keys(), (want.keys(), got.keys())
    worst = max((apart(got[name], want[name]), name) for name in want)
    note("f32", worst[0], LIMIT, worst[1])
    start, same = 0, True
    for ids in sequences:
        with tempfile.TemporaryDirectory() as out:
            alone = named(capture(binary, path, [ids], config.num_hidden_layers, out))
        same &= all(torch.equal(alone[k], got[k][start:start + len(ids)]) for k in got)
        start += len(ids)
    note("alone, other bits", 0.0 if same else 1.0, 0.0, "")
    theirs = expected(load(path, torch.bfloat16), sequences)
    with tempfile.TemporaryDirectory() as out:
        ours = named(capture(binary, path, sequences, config.num_hidden_layers, out, "bf16"))
    rms = lambda x: x.pow(2).mean().sqrt().item()
    ratio = max((rms(ours[name] - want[name]) / rms(theirs[name] - want[name]), name) for name in want if rms(theirs[name] - want[name]) > 0)
    note("bf16, of transformers' error", ratio[0], 2.0, ratio[1])


def check_generation(binary, path, note):
    model = load(path, torch.float32)
    g = torch.Generator().manual_seed(1)
    wrong = 0
    for n in (3, 12, 40, 46):
        ids = torch.randint(3, model.config.get_text_config().vocab_size, (n,), generator=g)
        with torch.no_grad():
            theirs = model.generate(ids[None], attention_mask=torch.ones(1, n, dtype=torch.long), max_new_tokens=64, do_sample=False)[0, n:].tolist()
        with tempfile.TemporaryDirectory() as out:
            lines = os.path.join(out, "prompt.jsonl")
            with open(lines, "w") as f:
                f.write(json.dumps({"input_ids": ids.tolist()}) + "\n")
            rows = json.loads(run(binary, "generate", "--model", path, "--input", lines, "--max-new-tokens", "64", "--dtype", "f32", "--device", "cpu", "--json"))
        ours = find_ids(rows)
        wrong += ours != theirs
    note("generations that differ", wrong, 0, "")


def check_prefix(binary, path, note):
    torch.manual_seed(4)
    model = get_peft_model(load(path, torch.float32), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with torch.no_grad():
        for name, w in model.named_parameters():
            if "prompt_encoder" in name:
                w.normal_(0.0, 0.5)
    g = torch.Generator().manual_seed(5)
    worst = 0.0
    with tempfile.TemporaryDirectory() as out:
        model.save_pretrained(os.path.join(out, "prefix"))
        for n in (1, 5, 40):
            ids = torch.randint(3, model.config.get_text_config().vocab_size, (n,), generator=g)
            with torch.no_grad():
                logits = model(input_ids=ids[None]).logits[0]
            lines = os.path.join(out, "input.jsonl")
            with open(lines, "w") as f:
                f.write(json.dumps({"input_ids": ids.tolist()}) + "\n")
            run(binary, "capture", "--model", path, "--adapter", os.path.join(out, "prefix"), "--input", lines, "--sites", "logits", "--tokens", "all", "--dtype", "f32", "--device", "cpu", "--out", os.path.join(out, f"a{n}"))
            got = load_file(os.path.join(out, f"a{n}", "activations.safetensors"))
            worst = max(worst, apart(got["logits"][got["token_id"] >= 0], logits))
    note("prefix", worst, LIMIT, "")


def find_ids(rows):
    row = rows[0] if isinstance(rows, list) else rows
    while "new_ids" not in row and "token_ids" not in row and "ids" not in row:
        row = next(v[0] if isinstance(v, list) else v for v in row.values() if isinstance(v, (list, dict)))
    return row.get("new_ids") or row.get("token_ids") or row.get("ids")


def sequences(g, config):
    vocab, longest = config.vocab_size, getattr(config, "max_position_embeddings", 1 << 20)
    rand = lambda lo, hi, n: torch.randint(lo, hi, (n,), generator=g).tolist()
    data = []
    for i in range(8):
        ids = ([1] + rand(3, vocab, 4 + 3 * i))[:longest]
        first = 1 + rand(0, len(ids) - 1, 1)[0]
        data.append(dict(input_ids=ids, labels=[-100] * first + ids[first:]))
    return data


def peft_training(path, init, data, dtype, rate):
    config = PeftConfig.from_pretrained(init)
    config.inference_mode = False
    model = get_peft_model(load(path, dtype), config, autocast_adapter_dtype=False)
    set_peft_model_state_dict(model, load_file(os.path.join(init, "adapter_model.safetensors")))
    model = model.to(dtype).train()
    params = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=rate, weight_decay=0.0, eps=EPS, foreach=False)
    losses = []
    for step in range(STEPS):
        # One by one: rows of padding that a window hides altogether are not numbers in f64.
        batch = [data[(4 * step + i) % len(data)] for i in range(4)]
        count = sum(label != -100 for row in batch for label in row["labels"])
        losses.append(0.0)
        for row in batch:
            ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
            loss = model(input_ids=ids, labels=labels).loss * ((labels != -100).sum() / count)
            loss.backward()
            losses[-1] += loss.item()
        optimizer.step(), optimizer.zero_grad()
    return losses, model


def check_training(binary, path, kind, peft_config, note, rate=1e-2):
    """Over some starts and data, of the distances the median: what a single one differs by is the luck of few elements."""
    found = [train(binary, path, kind, peft_config, seed, rate) for seed in SEEDS]
    ratios = sorted(off / gap for gap, off, *_ in found)
    note(f"{kind} losses", max(losses for _, _, (losses, _), *_ in found), 1e-5, f"peft's f32 from its f64: {max(own for _, _, (_, own), *_ in found):.2g}")
    note(f"{kind} tensors, of peft's own gap", ratios[len(ratios) // 2], 2.0, f"{ratios[0]:.2g} to {ratios[-1]:.2g}")
    note(f"{kind} loaded by peft", max(loaded for *_, loaded, _ in found), LIMIT, "")
    strays = sorted({stray for *_, strays in found for stray in strays})
    note(f"{kind} tensors that peft lacks or does not know", len(strays), 0, ", ".join(strays))


def train(binary, path, kind, peft_config, seed, rate):
    """Distances of peft's f32 and of ours from peft's f64, of our losses from peft's, and of logits of what was written."""
    data = sequences(torch.Generator().manual_seed(seed), load(path, torch.float32).config.get_text_config())
    with tempfile.TemporaryDirectory() as out:
        torch.manual_seed(100 + seed)
        model = get_peft_model(load(path, torch.float32), peft_config)
        for n, w in model.named_parameters():
            if "lora_B" in n or "lora_embedding_A" in n:
                torch.nn.init.normal_(w, 0.0, 0.05)
            if "lora_magnitude_vector" in n:
                w.data.mul_(1 + 0.1 * torch.randn_like(w))
            if "ia3_l" in n:
                torch.nn.init.normal_(w, 1.0, 0.2)
            if "prompt_encoder" in n:
                torch.nn.init.normal_(w, 0.0, 0.3)
        init, trained, lines = (os.path.join(out, name) for name in ("init", "trained", "train.jsonl"))
        model.save_pretrained(init)
        with open(lines, "w") as f:
            f.writelines(json.dumps(row) + "\n" for row in data)
        shared = ["--model", path, "--train", lines, "--out", trained, "--init-adapter", init, "--no-shuffle", "--batch-size", "4", "--max-steps", str(STEPS), "--learning-rate", str(rate),
                  "--lr-scheduler-type", "constant", "--warmup-ratio", "0", "--weight-decay", "0", "--max-grad-norm", "0", "--adam-epsilon", str(EPS), "--logging-steps", "1", "--dtype", "f32", "--device", "cpu"]
        run(binary, *{"lora": ["train-lora"], "ia3": ["train-lora", "--peft-type", "ia3"], "prompt": ["train-prompt"]}[kind], *shared)
        losses, reference = peft_training(path, init, data, torch.float32, rate)
        in_f64, exact = peft_training(path, init, data, torch.float64, rate)
        where = next(d for d, _, names in os.walk(trained) if "adapter_config.json" in names)
        log = next(os.path.join(d, "trainer_log.jsonl") for d, _, names in os.walk(trained) if "trainer_log.jsonl" in names)
        rows = [json.loads(line) for line in open(log)]
        ours = [row["loss"] for row in rows if "loss" in row]
        assert len(ours) == STEPS, len(ours)
        apart_by = lambda a: max(abs(x - y) / abs(y) for x, y in zip(a, losses))
        worst = (apart_by(ours), apart_by(in_f64))
        for name, model in (("f32", reference), ("f64", exact)):
            model.save_pretrained(os.path.join(out, name))
        found, theirs, best = (load_file(os.path.join(d, "adapter_model.safetensors")) for d in (where, os.path.join(out, "f32"), os.path.join(out, "f64")))
        assert found.keys() == theirs.keys(), found.keys() ^ theirs.keys()
        distance = lambda x: sum((x[k].double() - best[k].double()).pow(2).sum().item() for k in best) ** 0.5
        gap, off = distance(theirs), distance(found)
        again, strays = loaded_by_peft(path, where)
        ids = torch.tensor([data[5]["input_ids"]])
        with torch.no_grad():
            logits = again(input_ids=ids).logits[0, -ids.shape[1]:]
        with tempfile.TemporaryDirectory() as acts:
            lines = os.path.join(acts, "input.jsonl")
            with open(lines, "w") as f:
                f.write(json.dumps({"input_ids": data[5]["input_ids"]}) + "\n")
            run(binary, "capture", "--model", path, "--adapter", where, "--input", lines, "--sites", "logits", "--tokens", "all", "--dtype", "f32", "--device", "cpu", "--out", os.path.join(acts, "a"))
            got = load_file(os.path.join(acts, "a", "activations.safetensors"))
            mine = got["logits"][got["token_id"] >= 0]
        return gap, off, worst, apart(mine, logits), strays


def loaded_by_peft(path, adapter):
    """The model with an adapter, and what peft lacks or does not know of its tensors."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(load(path, torch.float32), adapter).eval()
    strays = [str(w.message) for w in said if re.search("missing|unexpected|ignored", str(w.message))]
    # Of keys that it does not know peft says nothing.
    again = get_peft_model(load(path, torch.float32), PeftConfig.from_pretrained(adapter))
    result = set_peft_model_state_dict(again, load_file(os.path.join(adapter, "adapter_model.safetensors")))
    # A tied head has the parameter of the table, under two names.
    state = again.state_dict()
    filled = {w.data_ptr() for key, w in state.items() if key not in result.missing_keys}
    missing = [key for key in result.missing_keys if "default" in key and state[key].data_ptr() not in filled]
    return model, strays + result.unexpected_keys + missing


def main():
    binary, wanted = sys.argv[1], sys.argv[2:]
    torch.set_num_threads(1)
    T.utils.logging.disable_progress_bar()
    T.utils.logging.set_verbosity_error()
    failed = []
    for seed, (name, (kind, config, linear, longest)) in enumerate(models().items()):
        if wanted and name not in wanted:
            continue

        def note(what, found, limit, where):
            ok = found <= limit
            print(f"{name}: {what} {found:.2g} (limit {limit:g}) {where}{'' if ok else '  FAILED'}", flush=True)
            failed.extend([] if ok else [f"{name}: {what}"])

        with tempfile.TemporaryDirectory() as path:
            make(kind, config, path, seed)
            check_capture(binary, path, longest, note)
            check_generation(binary, path, note)
            check_prefix(binary, path, note)
            check_training(binary, path, "lora", LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=linear), note)
            check_training(binary, path, "prompt", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), note)
    sys.exit("\n".join(failed) if failed else 0)


if __name__ == "__main__":
    main()
