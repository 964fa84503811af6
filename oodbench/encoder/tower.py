"""The image tower cut before its last linear map, so that one pass gives activations and embeddings.

| tower                                      | last linear map          | kind      | how it is cut                 |
|--------------------------------------------|--------------------------|-----------|-------------------------------|
| VisionTransformer (also CoCa's)            | `proj`, a matrix         | proj      | set to None; applied here     |
| ModifiedResNet                             | `attnpool.c_proj`        | c_proj    | made the identity, since it   |
|                                            |                          |           | is read, not called           |
| timm, linear head (ConvNeXt, ViTamin)      | `head.proj`              | head      | replaced by nn.Identity       |
| timm, MLP head (convnext_large_d)          | `head.mlp.fc2`           | fc2       | the same                      |
| timm, the trunk's own classifier as the    | `trunk.get_classifier()` | head      | the same                      |
| projection (EVA, MobileCLIP, PE-Core)      |                          |           |                               |
| timm without one (SigLIP)                  | -                        | embedding | activations are the embedding |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Tower(nn.Module):
    """An image tower of open_clip, taken over: `activations(x)` [b 3 h w] -> [b w], `project` [b w] -> [b d]."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.kind, last = _cut(visual)
        self.visual = visual
        self.last = last

    @property
    def width(self) -> int | None:
        """Width of the activations; None when they are the embedding."""
        return int(self.last.in_features) if isinstance(self.last, nn.Linear) else None

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.activations(images))

    def activations(self, images: Tensor) -> Tensor:
        out = self.visual(images)
        pooled = out[0] if isinstance(out, tuple) else out  # towers with output_tokens return tokens, too
        assert isinstance(pooled, Tensor)
        return pooled

    def project(self, activations: Tensor) -> Tensor:
        projected = self.last(activations)
        assert isinstance(projected, Tensor)
        return projected


def _cut(visual: Any) -> tuple[str, nn.Module]:
    if isinstance(getattr(visual, "proj", None), nn.Parameter):
        matrix = visual.proj
        visual.proj = None
        return "proj", _linear(matrix.T, None)
    if isinstance(getattr(getattr(visual, "attnpool", None), "c_proj", None), nn.Linear):
        last = visual.attnpool.c_proj
        eye = torch.eye(last.in_features, device=last.weight.device, dtype=last.weight.dtype)
        visual.attnpool.c_proj = _linear(eye, torch.zeros_like(last.weight[0]))
        return "c_proj", last
    head = getattr(visual, "head", None)
    if isinstance(getattr(head, "proj", None), nn.Linear):
        last, visual.head.proj = head.proj, nn.Identity()  # type: ignore[union-attr]
        return "head", last
    if isinstance(getattr(getattr(head, "mlp", None), "fc2", None), nn.Linear):
        last, visual.head.mlp.fc2 = head.mlp.fc2, nn.Identity()  # type: ignore[union-attr]
        return "fc2", last
    trunk = getattr(visual, "trunk", None)
    if trunk is not None and isinstance(head, nn.Sequential) and len(head) == 0:
        for name, module in trunk.named_modules():
            if module is trunk.get_classifier() and isinstance(module, nn.Linear):
                owner = trunk.get_submodule(name.rpartition(".")[0])
                setattr(owner, name.rpartition(".")[2], nn.Identity())
                return "head", module
    return "embedding", nn.Identity()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A frozen linear map of its own copies."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
