#!/usr/bin/env python3
"""Multiple choice by log-probability, by lm-evaluation-harness's rules, as a plain script with transformers in f32: the reference of
tests/engine/golden_choices.rs.

    choices.py choices    # writes choices/: a small random model and case.json

Each answer's log-probability is the sum over the tokens that cover any of its characters, of prompt and answer tokenised as one
text. Its score is that sum (acc), or the sum divided by len() of the answer (acc_norm), by that of its UTF-8 (acc_bytes), as
`ConfigurableTask.process_results` of lm-evaluation-harness 0.4.13 has them, or by the number of the tokens.
"""
import json, os, sys
import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPT, ANSWER = "Question: {}\nAnswer:", " {}"
WORDS = "the inn there path winter prince then thin port pier many pens příliš žluťoučký kůň úpěl ďábelské ódy зима тропа принц 冬 道 王子".split()


def questions(draw, count=24):
    text = lambda most: " ".join(draw.choice(WORDS, draw.integers(1, most + 1)))
    for i in range(count):
        choices = list(dict.fromkeys(text(6) for _ in range(2 + i % 4)))
        yield {"question": f"{text(4)} {i}", "choices": choices if len(choices) > 1 else [*choices, "the other"]}


def main(out):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(os.path.join(HERE, "tokenizers", "qwen2"))
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
                         max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.9, bos_token_id=None, eos_token_id=None)
    model = LlamaForCausalLM(config).eval()
    os.makedirs(out, exist_ok=True)
    model.save_pretrained(out)
    os.remove(os.path.join(out, "generation_config.json"))
    rows = list(questions(np.random.default_rng(0)))
    for row in rows:
        prompt = PROMPT.format(row["question"])
        row["log_probs"], row["tokens"] = [], []
        for choice in row["choices"]:
            encoded = tokenizer(prompt + ANSWER.format(choice), return_offsets_mapping=True)
            ids = encoded.input_ids
            scored = [i for i, (_, end) in enumerate(encoded.offset_mapping) if end > len(prompt)]
            with torch.no_grad():
                log_probs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
            row["log_probs"].append(sum(log_probs[i - 1, ids[i]].item() for i in scored))
            row["tokens"].append(len(scored))
        sums, texts = np.array(row["log_probs"]), row["choices"]
        lengths = {"none": np.ones(len(texts)), "characters": [len(text) for text in texts],
                   "bytes": [len(text.encode("utf-8")) for text in texts], "tokens": row["tokens"]}
        scores = {by: sums / np.array(n, np.float64) for by, n in lengths.items()}
        row["chosen"] = {by: int(np.argmax(score)) for by, score in scores.items()}
        for score in scores.values():  # no two are near each other
            best = np.sort(score)
            assert best[-1] - best[-2] > 1e-4, row
    chosen = {by: [row["chosen"][by] for row in rows] for by in rows[0]["chosen"]}
    print({a: {b: sum(x == y for x, y in zip(chosen[a], chosen[b])) for b in chosen} for a in chosen}, "of", len(rows), file=sys.stderr)
    assert len({tuple(all) for all in chosen.values()}) == 4, "no two rules answer everything alike"
    with open(os.path.join(out, "case.json"), "w", encoding="utf-8") as file:
        json.dump({"query": PROMPT.replace("{}", "{input}"), "answer": ANSWER.replace("{}", "{output}"), "rows": rows}, file, ensure_ascii=False, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
