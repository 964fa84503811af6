"""The encoder of methods and extraction: any model of open_clip, loaded once per process."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import open_clip
import torch
from jaxtyping import Float, Int64, UInt8
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from torchvision.transforms.functional import pil_to_tensor

from oodbench.encoder import build, checkpoint, plugin
from oodbench.encoder.build import ImageTower
from oodbench.encoder.card import EncoderCard
from oodbench.encoder.plugin import PluginEncoder
from oodbench.encoder.resolve import ResolvedEncoder
from oodbench.encoder.text_tower import CoCaCaptioner, TrainableTextTower, text_model
from oodbench.errors import UserError

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


_TEXT_LOCK = threading.Lock()  # methods score in several threads, and text() modifies the context length of the model


class OpenClip:
    """A frozen CLIP. Embeddings are float32 and not normalised; the towers compute in `precision`."""

    def __init__(self, resolved: ResolvedEncoder, device: str, precision: str) -> None:
        self.card = resolved.card
        self.device = torch.device(device)
        if self.device.type == "cuda":
            disable_tf32()
        self.scale, self.size = resolved.card.scale, resolved.card.size
        self._dtype = PRECISIONS[precision]
        with torch.random.fork_rng(devices=[]):  # random weights must not change the random state of methods
            model = build.build_model(resolved.card, torch.device("cpu"))
        state = checkpoint.load_weights(resolved.card.name, resolved.path, resolved.card.weights)
        model.load_state_dict(checkpoint.match_names(model, state, f"checkpoint {resolved.path}"), strict=True)
        model.to(self.device)
        model.visual.to(memory_format=torch.channels_last)  # 20 % faster for ResNets, 50 % in bf16
        self._tower = ImageTower(model.visual)
        self._model = model
        self._casting, self._casting_lock = 0, threading.Lock()
        self._tokenizer = functools.cache(lambda: build.build_tokenizer(resolved.card, resolved.tokenizer))
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(resolved.card.mean, device=self.device).view(shape)
        self.std = torch.tensor(resolved.card.std, device=self.device).view(3, 1, 1)

    @property
    def mean(self) -> Tensor:
        """Return the mean of normalised pixels, [3 1 1]."""
        return self._mean[0].clone()

    @property
    def transform(self) -> Callable[[Image], UInt8[Tensor, "3 height width"]]:
        """Return the function from images to pixels."""
        return transform(self.card)

    def not_finite(self, what: str) -> UserError:
        """Return the error for embeddings that are not finite, with the cause: the weights or the precision."""
        broken = [name for name, value in self._model.named_parameters() if not bool(torch.isfinite(value).all())]
        if broken:
            why = f"its weights have NaN or infinity, {broken[0]} first; fetch or train them again"
        elif self._dtype != torch.float32:
            why = "try --precision fp32"
        else:
            why = "its weights are finite but overflow even in fp32; they are damaged or of another architecture"
        return UserError(f"encoder {self.card.name} returned NaN or infinity for {what}: {why}")

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self._dtype)

    @contextmanager
    def casting_once(self) -> Iterator[None]:
        """Cast the weights to the precision once for many batches without gradients, instead of in every batch.

        Autocast caches casts only for weights that require gradients, and only while it is on.
        """
        if self._dtype == torch.float32 or torch.is_grad_enabled():
            yield
            return
        self._count_casting(1)
        try:
            with self._autocast():
                yield
        finally:
            self._count_casting(-1)

    def _count_casting(self, change: int) -> None:
        """Let the weights require gradients while a thread is in casting_once()."""
        with self._casting_lock:
            self._casting += change
            self._model.requires_grad_(self._casting > 0)

    def _normalised(self, images: Tensor) -> Tensor:
        normalised = (images.to(self.device) - self._mean) / self.std
        return normalised.contiguous(memory_format=torch.channels_last)

    def activations(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b w"]:
        """Return the input of the image tower's last linear map, for images in [0, 1]."""
        with self._autocast():
            return self._tower.activations(self._normalised(images)).float()

    def activations_and_patches(
        self, images: Float[Tensor, "b 3 height width"], fields: Sequence[str]
    ) -> tuple[Float[Tensor, "b w"], dict[str, Tensor]]:
        """Return activations() of images in [0, 1] and the named patch features, computed in one pass."""
        if self.card.patch_error:
            raise UserError(self.card.patch_error)
        with self._autocast():
            activations, patches = self._tower.activations_and_patches(self._normalised(images))
        patches = patches.float()
        return activations.float(), {name: self.project(patches) if name == "patches" else patches for name in fields}

    def patches(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n d"]:
        """Return features of image patches in the joint space, not normalised; differentiable.

        Raises UserError if the image tower has none.
        """
        return self.activations_and_patches(images, ("patches",))[1]["patches"]

    def patch_activations(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n w"]:
        """Return the inputs of the last linear map for image patches, in float32; differentiable.

        Raises UserError if the image tower has none.
        """
        return self.activations_and_patches(images, ("patch_activations",))[1]["patch_activations"]

    def project(self, activations: Float[Tensor, "*b w"]) -> Float[Tensor, "*b d"]:
        """Apply the last linear map, always in float32."""
        with torch.autocast(self.device.type, enabled=False):
            return self._tower.project(activations.to(self.device))

    def pixels(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d"]:
        """Return embeddings of images in [0, 1]; differentiable."""
        return self.project(self.activations(images))

    def text(self, prompts: Sequence[str]) -> Float[Tensor, "k d"]:
        """Return embeddings of prompts, computed 256 at a time."""
        parts = []
        with self.casting_once():
            for start in range(0, len(prompts), 256):
                tokens = self.tokenize(prompts[start : start + 256])
                with _TEXT_LOCK, self._autocast(), _shortened(self._model, tokens) as length:
                    parts.append(self._model.encode_text(tokens[:, :length], normalize=False).float())
        return torch.cat(parts)

    def tokenize(self, prompts: Sequence[str]) -> Int64[Tensor, "k n"]:
        """Return token ids, padded to the context length, on the encoder's device."""
        tokens: Tensor = self._tokenizer()(list(prompts)).to(self.device)
        return tokens

    def detokenize(self, token: int) -> str:
        """Return the text of one token as the tokenizer writes it."""
        tokenizer = self._tokenizer()
        return str(getattr(tokenizer, "tokenizer", tokenizer).decode([token]))

    def text_tower(self) -> torch.nn.Module:
        """Return a trainable copy of the text tower that takes offsets. Raise UserError if it is not CLIP's."""
        return TrainableTextTower(text_model(self._model, self.card.name))

    def captioner(self) -> CoCaCaptioner:
        """Return the model that writes captions. Raise UserError if this is not a CoCa."""
        if self.card.caption_error:
            raise UserError(self.card.caption_error)
        return CoCaCaptioner(self._model, self._normalised, self._autocast)

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """Return the prompts that CLIP's own tokenizer truncates; [] for other tokenizers, which do not report it."""
        tokenizer = self._tokenizer()
        if not isinstance(tokenizer, open_clip.SimpleTokenizer):
            return []
        return [prompt for prompt in prompts if len(tokenizer.encode(prompt)) + 2 > tokenizer.context_length]


LoadedEncoder = OpenClip | PluginEncoder  # the implementations of the protocol oodbench.method.Encoder


class _EncoderCache:
    """Holds the last loaded encoder."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[ResolvedEncoder, str, str] | None = None
        self._encoder: LoadedEncoder | None = None

    def load(self, resolved: ResolvedEncoder, device: str, precision: str) -> LoadedEncoder:
        """Return the held encoder if it is the requested one, else load the requested one and hold it instead."""
        key = (resolved, device, precision)
        with self._lock:
            if self._encoder is None or self._key != key:
                self._key = self._encoder = None  # frees its memory before the next one is loaded
                log.info("loading %s on %s", resolved.card.name, device)
                self._encoder = (
                    plugin.load(resolved.card, resolved.path, device, PRECISIONS[precision])
                    if resolved.card.plugin
                    else OpenClip(resolved, device, precision)
                )
                self._key = key
            return self._encoder


_CACHE = _EncoderCache()


def load_encoder(resolved: ResolvedEncoder, device: str, precision: str) -> LoadedEncoder:
    """Return a loaded encoder, shared by consecutive calls for the same encoder in this process.

    The process holds at most one encoder, the last one requested. It is never stale: `resolved` contains the sha256 of
    the weights, so a changed file is another encoder.
    """
    return _CACHE.load(resolved, device, precision)


def disable_tf32() -> None:
    """Compute float32 convolutions and products on NVIDIA GPUs in float32, for the whole process.

    cuDNN's convolutions default to TF32, with a mantissa of 10 bits. A ViT begins with a convolution, and its cosines
    would differ from the CPU's by 4e-5 with --precision fp32.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def _shortened(model: Any, tokens: Tensor) -> Iterator[int]:
    """Shorten the model's context to the longest prompt, and yield its length.

    In a causal text tower, positions after the end token have no effect, and prompts use about ten of CLIP's 77
    positions. Towers that are not causal, or pool at another position, keep the full length.
    """
    if type(model) is not open_clip.CLIP or model.text_pool_type != "argmax" or model.attn_mask is None:
        yield tokens.shape[1]
        return
    positions, mask = model.positional_embedding, model.attn_mask
    length = int(tokens.argmax(-1).max()) + 1
    model.positional_embedding = torch.nn.Parameter(positions[:length], requires_grad=False)
    model.attn_mask = mask[:length, :length]
    try:
        yield length
    finally:
        model.positional_embedding, model.attn_mask = positions, mask


def _cropped(image: Image, size: tuple[int, int]) -> Image:
    """Return the centre crop of an image; an offset between two pixels is rounded down."""
    height, width = size
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def transform(card: EncoderCard) -> Callable[[Image], UInt8[Tensor, "3 height width"]]:
    """Return the function that resizes and crops images as open_clip does for these weights, to pixels in 0..255.

    The encoder normalises the pixels.
    """
    chosen = InterpolationMode(card.interpolation)
    if card.resize_to:  # transformers converts first, and rounds the crop down
        resized = Resize(card.resize_to[0] if len(card.resize_to) == 1 else card.resize_to, chosen)
        steps: list[Any] = [lambda image: image.convert("RGB"), resized, lambda image: _cropped(image, card.size)]
    elif card.resize_mode == "squash":
        steps = [Resize(card.size, chosen)]
    elif card.resize_mode == "longest" or card.size[0] != card.size[1]:
        from open_clip.transform import CenterCropOrPad, ResizeKeepRatio

        longest = card.resize_mode == "longest"
        steps = [ResizeKeepRatio(card.size, longest=float(longest), interpolation=chosen)]
        steps.append(CenterCropOrPad(list(card.size), fill=card.fill_color) if longest else CenterCrop(card.size))
    else:
        steps = [Resize(card.size[0], chosen), CenterCrop(card.size)]
    resize = Compose(steps)

    def pixels(image: Image) -> Tensor:
        tensor: Tensor = pil_to_tensor(resize(image).convert("RGB"))
        return tensor

    return pixels


def transform_of(resolved: ResolvedEncoder, device: str, precision: str) -> Callable[[Image], Tensor]:
    """Return transform() without loading the encoder; a plugin is loaded, because it preprocesses images itself."""
    if not resolved.card.plugin:
        return transform(resolved.card)
    return load_encoder(resolved, device, precision).transform
