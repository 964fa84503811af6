"""On another device than the CPU no tensor stays on the CPU, and numbers equal those of the CPU (see elsewhere.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from oodbench import Detector, api
from oodbench.encoder.card import parse_encoder
from oodbench.encoder.openclip import OpenClip
from oodbench.encoder.resolve import resolve
from oodbench.method import registry
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import request_from
from oodbench.results import Result
from oodbench.storage.store import Store
from oodbench.training.plan import TrainRequest
from oodbench.training.train import train
from tests.elsewhere import elsewhere
from tests.encoder import test_encoder_families as families
from tests.methods import small, test_neglabel

METHODS = ("mcm", "odin", "clipn", "zoc", "react")
MIXED = '''"""Mixed: forgets where it is (Doe et al., ICML 2020, arXiv:2001.00001)."""
from dataclasses import dataclass
import torch
from oodbench.method import Method

@dataclass(frozen=True)
class Mixed(Method):
    """A probe."""

    def score(self, batch, task, state):
        return batch.features @ torch.ones(batch.features.shape[1])
'''


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """id/{a,b}, ood: 8 images each; captions.csv of id/a."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for folder in ("id/a", "id/b", "ood"):
        (root / folder).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(root / folder / f"{i}.png")
    lines = [f"id/a/{i}.png,a photo of a red thing {i}" for i in range(8)]
    (root / "captions.csv").write_text("\n".join(["filepath,caption", *lines]) + "\n")
    return root


def test_the_device_refuses_cpu_tensors() -> None:
    with elsewhere() as device:
        there = torch.ones(2, 3, device=device)
        assert str(there.device) == str((there @ torch.rand(3, 4).to(device)).device) == device
        assert (there + 1).cpu().numpy().sum() == 12 and there.add_(1).sum().item() == 12
        with pytest.raises(RuntimeError, match="on cpu"):
            there @ torch.ones(3, 4)
        with pytest.raises(RuntimeError, match="not supported"):
            there.numpy()
        layer = torch.nn.Linear(3, 1).to(device)
        layer(there).sum().backward()
        assert layer.weight.grad is not None and str(layer.weight.grad.device) == device


# Without zoc_coca, which takes an encoder that writes captions, and few-shot methods, of which no weights are shipped.
RUN = {
    name: info.needs for name, info in registry.methods().items() if name != "zoc_coca" and "SHOTS" not in info.needs
}
STREAMS = [name for name, needs in RUN.items() if "STREAM" in needs]


def results(out: Path, device: str, **options: Any) -> dict[str, Result]:
    asked = {"device": device, "out": out, "store": out / "s", "bootstrap": 0, "methods": "all"} | options
    return {one.label: one for one in api.run(make_plan(request_from(**asked))).results}


def scores(out: Path) -> dict[tuple[str, str], tuple[np.ndarray, str]]:
    """(method, set) -> scores, and the device that they were made on; of streams the set is the OOD set."""
    found = {}
    for file in (*(out / "s" / "scores").rglob("entry.json"), *(out / "s" / "streams").rglob("entry.json")):
        entry, (array,) = json.loads(file.read_text()), file.parent.glob("scores*.npy")
        inputs = entry["inputs"].get("sets", [entry["inputs"]])[0]
        found[inputs["method"], entry["facts"]["dataset"]] = (np.load(array), entry["facts"]["device"])
    return found


@pytest.mark.slow
def test_every_method_scores_on_the_device(tmp_path: Path) -> None:
    lists = [[f"{kind} {i}" for i in range(90)] for kind in ("noun", "adjective")]  # WordNet's own take a minute
    words = test_neglabel.folder(tmp_path / "words", *lists)
    chosen = small.settings(tmp_path) | {"neglabel": {"words": words, "groups": 4}}
    chosen |= {"knn": {"k": 5}, "nnguide": {"k": 5}, "vim": {"dim": 4}, "residual": {"dim": 4}}  # 12 images calibrate
    chosen |= {"temperature": {"preset": "paper"}}  # 50 steps that do not converge enlarge rounding errors
    settings = [f"{method}.{name}={value}" for method, values in chosen.items() for name, value in values.items()]
    options = {"id": "glyphs", "ood": ["glyphs-digits"], "limit": 12, "shots": 6, "settings": settings}
    options["stream_seeds"] = (0,)
    here = results(tmp_path / "here", "cpu", **options)
    with elsewhere() as device:
        there = results(tmp_path / "there", device, **options)
    assert here.keys() == there.keys() and len(here) == len(RUN)
    assert not [one.error for one in there.values() if one.error]
    plain, other = scores(tmp_path / "here"), scores(tmp_path / "there")
    assert plain.keys() == other.keys() and len(plain) == 2 * len(RUN) - len(STREAMS)
    for (method, name), (values, made_on) in other.items():
        here_too = plain[method, name][0]  # squared Mahalanobis distances are in the hundreds
        assert np.abs(values - here_too).max() < 1e-4 * max(1, np.abs(here_too).max()), method
        assert made_on == device


@pytest.mark.slow
def test_a_method_that_mixes_devices_fails_alone(images: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed.py").write_text(MIXED)
    options: dict[str, Any] = {"id": f"folder:{images}/id", "ood": [f"folder:{images}/ood"], "methods": "mixed,mcm"}
    options |= {"encoder": "glyphs", "plugins": [tmp_path / "mixed.py"]}
    assert not results(tmp_path / "here", "cpu", **options)["mixed"].error
    with elsewhere() as device:
        found = results(tmp_path / "there", device, **options)
    assert "on cpu" in str(found["mixed"].error) and not found["mcm"].error


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, options",
    [("clipn", {}), ("clipn", {"augment": True}), ("clipn", {"settings": ("clipn.prompt=handcrafted",)}), ("zoc", {})],
)
def test_trainings_stop_and_resume_on_the_device(
    method: str, options: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    def trained(device: str) -> dict[str, torch.Tensor]:
        out = tmp_path / f"{device}.safetensors"
        common: dict[str, Any] = {"encoder": "glyphs", "captions": str(images / "captions.csv")}
        common |= {"out": out, "device": device, "store": tmp_path / device}
        for upto in (2, None):
            train(TrainRequest(method, batch=4, steps=4, chunk=3, max_steps=upto, **common, **options))
        return load_file(out)

    here = trained("cpu")
    with elsewhere() as device:
        there = trained(device)
    assert here.keys() == there.keys()
    assert all(float((here[name] - there[name]).abs().max()) < 1e-2 for name in here)  # Adam divides small by small


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_detectors_are_saved_and_restored_on_the_device(method: str, images: Path, tmp_path: Path) -> None:
    def scored(device: str) -> np.ndarray:
        settings = {"threshold": 1.0} if method == "react" else {}
        made = Detector(
            method, classes=["star", "circle", "cat"], settings=settings, device=device, store=tmp_path / device
        )
        made.fit(images / "id").save(tmp_path / f"saved-{device}")
        again = Detector.load(tmp_path / f"saved-{device}", device=device, store=tmp_path / f"again-{device}")
        found = made.score_samples(images / "ood")
        assert np.array_equal(found, again.score_samples(images / "ood"))
        return found

    here = scored("cpu")
    with elsewhere() as device:
        there = scored(device)
    assert np.abs(here - there).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(families.FAMILIES) - families.LARGE))
def test_encoders_of_all_families_on_the_device(name: str, tmp_path: Path) -> None:
    described = families.config(families.FAMILIES[name])
    config, weights = tmp_path / f"{name}.json", tmp_path / "weights.safetensors"
    config.write_text(json.dumps(described))
    save_file({k: v.contiguous() for k, v in families.random_model(described).state_dict().items()}, weights)
    found = resolve(parse_encoder(f"{config}@{weights}"), None, Store(tmp_path))
    images, prompts = torch.rand(3, 3, *found.card.size), ["a cat", "two dogs in the snow"]
    with torch.no_grad():
        here = OpenClip(found, "cpu", "fp32")
        expected = [here.pixels(images), here.text(prompts)]
        with elsewhere() as device:
            encoder = OpenClip(found, device, "fp32")
            given = [encoder.pixels(images.to(device)).cpu(), encoder.text(prompts).cpu()]
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
