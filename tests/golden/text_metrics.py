"""Writes text_metrics.json: what sacreBLEU makes of random and of special texts (pip install sacrebleu==2.6.0).

Every output is scored with its references as a corpus of its own, then all random ones as one corpus. Numbers are of
BLEU and chrF.
"""

import json
import pathlib

from sacrebleu.metrics import BLEU, CHRF

WORDS = (
    "the a of in was is and red cat dog house river 1,000 3.5 2008-09 10 don't U.S. naïve kůň žluťoučký e-mail (b) "
    "&quot;so&quot; &amp; &lt;tag&gt; $5 50% a/b x=y :-) <skipped> well-known end. what? “yes” 7-3 , . ; -"
).split(" ")
ENDS = ["", "", "", "", ".", " .", "!", ",", "\u3000", " \u00a0x", "\u2028y"]
SPECIAL = [
    ("", ["a reference ."]), ("an output", [""]), ("", [""]), ("   ", ["a"]), ("a", ["a"]), ("a b", ["a b"]),
    ("a b c d", ["a b c d"]), ("a b c d e", ["a b c d", "a b c d e f", "x"]), ("the the the", ["the cat", "the"]),
    ("A B C D", ["a b c d"]), ("x-\ny z w v", ["xy z w v"]), ("one\ntwo three four", ["one two three four"]),
    ("tab\tand\x1dseparator here", ["tab and separator here"]), ("5,000.00-6", ["5 , 000.00 - 6"]),
]


class Random:
    """The generator that tests/task/metrics.rs has too, so that only scores are stored."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % n


def sentence(rng, words):
    return " ".join(WORDS[rng.below(len(WORDS))] for _ in range(words)) + ENDS[rng.below(len(ENDS))]


def changed(rng, text):
    words = text.split(" ")
    for _ in range(rng.below(4)):
        i = rng.below(len(words))
        if rng.below(2):
            words[i] = WORDS[rng.below(len(WORDS))]
        else:
            words.insert(i, WORDS[rng.below(len(WORDS))])
    return " ".join(words)


def pairs():
    rng = Random(5)
    out = []
    for i in range(1000):
        reference = sentence(rng, 1 + rng.below(10))
        output = sentence(rng, 1 + rng.below(8)) if i % 7 == 0 else changed(rng, reference)
        others = [changed(rng, reference) for _ in range(rng.below(3) if i % 2 else 0)]
        out.append((output, [reference, *others]))
    return out


def scores(metric, some):
    most = max(len(references) for _, references in some)
    streams = [[r[k] if k < len(r) else None for _, r in some] for k in range(most)]
    return metric.corpus_score([output for output, _ in some], streams).score


def main():
    all_pairs = pairs()
    bleu, chrf = BLEU(), CHRF()
    single = BLEU()
    scores(single, [("a", ["b"])])

    def each(some):
        return [[round(scores(metric, [pair]), 4) for metric in (bleu, chrf)] for pair in some]

    out = {
        "random": each(all_pairs),
        "special": [{"output": o, "references": r, "scores": s} for (o, r), s in zip(SPECIAL, each(SPECIAL))],
        "corpus": [scores(metric, all_pairs) for metric in (bleu, chrf)],
        "signatures": [str(metric.get_signature()) for metric in (bleu, chrf, single)],
    }
    path = pathlib.Path(__file__).with_name("text_metrics.json")
    path.write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
