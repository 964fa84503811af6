"""CLIP and SigLIP folders of transformers: random models of each kind equal transformers' own forward to 1e-5."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from oodbench.encoder.card import parse_encoder
from oodbench.encoder.openclip import OpenClip, transform
from oodbench.encoder.resolve import ResolvedEncoder, resolve
from oodbench.errors import UserError
from oodbench.storage.store import Store

WORDS = ["<start>", "<end>", "a", "photo", "of", "cat", "dog", "in", "the", "snow"]
PROMPTS = ["a photo of a cat", "a photo of a dog in the snow in the snow", "cat"]
VISION = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"hidden_size": 24, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {"image_size": 32, "patch_size": 8}
WORDED = {"vocab_size": 14, "max_position_embeddings": 12, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 1}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without transformers' log lines and progress bars."""
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    yield


def clip(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **options: Any) -> Any:
    """A small random CLIP of transformers."""
    return _random(
        transformers.CLIPModel(
            transformers.CLIPConfig(
                vision_config={**VISION, **SIZES, **(vision or {})},
                text_config={**TEXT, **WORDED, **(text or {})},
                projection_dim=20,
                **options,
            )
        )
    )


def siglip(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> Any:
    """A small random SigLIP of transformers; texts have the width of images."""
    words = {**VISION, **WORDED, "intermediate_size": 50, "projection_size": 32, **(text or {})}
    config = transformers.SiglipConfig(vision_config={**VISION, **SIZES, **(vision or {})}, text_config=words)
    return _random(transformers.SiglipModel(config))


def _random(model: Any) -> Any:
    """Add noise to all weights, so that none is exactly zero or one, and return the model."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.logit_scale.fill_(3.7)
    return model.eval()


def save(model: Any, folder: Path, processor: dict[str, Any] | None = None, **options: Any) -> Path:
    """The folder that transformers' save_pretrained() leaves, with a tokenizer of whole words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    model.save_pretrained(folder, **options)
    names = ["[UNK]", "[PAD]", "<start>", "<end>", *WORDS[2:]]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(names)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing("<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)])
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "<start>", "eos_token": "<end>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    if processor is None:
        kind = transformers.CLIPImageProcessorPil if model.config.model_type == "clip" else SIGLIP_PROCESSOR
        sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        kind(**(sizes if model.config.model_type == "clip" else {"size": {"height": 32, "width": 32}})).save_pretrained(
            folder
        )
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


SIGLIP_PROCESSOR: Any = transformers.SiglipImageProcessorPil


def resolved(folder: Path, store: Path) -> ResolvedEncoder:
    return resolve(parse_encoder(f"local-dir:{folder}"), None, Store(store / "store"))


def embeddings(model: Any, folder: Path, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings of transformers, for normalised images and texts tokenized by the folder's tokenizer."""
    length = model.config.text_config.max_position_embeddings
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        PROMPTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=images)
        read = model.get_text_features(input_ids=tokens)
    return tuple(getattr(out, "pooler_output", out) for out in (seen, read))


def assert_equal(found: ResolvedEncoder, model: Any, folder: Path) -> None:
    """Images, texts and the logit scale equal transformers' own to 1e-5 of the largest value."""
    ours, card = OpenClip(found, "cpu", "fp32"), found.card
    images = torch.rand(3, 3, *card.size)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.mean, card.std))
    for mine, theirs in zip(
        (ours.pixels(images), ours.text(PROMPTS)), embeddings(model, folder, (images - mean) / std), strict=True
    ):
        assert mine.shape == theirs.shape and float(theirs.std(0).max()) > 1e-3
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    assert ours.scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-6)


GELU = {"hidden_act": "gelu"}
TANH = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}
MODELS: dict[str, Callable[[], Any]] = {
    "clip": clip,  # quick_gelu
    "clip with gelu": lambda: clip(GELU, GELU),
    "clip with tanh and its own eps": lambda: clip(TANH, TANH),
    "clip of old configs": lambda: clip(text={"eos_token_id": 2}),  # the highest token is read
    "siglip": siglip,  # gelu_pytorch_tanh, eps 1e-6
    "siglip with gelu": lambda: siglip(GELU, {**GELU, "layer_norm_eps": 1e-5}),
    "siglip with quick_gelu": lambda: siglip({"hidden_act": "quick_gelu", "layer_norm_eps": 1e-3}, TANH),
    "siglip of so400m's ratio": lambda: siglip({"intermediate_size": 119}, {"intermediate_size": 119}),
}


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    folder = save(model, tmp_path / "model")
    found = resolved(folder, tmp_path)
    assert_equal(found, model, folder)
    assert found.card.activation == ("embedding" if name.startswith("siglip") else "proj")
    assert found.card.text_files and found.card.row()["name"] == "local-dir:model"
    assert resolved(folder, tmp_path) == found, "what is remembered is the same"


def test_activations_and_gradients_are_those_of_a_clip(tmp_path: Path) -> None:
    """Methods that need activations, gradients of pixels or the text tower work as with open_clip's checkpoints."""
    model = clip()
    found = resolved(save(model, tmp_path / "model"), tmp_path)
    ours, images = OpenClip(found, "cpu", "fp32"), torch.rand(2, 3, 32, 32, requires_grad=True)
    activations = ours.activations(images)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (found.card.mean, found.card.std))
    theirs = model.vision_model(pixel_values=(images - mean) / std).pooler_output
    torch.testing.assert_close(activations, theirs, rtol=0, atol=1e-5)
    ours.project(activations).square().sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None and images.grad.abs().amax((1, 2, 3)).min() > 0
    tokens = ours.tokenize(PROMPTS)
    with torch.no_grad():
        assert model.config.text_config.eos_token_id == 3 and found.card.config["text_cfg"]["eos_id"] == 3
        torch.testing.assert_close(ours.text(PROMPTS), model.get_text_features(input_ids=tokens).pooler_output)
    with pytest.raises(UserError, match="is not built like CLIP's"):  # it is read at a token that is not the highest
        ours.text_tower()


def test_the_text_tower_of_a_clip_can_be_trained(tmp_path: Path) -> None:
    """In OpenAI's configs, the highest token is the end token."""
    model = clip(text={"eos_token_id": 2})
    ours = OpenClip(resolved(save(model, tmp_path / "model"), tmp_path), "cpu", "fp32")
    tokens = ours.tokenize(PROMPTS)
    with torch.no_grad():
        embedded = ours.text_tower()(tokens)
        torch.testing.assert_close(embedded, model.get_text_features(input_ids=tokens).pooler_output)


FORMS = ["sharded", "bf16", "fp16", "bin", "sharded bin"]


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_weights(form: str, tmp_path: Path) -> None:
    model = clip()
    folder = save(model, tmp_path / "model", max_shard_size="20KB") if "sharded" in form else None
    if form in ("bf16", "fp16"):
        folder = save(model.to(torch.bfloat16 if form == "bf16" else torch.float16), tmp_path / "model")
        model = model.float()
    folder = folder or save(model, tmp_path / "model")
    if "bin" in form:
        for path in sorted(folder.glob("*.safetensors")):
            torch.save(load_file(path), folder / f"pytorch_{path.stem}.bin")
            path.unlink()
        for index in folder.glob("*.index.json"):
            text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
            (folder / "pytorch_model.bin.index.json").write_text(text)
            index.unlink()
    found = resolved(folder, tmp_path)
    assert len(list(folder.glob("*model-0*"))) > 2 or "sharded" not in form
    assert_equal(found, model, folder)


def test_a_changed_or_missing_shard_is_detected(tmp_path: Path) -> None:
    folder = save(clip(), tmp_path / "model", max_shard_size="20KB")
    first = resolved(folder, tmp_path)
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    state = load_file(shard)
    save_file({name: tensor + 1 for name, tensor in state.items()}, shard, {"format": "pt"})
    assert resolved(folder, tmp_path).card.weights != first.card.weights
    with pytest.raises(UserError, match="is not the one that encoder .* was found with"):
        OpenClip(first, "cpu", "fp32")
    shard.unlink()
    with pytest.raises(UserError, match=f"names missing files, {shard.name}; complete the folder"):
        resolved(folder, tmp_path)


@pytest.mark.parametrize("wrapper", ["", "model.", "module.clip."])
def test_weights_under_transformers_names_fit_an_architecture_of_open_clip(wrapper: str, tmp_path: Path) -> None:
    """A fine-tuned model in one file, as written by training loops: ARCH@FILE or CONFIG.json@FILE."""
    model = clip()
    folder = save(model, tmp_path / "model")
    config = resolved(folder, tmp_path).card.config
    config["text_cfg"].pop("hf_tokenizer_name")
    (tmp_path / "mine.json").write_text(json.dumps({"model_cfg": config}))
    state = {f"{wrapper}{name}": tensor for name, tensor in model.state_dict().items()}
    state[f"{wrapper}text_model.embeddings.position_ids"] = torch.arange(12)[None]  # of an older transformers
    torch.save({"state_dict": state}, tmp_path / "tuned.pt")
    spec = parse_encoder(f"{tmp_path}/mine.json@{tmp_path}/tuned.pt")
    ours = OpenClip(resolve(spec, None, Store(tmp_path / "store")), "cpu", "fp32")
    direct = OpenClip(resolved(folder, tmp_path), "cpu", "fp32")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(ours.pixels(images), direct.pixels(images))


# Preprocessing

CLIP_PROCESSOR: Any = transformers.CLIPImageProcessorPil
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("clip", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    "old numbers": (
        "clip",
        {"size": 32, "crop_size": 32, "resample": 3, "feature_extractor_type": "CLIPFeatureExtractor"},
    ),
    "larger, then cropped": ("clip", {"size": {"shortest_edge": 41}, "crop_size": {"height": 32, "width": 32}}),
    "bilinear": ("clip", {"size": 37, "crop_size": 32, "resample": 2}),
    "lanczos": ("clip", {"size": 32, "crop_size": 32, "resample": 1}),
    "own mean": ("clip", {"size": 32, "crop_size": 32, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}),
    "not normalised": ("clip", {"size": 32, "crop_size": 32, "do_normalize": False}),
    "siglip": ("siglip", {"size": {"height": 32, "width": 32}}),
    "siglip bilinear": ("siglip", {"size": {"height": 32, "width": 32}, "resample": 2}),
}


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (61, 94, 3), np.uint8)
    colour = Image.fromarray(noise)
    palette = colour.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    return [colour, colour.transpose(Image.Transpose.ROTATE_90), colour.convert("L"), palette, colour.resize((20, 33))]


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    family, given = PROCESSORS[name]
    folder = save(clip() if family == "clip" else siglip(), tmp_path / "model", given)
    card = resolved(folder, tmp_path).card
    theirs = (CLIP_PROCESSOR if family == "clip" else SIGLIP_PROCESSOR).from_pretrained(folder)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (card.mean, card.std))
    for image in pictures():
        expected = torch.as_tensor(np.asarray(theirs(image.copy(), return_tensors="np").pixel_values[0]))
        ours = transform(card)(image.copy())
        torch.testing.assert_close((ours.float() / 255 - mean) / std, expected, rtol=0, atol=2e-6)


def test_the_image_processor_may_be_in_the_whole_processor_config(tmp_path: Path) -> None:
    folder = save(clip(), tmp_path / "model", {"size": 36, "crop_size": 32})
    given = json.loads((folder / "preprocessor_config.json").read_text())
    first = resolved(folder, tmp_path).card
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": given}))
    old = {**given, "size": {"shortest_edge": 40}}  # of an earlier save; transformers reads the nested one
    (folder / "preprocessor_config.json").write_text(json.dumps(old))
    assert resolved(folder, tmp_path).card.resize_to == (36,)
    (folder / "preprocessor_config.json").unlink()
    assert resolved(folder, tmp_path).card.resize_to == first.resize_to == (36,)
    (folder / "processor_config.json").unlink()
    assumed = resolved(folder, tmp_path).card
    assert assumed.resize_to == (32,) and "assuming that of clip at 32 pixels" in assumed.notes[0]
    bilinear = resolve(parse_encoder(f"local-dir:{folder}"), "bilinear", Store(tmp_path / "store")).card
    assert bilinear.interpolation == "bilinear" and bilinear.identity != assumed.identity


# Refused models, and the identity of an encoder


def refusal(folder: Path, store: Path) -> str:
    with pytest.raises(UserError) as caught:
        resolved(folder, store)
    assert str(caught.value).startswith(f"encoder 'local-dir:{folder}': ")
    return str(caught.value)


def changed(folder: Path, file: str, **values: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **values}))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"model_type": "clip_text_model"}, "holds only a text tower"),
        ({"model_type": "siglip_vision_model"}, "holds only an image tower"),
        ({"model_type": "siglip2"}, "NaFlex"),
        (
            {"model_type": "blip"},
            "has the model type 'blip'; clip and siglip are supported; write its towers as a plugin",
        ),
        ({"model_type": None}, "has the model type 'none'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"vision_config": {**VISION, **SIZES, "hidden_act": "relu"}}, "hidden_act is 'relu'"),
        ({"vision_config": {**VISION, **SIZES, "hidden_act": "gelu"}}, "its towers compute gelu and quick_gelu"),
        ({"vision_config": {**VISION, **SIZES, "num_attention_heads": 5}}, "transformers refuses"),
        ({"vision_config": {**VISION, **SIZES, "num_channels": 1}}, "1 channels"),
    ],
)
def test_other_models_are_refused(values: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = save(clip(), tmp_path / "model")
    changed(folder, "config.json", **values)
    assert told in refusal(folder, tmp_path)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"do_resize": False}, "do_resize is False"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ({"resample": 9}, "resample is 9"),
        ({"crop_size": 16}, "it returns images of 16x16 pixels, the model takes 32x32"),
        ({"size": {"longest_edge": 32}}, "size is {'longest_edge': 32}"),
        ({"size": 30}, "it resizes to 30 pixels and crops 32"),
        ({"do_center_crop": False}, "it returns images of 32 pixels"),
    ],
)
def test_unsupported_preprocessing_is_refused(values: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = save(clip(), tmp_path / "model", {"size": 32, "crop_size": 32, **values})
    assert told in refusal(folder, tmp_path)


def test_incomplete_folders_are_refused(tmp_path: Path) -> None:
    folder = save(clip(), tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "holds no tokenizer (tokenizer.json" in refusal(folder, tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert "holds none of model.safetensors, " in refusal(folder, tmp_path)
    (folder / "config.json").rename(folder / "other.json")
    assert "LoRA adapter: merge it" in refusal(folder, tmp_path)
    inner = tmp_path / "sentences" / "0_CLIPModel"
    inner.mkdir(parents=True)
    (inner / "config.json").write_text("{}")
    assert f"; use {inner}" in refusal(inner.parent, tmp_path)
    assert "is not a folder" in refusal(tmp_path / "nowhere", tmp_path)
    (inner / "config.json").write_text("[")
    assert "cannot be read as JSON" in refusal(inner, tmp_path)


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(clip(), tmp_path / "model")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert 'pip install "oodbench[hf]"' in refusal(folder, tmp_path)


def test_the_tokenizer_of_the_folder_is_part_of_the_identity(tmp_path: Path) -> None:
    folder = save(clip(), tmp_path / "model")
    before = resolved(folder, tmp_path).card
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    after = resolved(folder, tmp_path)
    assert after.card.identity != before.identity and after.card.weights == before.weights
    assert OpenClip(after, "cpu", "fp32").tokenize(["cat"])[0, 1] == WORDS.index("dog") + 2


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the Hub on a machine without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def in_cache(cache: Path, repository: str) -> Path:
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    return home / "snapshots" / ("0" * 40)


def test_a_cached_repository_needs_no_network(cache: Path, tmp_path: Path) -> None:
    model = clip()
    folder = save(model, in_cache(cache, "owner/medical"))
    found = resolve(parse_encoder("hf-hub:owner/medical"), None, Store(tmp_path / "store"))
    assert_equal(found, model, folder)
    row = found.card.row()
    assert (row["name"], row["slug"]) == ("hf-hub:owner/medical", "hf-hub-owner-medical")
    assert found.card.text_files and resolve(parse_encoder("hf-hub:owner/medical"), None, Store(tmp_path)) == found
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot be fetched[\s\S]*HF_HUB_OFFLINE[\s\S]*--encoder local-dir:FOLDER"):
        resolve(parse_encoder("hf-hub:owner/medical"), None, Store(tmp_path / "another"))


def test_a_repository_is_downloaded_with_its_tokenizer_and_no_other_weights(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder stands in for the Hub: requested files are copied into the cache."""
    import fnmatch
    import shutil

    from oodbench.encoder import pretrained

    origin, place = save(clip(), tmp_path / "origin"), in_cache(cache, "owner/medical")
    for name in ("flax_model.msgpack", "tf_model.h5", "pytorch_model.bin", "picture.png"):
        (origin / name).write_bytes(b"x")
    (origin / "onnx").mkdir()
    (origin / "onnx" / "config.json").write_text("{}")

    def copied(name: str) -> str:
        place.mkdir(parents=True, exist_ok=True)
        return str(shutil.copyfile(origin / name, place / name))

    def one(repository: str, name: str) -> str:
        if not (origin / name).is_file():
            raise huggingface_hub.errors.EntryNotFoundError(name)
        return copied(name)

    def many(repository: str, allow_patterns: list[str], ignore_patterns: str) -> str:
        names = [path.relative_to(origin).as_posix() for path in origin.rglob("*") if path.is_file()]
        for name in names:
            if any(fnmatch.fnmatch(name, p) for p in allow_patterns) and not fnmatch.fnmatch(name, ignore_patterns):
                copied(name)
        return str(place)

    monkeypatch.setattr(pretrained, "require_hub", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository: [p.name for p in origin.iterdir()])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", many)
    found = resolve(parse_encoder("hf-hub:owner/medical"), None, Store(tmp_path / "store"))
    assert found.path == place / "model.safetensors" and found.tokenizer == place
    assert not {"pytorch_model.bin", "tf_model.h5", "picture.png", "onnx"} & {path.name for path in place.iterdir()}
    assert found.card.text_files == resolved(origin, tmp_path).card.text_files


@pytest.mark.slow
def test_a_detector_keeps_shards_and_tokenizer(tmp_path: Path) -> None:
    """A detector that was saved with its encoder gives the same scores after the model's folder is gone."""
    import shutil

    import oodbench

    folder = save(clip(), tmp_path / "model", max_shard_size="20KB")
    options: dict[str, Any] = {"classes": ["cat", "dog"], "encoder": f"local-dir:{folder}", "store": tmp_path / "store"}
    detector = oodbench.Detector("mcm", **options).fit()
    scores = detector.score_samples(pictures()[:2])
    saved = detector.save(tmp_path / "saved", with_encoder=True)
    shutil.rmtree(folder)
    loaded = oodbench.Detector.load(saved, store=tmp_path / "another")
    assert list(loaded.score_samples(pictures()[:2])) == list(scores)
