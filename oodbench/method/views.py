"""View: a transform that a method declares; the embeddings of the transformed images are its `batch.views`."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from oodbench.method.method import Method

ENGINE = 1  # raise when a transform of oodbench, or the seed of what it draws, gives other images than before
_PLAIN = (str, int, float, bool, type(None))


class View:
    """A transform of every image, such as View(mirrored) or View(blurred, sigma=2).

    The key of stored embeddings has the function's name, its parameters and the method's source, so that a method never
    reads those of another function.

    Arguments:
        function    (image, **parameters) -> the transformed image, defined at the top level of the method's files.
                    It is given a PIL image in RGB at its original size, and returns an image of any size or a uint8
                    array [h w 3]; resize, crop and normalisation of the model follow. A parameter `rng` is a
                    numpy.random.Generator seeded by the image's pixels, the view and the run's seed; draw all random
                    numbers from it
        parameters  strings, numbers, booleans and None
    Raises:
        ValueError  if the function is not defined at the top level, or does not take the parameters
    """

    def __init__(self, function: Callable[..., Any], /, **parameters: Any) -> None:
        self.function, self.parameters = function, parameters
        if not inspect.isfunction(function) or "<" in function.__qualname__:
            raise ValueError(f"View takes a function that is defined with def at the top level, not {function!r}")
        if wrong := {name: value for name, value in parameters.items() if not isinstance(value, _PLAIN)}:
            raise ValueError(f"parameters of a View are strings, numbers, booleans or None, not {wrong}")
        try:
            inspect.signature(function).bind("image", **parameters, **({"rng": None} if self.draws else {}))
        except TypeError as error:
            raise ValueError(f"{self} cannot be called: {error}") from None

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        return f"{self.function.__name__}({values})"

    @property
    def draws(self) -> bool:
        """Whether the function draws random numbers."""
        return "rng" in inspect.signature(self.function).parameters

    def key(self, source: str, seed: int) -> dict[str, Any]:
        """Return what the transformed images depend on; `source` is the digest of the method's files."""
        package, _, module = self.function.__module__.partition(".")
        shared = package == "oodbench"  # methods that use the same transform of oodbench share its embeddings
        return {
            "engine": ENGINE,
            "function": self.function.__name__ if shared else f"{module}:{self.function.__qualname__}",
            "parameters": self.parameters,
            "source": None if shared else source,
            "seed": seed if self.draws else None,
        }


@dataclass(frozen=True)
class KeyedView:
    """A view with the key of its stored embeddings: everything that its images depend on."""

    view: View
    key: Mapping[str, Any]

    @cached_property
    def digest(self) -> bytes:
        """sha256 of the key."""
        return hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).digest()

    def apply(self, image: Image, content: bytes) -> Image:
        """Return the transformed image; `content` is the digest of the image. Raise UserError if that fails."""
        from PIL import Image

        random = {"rng": np.random.default_rng(list(self.digest + content))} if self.view.draws else {}
        try:
            made = self.view.function(image.copy(), **self.view.parameters, **random)
        except Exception as error:
            raise UserError(f"the view {self.view} failed: {type(error).__name__}: {error}") from error
        if isinstance(made, Image.Image):
            return made
        if isinstance(made, np.ndarray) and made.dtype == np.uint8 and made.ndim == 3 and made.shape[2] == 3:
            return Image.fromarray(made)
        found = f"an array {list(made.shape)} of {made.dtype}" if isinstance(made, np.ndarray) else type(made).__name__
        raise UserError(f"the view {self.view} must return a PIL image or a uint8 array [h w 3], not {found}")


def content_of(image: Image) -> bytes:
    """Return the digest of an image's pixels, which seeds the random numbers of views."""
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).digest()


def keyed_views(method: Method[Any], source: str, seed: int) -> tuple[KeyedView, ...]:
    """Return the views that a method declares; raise ValueError if they do not fit its needs."""
    from oodbench.method.batch import Needs

    views = method.views
    if Needs.VIEWS not in method.needs:
        if isinstance(views, tuple) and any(isinstance(view, View) for view in views):
            raise ValueError("it names views but not Needs.VIEWS; add it to its `needs`")
        return ()  # a hyper-parameter may have this name
    if not isinstance(views, tuple) or not all(isinstance(view, View) for view in views):
        raise ValueError(f"views must be a tuple of View, not {views!r}")
    if not views:
        raise ValueError("it declares Needs.VIEWS but no views; write views = (View(function),) in the class")
    keyed = tuple(KeyedView(view, view.key(source, seed)) for view in views)
    if twice := [str(one.view) for number, one in enumerate(keyed) if one.digest in [o.digest for o in keyed[:number]]]:
        raise ValueError(f"it names a view twice: {', '.join(twice)}")
    return keyed
