#!/usr/bin/env bash
# transformers 5.24.0: NEFTune's noise is bounded by alpha / sqrt(L d) (Jain et al., arXiv 2310.05914), L being the length of the
# sequence. `neftune_noise_alpha` takes for L the length of the padded batch: a short example beside a long one has less noise
# than it has alone, so that the regularization depends on the batch's other examples.
#
# The input is one example of 8 tokens, alone and padded to 128 as a collator does.
# Expected: the same bound for the same example.
# Who compares trainings of other batch sizes, or without padding, has to know that they have other noise.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 numpy==2.4.6 <<'PY'
import sys
import torch, transformers
from transformers.integrations.neftune import neftune_post_forward_hook

WIDTH, ALPHA, OWN, PADDED = 256, 5.0, 8, 128
embed = torch.nn.Embedding(16, WIDTH)
plain = embed(torch.arange(OWN)[None]).detach()
embed.neftune_noise_alpha = ALPHA
embed.register_forward_hook(neftune_post_forward_hook)
embed.train()


def largest(length):
    torch.manual_seed(0)
    ids = torch.zeros(1, length, dtype=torch.long)
    ids[0, :OWN] = torch.arange(OWN)
    return (embed(ids)[:, :OWN] - plain).abs().max().item()


print(f"transformers {transformers.__version__}, torch {torch.__version__}")
alone, padded = largest(OWN), largest(PADDED)
bounds = [ALPHA / (length * WIDTH) ** 0.5 for length in (OWN, PADDED)]
print(f"noise of the example's tokens, at most: alone {alone:.4f} (bound {bounds[0]:.4f}), padded to {PADDED} {padded:.4f} (bound {bounds[1]:.4f})")
sys.exit(not (0.99 * bounds[0] < alone <= bounds[0] * 1.001 and 0.99 * bounds[1] < padded <= bounds[1] * 1.001))
PY
