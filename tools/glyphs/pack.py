"""Make the weights of a trained method small enough to ship: python -m tools.glyphs.pack FILE OUT.

Weights are stored in half precision, and token tables as the rows that training changed. The rows of tokens that occur
in no caption are the encoder's own, times a factor of weight decay.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from oodbench.encoder.card import EMBEDDED, parse_encoder
from oodbench.encoder.openclip import OpenClip
from oodbench.encoder.resolve import resolve
from oodbench.method import TrainedMethod, Weights, registry
from oodbench.pipeline import weights
from oodbench.storage.store import Store, default_root

TABLE = 4096  # smallest number of rows of a token table
SAME = 1e-5  # largest relative difference from the encoder's row of a row that training did not change


def packed(tensors: dict[str, Tensor], start: dict[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """Return tensors in half precision with the changed rows of token tables, and the decay of the others."""
    out: dict[str, Tensor] = {}
    decay = 1.0
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and len(tensor) >= TABLE and name in start:
            ratio = (tensor / start[name]).median(dim=1).values
            decay = float(ratio.mode().values)
            near = (tensor - decay * start[name]).abs().amax(1) <= SAME * start[name].abs().amax(1)
            rows = (~near).nonzero().squeeze(1)
            out[f"{name}.rows"] = rows.int()
            out[name] = tensor[rows].half()
        else:
            out[name] = tensor.half() if tensor.is_floating_point() else tensor
    return out, decay


def main() -> None:
    """Pack a file that `oodbench train` wrote for the embedded encoder, and check that it is read back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    recipe = weights.recipe_of(options.file)
    encoder = OpenClip(resolve(parse_encoder(EMBEDDED), None, Store(default_root())), "cpu", "fp32")
    info = registry.methods()[recipe["method"]]
    method = registry.make(info, registry.parameters(info, recipe["parameters"]))
    assert isinstance(method, TrainedMethod)
    start = dict(method.module(encoder).state_dict())
    tensors = weights.read(options.file)
    small, decay = packed(tensors, start)
    recipe |= {"decay": decay, "packed": "half precision, touched rows of token tables"}
    weights.write(options.out, small, recipe)
    back = Weights(weights.read(options.out), recipe).load(method.module(encoder)).state_dict()
    worst = max(float((back[name].double() - tensors[name].double()).abs().max()) for name in tensors)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, largest difference {worst:.2g}, decay {decay:.6f}")


if __name__ == "__main__":
    main()
