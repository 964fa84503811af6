"""GalLoP: learning global and local prompts (Lafon et al., ECCV 2024, arXiv:2407.01400)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from oodbench.method import Batch, Encoder, FewShotMethod, Needs, Optimiser, Pairs, Task, UserError

from ._prompt_learning import ClassNames, gl_mcm, logits, tokens_of
from ._softmax import log_probability

IMAGES = 8  # images whose patches are compared with the classes at once when classes are predicted


@dataclass(frozen=True)
class LearntPrompts:
    """Class vectors of g global and l local prompts, [g k d] and [l k d], and the linear map of patches.

    projection, bias  [w d] and [d]: W and CLIP's last linear map as one
    """

    whole: Tensor
    local: Tensor
    projection: Tensor
    bias: Tensor

    def patches(self, activations: Float[Tensor, "b n w"]) -> Float[Tensor, "b n d"]:
        with torch.autocast(activations.device.type, enabled=False):  # as logits() are computed
            return normalize(activations @ self.projection + self.bias, dim=-1)

    def rows(self) -> Float[Tensor, "r d"]:
        """Return all four as the rows of one tensor."""
        return torch.cat([self.whole.flatten(0, 1), self.local.flatten(0, 1), self.projection, self.bias[None]])


class Prompts(nn.Module):
    """Context vectors of the global and the local prompts, and the linear map W of the patches; named as in the code.

    last    CLIP's last linear map [w d] and its bias [d], which is 0 for a ViT
    joint   whether W follows the last map, or comes before it
    """

    def __init__(
        self,
        names: ClassNames,
        begun: Float[Tensor, "m width"],
        prompts: tuple[int, int],
        last: tuple[Float[Tensor, "w d"], Float[Tensor, " d"]],
        joint: bool,
    ) -> None:
        super().__init__()
        self.names, self.joint = names, joint
        for name, tensor in zip(("last", "bias"), last, strict=True):
            self.register_buffer(name, tensor, persistent=False)
        width = last[0].shape[int(joint)]
        self.global_prompt = nn.Parameter(begun.repeat(prompts[0], 1, 1))
        self.local_prompts = nn.Parameter(begun.repeat(prompts[1], 1, 1))
        self.local_proj = nn.ModuleDict({"linear": nn.Linear(width, width, bias=False, device=begun.device)})
        nn.init.eye_(self.local_proj.get_parameter("linear.weight"))

    def forward(self) -> LearntPrompts:
        whole, local = (
            torch.stack([normalize(self.names(context), dim=-1) for context in contexts])
            for contexts in (self.global_prompt, self.local_prompts)
        )
        w, last, bias = self.local_proj.get_parameter("linear.weight"), self.get_buffer("last"), self.get_buffer("bias")
        with torch.autocast(last.device.type, enabled=False):
            if self.joint:
                return LearntPrompts(whole, local, last @ w.T, bias @ w.T)
            return LearntPrompts(whole, local, w.T @ last, bias)


@dataclass(frozen=True)
class GalLoP(FewShotMethod[LearntPrompts]):
    """GL-MCM with several learnt prompts for the image and several for its patches.

    Of the g global prompts each training image sees one, drawn at random ("prompt dropout"). Each of the l local
    prompts has its own scale k_j: for each class the k_j patches nearest to it count. The activations of a patch are
    the input of CLIP's last linear map P: 768 numbers of a ViT-B/16. Cosines are multiplied by the encoder's own scale
    (100) in the loss. All prompts begin as the words `context_init`, the name follows without a full stop, and W begins
    as the identity. The score is GL-MCM at temperature 1 with weight 1, of cosines averaged over the prompts; all
    patches count. The class is that of the averaged global and top-k local cosines, added.

    Released training: SGD 2e-3, momentum 0.9, weight decay 1e-2, batches of 128, 50 epochs, a cosine without warm-up
    that falls once an epoch, mixed precision (gallop/train.py, lines 231 to 239, scripts/run_imagenet.sh).

    Released code: the score is in gallop/vlprompt/gallop.py, lines 372 to 386, and the class in lines 425 to 444. Test
    images are resized to 224 as CLIP's are (gallop/train.py, line 263), not to the 256 of an unused function.

    context_init    words that all prompts begin as
    global_prompts  number g of prompts for the image
    local_prompts   number l of prompts for the patches
    dropout         fraction of the global prompts that an image does not see in a step; at least one stays. The code
                    draws those that stay with replacement (tools/global_local_loss.py, line 49)
    top             k_1 of the local prompts, and what each next one has more: 5, 10, 15, 20
    joint           whether W follows P: cos(W P x_p, u_j). In the code it does so on a ResNet, whose attention pool
                    applies P itself; on a ViT W comes first (gallop.py, lines 88 to 113 and 247 to 257)
    temperature     of the score; it divides the cosine itself
    rule            "gl-mcm", "mcm" of the global prompts, or "l-mcm" of the local ones
    """

    formula: ClassVar[str] = r"""
    S(x) = \max_c \frac{e^{v^\top \bar t_c / \tau}}{\sum_j e^{v^\top \bar t_j / \tau}}
    + \max_{p, c} \frac{e^{z_p^\top \bar u_c / \tau}}{\sum_j e^{z_p^\top \bar u_j / \tau}},
    \qquad z_p = \frac{P W x_p}{\lVert P W x_p \rVert}

    \mathcal{L} = \mathrm{CE}\bigl(s \, v^\top t^{(r)}\bigr)
    + \frac{1}{l} \sum_{j=1}^{l} \mathrm{CE}\Bigl(\frac{s}{k_j} \sum_{p \in \text{top-}k_j} z_p^\top u^{(j)}\Bigr)

    v            embedding of image x, of unit length
    x_p          activations of patch p before P, the last linear map of the image tower
    W            linear map that is learnt
    \mathrm{CE}  cross-entropy of the logits of all classes with the label, averaged over the training images
    t^{(r)}      class vectors of the global prompt r that the image sees; $\bar t_c$ is the mean over the $g$ global
                 prompts
    u^{(j)}      class vectors of local prompt j; $\bar u_c$ is the mean over the local prompts
    k_j          number of patches that count for local prompt j of $l$: `top` times j
    s            logit scale of the encoder
    \tau         `temperature`
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.WEIGHTS | Needs.SHOTS | Needs.PATCH_ACTIVATIONS
    optimiser: ClassVar[Optimiser] = Optimiser(
        kind="sgd", lr=2e-3, momentum=0.9, weight_decay=1e-2, batch=128, epochs=50, per_epoch=True, no_decay=()
    )
    trained: ClassVar[tuple[str, ...]] = ("context_init", "global_prompts", "local_prompts", "dropout", "top", "joint")
    context_init: str = "A photo of a"
    global_prompts: int = 4
    local_prompts: int = 4
    dropout: float = 0.75
    top: int = 5
    joint: bool = False
    temperature: float = 1.0
    rule: Literal["gl-mcm", "mcm", "l-mcm"] = "gl-mcm"

    def __post_init__(self) -> None:
        for name in ("global_prompts", "local_prompts", "top"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")

    def module(self, encoder: Encoder, classes: Sequence[str]) -> Prompts:  # type: ignore[override]
        words = tokens_of(encoder, self.context_init)
        if not len(words):
            raise UserError("gallop.context_init is empty; give it words, such as 'A photo of a'")
        names = ClassNames(encoder, classes, len(words), "", "gallop.context_init may have {} tokens")
        return Prompts(names, names.table[words], (self.global_prompts, self.local_prompts), _last(encoder), self.joint)

    def inputs(self, pairs: Pairs, encoder: Encoder) -> dict[str, Tensor]:
        """Return features, activations of patches, labels, the global prompts that each image sees, and the scale."""
        stay = max(1, self.global_prompts - int(self.dropout * self.global_prompts))
        seen = torch.stack([pairs.draw(self.global_prompts, stream) for stream in range(stay)], -1)
        scale = torch.full((len(seen),), float(encoder.scale), device=seen.device)
        return {
            "image": pairs.features,
            "patches": pairs.patch_activations,
            "label": pairs.labels,
            "seen": seen,
            "scale": scale,
        }

    def embed(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits of the image by the prompts that it sees, and those of its patches by each local prompt."""
        learnt: LearntPrompts = module()
        patches = learnt.patches(inputs["patches"])
        by_prompt = torch.stack([logits(inputs["image"], own, inputs["scale"]) for own in learnt.whole], 1)  # [b g k]
        seen = inputs["seen"][..., None].expand(-1, -1, by_prompt.shape[-1])
        local = [self._top(logits(patches, own, inputs["scale"]), j) for j, own in enumerate(learnt.local)]
        return {
            "global": by_prompt.gather(1, seen).mean(1),
            "local": torch.stack(local, -1),  # [b k l]
            "label": inputs["label"],
        }

    def loss(self, embedded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the cross-entropy of the images, and the mean of those of their patches over the local prompts."""
        local, label = embedded["local"], embedded["label"]
        return {
            "global": cross_entropy(embedded["global"], label),
            "local": cross_entropy(local, label[:, None].expand(-1, local.shape[-1])),
        }

    def fit(self, task: Task) -> LearntPrompts:
        """Return the class vectors of all prompts, and the map of the patches."""
        rows = task.cached(
            lambda: task.weights.load(self.module(task.encoder, task.classes))().rows(),
            context_init=self.context_init,
            global_prompts=self.global_prompts,
            local_prompts=self.local_prompts,
            joint=self.joint,
        )
        g, both, k = self.global_prompts, self.global_prompts + self.local_prompts, len(task.classes)
        # Copies: a pickle of a view holds all rows.
        parts = rows.tensor_split((g * k, both * k, len(rows) - 1))
        whole, local, projection, bias = (part.clone() for part in parts)
        return LearntPrompts(whole.view(g, k, -1), local.view(both - g, k, -1), projection, bias[0])

    def score(self, batch: Batch, task: Task, state: LearntPrompts) -> Float[Tensor, " b"]:
        whole, local = state.whole.mean(0), state.local.mean(0)  # their cosines are the means over the prompts
        if self.rule == "mcm":
            return log_probability(batch.features @ whole.T / self.temperature)
        return gl_mcm(
            batch.features,
            state.patches(batch.patch_activations),
            whole,
            local,
            self.temperature,
            float(self.rule == "gl-mcm"),
        )

    def predict(self, batch: Batch, task: Task, state: LearntPrompts) -> Int64[Tensor, " b"]:
        found = []
        for images, patches in zip(
            torch.split(batch.features, IMAGES), torch.split(batch.patch_activations, IMAGES), strict=True
        ):
            mapped = state.patches(patches)
            local = torch.stack([self._top(mapped @ own.T, j) for j, own in enumerate(state.local)]).mean(0)
            found.append((images @ state.whole.mean(0).T + local).argmax(-1))
        return torch.cat(found)

    def _top(self, cosines: Float[Tensor, "b n k"], prompt: int) -> Float[Tensor, "b k"]:
        """Return the mean cosine of each class with its nearest patches, as many as the local prompt counts."""
        return cosines.topk(min(self.top * (prompt + 1), cosines.shape[1]), 1).values.mean(1)

    def translate(self, state: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the learnt tensors of a released checkpoint."""
        names = ("global_prompt", "local_prompts", "local_proj.linear.weight")
        if missing := [name for name in names if name not in state]:
            raise ValueError(f"it has no tensor {missing[0]}: it is not a checkpoint of GalLoP's code")
        resnet = frozen.get("visual.attnpool.c_proj.weight")
        sizes = (frozen["visual.proj"] if resnet is None else resnet.T).shape  # w, d
        width = state[names[2]].shape[-1]
        if width != sizes[int(self.joint)]:
            fits = width == sizes[int(not self.joint)]
            advice = f": write gallop[joint={str(not self.joint).lower()}]" if fits else ", of another encoder"
            raise ValueError(f"its map is of {width} numbers, not of {sizes[int(self.joint)]}{advice}")
        return {name: state[name].float() for name in names}


def _last(encoder: Encoder) -> tuple[Float[Tensor, "w d"], Float[Tensor, " d"]]:
    """Return the last linear map of the image tower, in float32, and its bias."""
    with torch.no_grad():
        empty = torch.zeros(1, 3, *encoder.size, device=encoder.std.device)
        width = encoder.patch_activations(empty).shape[-1]
        bias = encoder.project(empty.new_zeros(1, width))
        return encoder.project(torch.eye(width, device=empty.device)) - bias, bias[0]
