"""ZOC's decoder as released: Hugging Face's BertGenerationDecoder, from the optional extra `hf`."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ._label_decoder import Decoder, OutputLayer, Shape
from ._token_loss import token_loss


def transformers() -> Any:
    """Return the library transformers; raise ValueError that says what to install if it is missing."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ValueError(
            "decoder=bert and its tokenizer need the library transformers: pip install 'oodbench[hf]'"
        ) from error


class WordPieces:
    """A Hugging Face tokenizer in a local folder."""

    def __init__(self, tokenizer: Any, path: str) -> None:
        self._tokenizer = tokenizer
        start = [tokenizer.bos_token_id, tokenizer.cls_token_id]
        end = [tokenizer.eos_token_id, tokenizer.sep_token_id]
        defined = [[token for token in ids if token is not None] for ids in (start, end)]
        if not all(defined):
            raise ValueError(f"tokenizer: {path} has no token that starts a text, or none that ends it")
        self.start, self.end = defined[0][0], defined[1][0]
        self.size = len(tokenizer)
        self.specials = frozenset(tokenizer.all_special_ids)

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each caption, with start and end."""
        captions_ids = self._tokenizer(list(captions), add_special_tokens=False, verbose=False)["input_ids"]
        return [[self.start, *ids, self.end] for ids in captions_ids]

    def detokenize(self, token: int) -> str:
        """Return the text of one token, decoded alone."""
        return str(self._tokenizer.decode([token]))


@functools.lru_cache(maxsize=2)
def word_pieces(path: str) -> WordPieces:
    """Load the tokenizer of a folder; raise ValueError if it holds none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"tokenizer: {path} is not a folder; save a tokenizer there with its save_pretrained()")
    try:
        return WordPieces(transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True), path)
    except (OSError, KeyError) as error:
        raise ValueError(f"tokenizer: {path} holds no tokenizer that transformers reads: {error}") from error


class BertDecoder(Decoder):
    """BertGenerationDecoder with cross-attention to one item: the image embedding, repeated to `width` columns.

    This holds its body and a bias instead of the class itself, whose prediction head shares the word table's memory.
    """

    def __init__(self, vocabulary: int, embedding: int, start: int, shape: Shape) -> None:
        super().__init__()
        if shape.width % embedding:
            raise ValueError(
                f"width={shape.width} is not a multiple of the embedding's {embedding}: the embedding is repeated "
                f"until it is as wide; name a width, such as {max(1, shape.width // embedding) * embedding}"
            )
        self.start = start
        library = transformers()
        self.bert = library.BertGenerationEncoder(
            library.BertGenerationConfig(
                vocab_size=vocabulary,
                hidden_size=shape.width,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                intermediate_size=4 * shape.width,
                max_position_embeddings=max(512, shape.length),  # as in the released encoder
                is_decoder=True,
                add_cross_attention=True,
            )
        )
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def load_encoder(self, path: str) -> None:
        """Load the weights of a local folder with google/bert_for_seq_generation_L-24_bbc_encoder or one like it.

        It is an encoder without cross-attention, whose weights therefore start at random.
        """
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise ValueError(f"init: {path} is not a folder; name one with config.json and the weights")
        try:
            encoder = transformers().BertGenerationEncoder.from_pretrained(folder, local_files_only=True)
            keys = self.bert.load_state_dict(encoder.state_dict(), strict=False)
        except (OSError, KeyError, RuntimeError) as error:
            raise ValueError(f"init: {path} does not fit width, layers, heads and tokenizer: {error}") from error
        missing = [name for name in keys.missing_keys if "crossattention" not in name]
        if missing or keys.unexpected_keys:
            raise ValueError(f"init: {path} does not fit: {', '.join([*missing, *keys.unexpected_keys][:3])}")

    def hidden(
        self,
        embeddings: Float[Tensor, "b d"],
        tokens: Int64[Tensor, "b n"],
        positions: Int64[Tensor, " n"],
        memory: list[Any] | None = None,
    ) -> Float[Tensor, "b n w"]:
        repeats = self.bert.config.hidden_size // embeddings.shape[1]
        # transformers 5.24 calls the argument `cache`, and older releases `past_key_values`.
        parameters = inspect.signature(self.bert.forward).parameters
        cache = {"cache" if "cache" in parameters else "past_key_values": memory[0]} if memory else {}
        out = self.bert(
            input_ids=tokens,
            position_ids=positions.expand(len(tokens), -1),
            encoder_hidden_states=embeddings.repeat(1, repeats)[:, None],
            use_cache=memory is not None,
            **cache,
        )
        if memory is not None:
            memory[:] = [out.past_key_values]
        hidden: Tensor = out.last_hidden_state
        return hidden

    def losses(self, hidden: Float[Tensor, "m w"], targets: Int64[Tensor, " m"]) -> Float[Tensor, " m"]:
        return token_loss(hidden, self._table(), self.bias, targets)

    def output_layer(self) -> OutputLayer:
        return OutputLayer(torch.arange(len(self.bias), device=self.bias.device), self._table(), self.bias)

    def _table(self) -> Tensor:
        weight: Tensor = self.bert.embeddings.word_embeddings.weight
        return weight
