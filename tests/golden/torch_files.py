#!/usr/bin/env python3
"""Writes torch/: files of torch.save, and the tensors of those that hold nothing else, for tests/formats/torch.rs.

    torch_files.py OUT

`state.bin` has the dtypes, views and classes that state dicts have; its tensors are in `state.safetensors`. Of the others each
has something that no dictionary of tensors needs.
"""
import collections, os, shutil, sys
import torch
from safetensors.torch import save_file


class Calls:
    def __reduce__(self):
        return (os.getenv, ("HOME",))


def main():
    out = sys.argv[1]
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    x = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 7
    state = collections.OrderedDict()
    state["whole"], state["turned"], state["part"] = x, x.permute(2, 0, 1), x[1, 1:, ::2]
    state["weight"] = torch.nn.Parameter(x[0].half().clone())
    state["row"], state["number"], state["none"] = x[1, 2].to(torch.bfloat16), torch.tensor(3), torch.zeros(0, 4)
    state["wide"], state["bytes"], state["truth"] = x[0, 0].double(), torch.tensor([1, 2, 255], dtype=torch.uint8), torch.tensor([True, False])
    state._metadata = {"": {"version": 1}}
    path = lambda name: os.path.join(out, name + ".bin")
    torch.save(state, path("state"))
    save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, os.path.join(out, "state.safetensors"))
    torch.save({"a": x, "b": Calls()}, path("calls"))
    torch.save({"state_dict": {"a": x}}, path("nested"))
    torch.save([x], path("list"))
    torch.save({"a": x[0, 0].expand(50, 4)}, path("expanded"))
    torch.save({"a": x}, path("older"), _use_new_zipfile_serialization=False)
    torch.save({"a": x, "b": 1.5}, path("number"))


main()
