"""AdaNeg: adaptive negative proxies (Zhang & Zhang, NeurIPS 2024, arXiv:2410.20149)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from oodbench.method import Batch, Needs, StreamMethod, Task, logsumexp

from ._negatives import Corpus, farthest_of_both, similarities
from ._word_folder import WordFolder


@dataclass(frozen=True)
class Slots:
    """The images that a class keeps: their entropies, [n], least first, and their embeddings, [n d]."""

    entropies: Float[Tensor, " n"]
    vectors: Float[Tensor, "n d"]


@dataclass(frozen=True)
class Memory:
    """The negative labels, and what is kept of the stream by class: k ID classes, then m negative labels.

    negatives  [m d] unit vectors of the negative labels, in the order of the groups
    sums       class -> sum of its text vector and of the images that it keeps, [d], for classes that have any
    counts     class -> number of images that it keeps
    slots      class -> what replacement needs of them
    """

    negatives: Float[Tensor, "m d"]
    sums: dict[int, Float[Tensor, " d"]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    slots: dict[int, Slots] = field(default_factory=dict)


@dataclass(frozen=True)
class Sides:
    """One softmax of both sides: log S and log(1 - S), [b], and the probabilities of the ID classes, [b k]."""

    log_s: Float64[Tensor, " b"]
    log_rest: Float64[Tensor, " b"]
    probabilities: Float64[Tensor, "b k"]


@dataclass(frozen=True)
class AdaNeg(StreamMethod[Memory]):
    """NegLabel's score of the texts plus the same score of proxies: means of a text and of images of the stream.

    An image whose S of the texts is above thres + gap (1 - thres) = 0.75 enters the memory of its nearest ID class;
    below thres - gap thres = 0.25, that of its nearest negative label. The proxy of a class is the mean of its text and
    of its images, of unit length. A batch enters the memory before it is scored: an image can be its own proxy. The
    score is the log-odds of u, which gives the same ranking as u and does not tie where both terms are 1. The
    prediction is the class of largest p(texts) + lam p(proxies), of softmaxes over classes and negative labels.

    The state of a stream is the vectors of the negative labels, 4 m d bytes (20.5 MB for 10,000 of width 512), a sum
    for each class that keeps images, and with replacement=entropy also these images: 2 KB each of width 512. The proxy
    of a class without images is its text. Sums of all 11,000 classes would be 22.5 MB; the released tensor has 11 slots
    for every class, 248 MB, in addition to the text vectors.

    There are 10,000 negative labels, of nouns and of adjectives in proportion, those whose cosine with the ID classes
    is smallest at the index 0.95 K of the ascending order, without class names in the same case; a word that is noun
    and adjective is a noun. The groups are of a permutation as in neglabel; their sizes may differ by one, where the
    released code cuts off the remainder.

    Released code: YBZh/OpenOOD-VLM at 804f331, scripts/ood/adaneg/imagenet.sh, TTAPromptPostprocessor_noadagap in
    openood/postprocessors/ttaprompt_postprocessor.py:664-950; words in
    openood/networks/clip_fixed_ood_prompt.py:538-588. Of a memory of 10 (and the text) 9 slots are filled: the pointer
    begins at 1 and the class counts as full at 10 (:777, :825). Then an image whose entropy is less than the largest
    one of the class replaces that image (:826-833); the entropy is of its softmax over its own side, the ID classes
    alone or all negative labels alone (:817, :846), -sum p log(p + 1e-8). In the released half precision log(0 + 1e-8)
    is -inf and the entropy NaN, so that nothing is ever replaced: replacement=never. Sample-adaptive proxies
    (samada=True, :877) are off in the script's first run and not implemented here. Images are resized to 256 (bicubic)
    and cropped to 224, batches of 256.

    replacement    "entropy" or "never"
    lam            lambda, weight of the texts' score
    thres          threshold of S
    gap            margin of admission on both sides of the threshold
    slots          size of a class's memory, of which one less is used
    groups         number of groups of negative labels
    words          folder with the 27 released word files, or with WordNet's data.noun and data.adj; "release-wn30" is
                   the shipped list, of WordNet 3.0
    num_negatives  number of negative labels
    quantile       which of the ascending cosines with the ID classes counts
    permutation    seed of the permutation that makes the groups
    templates      prompts of class names
    nouns          prompt of nouns
    adjectives     prompt of adjectives
    scale          factor on the cosines; None takes the encoder's own
    """

    formula: ClassVar[str] = r"""
    \text{score}(x) = \log \frac{u(x)}{1 + \lambda - u(x)}, \qquad u(x) = S(x; P) + \lambda \, S(x; T)

    S(x; E) = \frac{1}{G} \sum_{g=1}^{G} \frac{\sum_{i=1}^{K} e^{s \, v^\top e_i}}
    {\sum_{i=1}^{K} e^{s \, v^\top e_i} + \sum_{j \in \mathcal{N}_g} e^{s \, v^\top e_j}}

    v              embedding of image x, of unit length
    E              T or P; $e_i$ is of ID class i of K, $e_j$ of negative label j
    T              text embeddings of ID classes and negative labels, of unit length
    P              their proxies: means of the text and of the images that the memory keeps, of unit length
    \mathcal{N}_g  negative labels of group g; G is `groups`
    \lambda        `lam`
    s              `scale`
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.STREAM
    sees_itself: ClassVar[bool] = True
    replacement: Literal["entropy", "never"] = "entropy"
    lam: float = 0.1
    thres: float = 0.5
    gap: float = 0.5
    slots: int = 10
    groups: int = 5
    words: str = "release-wn30"
    num_negatives: int = 10_000
    quantile: float = 0.95
    permutation: int = 0
    templates: str = "The nice {}."
    nouns: str = "The nice {}."
    adjectives: str = "This is a {} photo."
    scale: float | None = 100.0

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (self.thres, self.gap, self.quantile)):
            raise ValueError(
                f"thres={self.thres}, gap={self.gap} and quantile={self.quantile} must lie between 0 and 1"
            )
        if self.lam < 0 or self.slots < 2 or not 1 <= self.groups <= self.num_negatives:
            raise ValueError(
                f"lam={self.lam} must be at least 0, slots={self.slots} at least 2, groups={self.groups} at least 1, "
                f"and num_negatives={self.num_negatives} at least groups"
            )
        self._folder.check(least=self.num_negatives)

    def text_encodings(self, classes: int) -> int:
        return self._folder.count()

    def begin(self, task: Task) -> Memory:
        depends = "words nouns adjectives templates num_negatives quantile permutation".split()
        negatives = task.cached(lambda: self._mined(task), **{name: getattr(self, name) for name in depends})
        return Memory(negatives)

    def step(
        self, batch: Batch, task: Task, state: Memory
    ) -> tuple[Float64[Tensor, " b"], Memory, Int64[Tensor, " b"]]:
        """Put confident images into the memory, then score with its proxies."""
        scale = task.scale if self.scale is None else self.scale
        features, classes = batch.features, task.text(self.templates)
        names, others = (scale * (features @ vectors.T) for vectors in (classes, state.negatives))
        texts = self._sides(names, others)
        s = texts.log_s.exp()
        as_id, as_negative = s > self.thres + self.gap * (1 - self.thres), s < self.thres - self.gap * self.thres
        self._remember(state, classes, 0, features[as_id], names[as_id])
        self._remember(state, state.negatives, len(classes), features[as_negative], others[as_negative])
        adapted = torch.cat([names, others], -1)
        if state.sums:  # the proxies of other classes are their texts
            kept = torch.tensor(list(state.sums), device=adapted.device)
            adapted[:, kept] = scale * (features @ normalize(torch.stack(list(state.sums.values())), dim=-1).T)
        proxies = self._sides(adapted[:, : len(classes)], adapted[:, len(classes) :])
        weight = torch.tensor(self.lam, dtype=torch.float64, device=s.device).log()
        score = torch.logaddexp(proxies.log_s, weight + texts.log_s)
        rest = torch.logaddexp(proxies.log_rest, weight + texts.log_rest)
        return score - rest, state, (texts.probabilities + self.lam * proxies.probabilities).argmax(-1)

    def _sides(self, names: Float[Tensor, "b k"], others: Float[Tensor, "b m"]) -> Sides:
        """Return S, averaged over groups, and the probabilities of the ID classes among all classes and labels."""
        in_classes = logsumexp(names)
        in_groups = torch.stack([logsumexp(part) for part in others.tensor_split(self.groups, -1)])
        odds = in_classes - in_groups
        log_s, log_rest = (logsigmoid(each).logsumexp(0) - math.log(self.groups) for each in (odds, -odds))
        total = torch.logaddexp(in_classes, in_groups.logsumexp(0))
        return Sides(log_s, log_rest, (names - total[:, None]).exp())

    def _remember(
        self,
        memory: Memory,
        texts: Float[Tensor, "n d"],
        offset: int,
        vectors: Float[Tensor, "a d"],
        logits: Float[Tensor, "a n"],
    ) -> None:
        """Put images into the memory of the nearest of the classes offset, offset + 1, ..., in their order."""
        nearest, entropies = logits.argmax(-1), entropy(logits)
        for i in sorted(set(nearest.tolist())):
            c, new = offset + i, Slots(entropies[nearest == i], vectors[nearest == i])
            if self.replacement == "never":
                kept = new.vectors[: self.slots - 1 - memory.counts.get(c, 0)]
                memory.sums[c] = memory.sums.get(c, texts[i]) + kept.sum(0)
                memory.counts[c] = memory.counts.get(c, 0) + len(kept)
                continue
            # To fill the slots and then replace the largest entropy by less is to keep the images of least entropy.
            held = memory.slots.get(c, Slots(new.entropies[:0], new.vectors[:0]))
            every = Slots(*(torch.cat(pair) for pair in zip(vars(held).values(), vars(new).values(), strict=True)))
            least = every.entropies.argsort(stable=True)[: self.slots - 1]
            memory.slots[c] = Slots(every.entropies[least], every.vectors[least])
            memory.sums[c] = texts[i] + memory.slots[c].vectors.sum(0)
            memory.counts[c] = len(least)

    def _mined(self, task: Task) -> Float[Tensor, "m d"]:
        """Return the vectors of the words that are farthest from the ID classes, in the order of the groups."""
        words = self._folder.read(task.classes)
        n = len(words.nouns) + len(words.adjectives)
        if n < self.num_negatives:
            raise ValueError(f"num_negatives={self.num_negatives} of {n} words that are not class names; lower it")
        vectors, index = self._folder.vectors(words, task), int(self.quantile * len(task.classes))
        similarity = similarities(
            vectors,
            task.text(self.templates),
            lambda cosines: cosines.sort(-1).values[:, min(index, cosines.shape[1] - 1)],
        )
        adjectives = self.num_negatives * len(words.adjectives) // n
        counts = self.num_negatives - adjectives, adjectives
        used = farthest_of_both(similarity, words.nouns, words.adjectives, counts)
        return Corpus((*words.nouns, *words.adjectives), vectors, similarity, used).grouped(self.permutation).vectors

    @property
    def _folder(self) -> WordFolder:
        return WordFolder(self.words, self.nouns, self.adjectives, ignore_case=False)


def entropy(logits: Float[Tensor, "a n"]) -> Float[Tensor, " a"]:
    """Return -sum p log(p + 1e-8) of the softmax."""
    probabilities = logits.softmax(-1)
    return -(probabilities * (probabilities + 1e-8).log()).sum(-1)
