"""MSP and MCM of logits that are not CLIP's alone."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float64
from torch import Tensor

from oodbench.method import logsumexp

Rule = Literal["msp", "mcm"]


def largest_probability(logits: Float64[Tensor, "b k"], rule: Rule, scale: float) -> Float64[Tensor, " b"]:
    """Return the log of the largest softmax probability: of the logits ("msp"), or of logits / scale ("mcm").

    Of CLIP's own logits, scale (100) times the cosines, these are MSP, and MCM at temperature 1.
    """
    scaled = logits / scale if rule == "mcm" else logits
    return scaled.amax(-1).double() - logsumexp(scaled)
