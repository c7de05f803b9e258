#!/usr/bin/env python3
"""Recomputes a study's report with transformers and peft, and prints the largest differences.

    check_study.py RUN/report.json --model DIR    # of a study with --dtype f32

Everything is computed again from the token ids of each condition's plan, the base model and the saved adapters
(`--save-adapters`), each sequence alone in f32, without packs, prefixes, caches or trees of answers:

- states at the position that was asked for, and of them all cosines and every measure of every pair of arms with its
  baselines, by the formulas of measures.py;
- patching, by hooks that replace a layer's output: every layer and vector, with what it recovers;
- the logit lens, direct logit attribution, SimAOU, SimAM, answers (agreement, KL divergence, entropy, calibration, Rec2FTP), overlaps of LoRA updates,
  principal components, examples;
- the summaries over the seeds.

Of further arms (`--arms`) nothing is computed again, nor are the principal components, which are of all arms together.

Exit code 1 if a difference is above the tolerance: 1e-4, and 1e-3 for measures of states, which magnify the rounding of
the states; a measure that counts (`knn_overlap`, `svcca` at the direction where 99% of the variance is reached) may flip
by a step where two values are as good as equal, so that of those a hundredth of the values may be further off.
"""
import argparse, json, os, sys
from collections import defaultdict

import numpy as np
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

import measures
from check_probe import compare, cosine, gaussian, layers, lengths, mean_sd, scores

COUNTING = ("knn_overlap", "svcca")
after = lambda ids, a: ids[: len(ids) - a["replaces"]] + a["token_ids"]


rotated = []  # queries and keys of the layers of the newest pass, [heads, tokens, width of a head]
rotate = modeling_llama.apply_rotary_pos_emb


def remember(*args, **kwargs):
    found = rotate(*args, **kwargs)
    rotated.append([x[0].double().numpy() for x in found])
    return found


modeling_llama.apply_rotary_pos_emb = remember


class Reader:
    """States of all tokens of one sequence at a time, with or without a state put in."""

    def __init__(self, model):
        self.model, self.states, self.attention, self.mlp, self.patch = model, [], [], [], None
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        for layer, block in enumerate(self.base.model.layers):
            block.register_forward_hook(lambda m, i, o, layer=layer: self.after_block(layer, o))
            block.self_attn.register_forward_hook(lambda m, i, o: self.attention.append(o[0][0].double().numpy()))
            block.mlp.register_forward_hook(lambda m, i, o: self.mlp.append(o[0].double().numpy()))
        self.base.model.norm.register_forward_hook(lambda m, i, o: self.states.append(o[0].double().numpy()))

    def after_block(self, layer, output):
        out = output[0] if isinstance(output, tuple) else output
        if self.patch and self.patch[0] == layer:
            out = out.clone()
            out[0, self.patch[1]] = torch.tensor(self.patch[2], dtype=out.dtype)
        self.states.append(out[0].double().numpy())
        return (out, *output[1:]) if isinstance(output, tuple) else out

    @torch.no_grad()
    def read(self, ids, patch=None):
        """States [layers + 1, tokens, width], attention's outputs [layers, tokens, width], log-probabilities [tokens, V]."""
        self.states.clear(), self.attention.clear(), self.mlp.clear(), rotated.clear()
        self.patch = patch
        logits = self.model(input_ids=torch.tensor([ids])).logits[0]
        self.patch = None
        return np.stack(self.states), np.stack(self.attention), torch.log_softmax(logits.double(), -1).numpy()

    def answers(self, ids, answers, patch=None):
        """Log-probability of each answer; `patch` is a layer and the state of the token that predicts the answer."""
        out = []
        for a in answers:
            whole = after(ids, a)
            first = len(whole) - a["scored"]
            log_probs = self.read(whole, patch and (patch[0], first - 1, patch[1]))[2]
            out.append(sum(log_probs[i - 1, whole[i]] for i in range(first, len(whole))))
        return out

    def scores(self, ids, own):
        """Scores before the softmax of the last token over the last `own` tokens: [layers, heads, own]."""
        self.read(ids)
        of = lambda q, k: [q[h, -1] @ k[h * len(k) // len(q), -own:].T for h in range(len(q))]
        return np.array([of(q, k) for q, k in rotated])

    def terms(self, ids, tokens):
        """What attention and MLP of each layer add to the logits of some tokens, the final norm's scale kept."""
        last = self.read(ids)[0][-2, -1]
        norm, words = self.base.model.norm, self.base.lm_head.weight[tokens].double().detach().numpy()
        scale = norm.weight.double().detach().numpy() / np.sqrt(np.mean(last**2) + norm.variance_epsilon)
        return [[x[-1] * scale @ words.T for x in all] for all in (self.attention, self.mlp)]

    @torch.no_grad()
    def lens(self, state):
        logits = self.base.lm_head(self.base.model.norm(torch.tensor(state, dtype=torch.float32)[None, None]))
        return torch.log_softmax(logits[0, 0].double(), -1).numpy()


def own_tokens(plan, icl):
    """Of each query the last tokens that all its prompts share, and the tokens of its gold answer that all score."""
    query, answer = [], []
    for i, q in enumerate(plan["queries"]):
        n, scored = len(q["token_ids"]), q["answers"][q["right"]]["scored"]
        for prompts in icl:
            ids, answers = prompts[i]
            same = 0
            while same < min(n, len(ids)) and ids[len(ids) - 1 - same] == q["token_ids"][-1 - same]:
                same += 1
            n, scored = max(1, min(n, same)), min(scored, answers[q["right"]]["scored"])
        query.append(n), answer.append(scored)
    return query, answer


def arm_states(reader, position, plan, seed, prompts, own, in_context):
    """[layers + 1, rows, width] and [layers, rows, width] at the position."""
    if position == "demos":
        ids = seed.get("icl_demonstration_token_ids", []) if in_context else \
            [t["input_ids"][: t["labels"].count(-100)] for t in seed["train"]]
        read = [(reader.read(i), slice(len(i) - 1, len(i))) for i in ids]
    else:
        read = []
        for i, (q, (ids, answers)) in enumerate(zip(plan["queries"], prompts)):
            n = {"last": 1, "all": own[0][i], "mean": own[0][i], "label": own[1][i]}[position]
            whole = after(ids, answers[q["right"]]) if position == "label" else ids
            read.append((reader.read(whole), slice(len(whole) - n, len(whole))))
    rows = lambda x: x.mean(1, keepdims=True) if position == "mean" else x
    return [np.concatenate([rows(r[k][:, at]) for r, at in read], 1) for k in (0, 1)]


def state_measures(a, b, anchor, asked):
    """Of two arms; a measure that has no value is left out."""
    n, found = len(a), {}
    x, y = (a, b) if anchor is None else (a - anchor, b - anchor)
    varies = all(np.ptp(s, 0).max() > 0 for s in (a, b))
    knn = min(30, max(1, n // 4))
    norms = [np.linalg.norm(u, axis=1) for u in (x, y)]
    found["cosine"] = cosine(a, b).mean()
    if anchor is not None and norms[0].max() > 0 and norms[1].max() > 0:
        found["update"] = cosine(x, y).mean()
    if norms[0].min() > 0:
        found["norm_ratio"] = (norms[1] / norms[0]).mean()
    if varies:
        found |= {"cka": measures.cka(a, b), "svcca": measures.svcca(a, b)}
        if n >= 4:
            found["cka_debiased"] = measures.cka_debiased(a, b)
        if n > knn:
            found["knn_overlap"] = measures.knn_overlap(a, b, knn)
        if min(n - 1, a.shape[1]) >= 10:
            found["subspace_overlap"] = measures.subspace_overlap(a, b, 10)
        for name, s in (("id_a", a), ("id_b", b)):
            if len(np.unique(s, axis=0)) > 2:
                found[name] = measures.two_nn(s)
    return {k: v for k, v in found.items() if k.removesuffix("_a").removesuffix("_b") in asked}


def baselines(a, b, anchor, seed, layer, asked):
    n, width = a.shape
    noise = np.stack([gaussian(seed, layer, i, width) for i in range(n)])
    others = lambda u, v: np.mean([cosine(np.repeat(u[i : i + 1], n - 1, 0), np.delete(v, i, 0)).mean() for i in range(n)])
    grams = [measures.centred(s) @ measures.centred(s).T for s in (a, b)]
    shuffled = {"cosine": others(a, b), "cka_debiased": 0.0, "knn_overlap": min(30, max(1, n // 4)) / (n - 1),
                "cka": np.trace(grams[0]) * np.trace(grams[1]) / ((n - 1) * np.prod([np.linalg.norm(g) for g in grams]))}
    if anchor is not None:
        shuffled["update"] = others(a - anchor, b - anchor)
    rounded = noise.astype(np.float32).astype(np.float64)
    of_noise = state_measures(a, rounded, None, asked)
    of_noise.pop("norm_ratio", None), of_noise.pop("id_a", None)
    of_noise["cosine"] = cosine(a, noise).mean()
    if anchor is not None and np.any(a != anchor):
        of_noise["update"] = cosine(a - anchor, noise).mean()
    return {k: v for k, v in shuffled.items() if k in asked}, of_noise


def margins(logits, gold):
    return np.mean([row[g] - (sum(row) - row[g]) / (len(row) - 1) for row, g in zip(logits, gold)])


def outputs(log_probs, gold):
    p = {arm: [np.exp(np.array(row) - np.logaddexp.reduce(row)) for row in rows] for arm, rows in log_probs.items()}
    kl = lambda x, y: float(np.sum(x * np.log(x / y)))
    n = len(gold)
    for arm, rows in p.items():
        yield ("arms", arm), {"entropy": np.mean([-np.sum(r * np.log(r)) for r in rows]),
                              "calibration_error": measures.calibration_error(np.array(rows), np.array(gold))}
    for j, b in enumerate(p):
        for a in list(p)[:j]:
            x, y = p[a], p[b]
            answers = [[int(r.argmax()) for r in rows] for rows in (x, y)]
            pairs = [(i, k) for i in range(n) for k in range(n) if i != k]
            yield ("pairs", a, b), {"agreement": np.mean(np.equal(*answers)), "kl_divergence": np.mean(list(map(kl, x, y)))}
            yield ("shuffled", a, b), {"agreement": np.mean([answers[0][i] == answers[1][k] for i, k in pairs]),
                                       "kl_divergence": np.mean([kl(x[i], y[k]) for i, k in pairs])}
    right = {arm: [int(r.argmax()) == g for r, g in zip(rows, gold)] for arm, rows in p.items()}
    learned = [i for z, t, i in zip(right["anchor"], right["it"], right["icl"]) if t and not z]
    values = {"rec2ftp_shuffled": 100 * np.mean(right["icl"])}
    yield ("values",), {**values, **({"rec2ftp": 100 * np.mean(learned)} if learned else {})}


def vectors(seed, layer, anchor, icl, it, other):
    """What is put in at each query [queries, width], by its name."""
    n, width = anchor.shape
    mean = lambda arm: np.stack([np.delete(arm - anchor, q, 0).mean(0) for q in range(n)])
    noise = np.stack([gaussian(seed, layer, q, width) for q in range(n)])
    length = lambda x: np.linalg.norm(x, axis=1, keepdims=True)
    task = mean(icl)
    out = {"icl": icl, "it": it, "task_vector": anchor + task, "it_vector": anchor + mean(it),
           "random": anchor + noise * length(task) / length(noise)}
    return out if other is None else {**out, "other_task": anchor + mean(other)}


class Study:
    """What the conditions of a report have in common."""

    def __init__(self, report, directory, load):
        self.report, self.directory, self.load, self.base = report, directory, load, Reader(load())
        self.worst, self.off, self.seen = defaultdict(float), defaultdict(int), defaultdict(int)
        self.icl_states = {}

    def values(self, kind, found, expected):
        """Values by name; those of `expected` must be there, and no others."""
        assert set(found) == set(expected), (kind, sorted(found), sorted(expected))
        for name, value in expected.items():
            key, mean = f"{kind} {name}", found[name]["mean"]
            self.seen[key] += 1
            error = abs(mean - value) / max(1.0, abs(value))
            if name in COUNTING and error > 1e-3:
                self.off[key] += 1
                continue
            self.worst[key] = max(self.worst[key], error)

    def same(self, kind, found, expected):
        compare(self.worst, kind, found, expected)

    def condition(self, c):
        condition = self.report["conditions"][c]
        for s in range(len(condition["plan"]["seeds"])):
            self.seed(c, s)

    def prompts(self, c, s):
        seed = self.report["conditions"][c]["plan"]["seeds"][s]
        alone = [(q["token_ids"], q["answers"]) for q in self.report["conditions"][c]["plan"]["queries"]]
        shown = [(seed["icl_prefix_token_ids"] + x, a) for x, a in zip(seed["icl_suffix_token_ids"], seed["icl_answers"])]
        return alone, shown if seed["demonstrations"] else alone

    def of_other_task(self, c, s):
        """The states of ICL in the condition that has another source and the same settings otherwise."""
        bare = lambda x: {k: v for k, v in x["settings"].items() if k != "source"}
        own = self.report["conditions"][c]
        for k, other in enumerate(self.report["conditions"]):
            if other["settings"].get("source") != own["settings"].get("source") and bare(other) == bare(own):
                shown = self.prompts(k, s)[1]
                return np.stack([self.base.read(ids)[0][:, -1] for ids, _ in shown], 1)
        return None

    def seed(self, c, s):
        condition = self.report["conditions"][c]
        settings, plan, found = condition["settings"], condition["plan"], condition["seeds"][s]
        seed, position, asked = plan["seeds"][s], settings.get("position", "last"), settings.get("measures", [])
        alone, shown = self.prompts(c, s)
        own = own_tokens(plan, [self.prompts(c, k)[1] for k in range(len(plan["seeds"]))])
        gold = [q["right"] for q in plan["queries"]]
        tuned = Reader(PeftModel.from_pretrained(self.load(), os.path.join(self.directory, found["adapter"])).eval())
        arms = {"anchor": (self.base, alone), "icl": (self.base, shown), "it": (tuned, alone)}
        states, attention, log_probs = {}, {}, {}
        for arm, (reader, prompts) in arms.items():
            in_context = arm == "icl" and bool(seed["demonstrations"])
            states[arm], attention[arm] = arm_states(reader, position, plan, seed, prompts, own, in_context)
            log_probs[arm] = [reader.answers(ids, answers) for ids, answers in prompts]
            accuracy, log_prob = scores(log_probs[arm], lengths(condition, prompts), gold, any(len(q["answers"]) > 1 for q in plan["queries"]))
            self.same("accuracy", found["accuracy"][arm], accuracy)
            self.same("log_prob", found["log_prob"][arm], log_prob)
        for rows, expected in zip(found["layers"], layers(*states.values(), seed["seed"])):
            for key in expected:
                self.same(f"{position} {key}", rows[key], expected[key])
        self.states(found, states, seed["seed"], asked)
        words = [[a["token_ids"][len(a["token_ids"]) - a["scored"]] for a in q["answers"]] for q in plan["queries"]]
        apart = position == "last" and all(len(set(w)) == len(w) for w in words)
        if "logit_lens" in asked and apart:
            self.lens(found, plan, states, gold)
        if "attribution" in asked and apart:
            for arm, (reader, prompts) in arms.items():
                terms = [reader.terms(ids, w) for (ids, _), w in zip(prompts, words)]
                for l, layer in enumerate(found["layers"][:-1]):
                    values = next(r["values"] for r in layer["readouts"] if r["arm"] == arm)
                    for k, name in enumerate(("attention_attribution", "mlp_attribution")):
                        self.same(name, values[name]["mean"], margins([t[k][l] for t in terms], gold))
        if "sim_am" in asked and position == "last":
            zero, icl, it = ([reader.scores(ids, n) for (ids, _), n in zip(prompts, own[0])] for reader, prompts in arms.values())
            for l, layer in enumerate(found["layers"][:-1]):
                for name, other in (("sim_am", icl), ("sim_am_zero_shot", zero)):
                    expected = np.mean([cosine(x[l], y[l]) for x, y in zip(other, it)])
                    self.same(name, layer["attention"][name]["mean"], expected)
        if "sim_aou" in asked:
            self.sim_aou(found, attention, seed["seed"])
        if "outputs" in asked:
            self.outputs(found["outputs"], log_probs, gold)
        if settings.get("patch"):
            self.patching(c, s, alone, states, log_probs, gold)
        if (c, s) == (0, 0):
            self.pca(states)
            for example in self.report["examples"]:
                for answer in (answer for answer in example["answers"] if answer["arm"] in log_probs):
                    self.same("examples", answer["log_probs"], log_probs[answer["arm"]][example["query"]])

    def states(self, found, states, seed, asked):
        for l, layer in enumerate(found["layers"]):
            for pair in layer.get("measures", []):
                if not set(pair["arms"]) <= set(states):
                    continue
                a, b = (states[arm][l].astype(np.float32).astype(np.float64) for arm in pair["arms"])
                anchor = None if pair["arms"][0] == "anchor" else states["anchor"][l]
                expected = state_measures(a, b, anchor, asked)
                if pair["arms"] == ["icl", "it"]:
                    for name in set(expected) - {"update"}:
                        assert layer[name] == pair["values"][name], name
                self.values("measure", pair["values"], expected)
                shuffled, of_noise = baselines(a, b, anchor, seed, l, asked)
                drawn = {k: v for k, v in pair["shuffled"].items() if k in ("svcca", "norm_ratio")}
                for name in ("cka", "cka_debiased", "knn_overlap", "update"):
                    if name not in expected:
                        shuffled.pop(name, None)
                self.values("shuffled", {k: v for k, v in pair["shuffled"].items() if k not in drawn}, shuffled)
                self.values("gaussian", pair["gaussian"], of_noise)

    def lens(self, found, plan, states, gold):
        words = [[a["token_ids"][len(a["token_ids"]) - a["scored"]] for a in q["answers"]] for q in plan["queries"]]
        for l, layer in enumerate(found["layers"][:-1]):
            for readout in (readout for readout in layer["readouts"] if readout["arm"] in states):
                logits = [[self.base.lens(x)[w] for w in own] for x, own in zip(states[readout["arm"]][l], words)]
                n = len(gold)
                others = [(logits[i], gold[j]) for i in range(n) for j in range(n) if i != j]
                expected = {"lens_accuracy": np.mean([int(np.argmax(r)) == g for r, g in zip(logits, gold)]),
                            "lens_margin": margins(logits, gold), "lens_margin_shuffled": margins(*zip(*others))}
                self.values("readout", {k: v for k, v in readout["values"].items() if k.startswith("lens")}, expected)

    def sim_aou(self, found, attention, seed):
        unit = lambda x: x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-20)
        for l, layer in enumerate(found["layers"][:-1]):
            zero, icl, tuned = (unit(attention[arm][l]) for arm in ("anchor", "icl", "it"))
            noise = np.stack([gaussian(seed, l, i, zero.shape[1]) for i in range(len(zero))])
            self.same("sim_aou", layer["attention"]["sim_aou"], mean_sd(cosine(icl - zero, tuned - zero)))
            self.same("sim_aou gaussian", layer["attention"]["sim_aou_gaussian"], mean_sd(cosine(icl - zero, noise)))

    def outputs(self, found, log_probs, gold):
        pair = lambda a, b: next(p for p in found["pairs"] if p["arms"] == [a, b])
        for key, expected in outputs(log_probs, gold):
            if key[0] == "arms":
                values = next(a["values"] for a in found["arms"] if a["arm"] == key[1])
            else:
                values = found["values"] if key[0] == "values" else pair(*key[1:])["values" if key[0] == "pairs" else "shuffled"]
            self.values("output " + key[0], values, expected)

    def patching(self, c, s, alone, states, log_probs, gold):
        condition = self.report["conditions"][c]
        seed, found = condition["plan"]["seeds"][s]["seed"], condition["seeds"][s]["patching"]
        other = self.of_other_task(c, s)
        anchor, icl = (scores(log_probs[arm], gold, True) for arm in ("anchor", "icl"))
        assert len(found) == len(states["anchor"]) - 1
        for l, layer in enumerate(found):
            put = vectors(seed, l, *(states[arm][l] for arm in ("anchor", "icl", "it")), None if other is None else other[l])
            assert sorted(put) == sorted(v["vector"] for v in layer["vectors"])
            for vector in layer["vectors"]:
                rows = put[vector["vector"]]
                patched = scores([self.base.answers(*q, (l, x)) for q, x in zip(alone, rows)], gold, True)
                for name, k in (("accuracy", 0), ("log_prob", 1)):
                    self.same(f"patch {name}", vector[name]["mean"], patched[k])
                    gain = icl[k] - anchor[k]
                    recovery = (patched[k] - anchor[k]) / gain if gain else None
                    self.same(f"patch recovery_{name}", vector[f"recovery_{name}"]["mean"], recovery)

    def pca(self, states):
        found = self.report["pca"]
        if len(found["arms"]) > len(states):
            return
        x = measures.centred(np.concatenate([s[found["layer"]] for s in states.values()]))
        u, d, _ = np.linalg.svd(x, full_matrices=False)
        points = u[:, :2] * d[:2]
        points *= np.sign(points[np.abs(points).argmax(0), [0, 1]])
        self.same("pca variance", found["variance"], list(d[:2] ** 2 / np.sum(d**2)))
        self.same("pca points", sum((arm["points"] for arm in found["arms"]), []), points.tolist())

    def overlaps(self):
        """Of LoRA updates, from the saved factors B."""
        def factors(c, s):
            folder = os.path.join(self.directory, self.report["conditions"][c]["seeds"][s]["adapter"])
            tensors = load_file(os.path.join(folder, "adapter_model.safetensors"))
            return {k: v.astype(np.float64) for k, v in tensors.items() if "lora_B" in k}

        def overlap(a, b):
            by_layer = defaultdict(list)
            for name in a:
                kept = [u[:, : np.linalg.matrix_rank(x)] for x in (a[name], b[name]) for u in [np.linalg.svd(x, full_matrices=False)[0]]]
                if min(u.shape[1] for u in kept):
                    share = np.linalg.norm(kept[0].T @ kept[1]) ** 2 / min(u.shape[1] for u in kept)
                    by_layer[int(name.split("layers.")[1].split(".")[0])].append(share)
            return {layer: np.mean(all) for layer, all in by_layer.items()}

        for c, condition in enumerate(self.report["conditions"]):
            for found in condition.get("lora_overlap", []):
                seeds = range(len(condition["seeds"]))
                pairs = [((c, i), (c, j)) for j in seeds for i in range(j)] if found["with"] is None else \
                    [((found["with"], s), (c, s)) for s in seeds]
                all = [overlap(factors(*a), factors(*b)) for a, b in pairs]
                self.same("lora_overlap", found["layers"], [mean_sd([x.get(l) for x in all]) for l in range(len(found["layers"]))])

    def summaries(self):
        """Every value of the summaries is the mean and SD of those of the seeds; but of recoveries, of shares of the mean gain."""
        def recovery(patched, score):
            anchor, icl = ([seed[score][arm] for seed in whole] for arm in ("anchor", "icl"))
            gain = np.mean(np.subtract(icl, anchor)) if None not in anchor + icl else 0
            return mean_sd([(p[score]["mean"] - a) / gain for p, a in zip(patched, anchor)] if gain else [])

        def walk(found, seeds):
            if isinstance(found, dict) and "recovery_accuracy" in found:
                for score in ("accuracy", "log_prob"):
                    self.same("summary", found[score], mean_sd([s[score]["mean"] for s in seeds if s[score]["mean"] is not None]))
                    self.same("summary", found[f"recovery_{score}"], recovery(seeds, score))
            elif isinstance(found, dict) and set(found) == {"mean", "sd"}:
                self.same("summary", found, mean_sd([s["mean"] if isinstance(s, dict) else s for s in seeds if s is not None]))
            elif isinstance(found, dict):
                for key in found:
                    walk(found[key], [s[key] for s in seeds if key in s])
            elif isinstance(found, list):
                for i, value in enumerate(found):
                    walk(value, [s[i] for s in seeds])

        for condition in self.report["conditions"]:
            whole = condition["seeds"]
            walk(condition["summary"], condition["seeds"])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("report")
    p.add_argument("--model", required=True)
    a = p.parse_args()
    torch.set_num_threads(1)
    report = json.load(open(a.report))
    assert report["dtype"] == "f32", "run the study with --dtype f32"
    load = lambda: AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).eval()
    study = Study(report, os.path.dirname(a.report), load)
    for c in range(len(report["conditions"])):
        study.condition(c)
    study.overlaps()
    study.summaries()
    bad = []
    for name, error in sorted(study.worst.items()):
        limit = 1e-3 if name.split(" ")[0] in ("measure", "gaussian", "shuffled") else 1e-4
        off, seen = study.off[name], study.seen[name]
        print(f"{name:36} {error:.1e}" + (f", {off} of {seen} another count" if off else ""))
        if error > limit or off > max(1, seen / 100):
            bad.append(name)
    print("beyond the tolerance: " + (", ".join(bad) or "none"))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
