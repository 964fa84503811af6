"""TANL: test-time activated negative labels (Zhang et al., CVPR 2026, arXiv:2603.25250)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import normalize

from oodbench.method import Batch, Needs, StreamMethod, Task, UserError, logsumexp

from ._word_folder import WordFolder

HISTORY = 20_000  # scores from which the threshold is computed
NOISES = 3  # images of each kind of noise


class Queue:
    """A first-in, first-out queue of `length` vectors, [length w]."""

    def __init__(self, rows: Float[Tensor, "n w"], length: int) -> None:
        self.rows = rows.new_zeros(length, rows.shape[1])
        self.pushed = 0
        self.push(rows)

    def push(self, rows: Float[Tensor, "n w"]) -> None:
        """Replace the oldest vectors."""
        rows = rows[-len(self.rows) :]
        places = (self.pushed + torch.arange(len(rows), device=rows.device)) % len(self.rows)
        self.rows[places] = rows
        self.pushed += len(rows)

    def mean(self) -> Float[Tensor, " w"]:
        """Return the mean of the vectors in the queue."""
        return self.rows[: self.pushed].mean(0)


@dataclass(frozen=True)
class Activated:
    """State of a stream: activations of all words by likely ID and OOD images, and the scores so far.

    words      [w d] unit vectors of all words
    positives  activations by likely ID images
    negatives  activations by likely OOD images
    history    [h] scores S_aa
    """

    words: Float[Tensor, "w d"]
    positives: Queue
    negatives: Queue
    history: Float64[Tensor, " h"]


@dataclass(frozen=True)
class TANL(StreamMethod[Activated]):
    """Softmax probability of the class names against the words that OOD images of the stream activate most.

    The activation of a word by an image is its probability in the softmax over class names and all words. With P and N
    the means of two queues, of activations by likely ID and by likely OOD images, the M words of largest N - P are
    chosen, in this order.

    A batch is scored with the words of the queues. A threshold t divides all scores so far (the grid point of least
    within-class variance); images with S > t + gap (1 - t) are admitted as ID, those with S < t - gap t as OOD. The
    words are chosen again by alpha times the mean of the queue plus 1 - alpha times the mean of the batch's admitted
    images (the queue's alone if there are none), and the batch is scored again, so that an image may have chosen the
    words that score it. Then the queues are filled. P begins with the activations by the class names' texts, N by 15
    images of noise; the history of scores begins with those of both. If there are fewer class names than `queue`, all
    are taken. Of fewer words than M, say m, the mean is over those there are; the released loop counts the last term M
    - m times more.

    The score is the log-odds of S_aa, which gives the same ranking as S_aa and does not tie at 0 or 1. S_aa is one
    cumulative sum over the M words, where the released code has M softmaxes. Activations are computed for admitted
    images alone, since no others are read.

    Released code: YBZh/OpenOOD-VLM at 804f331, openood/postprocessors/activated_neg_postprocessor.py:406-683, its
    network openood/networks/clip_fixed_ood_prompt.py. Prompts "The nice {}." of class names and nouns (:416), "This is
    a {} photo." of adjectives (:646), scale exp(logit_scale) = 100 (:750); images resized to 256 (bicubic), cropped to
    224 (configs/datasets/imagenet/imagenet_traditional_four_ood.yml:4-8), half precision, batches of 256. The 27
    released files have 69,554 words that are not ImageNet names in the same case; a word that is noun and adjective is
    a noun (clip_for_wordnet_prepare.py:116-125). Noise (:735-746): three images each of normal, uniform, Poisson (rate
    5), gamma (shape 2, rate 1) and salt-and-pepper noise (half of the values 1, the others 0); the first, third and
    fourth kind are min-max scaled to [0, 1] over the three images, and all go into the tower as they are, without
    CLIP's mean and deviation. The released setup() returns at its first line; what follows it would read OOD images.

    Released code: the paper has alpha 0.95 and gap 0.2. The released script (scripts/ood/TANL/official.sh:14-32) has
    alpha 0 and gap 0.5, and loops over gamma = 2, 1, 0: every second of the M terms, every one (S_aa), or the last, a
    plain softmax.

    preset       "paper" or "script": alpha and gap
    alpha        weight of the queues in the second choice of words; None takes 0.95 (paper) or 0 (script)
    gap          margin of admission g; None takes 0.2 (paper) or 0.5 (script)
    gamma        distance of the terms of S_aa; 0 is a softmax over class names and all M words
    chosen       M, the number of words that are chosen
    queue        L, the length of both queues
    noise        "raw": noise goes into the tower as it is; "normalised": with CLIP's mean and deviation, as images do
    words        folder with the 27 released word files, or with WordNet's data.noun and data.adj; "release-wn30" is the
                 shipped list, of WordNet 3.0
    ignore_case  whether words that are class names in another case are left out as well (15 for ImageNet)
    templates    prompts of class names
    nouns        prompt of nouns
    adjectives   prompt of adjectives
    scale        factor on the cosines; None takes the encoder's own
    """

    formula: ClassVar[str] = r"""
    \text{score}(x) = \log \frac{S_{\text{aa}}(x)}{1 - S_{\text{aa}}(x)}, \qquad
    S_{\text{aa}}(x) = \frac{1}{M} \sum_{m=1}^{M} \frac{\sum_{c=1}^{K} e^{s \, v^\top t_c}}
    {\sum_{c=1}^{K} e^{s \, v^\top t_c} + \sum_{j=1}^{m} e^{s \, v^\top w_{(j)}}}

    v        embedding of image x, of unit length
    t_c      text embedding of class c of K, of unit length
    w_{(j)}  text embedding of the word with the j-th largest difference N - P of mean activations by likely OOD and
             likely ID images of the stream
    M        `chosen`
    s        `scale`
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.STREAM
    sees_itself: ClassVar[bool] = True
    preset: Literal["paper", "script"] = "paper"
    alpha: float | None = None
    gap: float | None = None
    gamma: int = 1
    chosen: int = 1000
    queue: int = 300
    noise: Literal["raw", "normalised"] = "raw"
    words: str = "release-wn30"
    ignore_case: bool = False
    templates: str = "The nice {}."
    nouns: str = "The nice {}."
    adjectives: str = "This is a {} photo."
    scale: float | None = 100.0

    def __post_init__(self) -> None:
        if not 0 <= self._alpha <= 1 or not 0 <= self._gap <= 1:
            raise ValueError(f"alpha={self._alpha} and gap={self._gap} must lie between 0 and 1")
        if self.gamma < 0 or min(self.chosen, self.queue) < 1:
            raise ValueError(
                f"gamma={self.gamma} must be at least 0, chosen={self.chosen} and queue={self.queue} at least 1"
            )
        self._folder.check(least=1)

    def text_encodings(self, classes: int) -> int:
        return self._folder.count()

    def begin(self, task: Task) -> Activated:
        found = self._folder.read(task.classes)
        if not found.nouns and not found.adjectives:
            raise ValueError(f"words={self.words} holds class names only")
        words, texts = self._folder.vectors(found, task), task.text(self.templates)
        noise = normalize(task.cached(lambda: self._noise(task), noise=self.noise), dim=-1)
        some = torch.randperm(len(texts), generator=torch.Generator().manual_seed(task.seed))[: self.queue]
        positives = Queue(self._activations(texts[some.to(texts.device)], words, task), self.queue)
        negatives = Queue(self._activations(noise, words, task), self.queue)
        both, difference = torch.cat([texts, noise.to(texts)]), negatives.mean() - positives.mean()
        return Activated(words, positives, negatives, self._odds(both, words, difference, task).sigmoid())

    def step(self, batch: Batch, task: Task, state: Activated) -> tuple[Float64[Tensor, " b"], Activated]:
        """Score, admit, choose the words again and score again; then fill the queues."""
        features, words, positives, negatives = batch.features, state.words, state.positives, state.negatives
        p, n = positives.mean(), negatives.mean()
        first = self._odds(features, words, n - p, task).sigmoid()
        history = torch.cat([state.history, first])[-HISTORY:]
        threshold = two_class_threshold(history)
        as_id = self._activations(features[first > threshold + self._gap * (1 - threshold)], words, task)
        as_ood = self._activations(features[first < threshold - self._gap * threshold], words, task)
        scores = self._odds(features, words, self._blended(n, as_ood) - self._blended(p, as_id), task)
        positives.push(as_id)
        negatives.push(as_ood)
        return scores, replace(state, history=history)

    def _blended(self, mean: Float[Tensor, " w"], admitted: Float[Tensor, "a w"]) -> Float[Tensor, " w"]:
        """Return alpha times the mean of a queue plus 1 - alpha times that of the admitted images, if there are any."""
        return self._alpha * mean + (1 - self._alpha) * admitted.mean(0) if len(admitted) else mean

    def _activations(
        self, features: Float[Tensor, "b d"], words: Float[Tensor, "w d"], task: Task
    ) -> Float[Tensor, "b w"]:
        """Return the probabilities of all words in the softmax over class names and words."""
        names, others = self._logits(features, task.text(self.templates), task), self._logits(features, words, task)
        largest = torch.maximum(names.amax(-1, keepdim=True), others.amax(-1, keepdim=True))
        powers = others.sub_(largest).exp_()
        return powers.div_(powers.sum(-1, keepdim=True) + (names - largest).exp().sum(-1, keepdim=True))

    def _odds(
        self, features: Float[Tensor, "b d"], words: Float[Tensor, "w d"], difference: Float[Tensor, " w"], task: Task
    ) -> Float64[Tensor, " b"]:
        """Return log(S_aa / (1 - S_aa)) with the words of largest difference N - P."""
        chosen = words[difference.topk(min(self.chosen, len(words))).indices]
        names = logsumexp(self._logits(features, task.text(self.templates), task))
        return activation_aware(names, self._logits(features, chosen, task), self.gamma)

    def _logits(self, features: Float[Tensor, "b d"], texts: Float[Tensor, "n d"], task: Task) -> Float[Tensor, "b n"]:
        return (features @ texts.T).mul_(task.scale if self.scale is None else self.scale)

    def _noise(self, task: Task) -> Float[Tensor, "15 d"]:
        """Embed the images of noise."""
        encoder = task.encoder
        images, mean = noise_images(encoder.size, task.seed).to(encoder.std), getattr(encoder, "mean", None)
        if self.noise == "normalised":
            return encoder.pixels(images)
        if mean is None:
            raise UserError(
                "tanl: noise=raw needs the mean that the encoder subtracts from pixels, which a plugin encoder may "
                "lack: give it `mean`, [3 1 1], or run it with --methods 'tanl[noise=normalised]'"
            )
        return encoder.pixels(images * encoder.std + mean)  # pixels() subtracts the mean and divides by std

    @property
    def _alpha(self) -> float:
        return {"paper": 0.95, "script": 0.0}[self.preset] if self.alpha is None else self.alpha

    @property
    def _gap(self) -> float:
        return {"paper": 0.2, "script": 0.5}[self.preset] if self.gap is None else self.gap

    @property
    def _folder(self) -> WordFolder:
        return WordFolder(self.words, self.nouns, self.adjectives, self.ignore_case)


def activation_aware(
    names: Float64[Tensor, " b"], words: Float[Tensor, "b m"], gamma: int = 1
) -> Float64[Tensor, " b"]:
    """Return the log-odds of S_aa, from log I of the class names and the logits of the chosen words, in their order."""
    m = words.shape[1]
    ends = torch.arange(gamma or m, m + (gamma or m), gamma or m, device=words.device).clamp_(max=m) - 1
    largest = words.amax(-1, keepdim=True)
    sums = (words - largest).double().exp_().cumsum(-1)[:, ends]
    odds = (names - largest[:, 0])[:, None] - sums.log_()  # log I - log of the sum over the first words
    return odds.sigmoid().mean(-1).log() - odds.neg_().sigmoid_().mean(-1).log()


def two_class_threshold(scores: Float64[Tensor, " n"]) -> float:
    """Return the t of 0, 0.01, ..., 0.99 that splits the scores into two classes with the least within-class variance.

    Of several such t it is the middle one (of an even number, the upper one); neither class may be empty.
    """
    ordered, grid = scores.sort().values, torch.arange(100, dtype=torch.float64, device=scores.device) / 100
    n, below = len(ordered), torch.searchsorted(ordered, grid)  # as many scores are less than each t
    sums = torch.stack([ordered, ordered.square()]).cumsum(-1)
    total, square = sums[:, -1]
    first = torch.where(below > 0, sums[0, (below - 1).clamp_(min=0)], 0)
    within = square - first.square() / below - (total - first).square() / (n - below)
    within = torch.where((below == 0) | (below == n), torch.inf, within)
    least = (within == within.min()).nonzero()[:, 0]
    return float(grid[least[len(least) // 2]])


def noise_images(size: tuple[int, int], seed: int) -> Float[Tensor, "15 3 height width"]:
    """Draw three images of each kind of noise, in [0, 1]."""
    random, shape = torch.Generator().manual_seed(seed), (NOISES, 3, *size)
    normal = torch.randn(shape, generator=random)
    uniform = torch.rand(shape, generator=random)
    poisson = torch.poisson(torch.full(shape, 5.0), generator=random)
    gamma = torch.empty(2, *shape).exponential_(generator=random).sum(0)  # of shape 2 and rate 1
    pepper = (torch.rand(shape, generator=random) >= 0.5).float()
    normal, poisson, gamma = ((x - x.min()) / (x.max() - x.min()) for x in (normal, poisson, gamma))
    return torch.cat([normal, uniform, poisson, gamma, pepper])
