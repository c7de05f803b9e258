#!/usr/bin/env python3
"""Recomputes a probe's report with transformers and peft, and prints the largest differences.

    check_probe.py RUN/report.json --model DIR [--train FILE --test FILE]

Everything is computed again from the token ids of the plan, the base model and the saved adapters (`--save-adapters`):
each sequence alone, without packs, prefixes or caches, in f32 on weights rounded to the report's dtype. Compared are
all cosines of all layers with their baselines, accuracies, log-probabilities, the loss before the first and after the
last step, and the summary. With the data files (of several, separated by commas) the token ids are compared with
those that transformers' tokenizer gives the same texts. Exit code 1 if a difference is above the tolerance: 1e-4, or for
bf16 and f16 twice the largest that transformers' own computation in that dtype has (accuracies then do not count: of
two near answers either may win).
"""
import argparse, json, os, sys
import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def chacha8(key, words):
    """Words of the ChaCha8 stream (Bernstein 2008) with a 32-byte key, 64-bit counter and zero nonce."""
    blocks = -(-words // 16)
    start = np.zeros((16, blocks), np.uint32)
    start[:4] = np.frombuffer(b"expand 32-byte k", "<u4")[:, None]
    start[4:12] = np.frombuffer(key, "<u4")[:, None]
    start[12] = np.arange(blocks)
    x = start.copy()
    turn = lambda v, n: (v << np.uint32(n)) | (v >> np.uint32(32 - n))
    for _ in range(4):
        for a, b, c, d in [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                           (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]:
            for p, q, r, n in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)]:
                x[p] += x[q]
                x[r] = turn(x[r] ^ x[p], n)
    return (x + start).T.reshape(-1)[:words]


def gaussian(seed, layer, query, width):
    key = b"".join(int(v).to_bytes(8, "little") for v in (seed, layer, query, 0))
    words = chacha8(key, 4 * -(-width // 2)).astype(np.uint64)
    u = ((words[0::2] | (words[1::2] << np.uint64(32))) >> np.uint64(11)).astype(np.float64) / 2.0**53
    p, q = 1 - u[0::2], u[1::2]
    r = np.sqrt(-2 * np.log(p))
    return np.stack([r * np.cos(2 * np.pi * q), r * np.sin(2 * np.pi * q)], 1).reshape(-1)[:width]


def cosine(x, y):
    n = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return np.divide((x * y).sum(-1), n, out=np.zeros_like(n), where=n > 0)


class Reader:
    """Last-token states and log-probabilities of one sequence at a time."""

    def __init__(self, model):
        self.model, self.states = model, []
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        for module in [*base.model.layers, base.model.norm]:
            module.register_forward_hook(self.keep)

    def keep(self, module, inputs, output):
        output = output[0] if isinstance(output, tuple) else output
        self.states.append(output[0, -1].double().numpy())

    @torch.no_grad()
    def forward(self, ids):
        self.states.clear()
        logits = self.model(input_ids=torch.tensor([ids])).logits[0, -len(ids):]  # a soft prompt's rows come first
        return np.stack(self.states), torch.log_softmax(logits.double(), -1)

    def log_prob(self, ids, scored):
        log_probs = self.forward(ids)[1]
        return sum(log_probs[i - 1, ids[i]].item() for i in range(len(ids) - scored, len(ids)))

    def arm(self, prompts):
        """`prompts`: (ids, answers). Returns states [layers, queries, width] and log-probabilities [queries][answers]."""
        states = np.stack([self.forward(ids)[0] for ids, _ in prompts], 1)
        after = lambda ids, a: ids[: len(ids) - a["replaces"]] + a["token_ids"]
        return states, [[self.log_prob(after(ids, a), a["scored"]) for a in answers] for ids, answers in prompts]


def mean_sd(values):
    values = [v for v in values if v is not None]
    return {"mean": float(np.mean(values)) if values else None,
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def compare(worst, name, found, expected):
    """Walks both, keeps the largest difference (relative where the value is above 1) under `name`."""
    if isinstance(expected, dict):
        for key in expected:
            compare(worst, name, found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected), (name, len(found), len(expected))
        for f, e in zip(found, expected):
            compare(worst, name, f, e)
    elif expected is None or isinstance(expected, str):
        assert found == expected, (name, found, expected)
    else:
        worst[name] = max(worst.get(name, 0.0), abs(found - expected) / max(1.0, abs(expected)))


def layers(anchor, icl, it, seed):
    out = []
    for l in range(len(anchor)):
        a, c, t = anchor[l], icl[l], it[l]
        u, v = c - a, t - a
        n, width = a.shape
        noise = np.stack([gaussian(seed, l, i, width) for i in range(n)])
        others = [cosine(np.repeat(u[i : i + 1], n - 1, 0), np.delete(v, i, 0)).mean() for i in range(n)] if n > 1 else []
        out.append({"layer": "final" if l == len(anchor) - 1 else l, "icl_it": mean_sd(cosine(c, t)),
                    "anchor_icl": mean_sd(cosine(a, c)), "anchor_it": mean_sd(cosine(a, t)), "update": mean_sd(cosine(u, v)),
                    "update_gaussian": mean_sd(cosine(u, noise)), "update_shuffled": mean_sd(others)})
    return out


def lengths(report, prompts):
    """By what the log-probabilities of each query's answers are divided before they are compared."""
    by, plan = report["settings"].get("length_normalization", "none"), report["plan"]
    of = {"none": lambda text: 1, "characters": len, "bytes": lambda text: len(text.encode())}
    if by == "tokens":
        return [[a["scored"] for a in answers] for _, answers in prompts]
    texts = [plan["labels"] or q.get("choices") or q["answers"] for q in plan["queries"]]
    return [[of[by](text) for text in all] for all in texts]


def scores(log_probs, lengths, right, closed):
    chosen = [np.argmax(np.array(l) / n) for l, n in zip(log_probs, lengths)]
    hits = [c == r for c, r in zip(chosen, right)]
    return float(np.mean(hits)) if closed else None, float(np.mean([l[r] for l, r in zip(log_probs, right)]))


def loss(reader, lessons):
    labels = [sum(label != -100 for label in lesson["labels"]) for lesson in lessons]
    return -sum(reader.log_prob(lesson["input_ids"], n) for lesson, n in zip(lessons, labels)) / sum(labels)


def check_tokens(report, model, train, test):
    """The plan's ids are those of the whole texts."""
    tok = AutoTokenizer.from_pretrained(model)
    ids = lambda text: tok(text).input_ids
    settings, plan = report["settings"], report["plan"]
    query, answer = settings["template"]["query"], settings["template"]["answer"]

    def load(names):
        lines = [open(name, encoding="utf-8").read().splitlines() for name in names.split(",")]
        if settings["task"] == "sst2":
            rows = [line.split("\t") for line in lines[0][1:]]
            return [(s.strip(), ["negative", "positive"][int(y)]) for s, y in rows]
        return [(a.strip(), b.strip()) for a, b in zip(*lines)]

    ask = lambda e: query.replace("{input}", e[0])
    pool, queries = load(train), load(test)
    asked = [queries[q["index"]] for q in plan["queries"]]
    outputs = lambda e: plan["labels"] or [e[1]]
    whole = lambda text, e: [ids(text + answer.rstrip().replace("{output}", o)) for o in outputs(e)]
    after = lambda prompt, answers: [prompt[: len(prompt) - a["replaces"]] + a["token_ids"] for a in answers]
    checked = 0
    for q, e in zip(plan["queries"], asked):
        assert q["token_ids"] == ids(ask(e)), f"query {q['index']}"
        assert after(q["token_ids"], q["answers"]) == whole(ask(e), e) and outputs(e)[q["right"]] == e[1]
        checked += 1
    for s in plan["seeds"]:
        shown = [pool[d] for d in s["demonstrations"]]
        assert not {d[0] for d in shown} & {e[0] for e in asked}, "a query is a demonstration"
        before = "".join(ask(d) + answer.replace("{output}", d[1]) for d in shown)
        for suffix, answers, e in zip(s["icl_suffix_token_ids"], s["icl_answers"], asked):
            prompt = s["icl_prefix_token_ids"] + suffix
            assert prompt == ids(before + ask(e)) and after(prompt, answers) == whole(before + ask(e), e)
            checked += 1
        for i, (lesson, d) in enumerate(zip(s.get("ipt_train", []), shown)):
            others = "".join(ask(o) + answer.replace("{output}", o[1]) for o in shown[:i] + shown[i + 1 :])
            assert lesson["input_ids"] == ids(others + ask(d) + answer.rstrip().replace("{output}", d[1]))
            checked += 1
        for lesson, d in zip(s["train"], shown):
            assert lesson["input_ids"] == ids(ask(d) + answer.rstrip().replace("{output}", d[1]))
            scored = len(lesson["input_ids"]) - lesson["labels"].count(-100)
            # As in LLaMA's convention, a label's word with its leading space is what the last tokens spell.
            assert tok.decode(lesson["input_ids"][-scored:]).strip() == d[1].strip(), d
            checked += 1
    print(f"token ids: {checked} texts, all equal")


def computed(report, directory, load):
    """Everything of the report beside the same from the models that `load` gives: (name, found, expected)."""
    plan = report["plan"]
    closed = any(len(q["answers"]) > 1 for q in plan["queries"])
    alone = [(q["token_ids"], q["answers"]) for q in plan["queries"]]
    right = [q["right"] for q in plan["queries"]]
    base = Reader(load())
    anchor, anchor_log_probs = base.arm(alone)
    whole_batch = report["settings"]["batch_size"] is None
    for seed, found in zip(plan["seeds"], report["seeds"]):
        shown = [(seed["icl_prefix_token_ids"] + s, x) for s, x in zip(seed["icl_suffix_token_ids"], seed["icl_answers"])]
        icl, icl_log_probs = base.arm(shown)
        tuned = Reader(PeftModel.from_pretrained(load(), os.path.join(directory, found["adapter"])).eval())
        it, it_log_probs = tuned.arm(alone)
        for rows, expected in zip(found["layers"], layers(anchor, icl, it, seed["seed"])):
            for key in expected:
                yield key, rows[key], expected[key]
        for arm, log_probs in (("anchor", anchor_log_probs), ("icl", icl_log_probs), ("it", it_log_probs)):
            accuracy, log_prob = scores(log_probs, lengths(report, shown if arm == "icl" else alone), right, closed)
            yield "accuracy", found["accuracy"][arm], accuracy
            yield "log_prob", found["log_prob"][arm], log_prob
        if found["loss"] and whole_batch:
            yield "first loss", found["loss"][0], loss(base, seed["train"])
        yield "final loss", found["final_loss"], loss(tuned, seed["train"])
        whole = [(icl, "icl"), (it, "it")]
        for arm in found.get("soft", []):
            soft = Reader(PeftModel.from_pretrained(load(), os.path.join(directory, arm["adapter"])).eval())
            states, log_probs = soft.arm(alone if arm["arm"] == "pt" else shown)
            for rows, pairs in zip(arm["layers"], zip(*(layers(anchor, other, states, seed["seed"]) for other, _ in whole))):
                assert [pair["with"] for pair in rows["pairs"]] == [name for _, name in whole]
                yield "soft anchor", rows["anchor"], pairs[0]["anchor_it"]
                for pair, expected in zip(rows["pairs"], pairs):
                    for key, name in (("cosine", "icl_it"), ("update", "update"), ("update_shuffled", "update_shuffled")):
                        yield f"soft {key}", pair[key], expected[name]
            accuracy, log_prob = scores(log_probs, lengths(report, alone if arm["arm"] == "pt" else shown), right, closed)
            yield "soft accuracy", arm["accuracy"], accuracy
            yield "soft log_prob", arm["log_prob"], log_prob
            yield "soft final loss", arm["final_loss"], loss(soft, seed["train" if arm["arm"] == "pt" else "ipt_train"])
            whole.append((states, arm["arm"]))


def summed(report):
    """The summary beside what the seeds say: (found, expected)."""
    seeds, summary = report["seeds"], report["summary"]
    over = lambda get: mean_sd([get(s) for s in seeds])
    for arm in ("anchor", "icl", "it"):
        yield summary["accuracy"][arm], over(lambda s: s["accuracy"][arm])
        yield summary["log_prob"][arm], over(lambda s: s["log_prob"][arm])
    yield summary["loss"], [over(lambda s: s["loss"][i]) for i in range(len(seeds[0]["loss"]))]
    yield from means(summary["layers"], [s["layers"] for s in seeds])


def means(summary, seeds):
    """Every mean below `summary` beside that of the same place in all `seeds`."""
    if isinstance(summary, list):
        for i, entry in enumerate(summary):
            yield from means(entry, [s[i] for s in seeds])
    elif isinstance(summary, dict) and "mean" in summary:
        yield summary, mean_sd([s["mean"] for s in seeds])
    elif isinstance(summary, dict):
        for key, entry in summary.items():
            yield from means(entry, [s[key] for s in seeds])
    else:
        assert all(s == summary for s in seeds), (summary, seeds)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("report")
    p.add_argument("--model", required=True)
    p.add_argument("--train")
    p.add_argument("--test")
    p.add_argument("--tolerance", type=float, help="in the place of the default")
    a = p.parse_args()
    torch.set_num_threads(1)  # sequences are short and alone
    report, directory = json.load(open(a.report)), os.path.dirname(a.report)
    if a.train and a.test:
        check_tokens(report, a.model, a.train, a.test)
    dtype = DTYPES[report["dtype"]]
    low = report["dtype"] in ("bf16", "f16")
    load = lambda: AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).to(dtype).float().eval()
    worst, own, summary = {}, {}, {}
    expected = list(computed(report, directory, load))
    for entry in expected:
        compare(worst, *entry)
    for entry in summed(report):
        compare(summary, "summary", *entry)
    assert summary["summary"] < 1e-9, summary
    tolerance, why = a.tolerance or 1e-4, ""
    if low:
        in_dtype = lambda: AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype).eval()
        for (name, _, exact), (_, _, peer) in zip(expected, computed(report, directory, in_dtype)):
            compare(own, name, peer, exact)
        worst, own = ({k: v for k, v in kinds.items() if "accuracy" not in k} for kinds in (worst, own))
        if not a.tolerance:
            tolerance, why = 2 * max(own.values()), f" (twice transformers' own in {report['dtype']})"
    for name, kinds in (("found", worst), ("transformers' own", own)):
        if kinds:
            print(f"{name}: " + ", ".join(f"{k} {v:.1e}" for k, v in kinds.items()))
    largest = max(worst.values())
    print(f"largest difference {largest:.2e} ({max(worst, key=worst.get)}), tolerance {tolerance:.2e}{why}")
    sys.exit(largest > tolerance)


if __name__ == "__main__":
    main()
