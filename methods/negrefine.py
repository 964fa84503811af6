"""NegRefine: refining negative labels for zero-shot OOD detection (Ansari et al., ICCV 2025, arXiv:2507.09795)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from oodbench.method import Access, Batch, Needs, Task

from ._negatives import Negatives, farthest_of_both
from .csp import CSP

IMAGES = 64  # images whose pairs are looked up at once


@dataclass(frozen=True)
class Refined(Negatives):
    """Negative labels in the order of the groups, and all chosen ones, those cut off too, with vectors [n d]."""

    chosen: tuple[str, ...]
    chosen_vectors: Tensor


@dataclass(frozen=True)
class NegRefine(CSP):
    """CSP's score on words that a language model has filtered, plus the score of pairs of a class and a negative word.

    The second score compares the text "p and n" with n alone, for the 5 nearest classes p and the 5 nearest negative
    words n. It is high for an image that shows a class together with a negative word. The score of the method is the
    log-odds of the weighted sum u, which gives the same ranking as u and does not tie where both terms are 1.

    Pairs are put into the prompts of nouns and encoded when an image asks for them, up to 25 texts of 8 prompts each. A
    pair is encoded once and kept in memory (Task.encode); on a CPU this decides the time of a run.

    Only with words=FOLDER are the words those that a language model filtered. Without it they are CSP's, not filtered,
    which is the paper's ablation with the second score alone. The access card states words of a language model in both
    cases, because a card does not depend on hyper-parameters.

    Released code: the filter asked a language model (Qwen2.5-14B-Instruct) whether a word is a proper noun, or a
    subcategory of one of the ten class names nearest to it. `oodbench get words negrefine` gets its result for
    ImageNet-1k, 6,370 words of seed 0, which words=FOLDER reads. As in that code, unfiltered words are chosen by their
    largest cosine (quantile=1), and nouns that are class names, in the same case, are not chosen. The code then removes
    characters other than letters, "_", "-" and blanks, drops words of fewer than three characters, and orders the rest
    by a Python set, which changes from process to process; it scores S without, and the pairs with, the words beyond a
    multiple of `groups`.

    words           as in csp; the folder with the authors' two files is used as it is
    quantile        as in csp; 1 chooses words by their largest cosine with an ID class
    drop_names      whether nouns that are ID names, in the same case, are left out
    weight          factor of the score of pairs
    top_classes     number of nearest classes in pairs
    top_negatives   number of nearest negative words in pairs
    pair_templates  prompts of pairs; for ImageNet-Sketch as ID csp-sketch, as for the other templates
    """

    formula: ClassVar[str] = r"""
    \text{score}(x) = \log \frac{u(x)}{3 - u(x)}, \qquad u(x) = S(x) + 2 \, S_{\text{MM}}(x)

    S_{\text{MM}}(x) = \max_{p \in \mathcal{P}(x), \, n \in \mathcal{N}(x)}
    \frac{e^{\cos(h, e_{p, n}) / \tau}}{e^{\cos(h, e_{p, n}) / \tau} + e^{\cos(h, \tilde e_n) / \tau}}

    S(x)            CSP's probability of the ID class names on the filtered words
    h               embedding of image x
    e_{p, n}        text embedding of "p and n"
    \tilde e_n      text embedding of negative word n
    \mathcal{P}(x)  the 5 nearest classes (`top_classes`)
    \mathcal{N}(x)  the 5 nearest negative words (`top_negatives`)
    \tau            1 / `scale`, 0.01; 2 is `weight`, and 3 is 1 + `weight`
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.ENCODER
    access: ClassVar[Access] = Access(lm_words=True)
    quantile: float = 1.0
    drop_names: bool = True
    weight: float = 2.0
    top_classes: int = 5
    top_negatives: int = 5
    pair_templates: str = "csp"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight < 0 or min(self.top_classes, self.top_negatives) < 1:
            raise ValueError(
                f"weight={self.weight} must be at least 0, top_classes={self.top_classes} and "
                f"top_negatives={self.top_negatives} at least 1"
            )

    def fit(self, task: Task) -> Refined:
        pool = self._pool(task)
        everything = torch.ones(len(pool.words), dtype=torch.bool)
        mined = farthest_of_both(pool.similarity, pool.nouns, pool.phrases, pool.counts)
        rows = (everything if pool.selected else mined).nonzero()[:, 0]
        chosen = tuple(pool.words[i] for i in rows.tolist())
        return Refined(
            **vars(self._grouped(pool)), chosen=chosen, chosen_vectors=pool.vectors[rows.to(pool.vectors.device)]
        )

    def score(self, batch: Batch, task: Task, state: Negatives) -> Float[Tensor, " b"]:
        assert isinstance(state, Refined)
        log_s, log_rest = self._log_odds(batch, task, state) - math.log(self.groups)
        starts = range(0, batch.size, IMAGES)
        margins = (self._margins(batch.features[i : i + IMAGES], task, state)[1] for i in starts)
        margin = torch.cat([each.amax((1, 2)) for each in margins]).double()
        weight = torch.tensor(self.weight, dtype=torch.float64, device=margin.device).log()
        log_sigmoid = torch.nn.functional.logsigmoid
        u = torch.logaddexp(log_s, weight + log_sigmoid(margin))
        return u - torch.logaddexp(log_rest, weight + log_sigmoid(-margin))

    def explain(self, batch: Batch, task: Task, state: Negatives) -> dict[str, list[tuple[str, float]]]:
        """Return what csp does, and the pairs with their probabilities against the negative word alone."""
        assert isinstance(state, Refined)
        texts, margins = self._margins(batch.features, task, state)
        pairs = zip(texts, margins.sigmoid().flatten().tolist(), strict=True)
        ordered = sorted(pairs, key=lambda pair: -pair[1])
        return {**super().explain(batch, task, state), "pairs against the negative word alone": ordered}

    def _margins(
        self, features: Float[Tensor, "b d"], task: Task, state: Refined
    ) -> tuple[list[str], Float[Tensor, "b p n"]]:
        """Return the texts of the pairs, and the scaled cosines of each minus that of its negative word."""
        classes = task.text(self.templates, self.average)
        near = (features @ classes.T).topk(min(self.top_classes, len(classes))).indices.tolist()
        cosines, index = (features @ state.chosen_vectors.T).topk(min(self.top_negatives, len(state.chosen)))
        words = [[state.chosen[k] for k in row] for row in index.tolist()]
        texts = [f"{task.classes[c]} and {n}" for row, own in zip(near, words, strict=True) for c in row for n in own]
        pairs = task.encode(texts, self.pair_templates, self.average).view(len(features), -1, features.shape[1])
        matched = torch.einsum("bd,bqd->bq", features, pairs).view(len(features), -1, cosines.shape[1])
        return texts, self._scale(task) * (matched - cosines[:, None])
