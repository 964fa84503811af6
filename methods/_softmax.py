"""The largest softmax probability, as MSP, MCM and GL-MCM take it, of any logits or of the patches of an image."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from oodbench.method import logsumexp

Rule = Literal["msp", "mcm"]
PATCHES = 16  # of each image whose softmax is in memory: 8 MB for 128 images and a thousand classes


def log_probability(logits: Float[Tensor, "b k"]) -> Float64[Tensor, " b"]:
    """Return the logarithm of the largest softmax probability, in float64."""
    return logits.amax(-1).double() - logsumexp(logits)


def largest_probability(logits: Float64[Tensor, "b k"], rule: Rule, scale: float) -> Float64[Tensor, " b"]:
    """Return the log of the largest softmax probability: of the logits ("msp"), or of logits / scale ("mcm").

    Of CLIP's own logits, scale (100) times the cosines, these are MSP, and MCM at temperature 1.
    """
    return log_probability(logits / scale if rule == "mcm" else logits)


def log_probability_of_patches(
    patches: Float[Tensor, "b n d"], classes: Float[Tensor, "k d"], temperature: float
) -> Float64[Tensor, " b"]:
    """Return the logarithm of the largest softmax probability over all patches of an image, in float64: L-MCM."""
    best = [
        log_probability((part @ classes.T / temperature).flatten(0, 1)).view(part.shape[:2]).amax(-1)
        for part in torch.split(patches, PATCHES, 1)
    ]
    return torch.stack(best).amax(0)
