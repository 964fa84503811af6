"""The average of a text over several templates: of unit vectors, or of the unnormalised features of the text tower."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

AVERAGES = ("normalised", "raw")
RECENT = 1 << 17  # vectors that a RecentTexts keeps: 256 MB of width 512

Encode = Callable[[Sequence[str]], Tensor]  # n prompts -> [n d] features, not normalised


def averages(encode: Encode, templates: Sequence[str], texts: Sequence[str]) -> dict[str, Float[Tensor, "n d"]]:
    """Return both averages of n texts over the templates, by their names in AVERAGES.

    Arguments:
        encode     n prompts -> [n d] features, not normalised; called once for every template
        templates  templates with `{}` in them
        texts      n texts
    Returns:
        "normalised": the mean of the unit vectors; "raw": the mean of the features. Both [n d], of unit length.
    """
    unit = torch.nn.functional.normalize
    sums: dict[str, Tensor] = {}
    for template in templates:
        features = encode([template.replace("{}", text) for text in texts])
        for name, vectors in (("normalised", unit(features, dim=-1)), ("raw", features)):
            sums[name] = sums[name].add_(vectors) if name in sums else vectors.clone()
    return {name: unit(total, dim=-1) for name, total in sums.items()}


def check_average(average: str) -> None:
    """Raise ValueError unless this is the name of an average."""
    if average not in AVERAGES:
        raise ValueError(f"average={average!r} is neither {' nor '.join(AVERAGES)}")


class RecentTexts:
    """A least-recently-used cache of the unit vectors of texts, in memory. It is called by one thread at a time.

    encode  n prompts -> [n d] features, not normalised
    limit   largest number of vectors
    """

    def __init__(self, encode: Encode, limit: int = RECENT) -> None:
        self._encode = encode
        self._limit = limit
        self._vectors: OrderedDict[tuple[tuple[str, ...], str, str], Tensor] = OrderedDict()

    def vectors(self, texts: Sequence[str], templates: tuple[str, ...], average: str) -> Float[Tensor, "n d"]:
        """Return the averages [n d] over the templates; a text that occurs more than once is encoded once."""
        keys = [(templates, average, text) for text in texts]
        found = {key: self._vectors[key] for key in keys if key in self._vectors}
        if missing := [key for key in dict.fromkeys(keys) if key not in found]:
            with torch.no_grad():
                encoded = averages(self._encode, templates, [text for *_, text in missing])[average]
            found |= {key: vector.clone() for key, vector in zip(missing, encoded, strict=True)}
        for key, vector in found.items():
            self._vectors[key] = vector
            self._vectors.move_to_end(key)
        while len(self._vectors) > self._limit:
            self._vectors.popitem(last=False)
        return torch.stack([found[key] for key in keys])
