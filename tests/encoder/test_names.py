"""Names of encoders: OpenAI's spellings, and an architecture without a tag."""

from __future__ import annotations

import open_clip
import pytest

from oodbench.encoder.card import parse_encoder
from oodbench.encoder.names import open_clip_name, tags
from oodbench.errors import UserError

# clip.available_models() of OpenAI's package
OPENAI = "RN50 RN101 RN50x4 RN50x16 RN50x64 ViT-B/32 ViT-B/16 ViT-L/14 ViT-L/14@336px".split()


@pytest.mark.parametrize("name", OPENAI)
def test_openai_names_resolve_to_weights(name: str) -> None:
    spec = parse_encoder(name)
    assert (spec.architecture, spec.tag) in open_clip.list_pretrained() and spec.tag == "openai" and spec.path is None
    assert spec == parse_encoder(spec.text)


def test_a_slash_before_the_patch_size_is_a_dash() -> None:
    assert open_clip_name("ViT-B/16/laion2b_s34b_b88k") == "ViT-B-16/laion2b_s34b_b88k"
    assert parse_encoder(f"ViT-B/16@{__file__}").architecture == "ViT-B-16"
    for own in ("ViT-B/32@tuned.pt", "ViT-L/14@336px@tuned.pt"):  # a checkpoint fine-tuned from OpenAI's
        assert open_clip_name(own) == f"{open_clip_name(own.rpartition('@')[0])}@tuned.pt"
    assert open_clip_name("ViT-B/32@tuned.pt") == "ViT-B-32/openai@tuned.pt"
    for name in ("ViT-B-16/openai", "glyphs", "hf-hub:a/ViT-B/16", "ViT-B-16@ViT-B/16/x.pt", "coca_ViT-B-32/x"):
        assert open_clip_name(name) == name


def test_an_architecture_alone_lists_its_tags() -> None:
    with pytest.raises(UserError) as told:
        parse_encoder("ViT-B-16")
    first, *commands = str(told.value).split("\n  ")
    assert "'ViT-B-16' names no weights" in first
    assert commands == [f"--encoder ViT-B-16/{tag}" for tag in tags("ViT-B-16")] and len(commands) > 10
    assert "--encoder ViT-B-16/laion2b_s34b_b88k" in commands and not tags("ViT-B16")
