"""Task: everything that is known before the first test image, and the reductions of logits that methods share."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from oodbench.data import prompts as prompt_sets
from oodbench.errors import Undeclared
from oodbench.method.averages import RecentTexts, check_average
from oodbench.method.batch import Batch, Needs
from oodbench.method.checksum import SharedTensors
from oodbench.method.encoder import Encoder
from oodbench.method.training import Weights

BLOCK = 1 << 16  # logits at once: 256 KB


def scaled_logsumexp(
    cosines: Float[Tensor, "b k"], factor: float, largest: Float[Tensor, " b"]
) -> Float64[Tensor, " b"]:
    """Return logsumexp(factor * cosines), summed in float64; `largest` is the maximum of the scaled cosines.

    A few rows are computed at a time, so that they stay in the processor's cache.
    """
    # With fewer rows than threads torch would divide a row among threads, which changes the order of summation.
    rows = max(2 * torch.get_num_threads(), BLOCK // max(cosines.shape[1], 1))
    count = -(-len(cosines) // rows) if cosines.device.type == "cpu" else 1
    sums = []
    parts = (torch.tensor_split(tensor, max(count, 1)) for tensor in (cosines, largest[:, None]))
    for part, maxima in zip(*parts, strict=True):
        # In place on new tensors only, which autograd allows: none of these steps needs its input for the gradient.
        shifted = part - maxima if factor == 1 else (part * factor).sub_(maxima)
        sums.append(shifted.exp_().sum(-1, dtype=torch.float64))
    return largest.double() + torch.cat(sums).log()


def first_argmax(cosines: Float[Tensor, "b k"]) -> Int64[Tensor, " b"]:
    """Return argmax(-1), the first of equal values."""
    if cosines.device.type != "cpu":
        return cosines.argmax(-1)
    return torch.from_numpy(cosines.detach().numpy().argmax(-1))  # ten times as fast as torch's on CPUs


@dataclass(frozen=True)
class Sources:
    """Functions that a task reads from; the harness provides them.

    Arguments:
        text         templates -> [k d] class vectors of unit length; (templates, "raw") -> the same of raw features
        words        n prompts -> [n d] vectors of unit length; (n words, templates, average) -> averages of the words
        encoder      () -> the model
        calibration  () -> batches of ID training images
        labelled     () -> the same for methods that read labels; None: `calibration` has labels
    """

    text: Callable[..., Tensor]
    words: Callable[..., Tensor]
    encoder: Callable[[], Encoder]
    calibration: Callable[[], Iterable[Batch]]
    labelled: Callable[[], Iterable[Batch]] | None = None


@dataclass(frozen=True)
class MethodResources:
    """Resources that the harness provides to one method alone.

    Arguments:
        weights  () -> its trained weights
        keep     (hyper-parameters, compute) -> compute(), read from the store if it is stored for these
    """

    weights: Callable[[], Weights]
    keep: Callable[[Mapping[str, object], Callable[[], Tensor]], Tensor]


class Task:
    """Class names, text, encoder and calibration images: everything that is known before the first test image.

    Arguments:
        classes  the k ID class names, in label order (duplicates are kept)
        scale    the encoder's own logit scale
        sources  where class vectors, encoder and calibration images come from
        seed     seed of the run, for methods that draw random numbers
    """

    def __init__(self, classes: Sequence[str], scale: float, sources: Sources, seed: int = 0) -> None:
        self.classes = tuple(classes)
        self.scale = scale
        self.seed = seed
        self._sources = sources
        self._needs = ~Needs(0)
        self._resources: MethodResources | None = None
        self._class_vectors: dict[tuple[str, str], Tensor] = {}  # by templates and average
        self._recent = RecentTexts(lambda texts: self.encoder.text(texts))
        self._last_cosines: dict[str, tuple[Tensor, Tensor]] = {}  # templates -> features of the last batch, cosines
        self._reductions: dict[tuple[str, ...], Tensor] = {}  # (templates, name, ...) -> a reduction of these cosines
        self._shared, self._shared_cosines = SharedTensors(copies=True), SharedTensors()
        self._lock = threading.RLock()  # only one thread at a time runs the encoder

    def for_method(self, needs: Needs, resources: MethodResources | None = None) -> Task:
        """Return the same task for a method with other needs; caches are shared."""
        view = copy.copy(self)
        view._needs = needs
        view._resources = resources
        return view

    def for_thread(self) -> Task:
        """Return the same task for another thread: class vectors are shared, the cache of the last batch is not."""
        view = copy.copy(self)
        view._last_cosines, view._reductions, view._shared_cosines = {}, {}, SharedTensors()
        return view

    def intact(self) -> bool:
        """Return whether no method wrote into shared tensors; class vectors are restored if one did."""
        intact = self._shared.intact() and self._shared_cosines.intact()
        if not intact:
            self._last_cosines.clear()
            self._reductions.clear()
            self._shared_cosines.forget()
            self._shared.restore()
        return intact

    @property
    def encoder(self) -> Encoder:
        """The model itself, loaded at the first use. Declare Needs.ENCODER to run it in score()."""
        with self._lock:
            encoder = self._sources.encoder()
            self._shared.track(encoder.std)
            return encoder

    @property
    def weights(self) -> Weights:
        """The trained weights of the method for this encoder: of --weights METHOD=FILE, or shipped with glyphs.

        Raises:
            Undeclared  if the method does not declare Needs.WEIGHTS
        """
        if Needs.WEIGHTS not in self._needs or self._resources is None:
            raise Undeclared("trained weights were read but not declared: add Needs.WEIGHTS to the method's `needs`")
        return self._resources.weights()

    def prepare(self, templates: str) -> None:
        """Encode the class vectors of `templates` now, before they are asked for."""
        self._vectors(templates)

    def cached(self, compute: Callable[[], Tensor], /, **depends_on: object) -> Tensor:
        """Return compute(), which is called once; later calls read the stored tensor.

        Arguments:
            compute     () -> a tensor
            depends_on  hyper-parameters that it depends on, by name. The key always has encoder, precision, class
                        names, weights, seed, calibration images, files that hyper-parameters name and the source
        Returns:
            The tensor, on the device of the run.
        """
        return self._resources.keep(depends_on, compute) if self._resources else compute()

    def calibration(self) -> Iterable[Batch]:
        """Iterate over the ID training images of the split that the protocol names, for fit().

        Returns:
            Batches with features, embeddings and activations, without pixels. If the method declares Needs.LABELS they
            have labels, and with `--shots K` there are K images of each class.
        Raises:
            Undeclared  if the method does not declare Needs.CALIBRATION
        """
        if Needs.CALIBRATION not in self._needs:
            raise Undeclared(
                "calibration images were read but not declared: add Needs.CALIBRATION to the method's `needs`"
            )
        labelled = Needs.LABELS in self._needs and self._sources.labelled
        return (batch.for_method(self._needs) for batch in (labelled or self._sources.calibration)())

    def words(
        self, prompts: Sequence[str], templates: str | None = None, average: str = "normalised"
    ) -> Float[Tensor, "n d"]:
        """Return the text embeddings of any prompts; they are encoded once per encoder and stored.

        Words are encoded in parts, whose averages are stored one after the other, so that a killed run can resume.

        Arguments:
            prompts    n prompts, or n words with `templates`
            templates  None, or the templates that the words are put into, as for text(); the hyper-parameter that
                       names them is `templates` or ends in `_templates`
            average    how the embeddings of a word are averaged over the templates, as for text()
        Returns:
            [n d] vectors of unit length.
        """
        check_average(average)
        with self._lock:
            if templates is None:
                return self._sources.words(tuple(prompts))
            return self._sources.words(tuple(prompts), templates, average)

    def text(self, templates: str, average: str = "normalised") -> Float[Tensor, "k d"]:
        """Return the class vectors: averages over the templates, of unit length.

        Arguments:
            templates  name of a prompt set, a file with one template a line, or one template with `{}` in it
            average    "normalised": prompts are normalised, averaged and normalised again; "raw": the embeddings of
                       the text tower are averaged, and then normalised
        Returns:
            [k d] vectors of unit length. Do not write into them.
        """
        check_average(average)
        with self._lock:
            return self._shared.track(self._vectors(templates, average))

    def encode(self, texts: Sequence[str], templates: str, average: str = "normalised") -> Float[Tensor, "n d"]:
        """Return the text embeddings of texts that depend on the image, for score(). Declare Needs.ENCODER.

        The vectors of the last 131,072 texts are kept in memory for all methods and image sets; nothing is stored.

        Arguments:
            texts      n texts; equal ones are encoded once
            templates  templates that the texts are put into, as for text()
            average    as for text()
        Returns:
            [n d] vectors of unit length.
        Raises:
            Undeclared  if the method does not declare Needs.ENCODER
        """
        check_average(average)
        if Needs.ENCODER not in self._needs:
            raise Undeclared("texts were encoded but not declared: add Needs.ENCODER to the method's `needs`")
        with self._lock:
            return self._recent.vectors(texts, prompt_sets.templates(templates).lines, average)

    def logits(self, features: Float[Tensor, "b d"], templates: str, scale: float | None) -> Float[Tensor, "b k"]:
        """Return `scale` times the cosine of every image with every class.

        The cosines of the last batch are cached, so that methods with the same prompts share one matrix product.

        Arguments:
            features   [b d] image embeddings of unit length
            templates  as for text()
            scale      factor on the cosines; None is the encoder's own (100 for most CLIPs)
        Returns:
            [b k] logits. Do not write into them.
        """
        cosines = self._cosines(features, templates)
        factor = self.scale if scale is None else scale
        return self._shared_cosines.track(cosines) if factor == 1 else cosines * factor

    def largest(self, features: Float[Tensor, "b d"], templates: str, scale: float | None) -> Float[Tensor, " b"]:
        """Return logits(features, templates, scale).amax(-1), [b]; it is computed once for all methods."""
        factor = self.scale if scale is None else scale
        if factor <= 0:
            return self.logits(features, templates, scale).amax(-1)
        index = self.best(features, templates)[:, None]
        return self._cosines(features, templates).gather(-1, index).squeeze(-1) * factor  # rounds as the logits do

    def logsumexp(self, features: Float[Tensor, "b d"], templates: str, scale: float | None) -> Float64[Tensor, " b"]:
        """Return logsumexp of logits(features, templates, scale), [b], in float64; computed once for all methods."""
        factor = self.scale if scale is None else scale
        largest = self.largest(features, templates, scale)
        key = (templates, "logsumexp", repr(factor))
        return self._reduced(features, key, lambda cosines: scaled_logsumexp(cosines, factor, largest))

    def best(self, features: Float[Tensor, "b d"], templates: str) -> Int64[Tensor, " b"]:
        """Return the index of every image's nearest class, [b], the first of equally near ones."""
        return self._reduced(features, (templates, "best"), first_argmax)

    def seen_by(self, needs: Needs, own: MethodResources | None = None) -> Task:
        """Return for_method(needs, own); the old name."""
        warnings.warn("Task.seen_by is now Task.for_method", DeprecationWarning, stacklevel=2)
        return self.for_method(needs, own)

    def apart(self) -> Task:
        """Return for_thread(); the old name."""
        warnings.warn("Task.apart is now Task.for_thread", DeprecationWarning, stacklevel=2)
        return self.for_thread()

    def keep(self, make: Callable[[], Tensor], **depends: object) -> Tensor:
        """Return cached(make, **depends); the old name."""
        warnings.warn("Task.keep is now Task.cached", DeprecationWarning, stacklevel=2)
        return self.cached(make, **depends)

    def _reduced(self, features: Tensor, key: tuple[str, ...], reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """Return a copy of a reduction of the cosines with the templates key[0], computed once for all methods."""
        cosines = self._cosines(features, key[0])
        if key not in self._reductions:
            self._reductions[key] = reduce(cosines)
        return self._reductions[key].clone()

    def _vectors(self, templates: str, average: str = "normalised") -> Tensor:
        """Return class vectors untracked: tensors that only this module reads need no checksum after every batch."""
        with self._lock:
            key = (templates, average)
            if key not in self._class_vectors:
                self._class_vectors[key] = self._sources.text(*(key if average != "normalised" else key[:1]))
            return self._class_vectors[key]

    def _cosines(self, features: Tensor, templates: str) -> Tensor:
        """Return the cosines of a batch, computed at the first call for it."""
        last = self._last_cosines.get(templates)
        if last is None or last[0] is not features:
            if last is not None:
                self._shared_cosines.forget(last[1])
            del last  # frees the old cosines, whose memory is still in the processor's cache, for the new ones
            self._last_cosines.pop(templates, None)
            for key in [key for key in self._reductions if key[0] == templates]:
                del self._reductions[key]
            last = self._last_cosines[templates] = (features, features @ self._vectors(templates).T)
        return last[1]
