"""CLIPN: teaching CLIP to say no (Wang et al., ICCV 2023, arXiv:2308.12213)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize, softplus

from oodbench.method import Batch, Encoder, Needs, Optimiser, Pairs, Task, TrainedMethod, logsumexp, templates

from ._no_text import NoText, to_release, translate

ROOT = 1e-4  # added under the square root of TSO, so that its gradient is finite where "no" equals "yes"
CHUNK = 512  # prompts encoded at once


@dataclass(frozen=True)
class CLIPN(TrainedMethod[Tensor]):
    """Probability that the image matches its classes rather than their learned "no" prompts (ATD rule by default).

    A second text tower, a trained copy of CLIP's, embeds "no" prompts. For each class the probability of "yes" is
    sigmoid("yes" logit - "no" logit). The rule ATD (agreeing to differ) sums it over the classes, weighted by CLIP's
    softmax, which is 1 - p_(C+1) of the paper; the rule CTW (competing to win) takes that of the predicted class. The
    score is the log-odds of either probability: it gives the same ranking, and sigmoid(score) is the probability. In
    the released code both round to 1 for confident images, which then tie (`form="probability"`).

    Released code: where paper and code differ, the code is the default. In the paper the learnable prompt replaces
    negation words; in the code it is 16 offsets, added to the embeddings of all positions of the same caption, and
    negation words occur in the hand-crafted variant alone. The paper's temperature is learned; the code's is the
    encoder's own in training and 100 in the scores. The paper's loss is ITBO + TSO; the code's is half the sum of three
    terms: the two means of ITBO (over matching pairs, over all others) and TSO.

    Released training: an epoch on CC3M (2,891,445 pairs) has 1,412 steps of 2,048 pairs, the last one filled up with
    repeated pairs. Here it has 1,411, and the pairs that are left out differ from epoch to epoch.

    rule          "atd" (agreeing to differ) or "ctw" (competing to win)
    templates     prompts of both towers; the released lines are in quotation marks, which the tokenizer reads:
                  "clipn-128-clean" has none
    no_templates  prompts of the "no" tower, for the hand-crafted variant only; paired with `templates` line by line
    prompt        "learnable" (offsets; the released checkpoints) or "handcrafted" (templates; the CIFAR tables)
    eval_prompt   offset at test time: "mean_offset" takes the mean of all offsets; "mean_feature" averages the
                  embeddings with each, as a comment in the code says and the paper probably did
    scale         factor on the cosines of both towers; None takes the encoder's own
    form          "log-odds", or "probability" in float32, which ties as the released code does
    decision      the paper's ATD decision compares p_(C+1) with the "raw" softmax, or with the softmax "shrunk" by the
                  probability of "yes"
    offsets       number of learnable prompts
    mean_draw     whether training also draws the mean of the offsets, as often as each offset; an addition of the
                  README
    yes, no, tso  weights of the three terms of the loss
    """

    formula: ClassVar[str] = r"""
    S(x) = \log \frac{1 - p_{C+1}}{p_{C+1}},
    \qquad p_{C+1} = 1 - \sum_{j=1}^{C} \bigl(1 - p_j^{\text{no}}\bigr) \, p_j = \sum_{j=1}^{C} p_j^{\text{no}} \, p_j

    p_j = \frac{e^{\langle f, g_j \rangle / \tau}}{\sum_{k=1}^{C} e^{\langle f, g_k \rangle / \tau}},
    \qquad
    p_j^{\text{no}} = \frac{e^{\langle f, g_j^{\text{no}} \rangle / \tau}}
    {e^{\langle f, g_j \rangle / \tau} + e^{\langle f, g_j^{\text{no}} \rangle / \tau}}

    f                embedding of image x, of unit length
    g_j              text embedding of class j of C, of unit length
    g_j^{\text{no}}  embedding of its "no" prompt by the "no" tower, of unit length
    \tau             1 / `scale`, 0.01
    p_{C+1}          probability that the image belongs to no class
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.WEIGHTS
    optimiser: ClassVar[Optimiser] = Optimiser(
        lr=3e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, warmup=0, epochs=10, batch=2048
    )
    trained: ClassVar[tuple[str, ...]] = ("prompt", "offsets", "mean_draw", "yes", "no", "tso")
    rule: Literal["atd", "ctw"] = "atd"
    templates: str = "clipn-128"
    no_templates: str = "clipn-128-no"
    prompt: Literal["learnable", "handcrafted"] = "learnable"
    eval_prompt: Literal["mean_offset", "mean_feature"] = "mean_offset"
    scale: float | None = 100.0
    form: Literal["log-odds", "probability"] = "log-odds"
    decision: Literal["raw", "shrunk"] = "raw"
    offsets: int = 16
    mean_draw: bool = True
    yes: float = 0.5
    no: float = 0.5
    tso: float = 0.5

    def __post_init__(self) -> None:
        if self.offsets < 1:
            raise ValueError(f"offsets={self.offsets} must be at least 1")

    def fit(self, task: Task) -> Tensor:
        """Return the "no" vectors of the classes, [k d], of unit length."""
        return task.cached(
            lambda: self._bank(task),
            prompt=self.prompt,
            offsets=self.offsets,
            templates=self.templates if self.prompt == "learnable" else self.no_templates,
            eval_prompt=self.eval_prompt if self.prompt == "learnable" else "",
        )

    def score(self, batch: Batch, task: Task, state: Tensor) -> Float[Tensor, " b"]:
        yes, gap = self._logits(batch, task, state)
        if self.rule == "ctw":
            odds = gap.gather(-1, task.best(batch.features, self.templates)[:, None]).squeeze(-1).double()
        else:
            odds = logsumexp(yes + logsigmoid(gap)) - logsumexp(yes + logsigmoid(-gap))
        return odds if self.form == "log-odds" else odds.sigmoid().float()

    def decide(self, batch: Batch, task: Task, state: Tensor) -> Bool[Tensor, " b"]:
        """Decide by the paper's threshold-free rules, equations 7 (CTW) and 9 (ATD)."""
        yes, gap = self._logits(batch, task, state)
        if self.rule == "ctw":
            return gap.gather(-1, task.best(batch.features, self.templates)[:, None]).squeeze(-1) > 0
        known = yes if self.decision == "raw" else yes + logsigmoid(gap)
        return known.amax(-1).double() >= logsumexp(yes + logsigmoid(-gap))

    def probabilities(self, batch: Batch, task: Task, state: Tensor) -> tuple[Float64[Tensor, "b k"], Tensor]:
        """Return CLIP's softmax over the classes, and p_yes of each."""
        yes, gap = self._logits(batch, task, state)
        return yes.double().softmax(-1), gap.double().sigmoid()

    def explain(self, batch: Batch, task: Task, state: Tensor) -> dict[str, list[tuple[str, float]]]:
        """Return the softmax and p_yes of the nearest classes, and both rules."""
        softmax, yes = (values[0] for values in self.probabilities(batch, task, state))
        best = softmax.argsort(descending=True).tolist()
        rules: list[tuple[str, float]] = []
        for rule in ("atd", "ctw"):
            variant = replace(self, rule=rule, form="log-odds")
            rules.append((f"{rule}, probability of ID", float(variant.score(batch, task, state).sigmoid())))
            rules.append((f"{rule}, decides ID (1) or OOD (0)", float(variant.decide(batch, task, state))))
        return {
            "p, CLIP's softmax": [(task.classes[k], float(softmax[k])) for k in best],
            "p_yes of the same classes": [(task.classes[k], float(yes[k])) for k in best],
            "both rules": rules,
        }

    def _logits(self, batch: Batch, task: Task, bank: Tensor) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Return the "yes" logits, and the "yes" logits minus the "no" logits."""
        yes = task.logits(batch.features, self.templates, self.scale)
        factor = task.scale if self.scale is None else self.scale
        return yes, yes - factor * (batch.features @ bank.T)

    def _bank(self, task: Task) -> Float[Tensor, "k d"]:
        """Embed each prompt with the "no" tower, normalise, average over the templates, normalise again."""
        tower = task.weights.load(self.module(task.encoder))
        assert isinstance(tower, NoText)
        total = None
        for template in templates(self.templates if self.prompt == "learnable" else self.no_templates):
            tokens = task.encoder.tokenize([template.replace("{}", name) for name in task.classes])
            parts = [tower.evaluate(part, self.eval_prompt) for part in torch.split(tokens, CHUNK)]
            unit = normalize(torch.cat(parts), dim=-1)
            total = unit if total is None else total + unit
        assert total is not None  # a prompt set has at least one template
        return normalize(total, dim=-1)

    def module(self, encoder: Encoder) -> NoText:
        return NoText(encoder, self.offsets if self.prompt == "learnable" else 0)

    def inputs(self, pairs: Pairs, encoder: Encoder) -> dict[str, Tensor]:
        """Return image and "yes" features, the tokens of the "no" text, and the index of each pair's offset."""
        scale = torch.full((len(pairs.captions),), float(encoder.scale))
        drawn = {"image": pairs.features, "scale": scale.to(pairs.embeddings.device)}
        if self.prompt == "learnable":
            which = pairs.draw(self.offsets + self.mean_draw)
            return drawn | {"yes": pairs.text(encoder), "tokens": encoder.tokenize(pairs.captions), "offset": which}
        positive, negative = templates(self.templates), templates(self.no_templates)
        if len(positive) != len(negative):
            raise ValueError(f"{self.templates} has {len(positive)} templates, {self.no_templates} {len(negative)}")
        chosen = [(i, text) for i, text in zip(pairs.draw(len(positive)).tolist(), pairs.captions, strict=True)]
        yes = [positive[i].replace("{}", text) for i, text in chosen]
        no = [negative[i].replace("{}", text) for i, text in chosen]
        return drawn | {"yes": normalize(encoder.text(yes), dim=-1), "tokens": encoder.tokenize(no)}

    def embed(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        no = normalize(module(inputs["tokens"], inputs.get("offset")), dim=-1)
        return {"image": inputs["image"], "yes": inputs["yes"], "no": no, "scale": inputs["scale"]}

    def loss(self, embedded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ITBO's two means, and TSO.

        ITBO: image i should reject its own "no" text and match the "no" text of every other caption, with
        p_no_ij = sigmoid(no logit - yes logit). TSO is 2 - ||yes - no||: 0 when a caption's two texts are opposite.
        """
        image, yes, no = embedded["image"], embedded["yes"], embedded["no"]
        gap = embedded["scale"][:, None] * (image @ (yes - no).T)  # [b b], yes logit minus no logit
        n, own = len(gap), gap.diagonal()
        distance = (2 - 2 * (yes * no).sum(-1) + ROOT).sqrt()
        others = (softplus(gap).sum() - softplus(own).sum()) / max(n * n - n, 1)
        return {
            "yes": self.yes * softplus(-own).mean(),
            "no": self.no * others,
            "tso": self.tso * (2 - distance).mean(),
        }

    def translate(self, state: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return translate(state, frozen, learnable=self.prompt == "learnable", offsets=self.offsets)

    def release(self, tensors: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return to_release(tensors, frozen)
