"""Encoders: specs, refused files, recorded facts and cached cards."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from oodbench.encoder.card import EncoderCard, parse_encoder
from oodbench.encoder.openclip import OpenClip
from oodbench.encoder.pretrained import find_pretrained
from oodbench.encoder.resolve import ResolvedEncoder, resolve
from oodbench.errors import UserError
from oodbench.storage.store import Store

CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
State = dict[str, torch.Tensor]


def changed(**vision: Any) -> dict[str, Any]:
    """The config with another image tower."""
    return {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], **vision}}


def state_of(config: dict[str, Any]) -> State:
    """Seeded random weights."""
    torch.manual_seed(0)
    return {k: v.clone() for k, v in open_clip.CLIP(**config).state_dict().items()}


@pytest.fixture(scope="module")
def state() -> State:
    return state_of(CONFIG)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the config `small.json`."""
    (tmp_path / "small.json").write_text(json.dumps(CONFIG))
    return tmp_path


def resolved(spec: str, root: Path, resize: str | None = None) -> ResolvedEncoder:
    return resolve(parse_encoder(spec), resize, Store(root / "store"))


def error_of(spec: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        resolved(spec, root)
    message = str(caught.value)
    assert all(line.startswith("  ") for line in message.splitlines()[1:]), message
    assert len(message.splitlines()[0]) < 500
    return message


# Checkpoints that are read


def plain(state: State) -> Any:
    return state


def nested(state: State) -> Any:
    return {"epoch": 3, "name": "run", "state_dict": {f"module.{k}": v for k, v in state.items()}}


def half(state: State) -> Any:
    return {k: v.half() for k, v in state.items()}


def one_dimensional(state: State) -> Any:
    return {**state, "logit_scale": state["logit_scale"].reshape(1)}


def openai(state: State) -> Any:
    sizes = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16), "vocab_size": torch.tensor(9)}
    return {**half(state), **sizes}


def of_a_loop(state: State) -> Any:
    return {"epoch": 3, "model_state_dict": state, "optimizer": {"state": {}}}


def of_another_loop(state: State) -> Any:
    return {"model": {f"module.{k}": v for k, v in state.items()}, "scaler": None}


def compiled(state: State) -> Any:
    return {"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}}


def compiled_in_part(state: State) -> Any:
    return {k.replace("visual.", "visual._orig_mod."): v for k, v in state.items()}


LOOPS = [of_a_loop, of_another_loop, compiled, compiled_in_part]


@pytest.mark.parametrize("form", [plain, nested, half, one_dimensional, openai, *LOOPS])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_forms_of_checkpoints(form: Any, suffix: str, state: State, folder: Path) -> None:
    content = form(state)
    path = folder / f"weights.{suffix}"
    if suffix == "pt":
        torch.save(content, path)
    else:
        inner = [one for one in content.values() if isinstance(one, dict) and len(one) > 1]
        save_file(inner[0] if inner else content, path)
    found = resolved(f"{folder}/small.json@{path}", folder)
    expected = open_clip.CLIP(**CONFIG).eval().requires_grad_(False)
    expected.load_state_dict({k: v.half().float() for k, v in state.items()} if form in (half, openai) else state)
    ours = OpenClip(found, "cpu", "fp32")
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (found.card.mean, found.card.std))
    theirs = expected.encode_image((images - mean) / std)
    torch.testing.assert_close(ours.pixels(images), theirs, rtol=1e-5, atol=1e-5)
    assert found.card.scale == pytest.approx(float(expected.logit_scale.exp()))


def test_old_pickles_are_read(state: State, folder: Path) -> None:
    torch.save(state, folder / "weights.pth", _use_new_zipfile_serialization=False)
    assert resolved(f"{folder}/small.json@{folder}/weights.pth", folder).card.width == 32


# Checkpoints that are refused


class Malicious:
    """Runs a command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_code_in_a_checkpoint_is_not_run(form: str, state: State, folder: Path) -> None:
    marker = folder / "ran"
    content = {"state_dict": state, "extra": Malicious(f"touch {marker}")}
    path = folder / "weights.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(content["extra"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = error_of(f"{folder}/small.json@{path}", folder)
    assert str(path) in message and (form == "pickle" or ("posix.system" in message and "code" in message))
    assert not marker.exists()


def save_torchscript(state: State, path: Path) -> None:
    """An archive as OpenAI published them: weights, sizes and code."""
    holder = torch.nn.Module()
    for key, value in {**state, "input_resolution": torch.tensor(32)}.items():
        module = holder
        for part in key.split(".")[:-1]:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_buffer(key.rpartition(".")[2], value)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.*` is deprecated")  # such files will exist for years
        torch.jit.save(torch.jit.script(holder), path)


def test_torchscript_is_refused(state: State, folder: Path) -> None:
    path = folder / "archive.pt"
    save_torchscript(state, path)
    first, second = error_of(f"{folder}/small.json@{path}", folder).splitlines()
    assert "is a TorchScript archive, which is code" in first and str(path) in first
    assert second.startswith("  python -c ") and str(folder / "archive-weights.pt") in second


@pytest.mark.slow
def test_the_recipe_for_torchscript_works(state: State, folder: Path) -> None:
    path = folder / "it's an archive.pt"
    save_torchscript(state, path)
    recipe = shlex.split(error_of(f"{folder}/small.json@{path}", folder).splitlines()[1])
    assert recipe[0] == "python"
    subprocess.run([sys.executable, *recipe[1:]], check=True, capture_output=True, cwd="/")
    found = resolved(f"{folder}/small.json@{folder}/it's an archive-weights.pt", folder)
    assert found.card.activation == "proj"


def _cut(source: Path, path: Path) -> None:
    path.write_bytes(source.read_bytes()[: source.stat().st_size // 2])


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "picture", "tensor", "no weights"])
def test_unreadable_files(kind: str, suffix: str, state: State, folder: Path) -> None:
    path = folder / f"weights.{suffix}"
    if kind == "truncated":
        torch.save(state, folder / "whole.pt")
        save_file(state, folder / "whole.safetensors")
        _cut(folder / f"whole.{suffix}", path)
    elif kind == "text":
        path.write_text("<html>not found, but this page is long enough to be read</html>")
    elif kind == "empty":
        path.touch()
    elif kind == "picture":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    else:
        torch.save({"epoch": 1, "model": {"a": 1}}, path)
    message = error_of(f"{folder}/small.json@{path}", folder)
    assert str(path) in message
    expected = {"empty": "is empty", "tensor": "not a dictionary", "no weights": "it has: epoch, model"}
    expected |= {"text": "is a web page", "truncated": "safetensors" if suffix == "safetensors" else "truncated"}
    assert expected.get(kind, "truncated, or neither a torch nor a safetensors file") in message


def test_the_content_of_a_checkpoint_counts_not_its_name(state: State, folder: Path) -> None:
    save_file(state, folder / "weights.pt")
    torch.save(state, folder / "weights.safetensors")
    found = [resolved(f"{folder}/small.json@{folder}/weights.{end}", folder) for end in ("pt", "safetensors")]
    assert found[0].card.scale == found[1].card.scale
    for one in found:
        OpenClip(one, "cpu", "fp32")


def test_other_files_are_reported_by_their_kind(state: State, folder: Path) -> None:
    import gzip
    import zipfile

    spec, path = f"{folder}/small.json@{folder}/weights.pt", folder / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/weights.bin", b"x" * 1000)
    assert "is a zip archive of other files; unpack it first" in error_of(spec, folder)
    path.write_bytes(gzip.compress(b"x" * 1000))
    assert "is compressed; unpack it first" in error_of(spec, folder)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    assert "is a Git LFS pointer" in error_of(spec, folder)
    torch.save({"model": state, "state_dict": state}, path)
    assert "holds several sets of weights, state_dict and model; save only one" in error_of(spec, folder)
    torch.save({**state, **{f"module.{k}": v for k, v in state.items()}}, path)
    assert "holds weights twice" in error_of(spec, folder)


CUSTOM = {"custom_text": True}
OTHERS = {
    "wrong width": (changed(width=48), "visual.class_embedding and 31 more of shape [48], not [32]"),
    "too deep": (changed(layers=3), "visual.transformer.resblocks.2.attn.in_proj_bias and 11 more"),
    "too shallow": (changed(layers=1), "lacks visual.transformer.resblocks.1"),
    "other resolution": (
        changed(image_size=64),
        "visual.positional_embedding of shape [17, 32], not [5, 32] (another resol",
    ),
    "other context": (
        {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "context_length": 8}},
        "positional_embedding of shape [8, 16], not [16, 16] (another resolution or context length)",
    ),
    "another family": (
        changed(layers=[1, 1, 1, 1], width=8, head_width=8, patch_size=None),
        "lacks visual.class_embedding and",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture(name: str, folder: Path) -> None:
    config, told = OTHERS[name]
    save_file({k: v.contiguous() for k, v in state_of(config).items()}, folder / "weights.safetensors")
    message = error_of(f"{folder}/small.json@{folder}/weights.safetensors", folder)
    assert message.startswith(f"checkpoint {folder}/weights.safetensors is of another architecture: ")
    assert told in message, message


def test_paths_without_a_file_are_refused(folder: Path) -> None:
    assert "is a folder" in error_of(f"ViT-B-16@{folder}", folder)
    assert "does not exist" in error_of(f"ViT-B-16/openai@{folder}/none.pt", folder)
    assert "does not exist" in error_of(f"{folder}/none.json@{folder}/small.json", folder)
    (folder / "list.json").write_text("[]")
    (folder / "bad.json").write_text("{")
    (folder / "part.json").write_text('{"embed_dim": 3}')
    (folder / "odd.json").write_text(json.dumps(changed(timm_model_name="no_such_tower")))
    for name, told in [
        ("list", "JSON object"),
        ("bad", "JSON object"),
        ("part", "needs embed_dim"),
        ("odd", "no_such"),
    ]:
        assert told in error_of(f"{folder}/{name}.json@{folder}/small.json", folder)


def test_a_tower_for_another_image_size_is_refused(folder: Path) -> None:
    config = changed(timm_model_name="vit_tiny_patch16_224", timm_pool="token", timm_proj=None, image_size=96)
    (folder / "size.json").write_text(json.dumps(config))
    torch.save(state_of(config), folder / "weights.pt")
    assert "does not take 96x96 pixels" in error_of(f"{folder}/size.json@{folder}/weights.pt", folder)


# Tags, the Hub, tokenizers


@pytest.mark.parametrize("text", ["", "ViT-B16", "/openai", "ViT-B-16@", "ViT-B-16/@", "small.json", "@weights.pt"])
def test_invalid_specs_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="cannot read encoder"):
        parse_encoder(text)


def test_unknown_names_get_suggestions(folder: Path) -> None:
    assert "has no weights tagged 'opnai'; did you mean 'openai'?" in error_of("ViT-B-16/opnai", folder)
    assert "no architecture 'ViT-B16'; did you mean 'ViT-B-16'?" in error_of("ViT-B16/openai", folder)
    assert "did you mean 'ViT-B-16'?" in error_of("vit-b-16/openai", folder)
    assert "did you mean 'ViT-B-32'?" in error_of("ViT-B/23", folder)
    assert "give a file: ViT-e-14@" in error_of("ViT-e-14/openai", folder)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The Hub at an address without a server, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("ViT-B-16/openai", "ViT-B-16/openai@path/to"),
        ("RN50/CC12M", "RN50/cc12m@path/to"),
        ("ViT-B-16-SigLIP/webli", "ViT-B-16-SigLIP/webli@path/to"),
        ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "ARCHITECTURE/TAG@path/to"),
    ],
)
def test_without_a_network_the_error_is_fast_and_gives_advice(spec: str, named: str, folder: Path) -> None:
    began = time.perf_counter()
    message = error_of(spec, folder)
    assert time.perf_counter() - began < 30
    assert "not on this machine" in message and "cannot be reached" in message
    assert f"--encoder {named}" in message.splitlines()[1]


@pytest.mark.usefixtures("no_network")
def test_offline_mode_of_the_hub_is_respected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in error_of("ViT-B-16/openai", folder)


@pytest.mark.usefixtures("no_network")
def test_a_missing_tokenizer_is_reported_before_the_images(state: State, folder: Path) -> None:
    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}}
    (folder / "siglip.json").write_text(json.dumps(config))
    torch.save(state, folder / "weights.pt")
    message = error_of(f"{folder}/siglip.json@{folder}/weights.pt", folder)
    assert "needs the tokenizer timm/ViT-B-16-SigLIP" in message and "downloaded once" in message


def test_a_cached_tokenizer_needs_no_network(
    no_network: None, state: State, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def tokenizer(source: str, **options: Any) -> Any:
        asked.append((source, options))
        return open_clip.SimpleTokenizer(context_length=options["context_length"])

    monkeypatch.setattr(open_clip.tokenizer, "HFTokenizer", tokenizer)  # the real one is of `transformers`
    text = {**CONFIG["text_cfg"], "hf_tokenizer_name": "owner/words", "tokenizer_kwargs": {"clean": "canonicalize"}}
    (folder / "siglip.json").write_text(json.dumps({**CONFIG, "text_cfg": text}))
    torch.save(state, folder / "weights.pt")
    snapshot = put_in_cache(state, folder / "hub", "owner/words")
    (snapshot / "tokenizer_config.json").write_text("{}")
    found = resolved(f"{folder}/siglip.json@{folder}/weights.pt", folder)
    assert found.card.tokenizer == "owner/words"
    OpenClip(found, "cpu", "fp32").text(["a cat"])
    assert asked == [(str(snapshot), {"context_length": 16, "clean": "canonicalize", "tokenizer_mode": None})] * 2


def small_architecture(monkeypatch: pytest.MonkeyPatch, name: str, tagged: dict[str, Any]) -> None:
    """Make open_clip know CONFIG as an architecture with one tag, `some_tag`."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {**open_clip.factory._MODEL_CONFIGS, name: CONFIG})
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, {"some_tag": tagged})


def test_a_file_under_a_tag_takes_the_preprocessing_and_activation_of_the_tag(
    state: State, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagged = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    small_architecture(monkeypatch, "Small", {**tagged, "quick_gelu": True})
    torch.save(state, folder / "weights.pt")
    with_tag = resolved(f"Small/Some-Tag@{folder}/weights.pt", folder).card
    assert (with_tag.mean, with_tag.std) == ((0.5,) * 3, (0.25,) * 3)
    assert (with_tag.interpolation, with_tag.resize_mode) == ("bilinear", "squash")
    assert with_tag.config["quick_gelu"] and with_tag.tag == "some_tag" and not with_tag.notes
    assert with_tag.row()["name"] == "Small/some_tag@weights.pt"

    without = resolved(f"Small@{folder}/weights.pt", folder).card
    assert without.mean == open_clip.OPENAI_DATASET_MEAN and without.interpolation == "bicubic"
    assert not without.config.get("quick_gelu")
    assert len(without.notes) == 1 and "without a tag: assuming" in without.notes[0] and "GELU" in without.notes[0]
    assert "Small/TAG@FILE" in without.notes[0]
    assert without.row()["notes"] == without.notes
    assert without.identity != with_tag.identity

    images = torch.rand(1, 3, 32, 32)
    first, second = (OpenClip(ResolvedEncoder(c, folder / "weights.pt"), "cpu", "fp32") for c in (with_tag, without))
    assert not torch.allclose(first.pixels(images), second.pixels(images))


def test_a_cached_tag_needs_no_network(
    no_network: None, state: State, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_architecture(monkeypatch, "Small", {"hf_hub": "owner/small/"})
    put_in_cache(state, folder / "hub", "owner/small")
    found = resolved("Small/some_tag", folder)
    assert found.card.name == "Small/some_tag" and found.card.slug == "Small-some_tag"
    again = resolved("Small/some_tag", folder)
    assert again == found


def test_a_cached_repository_and_a_folder_like_it(no_network: None, state: State, folder: Path) -> None:
    snapshot = put_in_cache(state, folder / "hub", "owner/small")
    raw = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.1] * 3, "interpolation": "random", "size": 32}}
    (snapshot / "open_clip_config.json").write_text(json.dumps(raw))
    card = resolved("hf-hub:owner/small", folder).card
    assert card.mean == (0.1,) * 3 and card.interpolation == "bicubic" and card.slug == "hf-hub-owner-small"
    local = resolved(f"local-dir:{snapshot}", folder).card
    assert local.mean == card.mean and str(folder) not in json.dumps(local.row())
    (snapshot / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    assert resolved(f"local-dir:{snapshot}", folder).card.mean != card.mean


def put_in_cache(state: State, cache: Path, repository: str) -> Path:
    """What huggingface_hub leaves behind after a download."""
    home = cache / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    save_file(state, snapshot / "open_clip_model.safetensors")
    return snapshot


@pytest.mark.parametrize(
    ("spec", "quick"),
    [
        ("ViT-B-16/openai", True),
        ("RN50/OpenAI", True),
        ("ViT-B-16/laion2b-s34b_b88k", False),
        ("roberta-ViT-B-32/laion2b_s12b_b32k", True),
    ],
)
def test_the_activation_is_that_of_the_tag(spec: str, quick: bool, folder: Path) -> None:
    found = find_pretrained(parse_encoder(f"{spec}@{folder}/small.json"))
    assert found.config["quick_gelu"] is quick and found.tag == spec.partition("/")[2].lower().replace("-", "_")
    assert found.preprocess["mean"] == open_clip.OPENAI_DATASET_MEAN


def test_every_tag_of_open_clip_can_be_named() -> None:
    for architecture, tag in open_clip.list_pretrained():
        spec = parse_encoder(f"{architecture}/{tag}")
        assert (spec.architecture, spec.tag, spec.path) == (architecture, tag, None)


# Cached cards


def test_resolving_again_imports_neither_torch_nor_open_clip(state: State, folder: Path) -> None:
    torch.save(state, folder / "weights.pt")
    specs = ["glyphs", f"{folder}/small.json@{folder}/weights.pt"]
    before = [resolved(spec, folder).card.identity for spec in specs]
    code = (
        "import sys; from pathlib import Path\n"
        "from oodbench.encoder.card import parse_encoder\n"
        "from oodbench.encoder.resolve import resolve\n"
        "from oodbench.storage.store import Store\n"
        "print([resolve(parse_encoder(s), None, Store(Path(sys.argv[1]))).card.identity for s in sys.argv[2:]])\n"
        "print([m for m in ('torch', 'open_clip', 'timm', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "store"), *specs], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(before), "[]"]


def test_changed_files_are_examined_again(state: State, folder: Path) -> None:
    spec = f"{folder}/small.json@{folder}/weights.pt"
    torch.save(state, folder / "weights.pt")
    first = resolved(spec, folder).card
    torch.save({**state, "logit_scale": torch.tensor(1.0)}, folder / "weights.pt")
    second = resolved(spec, folder).card
    assert second.scale == pytest.approx(2.71828, rel=1e-4) and second.weights != first.weights
    (folder / "small.json").write_text(json.dumps({**CONFIG, "quick_gelu": True}))
    third = resolved(spec, folder).card
    assert third.config["quick_gelu"] and third.identity != second.identity
    os.utime(folder / "weights.pt", (1, 1))
    assert resolved(spec, folder).card == third
    (folder / "weights.pt").write_bytes(b"")
    assert "is empty" in error_of(spec, folder)


def overwritten(path: Path, write: Any) -> None:
    """Replace the content of a file in place without changing its size and time."""
    before = path.stat()
    write()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns


def test_overwritten_weights_of_the_same_size_and_time_are_detected(state: State, folder: Path) -> None:
    spec, path = f"{folder}/small.json@{folder}/weights.safetensors", folder / "weights.safetensors"
    other = {**state, "logit_scale": torch.tensor(1.0)}
    save_file(state, path)
    first = resolved(spec, folder)
    overwritten(path, lambda: save_file(other, path))
    with pytest.raises(UserError, match="is not the one that encoder .* was found with; run again"):
        OpenClip(first, "cpu", "fp32")
    second = resolved(spec, folder)
    assert second.card.weights != first.card.weights and second.card.scale == pytest.approx(2.71828, rel=1e-4)


def test_strict_ignores_cached_digests(state: State, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that keeps no change times, or a clock that was turned back."""
    import oodbench.encoder.resolve as module

    spec, path = f"{folder}/small.json@{folder}/weights.safetensors", folder / "weights.safetensors"
    save_file(state, path)
    monkeypatch.setattr(module, "weights_identity", lambda path: {"file": str(path)})
    first = resolved(spec, folder).card
    save_file({**state, "logit_scale": torch.tensor(1.0)}, path)
    assert resolved(spec, folder).card == first
    found = resolve(parse_encoder(spec), None, Store(folder / "store"), strict=True).card
    assert found.weights != first.weights
    assert resolved(spec, folder).card == found, "what was remembered is replaced"


def words(folder: Path, *vocabulary: str) -> None:
    """A tokenizer as transformers keeps it, of whole words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(("[PAD]", "[UNK]", *vocabulary))}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def named(tokenizer: str) -> dict[str, Any]:
    return {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "hf_tokenizer_name": tokenizer}}


def test_the_tokenizer_of_a_local_folder_is_part_of_the_identity(state: State, folder: Path) -> None:
    place = folder / "mine"
    words(place, "a", "photo", "of", "cat")
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": named("owner/words")}))
    save_file(state, place / "open_clip_model.safetensors")
    first = resolved(f"local-dir:{place}", folder)
    assert OpenClip(first, "cpu", "fp32").tokenize(["cat of unknown"])[0, :4].tolist() == [5, 4, 1, 0]
    assert first.card.text_files and resolved(f"local-dir:{place}", folder).card == first.card
    for change in (
        lambda: overwritten(place / "tokenizer.json", lambda: words(place, "a", "photo", "cat", "of")),
        lambda: (place / "special_tokens_map.json").write_text('{"unk_token": "[PAD]"}'),
        lambda: (place / "merges.txt").write_text("a b"),
        lambda: (place / "spiece.model").write_bytes(b"x"),
    ):
        before = resolved(f"local-dir:{place}", folder).card
        change()
        after = resolved(f"local-dir:{place}", folder).card
        assert after.identity != before.identity and after.weights == before.weights
    (place / "README.md").write_text("mine")
    assert resolved(f"local-dir:{place}", folder).card == after
    assert OpenClip(resolved(f"local-dir:{place}", folder), "cpu", "fp32").tokenize(["cat"])[0, 0] == 4


def test_encoders_without_such_a_folder_keep_their_identity(state: State, folder: Path) -> None:
    """Their stored embeddings stay valid: the identity depends on the older fields only."""
    import dataclasses

    from oodbench.storage.store import digest

    torch.save(state, folder / "weights.pt")
    card = resolved(f"{folder}/small.json@{folder}/weights.pt", folder).card
    before = {
        k: v for k, v in dataclasses.asdict(card).items() if k not in ("name", "notes", "text_files", "resize_to")
    }
    assert card.identity == digest(before) and not {"text_files", "resize_to"} & set(card.row())


@pytest.mark.parametrize("kind", ["absolute", "beside the config", "in the working folder"])
def test_a_config_may_name_a_folder_with_a_tokenizer(
    kind: str, state: State, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "work").mkdir()
    monkeypatch.chdir(folder / "work")
    place = folder / ("work" if kind == "in the working folder" else "") / "words"
    words(place, "a", "cat")
    (folder / "other.json").write_text(json.dumps(named(str(place) if kind == "absolute" else "words")))
    torch.save(state, folder / "weights.pt")
    spec = f"{folder}/other.json@{folder}/weights.pt"
    found = resolved(spec, folder)
    assert OpenClip(found, "cpu", "fp32").tokenize(["cat"])[0, :2].tolist() == [3, 0]
    words(place, "cat", "a")
    assert resolved(spec, folder).card.identity != found.card.identity
    (place / "tokenizer.json").write_text("{")
    (place / "tokenizer_config.json").unlink()
    message = error_of(spec, folder)
    assert "words cannot be read (" in message and "pip install" not in message


def test_a_missing_tokenizer_folder_is_named(state: State, folder: Path) -> None:
    (folder / "other.json").write_text(json.dumps(named(f"{folder}/nowhere")))
    torch.save(state, folder / "weights.pt")
    message = error_of(f"{folder}/other.json@{folder}/weights.pt", folder)
    assert f"the folder of its tokenizer, {folder}/nowhere, does not exist" in message


def test_non_finite_weights_are_distinguished_from_low_precision(state: State, folder: Path) -> None:
    spec = f"{folder}/small.json@{folder}/weights.pt"
    torch.save(state, folder / "weights.pt")
    found = resolved(spec, folder)
    said = [str(OpenClip(found, "cpu", precision).not_finite("3 images")) for precision in ("bf16", "fp32")]
    assert said[0].endswith("returned NaN or infinity for 3 images: try --precision fp32")
    assert "fp32" not in said[1].replace("even in fp32", "") and "finite" in said[1]
    torch.save({**state, "ln_final.bias": torch.full((16,), torch.nan)}, folder / "weights.pt")
    told = str(OpenClip(resolved(spec, folder), "cpu", "bf16").not_finite("3 images"))
    assert "its weights have NaN or infinity, ln_final.bias first" in told


def test_identity_depends_on_weights_and_resize_filter_not_location(state: State, folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    torch.save(state, folder / "weights.pt")
    (folder / "elsewhere" / "other name.pt").write_bytes((folder / "weights.pt").read_bytes())
    (folder / "elsewhere" / "small.json").write_text(json.dumps(CONFIG))
    here = resolved(f"{folder}/small.json@{folder}/weights.pt", folder)
    there = resolved(f"{folder}/elsewhere/small.json@{folder}/elsewhere/other name.pt", folder)
    assert here.card.identity == there.card.identity and here.card.slug == there.card.slug
    bilinear = resolved(f"{folder}/small.json@{folder}/weights.pt", folder, "bilinear").card
    assert bilinear.interpolation == "bilinear" and bilinear.identity != here.card.identity
    for card in (here.card, there.card, bilinear):
        assert str(folder) not in json.dumps(card.row())
    assert there.card.row()["name"] == "small.json@other name.pt"
    assert re.fullmatch(r"small-[0-9a-f]{8}", here.card.slug)


def test_a_card_survives_the_store(folder: Path) -> None:
    card: EncoderCard = resolved("glyphs", folder).card
    assert resolved("glyphs", folder).card == card
    assert (card.activation, card.size, card.notes) == ("c_proj", (32, 32), ())


@pytest.mark.slow
def test_a_real_size_tag(no_network: None, folder: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None).eval().requires_grad_(False)
    put_in_cache(model.state_dict(), folder / "hub", "timm/vit_base_patch32_clip_224.openai")
    found = resolved("ViT-B-32/openai", folder)
    assert (found.card.activation, found.card.width, found.card.embed_dim) == ("proj", 768, 512)
    ours = OpenClip(found, "cpu", "fp32")
    images = torch.rand(2, 3, 224, 224)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (found.card.mean, found.card.std))
    torch.testing.assert_close(ours.pixels(images), model.encode_image((images - mean) / std), rtol=1e-4, atol=1e-5)


def test_a_cached_card_matches_the_current_files(no_network: None, state: State, folder: Path) -> None:
    """A checkpoint that open_clip prefers was added to a folder; a newer revision of a repository was downloaded."""
    snapshot = put_in_cache(state, folder / "hub", "owner/small")
    (snapshot / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    (snapshot / "open_clip_model.safetensors").rename(snapshot / "model.safetensors")
    other = {**state, "logit_scale": torch.tensor(1.0)}
    first = resolved(f"local-dir:{snapshot}", folder).card
    assert resolved(f"local-dir:{snapshot}", folder).card == first
    save_file(other, snapshot / "open_clip_model.safetensors")
    assert resolved(f"local-dir:{snapshot}", folder).card.scale == pytest.approx(2.71828, rel=1e-4) != first.scale
    assert resolved("hf-hub:owner/small", folder).card.scale == pytest.approx(2.71828, rel=1e-4)
    newer = snapshot.with_name("1" * 40)
    newer.mkdir()
    (newer / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    save_file(state, newer / "open_clip_model.safetensors")
    (newer.parents[1] / "refs" / "main").write_text("1" * 40)
    assert resolved("hf-hub:owner/small", folder).card.scale == pytest.approx(first.scale)
