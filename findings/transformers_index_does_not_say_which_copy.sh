#!/usr/bin/env bash
# transformers 5.24.0: of `weight_map` in model.safetensors.index.json only the set of files is used. Where two shards hold a tensor
# of the same name, the one that the index names is not asked for: the later file's copy wins, and the logits are
# others, with no warning. A tensor that the index leaves out, or gives to the wrong shard, is loaded all the same.
#
# The input is a model in two shards, of which the second also holds zeros under a name that the index gives to the first: what is
# left when a tensor has been replaced and moved.
# Expected: the copy that the index names, as the map is there to say where each tensor is.
# A reader that goes by the index gives other numbers than this library, and has to say so when there are two copies.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 <<'PY'
import json, logging, pathlib, sys, tempfile
import torch, transformers
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[1, 5, 9, 13, 17, 21]])).logits


torch.manual_seed(0)
saved = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                     max_position_embeddings=64, initializer_range=0.2)).eval()
folder = pathlib.Path(tempfile.mkdtemp(dir="."))
saved.save_pretrained(folder)
tensors = load_file(folder / "model.safetensors")
(folder / "model.safetensors").unlink()
shards = [f"model-0000{i}-of-00002.safetensors" for i in [1, 2]]
name, left_out, misplaced = "lm_head.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
place = {tensor: shards[tensor.startswith("model.layers.1")] for tensor in tensors}
for shard in shards:
    save_file({tensor: value for tensor, value in tensors.items() if place[tensor] == shard}, folder / shard, {"format": "pt"})

records = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: records.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)


def moved(weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return (logits(LlamaForCausalLM.from_pretrained(folder).eval()) - logits(saved)).abs().max().item()


sloppy = {tensor: shard for tensor, shard in place.items() if tensor != left_out}
sloppy[misplaced] = shards[1]
without_copy = moved(sloppy)
second = load_file(folder / shards[1])
save_file({**second, name: torch.zeros_like(tensors[name])}, folder / shards[1], {"format": "pt"})
with_copy = moved(place)

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"an index without {left_out} and with {misplaced} in the wrong shard: logits differ by {without_copy}")
print(f"{name} in both shards, the index names {place[name]}: logits differ by {with_copy:.2f}")
print(f"warnings logged: {records}")
sys.exit(not (without_copy == 0.0 and with_copy > 0.1 and place[name] == shards[0] and records == []))
PY
