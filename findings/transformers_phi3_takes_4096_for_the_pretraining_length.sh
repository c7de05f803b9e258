#!/usr/bin/env bash
# transformers 5.24.0: of a Phi-3 whose longrope dictionary holds `original_max_position_embeddings`, the value is replaced by the
# class's default of 4096 where the key does not also stand beside the dictionary. With it change the length at which all rows
# are turned by the other list, and the factor of cosines and sines.
#
# Expected: the length that stands in the dictionary counts, as for yarn and llama3 in other families.
# A reader has to take the key beside the dictionary, else 4096, and never the dictionary's.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 <<'PY'
import json, pathlib, sys, tempfile
import torch, transformers
from transformers import AutoConfig
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

folder = pathlib.Path(tempfile.mkdtemp(dir="."))
rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}
sizes = dict(model_type="phi3", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=256,
             rope_theta=10000.0, rope_scaling=rope, eos_token_id=2, pad_token_id=0)


def read(**beside):
    """The length, the factor of cosines, and whether 65 positions are turned by the long list."""
    (folder / "config.json").write_text(json.dumps(sizes | beside))
    config = AutoConfig.from_pretrained(folder)
    rotary = Phi3RotaryEmbedding(config)
    before = rotary.inv_freq.clone()
    rotary(torch.zeros(1, 65, 8), torch.arange(65)[None])
    return config.rope_parameters["original_max_position_embeddings"], round(rotary.attention_scaling, 6), not torch.equal(before, rotary.inv_freq)


alone, both = read(), read(original_max_position_embeddings=64)
print(f"transformers {transformers.__version__}")
print(f"length, factor, long list at 65 positions: {alone} with 64 in the dictionary alone, {both} with 64 beside it too")
sys.exit(not (alone == (4096, 1.0, False) and both == (64, 1.154701, True)))
PY
