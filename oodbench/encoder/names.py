"""Names of encoders: OpenAI's spellings, and the tags of an architecture. open_clip is imported only for messages."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

# OpenAI's names of its models (clip.available_models()), without the resolution
_OPENAI = re.compile(r"(?P<resnet>RN(50|101|50x4|50x16|50x64))|(?P<kind>ViT-[BL])/(?P<patch>\d+)(@(?P<pixels>\d+)px)?")
_OPENAI_FILE = re.compile(r"(?P<name>ViT-[BL]/\d+(@\d+px)?)@(?P<file>.+)")  # a checkpoint fine-tuned from OpenAI's
_WITH_SLASH = re.compile(r"(?P<kind>ViT-\w+)/(?P<patch>\d+)(?=[/@])")  # ViT-B/16/TAG, ViT-B/16@FILE


def open_clip_name(text: str) -> str:
    """Return a name in open_clip's spelling: `ViT-L/14@336px` becomes `ViT-L-14-336/openai`; other names stay."""
    match = _OPENAI.fullmatch(text)
    if match:
        kind = match["resnet"] or f"{match['kind']}-{match['patch']}"
        return f"{kind}{'-' + match['pixels'] if match['pixels'] else ''}/openai"
    tuned = _OPENAI_FILE.fullmatch(text)
    if tuned:
        return f"{open_clip_name(tuned['name'])}@{tuned['file']}"
    return _WITH_SLASH.sub(r"\g<kind>-\g<patch>", text, count=1) if _WITH_SLASH.match(text) else text


def architectures() -> list[str]:
    """Return open_clip's architectures, read from its config files because importing it takes seconds."""
    found = importlib.util.find_spec("open_clip")
    folders = found.submodule_search_locations if found else None
    return sorted(path.stem for folder in folders or () for path in Path(folder, "model_configs").glob("*.json"))


def tags(architecture: str) -> list[str]:
    """Return the tags of open_clip's weights for an architecture; none if there is no such architecture."""
    if architecture not in architectures():
        return []
    import open_clip

    return [tag for name, tag in open_clip.list_pretrained() if name == architecture]
