"""F1 of SQuAD 2.0's evaluation (its formulas, evaluate-v2.0.py) and rougeL of rouge-score, on the pairs of text_metrics.py
and on cases of white space, punctuation and articles."""

import collections
import json
import pathlib
import re
import string

from rouge_score import rouge_scorer
from text_metrics import pairs

SPECIAL = [
    ("", ""),
    ("", "x"),
    ("the", "a"),
    ("The cat.", "the cat"),
    ("a cat and a dog", "cat dog"),
    ("an apple, a day", "An Apple A Day!"),
    ("cat cat cat", "cat"),
    ("the the x", "x x"),
    ("—the—cat", "— —cat"),
    ("U.S.A.", "USA"),
    ("thé tea", "the tea"),
    ("kůň běží", "Kůň  běží"),
    ("x\u001cy\u3000z", "x y z"),
    ("a_b the_c", "ab thec"),
    ("İstanbul K", "istanbul k"),
    ("one two three four", "four three two one"),
    ("1,000 3.5", "1000 35"),
    ("police killed the gunman", "police kill the gunman"),
    ("日本 a 語", "日本 語"),
    ("!!!", "???"),
    ("½ a b", "½ b"),
]


def normalise(text):
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text, flags=re.UNICODE).split())


def f1(gold, found):
    gold, found = normalise(gold).split(), normalise(found).split()
    same = sum((collections.Counter(gold) & collections.Counter(found)).values())
    if len(gold) == 0 or len(found) == 0:
        return float(gold == found)
    if same == 0:
        return 0.0
    precision, recall = same / len(found), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def main():
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)

    def each(some):
        return [
            [
                max(f1(gold, output) for gold in references),
                scorer.score_multi(references, output)["rougeL"].fmeasure,
            ]
            for output, references in some
        ]

    special = [(output, [reference]) for output, reference in SPECIAL]
    out = {
        "random": each(pairs()),
        "special": [{"output": o, "reference": r[0], "scores": s} for (o, r), s in zip(special, each(special))],
    }
    path = pathlib.Path(__file__).with_name("overlap_metrics.json")
    path.write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
