"""EOE: envisioning outlier exposure by large language models (Cao et al., ICML 2024, arXiv:2406.00806)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from oodbench.method import Access, Batch, Method, Task, UserError, logsumexp, templates

from ._wordnet import read_lines

WANTED = (
    "words=FILE: names of outlier classes that a language model wrote, as the authors' JSON or one a line\n"
    "  get the authors' lists: oodbench get words eoe\n"
    "  and name the file: --set eoe.words=FILE"
)


@dataclass(frozen=True)
class Outliers:
    """The outlier names with their vectors [n d] of unit length."""

    names: tuple[str, ...]
    vectors: Tensor


@dataclass(frozen=True)
class EOE(Method[Outliers]):
    """Largest softmax probability of the ID classes minus a fraction of the largest one of likely outlier names.

    The softmax is over the cosines, divided by the temperature, with the K class names and the L outlier names that a
    language model wrote. The names are read from a file; no language model is queried. A list is written for far, near
    or fine-grained OOD: the method then knows which kind of OOD is tested, which its access card states.

    Released code: it reads the names in lower case, once each, without those that are class names in any case. (The
    files repeat names: of 539 in the first list for far OOD, 215 differ.) For near OOD, it leaves out names that share
    a word, in the same case, with a class name (overlap=False); for ImageNet-20, also those whose text has a cosine
    above 0.85 with the text of a class (near=0.85). The other scores are its `score_ablation`, whose default on its
    command line is `max`; its script and the paper have `eoe`. With `max` an image that is nearest to an outlier name
    has the score 1/K.

    words        file of outlier names: the authors' JSON (lists by class or task, or one list), or one name a line
    preset       the score: "eoe"; "msp", max_ID p, and "max", max_ID p of a softmax over the class names alone, both as
                 logarithms; "energy" and "max-logit", the differences between class names and outlier names
    templates    prompts of class names and outlier names
    temperature  T of the code, which divides the cosines
    beta         beta of the paper
    duplicates   whether a name counts as often as the file repeats it, which changes the sum of the softmax
    overlap      whether outlier names that share a word with a class name are used
    near         cosine with the text of a class above which an outlier name is left out; 1 leaves out none
    """

    formula: ClassVar[str] = r"""
    S(x) = \max_{c \in \mathcal{Y}_{\text{id}}} p_c(x) - \beta \max_{n \in \mathcal{Y}_{\text{outlier}}} p_n(x),
    \qquad
    p_k(x) = \frac{e^{\cos(v, t_k) / T}}
    {\sum_{j \in \mathcal{Y}_{\text{id}} \cup \mathcal{Y}_{\text{outlier}}} e^{\cos(v, t_j) / T}}

    v                 embedding of image x
    t_k               text embedding of name k
    \mathcal{Y}_{\text{id}}  the K ID class names
    \mathcal{Y}_{\text{outlier}}  the L outlier names
    \beta             `beta`
    T                 `temperature`
    """
    access: ClassVar[Access] = Access(lm_words=True, knows_ood_kind=True)
    words: str = ""
    preset: Literal["eoe", "max", "msp", "energy", "max-logit"] = "eoe"
    templates: str = "simple"
    temperature: float = 1.0
    beta: float = 0.25
    duplicates: bool = False
    overlap: bool = True
    near: float = 1.0

    def __post_init__(self) -> None:
        if not self.words:
            raise ValueError(f"it needs {WANTED}")
        if self.temperature <= 0 or self.beta < 0:
            raise ValueError(f"temperature={self.temperature} must be above 0 and beta={self.beta} at least 0")
        self._names(())

    def text_encodings(self, classes: int) -> int:
        return len(self._names(())) * len(templates(self.templates))

    def fit(self, task: Task) -> Outliers:
        names = self._names(task.classes)
        vectors = task.words(names, self.templates)
        if self.near < 1:
            largest = (vectors @ task.text(self.templates).T).amax(-1)
            kept = (largest <= self.near).nonzero()[:, 0]
            names, vectors = [names[i] for i in kept.tolist()], vectors[kept]
        if not names:
            raise UserError(f"words={self.words}: no outlier name is left; raise near={self.near}")
        return Outliers(tuple(names), vectors)

    def score(self, batch: Batch, task: Task, state: Outliers) -> Float[Tensor, " b"]:
        logits = batch.features, self.templates, 1 / self.temperature
        outliers = batch.features @ state.vectors.T / self.temperature
        id_max, id_sum = task.largest(*logits).double(), task.logsumexp(*logits)
        outlier_max, outlier_sum = outliers.amax(-1).double(), logsumexp(outliers)
        both = torch.logaddexp(id_sum, outlier_sum)
        if self.preset == "msp":
            return id_max - both
        if self.preset == "max":
            return (id_max - id_sum).masked_fill(outlier_max > id_max, -math.log(len(task.classes)))
        if self.preset == "energy":
            return self.temperature * (id_sum - outlier_sum)
        if self.preset == "max-logit":
            return self.temperature * (id_max - outlier_max)
        return (id_max - both).exp() - self.beta * (outlier_max - both).exp()

    def explain(self, batch: Batch, task: Task, state: Outliers) -> dict[str, list[tuple[str, float]]]:
        """Return the nearest outlier names with their cosines."""
        cosines = (batch.features @ state.vectors.T)[0]
        order = cosines.argsort(descending=True).tolist()
        return {"nearest outlier names, cosines": [(state.names[k], float(cosines[k])) for k in order]}

    def _names(self, classes: Sequence[str]) -> list[str]:
        """Return the outlier names of the file that are used with these class names."""
        names = [name.lower() for name in read_names(Path(self.words).expanduser())]
        if not self.duplicates:
            names = list(dict.fromkeys(names))
        own, words = {name.lower() for name in classes}, {word for name in classes for word in name.split()}
        left = [name for name in names if name not in own and (self.overlap or not words & set(name.split()))]
        if not left:
            raise UserError(f"words={self.words}: all {len(names)} names are class names or share a word with one")
        return left


def read_names(path: Path) -> list[str]:
    """Read names from JSON, lists by class or one list, or from a text file; raise ValueError if it has neither."""
    lines = read_lines(path)
    if lines[0][0] not in "{[":
        return lines
    try:
        found: Any = json.loads("\n".join(lines))
    except ValueError as error:
        raise ValueError(f"words: {path} looks like JSON but is not valid: {error}") from error
    lists = list(found.values()) if isinstance(found, dict) else [found]
    flat = [name for each in lists for name in (each if isinstance(each, list) else [each])]
    if not flat or not all(isinstance(name, str) and name.strip() for name in flat):
        raise ValueError(f'words: {path} must hold names, such as {{"far": ["sunflower", "waterfall"]}}')
    return [name.strip() for name in flat]
