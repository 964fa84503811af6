"""User-defined encoders: a Python file or an entry point with the towers is found, described and run.

`--encoder plugin:FILE` names a file with one class that has `pixels` and `text`, or with a function `encoder` that
returns such an object; `--encoder plugin:NAME` names an entry point of the group `oodbench.encoders`, which is a class
or a function. It is called with the device ("cpu", "cuda"), or without arguments if it has none.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int64
from PIL.Image import Image
from PIL.Image import new as new_image
from torch import Tensor

from oodbench.encoder.card import PLUGIN_PREFIX, EncoderCard, EncoderSpec
from oodbench.errors import UserError, did_you_mean
from oodbench.method import registry, source_files
from oodbench.method.encoder import Captioner
from oodbench.storage.files import expand
from oodbench.storage.store import digest

GROUP = "oodbench.encoders"
REQUIRED = ("pixels", "text", "tokenize", "preprocess", "identity", "scale", "size", "std")
OPTIONAL = ("activations", "project", "patches", "patch_activations", "detokenize", "text_tower", "captioner")
_TEXTS = 256  # prompts per batch


@dataclass(frozen=True)
class PluginSource:
    """The source of an encoder: its file, the import name of its module ("" for a file) and the name in the module."""

    path: Path
    module: str = ""
    name: str = ""

    @property
    def digest(self) -> str:
        """Return the sha256 of all files that are used; for an entry point, also of the name in its module."""
        found = source_files.source_digest(self.path, self.module)
        return digest([found, self.name]) if self.name else found


def find_source(text: str, path: Path | None = None) -> PluginSource:
    """Return the source of `plugin:FILE` or `plugin:NAME`; `path` is the local path of a file that was sent here.

    Raises UserError if there is no such file or entry point.
    """
    name = text.removeprefix(PLUGIN_PREFIX)
    if name.endswith(".py") or "/" in name:
        file = (path or expand(Path(name))).resolve()
        if not file.is_file() or file.suffix != ".py":
            raise UserError(f"encoder '{text}': {file} {'is not a Python file' if file.exists() else 'does not exist'}")
        return PluginSource(file)
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        known = did_you_mean(name, points) if points else f"; no installed package has an entry point of {GROUP}"
        raise UserError(f"encoder '{text}' is neither a .py file nor an entry point{known}; write plugin:FILE.py")
    point = points[name]
    found = source_files.module_file(point.module)
    if found is None:
        raise UserError(f"encoder '{text}': its module {point.module} does not exist")
    return PluginSource(found, point.module, point.attr)


def make(text: str, source: PluginSource, device: str) -> Any:
    """Import and create an encoder. Raise UserError if this fails or a required part is missing."""
    try:
        if source.module:
            [point] = entry_points(group=GROUP, name=text.removeprefix(PLUGIN_PREFIX))
            factory = point.load()
        else:
            name = f"oodbench_encoder_{source.path.stem}_{digest([str(source.path), source.digest])[:8]}"
            if name not in sys.modules:
                _forget_parts(source.path)
            factory = _factory(registry.import_file(name, source.path))
        with torch.random.fork_rng(devices=[]):  # random weights must not change the random state of methods
            own = factory(device) if inspect.signature(factory).parameters else factory()
    except (Exception, SystemExit) as error:
        if isinstance(error, UserError):
            raise UserError(*(f"encoder '{text}': {problem}" for problem in error.problems)) from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"encoder '{text}' ({source.path}) cannot be created: {reason}; -v shows where") from error
    if missing := [part for part in REQUIRED if not hasattr(own, part)]:
        raise UserError(f"encoder '{text}' ({source.path}) lacks {', '.join(missing)}; see docs/encoders.md")
    return own


def _forget_parts(path: Path) -> None:
    """Forget the modules next to a plugin, so that `import helper` does not return an earlier version."""
    parts = {os.path.realpath(file) for file in source_files.files(path) if path.parent in file.parents} - {str(path)}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name != "__main__" and file and os.path.realpath(file) in parts:
            del sys.modules[name]


def _factory(module: ModuleType) -> Callable[..., Any]:
    """Return the function `encoder` of a file, or its only class that has `pixels` and `text`."""
    if inspect.isfunction(function := vars(module).get("encoder")):
        return function
    classes = [
        value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    bases = {base for value in classes for base in value.__mro__[1:]}
    found = [value for value in classes if hasattr(value, "pixels") and hasattr(value, "text") and value not in bases]
    if len(found) != 1:
        have = ", ".join(value.__name__ for value in found) or "none"
        raise UserError(f"its file must have one class with pixels and text, or a function encoder; it has {have}")
    return found[0]


def describe(spec: EncoderSpec, path: Path | None = None) -> tuple[EncoderCard, Path]:
    """Create an encoder on the CPU, and return its card and its file. Raise UserError for outputs of wrong shapes.

    `path` is the local path of a file that was sent from another machine.
    """
    source = find_source(spec.text, path)
    own = make(spec.text, source, "cpu")
    identity = _identity(spec.text, own)
    std = _std(spec.text, own)
    size = tuple(own.size) if isinstance(own.size, list | tuple) else (own.size, own.size)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(f"encoder '{spec.text}': size is {own.size}, not (height, width) in pixels")
    try:
        scale = float(own.scale)
    except (TypeError, ValueError, RuntimeError):
        scale = math.nan
    if not (math.isfinite(scale) and scale > 0):
        raise UserError(f"encoder '{spec.text}': scale is {own.scale}, not a positive number; it is exp(logit_scale)")
    split = hasattr(own, "project") and hasattr(own, "activations")
    card = EncoderCard(
        name=spec.text,
        architecture=type(own).__name__,
        tag="",
        weights=digest([source.digest, identity]),
        config={
            "identity": identity,
            "source": source.digest,
            "offers": [part for part in OPTIONAL if callable(getattr(own, part, None))],
        },
        mean=(),
        std=tuple(std.tolist()),
        size=(int(size[0]), int(size[1])),
        resize_mode="plugin",
        interpolation="plugin",
        fill_color=0,
        tokenizer="plugin",
        embed_dim=0,
        activation="project" if split else "embedding",
        width=0,
        scale=scale,
    )
    embed_dim, width = _widths(PluginEncoder(card, own, torch.device("cpu"), torch.float32))
    return dataclasses.replace(card, embed_dim=embed_dim, width=width), source.path


def _identity(text: str, own: Any) -> str:
    """Return the identity of an encoder. Raise UserError if it is not a string."""
    try:
        identity = own.identity()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"encoder '{text}': identity() fails: {reason}; it must return a string") from error
    if not isinstance(identity, str) or not identity.strip():
        raise UserError(
            f"encoder '{text}': identity() returns {identity!r}, not a string such as the sha256 of its weights"
        )
    return identity


def _std(text: str, own: Any) -> Tensor:
    """Return the three standard deviations of an encoder."""
    std = torch.as_tensor(own.std, dtype=torch.float32).flatten().cpu()
    if std.numel() == 1:
        std = std.expand(3)
    if std.numel() != 3 or not bool((std > 0).all()):
        raise UserError(f"encoder '{text}': std is {own.std}, not three positive numbers, [3 1 1]")
    return std


def _widths(encoder: PluginEncoder) -> tuple[int, int]:
    """Return the dimensions of embeddings and activations. Raise UserError for outputs of wrong shapes."""
    what = f"encoder '{encoder.card.name}'"
    with torch.no_grad():
        try:
            picture = encoder.transform(new_image("RGB", (50, 40), (200, 100, 5)))
            images = torch.stack([picture, picture]).float()
            activations = encoder.activations(images)
            images, texts = encoder.project(activations), encoder.text(["a photo", "a"])
            tokens = encoder.tokenize(["a photo", "a"])
        except UserError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"{what} fails on an image and two prompts: {reason}; -v shows where") from error
    for name, found in (("pixels()", images), ("text()", texts), ("tokenize()", tokens)):
        if found.ndim != 2 or len(found) != 2:
            raise UserError(f"{what}: {name} returns {list(found.shape)} for two inputs, not one row for each")
    if images.shape != texts.shape:
        raise UserError(f"{what}: images have {images.shape[1]} dimensions and texts {texts.shape[1]}")
    return images.shape[1], activations.shape[1]


class PluginEncoder:
    """A user-defined encoder, with float32 embeddings on the device of the run; it computes in `precision`.

    Its images are on the device of its `std`.
    """

    def __init__(self, card: EncoderCard, own: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.card, self.device, self.scale, self.size = card, device, card.scale, card.size
        self._own, self._dtype, self._lock = own, dtype, threading.Lock()
        self._place = own.std.device if isinstance(own.std, Tensor) else torch.device("cpu")
        self.std = torch.tensor(card.std, device=device).view(3, 1, 1)
        if hasattr(own, "mean"):
            self.mean = torch.as_tensor(own.mean, dtype=torch.float32, device=device).expand(3, 1, 1)

    def not_finite(self, what: str) -> UserError:
        """Return the error for embeddings that are not finite."""
        hint = "" if self._dtype == torch.float32 else "; try --precision fp32"
        return UserError(f"encoder {self.card.name} returned NaN or infinity for {what}{hint}")

    def _autocast(self) -> AbstractContextManager[Any]:
        place = self._place.type
        return nullcontext() if self._dtype == torch.float32 else torch.autocast(place, self._dtype)

    @contextmanager
    def casting_once(self) -> Iterator[None]:
        """Do nothing: the encoder manages its own weights."""
        yield

    def transform(self, image: Image) -> Tensor:
        """Return the pixels of an image, [3 height width], bytes or in [0, 1]. Raise UserError for other outputs."""
        pixels = self._own.preprocess(image)
        if not isinstance(pixels, Tensor) or pixels.shape != (3, *self.size):
            shape = list(pixels.shape) if isinstance(pixels, Tensor) else f"a {type(pixels).__name__}"
            raise UserError(f"encoder {self.card.name}: preprocess() returns {shape}, not a tensor {[3, *self.size]}")
        if pixels.dtype == torch.uint8:
            return pixels
        low, high = float(pixels.min()), float(pixels.max())
        if not pixels.is_floating_point() or low < -0.5 or high > 1.5:  # filters overshoot [0, 1] a little
            raise UserError(
                f"encoder {self.card.name}: preprocess() returns {pixels.dtype} from {low:.3g} to {high:.3g}, not "
                "torch.uint8 or numbers in [0, 1]; subtract the mean in pixels()"
            )
        return pixels.float()

    def activations(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b w"]:
        """Return the input of project(), or the embeddings if the encoder has none."""
        compute = self._own.pixels if self.card.activation == "embedding" else self._own.activations
        with self._autocast():
            return self._floats(compute(images.to(self._place)))

    def project(self, activations: Float[Tensor, "*b w"]) -> Float[Tensor, "*b d"]:
        """Apply the last linear map; the encoder's own project() is always given [b w]."""
        if self.card.activation == "embedding":
            return activations.to(self.device)
        if activations.ndim > 2:
            rows = self.project(activations.flatten(0, -2))
            return rows.view(*activations.shape[:-1], rows.shape[-1])
        return self._floats(self._own.project(activations.to(self._place)))

    def pixels(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d"]:
        """Return embeddings of images."""
        return self.project(self.activations(images))

    def patches(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n d"]:
        """Return patch features of images. Raise UserError if the encoder has none or their shape is wrong."""
        return self._of_patches("patches", images, self.card.embed_dim)

    def patch_activations(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n w"]:
        """Return the inputs of project() for image patches. Raise UserError if there are none, or of a wrong shape."""
        return self._of_patches("patch_activations", images, self.card.width)

    def _of_patches(self, name: str, images: Tensor, width: int) -> Tensor:
        compute = self._part(name)
        with self._autocast():
            found = self._floats(compute(images.to(self._place)))
        if found.ndim != 3 or (len(found), found.shape[2]) != (len(images), width):
            wanted = f"[{len(images)} n {width}]"
            raise UserError(f"encoder {self.card.name}: {name}() returns {list(found.shape)}, not {wanted}")
        return found

    def activations_and_patches(
        self, images: Float[Tensor, "b 3 height width"], fields: Sequence[str]
    ) -> tuple[Float[Tensor, "b w"], dict[str, Tensor]]:
        """Return activations() and the named patch features, computed one after the other."""
        return self.activations(images), {name: getattr(self, name)(images) for name in fields}

    def text(self, prompts: Sequence[str]) -> Float[Tensor, "k d"]:
        """Return embeddings of prompts, computed 256 at a time."""
        parts = [list(prompts[start : start + _TEXTS]) for start in range(0, len(prompts), _TEXTS)]
        with self._lock, self._autocast():
            return torch.cat([self._floats(self._own.text(part)) for part in parts])

    def tokenize(self, prompts: Sequence[str]) -> Int64[Tensor, "k n"]:
        """Return token ids on the device of the run."""
        tokens: Tensor = torch.as_tensor(self._own.tokenize(list(prompts)), dtype=torch.int64).to(self.device)
        return tokens

    def detokenize(self, token: int) -> str:
        """Return the text of one token. Raise UserError if the encoder has no detokenize()."""
        return str(self._part("detokenize")(token))

    def text_tower(self) -> torch.nn.Module:
        """Return a trainable copy of the text tower. Raise UserError if the encoder has none."""
        tower: torch.nn.Module = self._part("text_tower")().to(self.device)
        return tower

    def captioner(self) -> Captioner:
        """Return the model that writes captions. Raise UserError if the encoder has none."""
        found: Captioner = self._part("captioner")()
        return found

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """Return [], because a plugin does not report truncated prompts."""
        return []

    def _part(self, name: str) -> Callable[..., Any]:
        if name not in self.card.config["offers"]:
            raise UserError(f"{self.card.name} has no {name}(); see docs/encoders.md")
        found: Callable[..., Any] = getattr(self._own, name)
        return found

    def _floats(self, embeddings: Tensor) -> Tensor:
        return embeddings.to(self.device).float()


def load(card: EncoderCard, path: Path, device: str, dtype: torch.dtype) -> PluginEncoder:
    """Return a loaded encoder. Raise UserError if its source or its identity differs from its card."""
    source = find_source(card.name, path)
    own = make(card.name, source, device)
    if digest([source.digest, _identity(card.name, own)]) != card.weights:
        raise UserError(
            f"encoder '{card.name}' changed since the run was planned; run again, and if this repeats, check that "
            f"identity() stays the same:\n  oodbench encoders check {path}"
        )
    return PluginEncoder(card, own, torch.device(device), dtype)
