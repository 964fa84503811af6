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
from ._candidates import Names, candidate_names, start_and_end
from ._label_decoder import (
    PADDING,
    Decoder,
    GreedyDecoding,
    OutputLayer,
    Shape,
    SmallDecoder,
    caption_nll,
    top_tokens,
)

CHUNK = 1 << 23  # logits in memory while some images of a batch are captioned: 32 MB
_SIZES = {"small": Shape(128, 2, 4, 77), "bert": Shape(1024, 24, 16, 77)}


@dataclass(frozen=True)
class TrainedCaptioner:
    """The trained decoder, its last layer for the n tokens that it may generate, and the names that these decode to."""

    decoder: Decoder
    output: OutputLayer
    names: Names


@dataclass(frozen=True)
class ZOC(TrainedMethod[TrainedCaptioner]):
    """Softmax probability of the ID class names against candidate names that a decoder generates for the image.

    A decoder, trained on captions of frozen CLIP embeddings (not normalised), writes `steps` tokens greedily; the end
    token does not stop it. The k most probable tokens of each step, each decoded alone to a string, are the candidates
    of the image. They include word pieces and punctuation, but no repetitions and no seen (ID) class names. The score
    is the log-odds of the probability of the seen classes; it gives the same ranking as the paper's probability of the
    candidates, with the sign reversed, and confident images do not tie. Each token's prompt is encoded once, not once
    per image. An image without a candidate scores as if it had one candidate of cosine -1, which is above all other
    scores.

    Released code: its deviations from the paper are switches; None takes the value of `preset`. At test time its
    position ids have the length of the batch axis, so that each token is at position 0, unlike in training
    (one_position); the start, end and padding tokens and empty strings are candidates (specials). In CLIP's byte pairs
    "a photo of a <end_of_text>" is a prompt without a name, near to all images. In training it truncates embeddings to
    integers (integers). Only the CIFAR scripts remove seen names: remove_seen=false is right for TinyImageNet and
    CIFAR+. Before February 2023 the CIFAR-10 script removed the test label instead, a label leak that is not offered
    here.

    preset            "corrected" or "release": the value of the switches that are None
    decoder           "small" (CLIP's byte pairs; generates only tokens of the training captions) or "bert" (the
                      paper's, from Hugging Face's transformers, the extra `hf`)
    templates         prompts of class names and candidates
    scale             factor on the cosines; None takes the encoder's own
    k                 number of candidate tokens of each step
    steps             number of generated tokens: the released 10 without the start token
    one_position      whether all tokens are at position 0 at test time
    specials          whether the start, end and padding tokens and empty strings are candidates
    remove_seen       whether seen (ID) class names are removed from the candidates
    integers          whether embeddings are truncated to integers in training
    width, layers, heads  size of the decoder; 0 stands for 128, 2, 4 (small) or 1024, 24, 16 (bert)
    length            longest caption in tokens; longer ones are truncated
    tokenizer         local folder with a Hugging Face tokenizer, for bert only; "" takes CLIP's own byte pairs. The
                      paper's is that of google/bert_for_seq_generation_L-24_bbc_encoder
    init              local folder with that encoder, from which the training of bert starts; "" starts at random
    """

    formula: ClassVar[str] = r"""
    S(x) = \log \frac{\sum_{y \in \mathcal{Y}_s} \exp(s \, v^\top t_y)}
    {\sum_{y \in \mathcal{Y}_u(x)} \exp(s \, v^\top t_y)}
    = \log \frac{P(\mathcal{Y}_s \mid x)}{P(\mathcal{Y}_u \mid x)}

    v                 embedding of image x, of unit length
    t_y               text embedding of name y, of unit length
    \mathcal{Y}_s     seen (ID) class names
    \mathcal{Y}_u(x)  candidate names that the decoder generates for the image
    P                 softmax over seen names and candidates together
    s                 `scale`
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
        """Return `optimiser` for the small decoder; for bert the released settings.

        These are lr 1e-5, batch 128, 25 epochs, no schedule. The release uses AdamW of transformers with its other
        defaults: no weight decay, and an eps of 1e-6 that is added before the bias correction.
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

    def fit(self, task: Task) -> TrainedCaptioner:
        """Return the trained decoder, and the text embeddings of all names that it can generate."""
        self._check()
        encoder = task.encoder
        decoder = task.weights.load(dataclasses.replace(self, init="").module(encoder))
        assert isinstance(decoder, Decoder)
        output = decoder.to(task.text(self.templates).device).output_layer()
        strings = [self._string(token, encoder) for token in output.ids.tolist()]
        excluded = set(task.classes) if self.remove_seen else set()
        if not self._switch(self.specials):
            excluded |= {"", *(self._string(token, encoder) for token in self._specials(encoder))}
        names = candidate_names(strings, excluded, self.templates, task)
        if names is None:
            raise ValueError(
                "the decoder knows no name other than the class names: train it on captions of other things"
            )
        return TrainedCaptioner(decoder, output, names)

    def score(self, batch: Batch, task: Task, state: TrainedCaptioner) -> Float[Tensor, " b"]:
        seen = logsumexp(task.logits(batch.features, self.templates, self.scale))
        scale = task.scale if self.scale is None else self.scale
        rows = max(1, CHUNK // len(state.output.ids))
        unseen = []
        for features, embeddings in zip(
            torch.split(batch.features, rows), torch.split(batch.embeddings, rows), strict=True
        ):
            unseen.append(state.names.candidate_logsumexp(features, self.candidates(embeddings, state), scale))
        return seen - torch.cat(unseen)

    def candidates(self, embeddings: Float[Tensor, "b d"], state: TrainedCaptioner) -> Tensor:
        """Return which names are an image's candidates, [b m] of bool."""
        decoding = GreedyDecoding(self.steps, self.k, self._switch(self.one_position))
        return state.names.mask(top_tokens(state.decoder, state.output, embeddings, decoding))

    def explain(self, batch: Batch, task: Task, state: TrainedCaptioner) -> dict[str, list[tuple[str, float]]]:
        """Return the candidate names with their cosines, nearest first."""
        candidates = self.candidates(batch.embeddings, state)[0]
        cosines = (batch.features @ state.names.vectors.T)[0]
        nearest = [k for k in cosines.argsort(descending=True).tolist() if candidates[k]]
        return {"names proposed for the image, cosines": [(state.names.strings[k], float(cosines[k])) for k in nearest]}

    def module(self, encoder: Encoder) -> Decoder:
        self._check()
        with torch.no_grad():
            table: Tensor = encoder.text_tower().get_parameter("token_embedding.weight").detach()
            depth = encoder.text([""]).shape[1]
        default = _SIZES[self.decoder]
        size = Shape(
            self.width or default.width, self.layers or default.layers, self.heads or default.heads, self.length
        )
        if size.width % size.heads:
            raise ValueError(f"width={size.width} must be a multiple of heads={size.heads}")
        if self.decoder == "small":
            return SmallDecoder(table, depth, start_and_end(encoder)[0], size)
        pieces = self._pieces()
        vocabulary, start = (pieces.size, pieces.start) if pieces else (len(table), start_and_end(encoder)[0])
        bert = BertDecoder(vocabulary, depth, start, size)
        if self.init:
            bert.load_encoder(self.init)
        return bert

    def inputs(self, pairs: Pairs, encoder: Encoder) -> dict[str, Tensor]:
        """Return image embeddings, and caption tokens from start to end."""
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
        return caption_nll(module, inputs["embeddings"], inputs["tokens"])

    def loss(self, embedded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean negative log-likelihood of a token, in nats, over all tokens of the global batch."""
        return {"caption": embedded["nll"].sum() / embedded["count"].sum().clamp(min=1)}

    def _check(self) -> None:
        if min(self.k, self.steps) < 1 or self.length < self.steps + 1:
            raise ValueError(f"k={self.k} and steps={self.steps} must be at least 1, length={self.length} above steps")
        if any(path and "/" not in path for path in (self.tokenizer, self.init)):  # keys hold only paths' files
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
        return pieces.specials if pieces else frozenset(start_and_end(encoder))

    def _string(self, token: int, encoder: Encoder) -> str:
        """Decode one token alone, without the space at the end of CLIP's word-final tokens."""
        pieces = self._pieces()
        return (pieces or encoder).detokenize(token).strip()
