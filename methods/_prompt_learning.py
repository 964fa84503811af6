"""Prompts that are learnt from labelled images: context vectors before the class names, in the frozen text tower.

CoOp, LoCoOp and SCT share the module and the logits; each has its loss in a file of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize
from torch.utils.checkpoint import checkpoint

from oodbench.method import Batch, Encoder, FewShotMethod, Needs, Optimiser, Pairs, Task, UserError

from ._softmax import log_probability, log_probability_of_patches

CLASSES = (
    128  # names in the text tower at once; with more of them their activations are computed again for the gradient
)
STD = 0.02  # of the context vectors before the first step


class ClassNames:
    """The names of k classes behind n context vectors; called with the context, it returns their text vectors [k d].

    It is not an nn.Module, so that neither the frozen text tower nor its weights are part of what holds it.

    ending  what follows each name
    fewer   how the user gets `{}` context vectors, for messages
    """

    def __init__(self, encoder: Encoder, classes: Sequence[str], vectors: int, ending: str, fewer: str) -> None:
        if len(classes) < 2:
            raise UserError("a prompt is learnt by telling classes apart, and there is only one")
        self.tower = encoder.text_tower().eval().requires_grad_(False)
        if "context" not in inspect.signature(self.tower.forward).parameters:
            raise UserError(
                "text_tower() of this encoder takes no context vectors; give its forward() the argument `context`, "
                "as docs/encoders.md says"
            )
        tokens = encoder.tokenize([name + ending for name in classes])
        length = tokens.shape[1]
        longest = int(tokens.argmax(-1).argmax())  # the end token has the largest id
        room = length - 1 - int(tokens[longest].argmax())
        if vectors > room:
            found = f"the text tower reads {length} tokens: the class name '{classes[longest]}' leaves room for "
            advice = fewer.format(room) if room else "give it a shorter name"
            raise UserError(f"{found}{room} context vectors, not {vectors}; {advice}")
        empty = torch.zeros_like(tokens[:, :1]).expand(-1, vectors)  # replaced by the context
        self.tokens: Int64[Tensor, "k n"] = torch.cat([tokens[:, :1], empty, tokens[:, 1 : length - vectors]], 1)

    @property
    def table(self) -> Float[Tensor, "v width"]:
        """Return the token embeddings of the vocabulary, in float32."""
        return self.tower.get_parameter("token_embedding.weight").detach().float()

    def __call__(self, context: Float[Tensor, "*k n width"]) -> Float[Tensor, "k d"]:
        parts = torch.split(self.tokens, CLASSES)
        contexts = torch.split(context, CLASSES) if context.ndim == 3 else (context,) * len(parts)
        pairs = zip(parts, contexts, strict=True)
        if len(parts) > 1 and torch.is_grad_enabled():
            vectors = [checkpoint(self.tower, part, None, own, use_reentrant=False) for part, own in pairs]
        else:
            vectors = [self.tower(part, None, own) for part, own in pairs]
        return widened(torch.cat(vectors))


def widened(x: Tensor) -> Tensor:
    """Return half precision, in which autocast computes, as float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def tokens_of(encoder: Encoder, words: str) -> Int64[Tensor, " n"]:
    """Return the tokens of some words, without start and end."""
    tokens = encoder.tokenize([words])[0]
    return tokens[1 : int(tokens.argmax())]


class Prompt(nn.Module):
    """Context vectors [n width], or [k n width] for class-specific ones; called, it returns the class vectors [k d].

    begun  the context before the first step
    """

    def __init__(self, names: ClassNames, begun: Float[Tensor, "*k n width"]) -> None:
        super().__init__()
        self.names = names
        self.ctx = nn.Parameter(begun)

    def forward(self) -> Float[Tensor, "k d"]:
        return normalize(self.names(self.ctx), dim=-1)


@dataclass(frozen=True)
class LearntPrompt(FewShotMethod[Tensor]):
    """A method whose prompt "[V]_1 ... [V]_n NAME." is learnt; its state is the class vectors, [k d] of unit length."""

    needs: ClassVar[Needs] = Needs.FEATURES | Needs.WEIGHTS | Needs.SHOTS
    optimiser: ClassVar[Optimiser] = Optimiser(
        kind="sgd",
        lr=2e-3,
        momentum=0.9,
        weight_decay=5e-4,
        batch=32,
        epochs=50,
        warmup_lr=1e-5,
        warmup_epochs=1,
        per_epoch=True,
        no_decay=(),
    )
    trained: ClassVar[tuple[str, ...]] = ("context", "context_init", "class_specific")
    context: int = 16
    context_init: str = ""
    class_specific: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ValueError(f"context={self.context} must be at least 1")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")

    def module(self, encoder: Encoder, classes: Sequence[str]) -> Prompt:  # type: ignore[override]
        words = tokens_of(encoder, self.context_init) if self.context_init.strip() else None
        method = type(self).__module__.rpartition(".")[2]
        fewer = f"--set {method}.context={{}}" if words is None else f"{method}.context_init may have {{}} tokens"
        names = ClassNames(encoder, classes, self.context if words is None else len(words), ".", fewer)
        begun = names.table.new_empty(self.context, names.table.shape[1]) if words is None else names.table[words]
        if self.class_specific:
            begun = begun.repeat(len(classes), 1, 1)
        return Prompt(names, nn.init.normal_(begun, std=STD) if words is None else begun)

    def inputs(self, pairs: Pairs, encoder: Encoder) -> dict[str, Tensor]:
        """Return features and labels of the images, their patches if the method reads them, and the encoder's scale."""
        image, labels = pairs.features, pairs.labels
        scale = torch.full((len(labels),), float(encoder.scale), device=image.device)
        patches = {"patches": pairs.patches} if Needs.PATCHES in self.needs else {}
        return {"image": image, "label": labels, "scale": scale, **patches}

    def embed(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits of the images, and their labels."""
        return {"logits": logits(inputs["image"], module(), inputs["scale"]), "label": inputs["label"]}

    def fit(self, task: Task) -> Tensor:
        """Return the class vectors of the learnt prompt."""
        return task.cached(
            lambda: task.weights.load(self.module(task.encoder, task.classes))(),
            context=self.context,
            context_init=self.context_init,
            class_specific=self.class_specific,
        )

    def score(self, batch: Batch, task: Task, state: Tensor) -> Float[Tensor, " b"]:
        return log_probability(batch.features @ state.T / self.temperature)

    def predict(self, batch: Batch, task: Task, state: Tensor) -> Int64[Tensor, " b"]:
        return (batch.features @ state.T).argmax(-1)

    def translate(self, state: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take the context of a released checkpoint; the embeddings of its class names are those of the text tower."""
        context = state.get("ctx")
        if context is None:
            raise ValueError("it has no tensor `ctx`: it is not a prompt learner of CoOp's, LoCoOp's or SCT's code")
        width = frozen["positional_embedding"].shape[-1]
        if context.shape[-1] != width:
            raise ValueError(f"its context has width {context.shape[-1]}, the encoder's text tower {width}")
        return {"ctx": context.float()}

    def release(self, tensors: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)


def logits(
    images: Float[Tensor, "b *n d"], classes: Float[Tensor, "k d"], scale: Float[Tensor, " b"]
) -> Float[Tensor, "b *n k"]:
    """Return scale times the cosines, in float32 whatever the text tower computes in."""
    with torch.autocast(images.device.type, enabled=False):
        return scale.view(-1, *[1] * (images.ndim - 1)) * (images @ classes.to(images.dtype).T)


def outside_top(logits: Float[Tensor, "b n k"], labels: Int64[Tensor, " b"], rank: int) -> Bool[Tensor, "b n"]:
    """Return which patches do not have their image's label among their `rank` likeliest classes."""
    own = logits.gather(-1, labels[:, None, None].expand(-1, logits.shape[1], 1))
    return (logits > own).sum(-1) >= rank


def negative_entropy(logits: Float[Tensor, "b n k"], eps: float) -> Float[Tensor, "b n"]:
    """Return sum p log(p + eps) over the classes."""
    log_p = log_softmax(logits, -1)
    p = log_p.exp()
    return (p * ((p + eps).log() if eps else log_p)).sum(-1)


def gl_mcm(
    images: Float[Tensor, "b d"],
    patches: Float[Tensor, "b n d"],
    classes: Float[Tensor, "k d"],
    local: Float[Tensor, "k d"],
    temperature: float,
    weight: float = 1.0,
) -> Float64[Tensor, " b"]:
    """Return `weight` times MCM of the image by `classes`, plus the largest MCM of its patches by `local`.

    It is GL-MCM, or L-MCM if the weight is 0.
    """
    local_term = log_probability_of_patches(patches, local, temperature).exp()
    return weight * log_probability(images @ classes.T / temperature).exp() + local_term
