"""ZOC: zero-shot OOD detection against generated names (Esmaeilpour et al., AAAI 2022, arXiv:2109.02748)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from oodbench.method import Batch, Encoder, Needs, Optimiser, Pairs, Task, TrainedMethod, logsumexp

from ._bert_decoder import BertDecoder, WordPieces, word_pieces
from ._candidates import Names, ends, names
from ._label_decoder import PADDING, Decoder, Shape, SmallDecoder, Voice, Walk, best, surprise

CHUNK = 1 << 23  # logits in memory while a part of a batch is captioned: 32 MB
_SIZES = {"small": Shape(128, 2, 4, 77), "bert": Shape(1024, 24, 16, 77)}


@dataclass(frozen=True)
class Captioner:
    """The decoder, and every name that it can propose.

    voice     the n tokens that may be said
    """

    decoder: Decoder
    voice: Voice
    names: Names


@dataclass(frozen=True)
class ZOC(TrainedMethod[Captioner]):
    """The softmax mass on the seen class names beside names that a captioner generates for the image.

    A decoder, trained on captions of frozen CLIP embeddings (as they are, not normalised), writes `steps` tokens, each
    the most probable one; the end of the sentence does not stop it. The k best tokens of every step, each decoded alone
    to a string, are the image's candidates: word pieces and punctuation stay in, repetitions and seen class names are
    left out. The score is the log-odds of S = sum_seen e / (sum_seen e + sum_candidates e): it ranks as the paper's
    1 - S(candidates) does, S = sigmoid(score), and clear images do not tie. Every token's prompt is encoded once, not
    per image, and a batch's images are captioned together. Where an image has no candidate left, it scores as with a
    single one opposite to it (cosine -1), which is above all others.

    What the released code does otherwise are switches; None is as `preset` says. At test, one_position: its position
    ids have the length of the batch axis, so every token stands at position 0, unlike in training; specials: start, end
    and padding stay among the candidates, and so do empty strings. (In CLIP's byte pairs "a photo of a <end_of_text>"
    is a prompt without a name, near to every image.) In training, integers: embeddings cut to whole numbers. Seen names
    are removed by the CIFAR scripts alone: remove_seen=false is TinyImageNet's and CIFAR+'s. The CIFAR-10 script before
    February 2023 removed the test label instead, a leak that is not offered.

    preset        "corrected" or "release", for what is None
    decoder       "small" (CLIP's byte pairs, only tokens that captions had are said) or "bert" (the paper's, with
                  Hugging Face's transformers, the extra `hf`)
    templates     the prompts of class names and candidates
    scale         factor on the cosines; None is the encoder's own
    k             tokens kept of each step
    steps         the released 10 tokens less the start
    width, layers, heads   of the decoder; 0 is 128, 2, 4 (small) or 1024, 24, 16 (bert)
    length        the longest caption in tokens, cut beyond
    tokenizer     a local folder with a Hugging Face tokenizer, bert only; "" is CLIP's own byte pairs. The paper's is
                  that of google/bert_for_seq_generation_L-24_bbc_encoder
    init          a local folder with that encoder, from which the training of bert starts; "" starts at random
    """

    needs: ClassVar[Needs] = Needs.FEATURES | Needs.WEIGHTS
    optimiser: ClassVar[Optimiser] = Optimiser(
        lr=2e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01, warmup=0, epochs=2, batch=128
    )
    trained: ClassVar[tuple[str, ...]] = ("decoder", "width", "layers", "heads", "length", "integers")
    preset: Literal["corrected", "release"] = "corrected"
    decoder: Literal["small", "bert"] = "small"
    templates: str = "This is a photo of a {}"
    scale: float | None = 100.0
    k: int = 35
    steps: int = 9
    one_position: bool | None = None
    specials: bool | None = None
    remove_seen: bool = True
    integers: bool = False
    width: int = 0
    layers: int = 0
    heads: int = 0
    length: int = 77
    tokenizer: str = ""
    init: str = ""

    def optimisation(self) -> Optimiser:
        """The small decoder's own; for bert the released one: lr 1e-5, batch 128, 25 epochs, no schedule.

        The release imports AdamW from transformers and sets nothing else of it: no weight decay, and an eps of 1e-6
        that is added before the bias is corrected.
        """
        if self.decoder == "small":
            return self.optimiser
        return Optimiser(
            lr=1e-5,
            betas=(0.9, 0.999),
            eps=1e-6,
            weight_decay=0.0,
            epochs=25,
            batch=128,
            cosine=False,
            no_decay=(),
            epsilon_hat=True,
        )

    def fit(self, task: Task) -> Captioner:
        """The trained decoder, and the text vectors of all that it can say."""
        self._check()
        encoder = task.encoder
        decoder = task.weights.load(dataclasses.replace(self, init="").module(encoder))
        assert isinstance(decoder, Decoder)
        voice = decoder.to(task.text(self.templates).device).voice()
        strings = [self._string(token, encoder) for token in voice.ids.tolist()]
        left_out = set(task.classes) if self.remove_seen else set()
        if not self._switch(self.specials):
            left_out |= {"", *(self._string(token, encoder) for token in self._specials(encoder))}
        found = names(strings, left_out, self.templates, task)
        if found is None:
            raise ValueError("the decoder knows no name besides the class names: train it on captions of other things")
        return Captioner(decoder, voice, found)

    def score(self, batch: Batch, task: Task, state: Captioner) -> Float[Tensor, " b"]:
        seen = logsumexp(task.logits(batch.features, self.templates, self.scale))
        scale = task.scale if self.scale is None else self.scale
        rows = max(1, CHUNK // len(state.voice.ids))
        rivals = []
        for features, embeddings in zip(
            torch.split(batch.features, rows), torch.split(batch.embeddings, rows), strict=True
        ):
            rivals.append(state.names.rivalry(features, self.said(embeddings, state), scale))
        return seen - torch.cat(rivals)

    def said(self, embeddings: Float[Tensor, "b d"], state: Captioner) -> Tensor:
        """Which names are an image's candidates: [b m] of bool."""
        walk = Walk(self.steps, self.k, self._switch(self.one_position))
        return state.names.said(best(state.decoder, state.voice, embeddings, walk))

    def explain(self, batch: Batch, task: Task, state: Captioner) -> dict[str, list[tuple[str, float]]]:
        """The names that the decoder proposes, with their cosines, nearest first."""
        said = self.said(batch.embeddings, state)[0]
        cosines = (batch.features @ state.names.vectors.T)[0]
        nearest = [k for k in cosines.argsort(descending=True).tolist() if said[k]]
        return {"names proposed for the image, cosines": [(state.names.strings[k], float(cosines[k])) for k in nearest]}

    def module(self, encoder: Encoder) -> Decoder:
        self._check()
        with torch.no_grad():
            table: Tensor = encoder.text_tower().get_parameter("token_embedding.weight").detach()
            depth = encoder.text([""]).shape[1]
        usual = _SIZES[self.decoder]
        size = Shape(self.width or usual.width, self.layers or usual.layers, self.heads or usual.heads, self.length)
        if size.width % size.heads:
            raise ValueError(f"width={size.width} must be a multiple of heads={size.heads}")
        if self.decoder == "small":
            return SmallDecoder(table, depth, ends(encoder)[0], size)
        pieces = self._pieces()
        vocabulary, start = (pieces.size, pieces.start) if pieces else (len(table), ends(encoder)[0])
        bert = BertDecoder(vocabulary, depth, start, size)
        if self.init:
            bert.adopt(self.init)
        return bert

    def inputs(self, pairs: Pairs, encoder: Encoder) -> dict[str, Tensor]:
        """Embeddings, and tokens from start to end."""
        embeddings = pairs.embeddings.trunc() if self.integers else pairs.embeddings
        pieces = self._pieces()
        if pieces:
            captions = [torch.tensor(ids) for ids in pieces.tokenize(pairs.captions)]
        else:  # CLIP's end token has the largest id
            tokens = encoder.tokenize(pairs.captions).cpu()
            captions = [row[: end + 1] for row, end in zip(tokens, tokens.argmax(-1).tolist(), strict=True)]
        padded = pad_sequence([row[: self.length] for row in captions], batch_first=True, padding_value=PADDING)
        return {"embeddings": embeddings, "tokens": padded.to(embeddings.device)}

    def embed(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(module, Decoder)
        return surprise(module, inputs["embeddings"], inputs["tokens"])

    def loss(self, embedded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean negative log-likelihood of a token, in nats, over all tokens of the global batch."""
        return {"caption": embedded["nll"].sum() / embedded["count"].sum().clamp(min=1)}

    def _check(self) -> None:
        if min(self.k, self.steps) < 1 or self.length < self.steps + 1:
            raise ValueError(f"k={self.k} and steps={self.steps} must be at least 1, length={self.length} above steps")
        if any(path and "/" not in path for path in (self.tokenizer, self.init)):  # such enter no score's key
            raise ValueError(f"tokenizer={self.tokenizer} and init={self.init} must be written as paths: ./NAME")
        if self.decoder == "small" and (self.tokenizer or self.init):
            raise ValueError("tokenizer and init belong to decoder=bert; the small one reads CLIP's own byte pairs")
        if min(self.width, self.layers, self.heads) < 0:
            raise ValueError(f"width={self.width}, layers={self.layers} and heads={self.heads} must not be negative")

    def _switch(self, value: bool | None) -> bool:
        return self.preset == "release" if value is None else value

    def _pieces(self) -> WordPieces | None:
        return word_pieces(self.tokenizer) if self.tokenizer else None

    def _specials(self, encoder: Encoder) -> frozenset[int]:
        pieces = self._pieces()
        return pieces.specials if pieces else frozenset(ends(encoder))

    def _string(self, token: int, encoder: Encoder) -> str:
        """A token decoded alone, without the space that ends CLIP's whole words."""
        pieces = self._pieces()
        return (pieces or encoder).detokenize(token).strip()
