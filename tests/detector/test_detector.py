"""The detector: the scores of the benchmark, scikit-learn's conventions, and saved folders with the same digits."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import clone, is_outlier_detector
from sklearn.utils.validation import check_is_fitted

import oodbench
from oodbench import Detector, UserError
from oodbench.data import catalog as catalogue
from oodbench.data.glyphs import render, world
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, load_images
from oodbench.detector.images import listed
from oodbench.detector.state import pack, unpack
from oodbench.errors import Unpackable
from oodbench.method import registry
from oodbench.storage.store import Store, default_root, digest
from tests.methods import small

N = 150  # images of a set: more than one batch
NAMES = list(world.CLASSES)
# zoc_coca takes an encoder that writes captions; the views of cover take 0.2 s an image (tests/pipeline/test_views.py);
# few images have not every class, whose labels some methods read (tests/detector/test_threshold.py).
LABELLED = {name for name, info in registry.methods().items() if "LABELS" in info.needs}
# Streams are refused, and few-shot methods have no weights that are shipped.
OTHERS = {name for name, info in registry.methods().items() if {"STREAM", "SHOTS"} & set(info.needs)}
METHODS = sorted(set(registry.methods()) - {"zoc_coca", "cover"} - LABELLED - OTHERS)


def images_of(name: str, n: int | None = N) -> ImageSet:
    """The images that a run with --limit takes."""
    store = Store(default_root())
    return load_images(catalogue.dataset(name), LoadOptions(Path(), store, limit=n), labelled=False)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Few words for the methods that encode 70,000 and more."""
    return small.settings(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def benchmark(settings: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of a run of every method."""
    out = tmp_path_factory.mktemp("rows")
    chosen = {method: values for method, values in settings.items() if method in METHODS}
    given = {f"{method}.{key}": value for method, values in chosen.items() for key, value in values.items()}
    lines = oodbench.run(",".join(METHODS), ood="glyphs-letters", limit=N, results=str(out), settings=given)
    assert "failed" not in set(lines["metric"])
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ID images of that run as files, under names in its order."""
    folder = tmp_path_factory.mktemp("files")
    for number, name in enumerate(images_of("glyphs").names):
        index = int(name.partition("/")[2].partition("-")[0])
        Image.fromarray(render.image("id-test", index)).save(folder / f"{number:04d}.png")
    return folder


def stored(out: Path, method: str, dataset: str) -> pd.DataFrame:
    """The scores per image that are next to a result."""
    (path,) = [p for p in out.rglob("*.parquet") if p.stem.split("-")[0] == method]
    table = pd.read_parquet(path)
    return table[table["dataset"] == dataset]


def detector(method: str, settings: dict[str, dict[str, Any]], **options: Any) -> Detector:
    return Detector(method, classes=NAMES, settings=settings.get(method), **options)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_benchmark(
    method: str, benchmark: Path, files: Path, settings: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """In every form that images come in, and after saving and loading, to the last digit."""
    one = detector(method, settings).fit(images_of("glyphs-train"), validation=images_of("glyphs"))
    known = stored(benchmark, method, "glyphs")
    for images in (images_of("glyphs"), files, sorted(files.iterdir()), arrays(files)):
        found = one.score_images(images)
        assert (found.scores == known["score"].to_numpy()).all()
        assert (found.predictions == known["prediction"].to_numpy()).all()
    letters = stored(benchmark, method, "glyphs-letters")
    assert (one.score_samples(images_of("glyphs-letters")) == letters["score"].to_numpy()).all()
    again = Detector.load(one.save(tmp_path / "saved"), keep=False)
    assert (again.score_samples(files) == known["score"].to_numpy()).all()
    assert again.threshold_ == one.threshold_ and list(again.classes_) == NAMES
    alone = np.concatenate([one.score_samples(path) for path in sorted(files.iterdir())[:3]])
    np.testing.assert_allclose(alone, known["score"].to_numpy()[:3], rtol=1e-5, atol=1e-4)


def arrays(folder: Path) -> list[Any]:
    """The same images in memory: arrays and PIL images."""
    opened = [Image.open(path) for path in sorted(folder.iterdir())]
    return [np.array(image) if number % 2 else image for number, image in enumerate(opened)]


def test_the_threshold_accepts_its_fraction() -> None:
    """The threshold has rank r with r / (N + 1) >= tpr among n + 1 images, one of which is new."""
    images = images_of("glyphs")
    for tpr, rank in ((0.5, 76), (0.95, 144), (1.0, N)):
        one = Detector("mcm", classes=NAMES, tpr=tpr).fit(images)
        assert (one.predict(images) == 1).sum() == rank
    scores = one.score_samples(images)
    assert scores.shape == (N,) and scores.dtype == np.float64
    assert one.threshold_ == one.offset_ == scores.min()
    np.testing.assert_array_equal(one.decision_function(images), scores - one.offset_)
    assert set(one.fit_predict(images)) == {1}
    assert set(Detector("mcm", classes=NAMES, threshold=0.0).fit().predict(images)) == {-1}


def test_scikit_learns_conventions() -> None:
    one = Detector("energy", classes=NAMES, settings={"temperature": 2.0})
    assert is_outlier_detector(one)
    twin = clone(one)
    assert twin.get_params() == one.get_params() and twin is not one
    assert repr(twin).startswith("Detector(method='energy', classes=[") and "temperature" in repr(twin)
    with pytest.raises(ValueError, match="not fitted; call fit"):
        one.predict(images_of("glyphs", 3))
    assert one.set_params(tpr=0.5).fit(images_of("glyphs", 9)) is one
    check_is_fitted(one)
    assert not hasattr(clone(one), "threshold_")
    assert set(one.classify(images_of("glyphs", 9))) <= set(NAMES)
    with pytest.raises(UserError, match="no parameter 'tprr'; did you mean 'tpr'"):
        one.set_params(tprr=1)
    bare = Detector("mcm", classes=NAMES).fit()
    assert bare.score_samples(images_of("glyphs", 3)).shape == (3,)
    with pytest.raises(ValueError, match="has no threshold"):
        bare.predict(images_of("glyphs", 3))


@pytest.mark.slow
def test_bad_input_says_what_to_do(tmp_path: Path, files: Path) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "no class names were given; give classes": {},
        "no method 'mcn'; did you mean 'mcm'": {"method": "mcn", "classes": NAMES},
        "a detector is one method, not all": {"method": "all", "classes": NAMES},
        "react calibrates on ID images": {"method": "react", "classes": NAMES},
        "no class list 'nowhere.txt'": {"classes": "nowhere.txt"},
        "clipn has no weights for ViT-B-32": {"method": "clipn", "classes": NAMES, "encoder": f"ViT-B-32@{__file__}"},
    }
    for said, options in wrong.items():
        with pytest.raises(UserError, match=said):
            Detector(**options).fit()
    one = Detector(classes=NAMES, on_error="skip", keep=False).fit()
    for said, images in {
        "image nowhere.png cannot be read: No such file": "nowhere.png",
        "is a folder among images": [tmp_path],
        "no images were given": [],
        r"image 0 is a float64 array of shape \[3, 3, 3\]": np.zeros((3, 3, 3)),
        "image 1 is a int": [np.zeros((3, 3, 3), np.uint8), 1],
        "holds no images": tmp_path,
    }.items():
        with pytest.raises(UserError, match=said):
            one.score_samples(images)
    broken = tmp_path / "broken.png"
    broken.write_text("nothing")
    good = sorted(files.iterdir())[0]
    found = one.score_images([good, broken, good])
    assert np.isnan(found.scores).tolist() == [False, True, False] and found.predictions[1] == -1
    assert found.scores[0] == found.scores[2] and found.skipped[0].startswith(str(broken))
    assert one.classify([broken])[0] is None
    with pytest.raises(UserError, match=r"broken\.png cannot be read"):
        Detector(classes=NAMES).fit().score_samples([good, broken])


GREY = np.zeros((8, 8), np.uint8)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("", "'' is not the path"),
        ([""], "'' is not the path"),
        ("a\0b", r"'a\\x00b' is not the path"),
        ("x" * 5000, "cannot be read: File name too long"),
        (["x" * 5000], "cannot be read: File name too long"),
        (b"photo.png", "image 0 is a bytes"),
        (None, "image 0 is a NoneType"),
        ({"a.png"}, "a set has no order"),
        ({"a": GREY}, "a dict has no order"),
        (iter(()), "no images were given"),
        ([[GREY]], "image 0 is a list"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no images were given"),
        (np.zeros((0, 8, 3), np.uint8), r"image 0 is a uint8 array of shape \[0, 8, 3\]"),
        (np.zeros((9, 8, 8), np.uint8), r"image 0 is a uint8 array of shape \[9, 8, 8\]"),
        (GREY.astype(np.uint16), r"image 0 is a uint16 array of shape \[8, 8\]"),
        (GREY.astype(bool), "image 0 is a bool array"),
        (Image.fromarray(GREY.astype(np.uint16)), "PIL image of mode I;16; give one of 8 bits"),
        (Image.fromarray(GREY.astype(np.int32)), "PIL image of mode I; give one of 8 bits"),
        ([GREY, Image.fromarray(GREY / 255).convert("F")], "image 1 is a PIL image of mode F; give one of 8 bits"),
    ],
)
def test_inputs_that_are_not_images_are_refused(images: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        listed(images, Store(default_root()))


def test_many_forms_of_images(tmp_path: Path) -> None:
    """One image, grey or with alpha; several as an array or a generator; and names that only look like files."""
    rgb = np.repeat(GREY[:, :, None], 3, axis=2)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    for images, n in (
        (GREY, 1),
        (rgb, 1),
        (np.dstack([rgb, GREY]), 1),
        (Image.fromarray(GREY), 1),
        (np.stack([rgb, rgb]), 2),
        ((image for image in (GREY, rgb)), 2),
        (np.array([str(tmp_path / "a.png")]), 1),
        (pd.Series([tmp_path / "a.png"]), 1),
    ):
        found = listed(images, Store(tmp_path / "store"))
        assert len(found) == n and np.asarray(found.read(0).convert("RGB")).tolist() == rgb.tolist()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is a FIFO"):
        listed([tmp_path / "pipe.png"], Store(tmp_path / "store"))
    cut = Image.open(io.BytesIO((tmp_path / "a.png").read_bytes()[:45]))
    with pytest.raises(UserError, match="image 0 cannot be read: OSError: image file is truncated"):
        listed(cut, Store(tmp_path / "store"))


@pytest.mark.parametrize(
    ("name", "values", "takes"),
    [
        ("method", ["", None, 3, ["mcm"]], "the name of a method"),
        ("classes", [5, set(NAMES), {"a": 1}, iter(NAMES)], "a list of names"),
        ("encoder", [None, 3], "text"),
        ("settings", ["temperature=2", [("temperature", 2)], {1: 2}], "a dictionary"),
        ("weights", [None, 3], "a path"),
        ("templates", [None, ["a {}"]], "text"),
        (
            "tpr",
            ["0.95", 0, -0.1, 1.01, 95, float("nan"), float("inf"), True, [0.95], 1j],
            "a fraction above 0 and up to 1",
        ),
        ("threshold", ["0", float("nan"), float("inf"), False, [0.0]], "a finite number"),
        ("device", [0, None], "text"),
        ("precision", [32, None], "text"),
        ("batch_size", [0, -1, 1.5, "8", True, None, float("nan")], "a whole number from 1 upwards"),
        ("workers", [-1, 1.5, "8", True, None], "a whole number from 0 upwards"),
        ("seed", [-1, 1.5, "8", True, None], "a whole number from 0 upwards"),
        ("resize", [3], "text"),
        ("on_error", [None, True], "text"),
        ("store", [3, ["x"]], "a path, or None"),
        ("shared", [None, 3], "a URL"),
        ("keep", [None, 1, "no"], "True or False"),
        ("plugins", [None, [3], 3], "paths of files"),
    ],
)
def test_a_parameter_of_a_wrong_type_or_range_is_named(name: str, values: list[Any], takes: str) -> None:
    """By fit(), as in scikit-learn: the constructor takes anything, so that clone() and set_params() work."""
    for value in values:
        one = Detector(**{"classes": NAMES, name: value})
        with pytest.raises(UserError, match=f"{name} takes {takes}") as found:
            one.fit()
        assert name == "classes" or isinstance(found.value, ValueError)
        assert not hasattr(one, "_engine")


@pytest.mark.slow
def test_parameters_are_checked_together_and_numpy_numbers_are_accepted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)tpr takes .* not '0.95'.*seed takes .* not -1"):
        Detector(classes=NAMES, tpr="0.95", seed=-1).fit()  # type: ignore[arg-type]
    given = {"tpr": np.float32(0.5), "seed": np.int64(1), "batch_size": np.int32(16), "keep": np.bool_(False)}
    one = Detector(classes=np.array(NAMES), store=tmp_path, **given)  # type: ignore[arg-type]
    one.fit(images_of("glyphs", 9))
    assert one.threshold_ is not None and set(one.classes_) == set(NAMES) and type(one.classes_[0]) is str
    clone(one)
    Detector.load(one.save(tmp_path / "saved"))
    with pytest.raises(ValueError, match="workers takes a whole number from 0 upwards, not -1"):
        Detector.load(tmp_path / "saved", workers=-1)


@pytest.mark.slow
def test_embeddings_of_files_are_stored_by_default(files: Path, tmp_path: Path) -> None:
    for keep, memory, n in ((False, False, 0), (True, True, 0), (True, False, 1)):
        store = tmp_path / f"{keep}{memory}"
        one = Detector(classes=NAMES, keep=keep, store=store).fit()
        one.score_samples(arrays(files) if memory else files)
        assert len([e for e in Store(store).entries() if e.kind == "embeddings"]) == n


def test_a_long_list_is_streamed_in_parts(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    """Only one part's embeddings are held at a time, and the parts' digits are those of the whole."""
    one = Detector(classes=NAMES, batch_size=16).fit()
    whole = one.score_samples(files)
    monkeypatch.setattr("oodbench.pipeline.extract.SHARD", 32)
    parts = list(one.stream(files))
    assert [len(part.names) for part in parts] == [32, 32, 32, 32, 22]
    assert (np.concatenate([part.scores for part in parts]) == whole).all()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return Detector("clipn", classes=NAMES).fit(images_of("glyphs", 20)).save(tmp_path / "saved")


def test_a_saved_detector_is_one_folder(saved: Path, tmp_path: Path) -> None:
    recipe = json.loads((saved / "detector.json").read_text())
    assert recipe["method"] == "clipn" and recipe["classes"] == NAMES
    assert recipe["weights"]["digest"] and recipe["encoder"]["weights"] and recipe["versions"]["torch"]
    assert not [path for path in saved.rglob("*") if path.suffix in (".pkl", ".pt", ".bin")]
    text = (saved / "detector.json").read_text()
    assert str(tmp_path) not in text and str(Path.home()) not in text
    one = Detector.load(saved)
    assert one.save(saved) == saved, "an older one is replaced"
    moved = shutil.copytree(saved, tmp_path / "elsewhere")
    assert Detector.load(moved).threshold_ == one.threshold_
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no detector; name another"):
        one.save(tmp_path / "full")
    assert (tmp_path / "full/notes.txt").is_file()
    with pytest.raises(UserError, match="'method' of a saved detector cannot be changed"):
        Detector.load(saved, method="mcm")


def test_a_loaded_detector_is_not_fitted_with_other_weights(saved: Path, tmp_path: Path) -> None:
    """The folder has the state, not the weights; those shipped for the encoder may be others."""
    one = Detector.load(saved)
    again = Detector.load(one.save(tmp_path / "again"))
    for unfit in (one, clone(one), again, clone(again)):
        with pytest.raises(UserError, match=r"set_params\(weights=FILE\)"):
            unfit.fit(images_of("glyphs", 3))
    images = images_of("glyphs", 5)
    assert again.score_samples(images).tolist() == one.score_samples(images).tolist()
    clone(one).set_params(weights="").fit(images)


@pytest.mark.parametrize("template", ["# {}", "  a {} ", "a\n{}"])
def test_a_template_is_saved_unchanged(template: str, tmp_path: Path) -> None:
    one = Detector("mcm", classes=NAMES, settings={"templates": template}).fit()
    two = Detector.load(one.save(tmp_path / "saved"))
    images = images_of("glyphs", 5)
    assert two.score_samples(images).tolist() == one.score_samples(images).tolist()


def test_a_changed_or_missing_file_is_named(saved: Path) -> None:
    for path in [path for path in saved.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(UserError, match=path.name):
            Detector.load(saved)
        path.unlink()
        with pytest.raises(UserError, match=path.name):
            Detector.load(saved)
        path.write_bytes(content)
    Detector.load(saved)


def signed(recipe: dict[str, Any]) -> str:
    return json.dumps({**recipe, "digest": digest(recipe)})


def test_an_invalid_recipe_is_an_error(saved: Path) -> None:
    path = saved / "detector.json"
    recipe = json.loads(path.read_text())
    del recipe["digest"]
    outside = {**recipe, "contents": {**recipe["contents"], "../x.txt": "0"}}
    later = {**recipe, "params": {**recipe["params"], "new": 1}}
    card = {**recipe, "encoder": {**recipe["encoder"], "new": 1}}
    other = {**recipe, "prompts": {"templates": "../x.txt"}}
    for text, said in (
        ("[" * 100_000, "cannot be read"),
        ("[1]", "cannot be read"),
        ('"x"', "cannot be read"),
        (signed(outside), r"outside of its folder: \.\./x\.txt"),
        (signed(later), "names parameters new that this oodbench"),
        (signed(card), "names an encoder that this oodbench"),
        (signed(other), "not part of the detector"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            Detector.load(saved)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        Detector.load(saved)


def test_unpackable_states_are_refused() -> None:
    import torch

    method = registry.load(registry.methods()["mcm"])
    masked = np.ma.array([1.0, 2.0], mask=[True, False])
    wrong: list[Any] = [np.array(["a"]), np.array([{}]), np.str_("a"), masked, torch.eye(2).to_sparse(), {1: 2}, {1, 2}]
    for value in wrong:
        with pytest.raises(Unpackable):
            pack(value, method)
    right: list[Any] = [np.array([True, False]), np.int16(3), np.arange(6)[::-2], float("inf"), 2**70]
    for value in right:
        packed = pack(value, method)
        again = unpack(dataclasses.replace(packed, tree=json.loads(json.dumps(packed.tree))), method, "cpu")
        assert type(again) is type(value) and np.all(again == value)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_nan_score_is_an_error(value: str, tmp_path: Path) -> None:
    """It gives neither a threshold nor a decision; other images can be scored afterwards."""
    (tmp_path / "odd.py").write_text(
        '"""Odd: a score of one (Doe et al., ICML 2020, arXiv:2001.00001)."""\n'
        "from dataclasses import dataclass\nimport torch\nfrom oodbench.method import Method, Needs\n\n"
        "@dataclass(frozen=True)\nclass Odd(Method):\n    '''Odd.'''\n\n"
        "    needs = Needs.PIXELS | Needs.FEATURES\n\n"
        "    def score(self, batch, task, state):\n        dark = batch.pixels.amax((1, 2, 3)) == 0\n"
        f"        return torch.where(dark, float('{value}'), batch.features[:, 0].double())\n"
    )
    one = Detector("odd", classes=NAMES, plugins=[tmp_path / "odd.py"], threshold=0.0).fit()
    bright = np.full((8, 8, 3), 255, np.uint8)
    with pytest.raises(UserError, match="1 of 2 scores on images are .*, that of 'image 1' first"):
        one.predict([bright, GREY])
    assert one.predict([bright]).shape == (1,)
    with pytest.raises(UserError, match="1 of 2 scores"):
        one.set_params(threshold=None).fit([bright, GREY])


def test_an_iterator_is_fitted_and_predicted() -> None:
    images = images_of("glyphs", 30)
    given = (images.read(i) for i in range(30))
    assert len(Detector(classes=NAMES).fit_predict(given)) == 30


@pytest.mark.slow
def test_another_process_scores_the_same(saved: Path, files: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom oodbench import Detector\nassert 'torch' not in sys.modules\n"
        f"print(Detector.load({str(saved)!r}).score_samples({str(files)!r}).tobytes().hex())"
    )
    env = {**os.environ, "OODBENCH_STORE": str(tmp_path / "fresh")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (np.frombuffer(bytes.fromhex(done.stdout)) == Detector.load(saved).score_samples(files)).all()


@pytest.mark.slow
def test_own_prompts_and_encoder_are_saved(tmp_path: Path, files: Path) -> None:
    """With the encoder's weights in the folder, nothing outside of it is needed."""
    import open_clip
    import torch

    from oodbench.data.glyphs import weights as embedded

    weights = tmp_path / "tiny.pt"
    (tmp_path / "tiny.json").write_text(json.dumps({"model_cfg": embedded.config()}))
    torch.manual_seed(0)
    torch.save(open_clip.CLIP(**embedded.config()).state_dict(), weights)
    (tmp_path / "mine.txt").write_text("a {} drawn\nthe {}\n")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    one = Detector(
        "mcm",
        classes=str(tmp_path / "names.txt"),
        encoder=f"{tmp_path}/tiny.json@{weights}",
        templates=str(tmp_path / "mine.txt"),
    ).fit(files)
    scores = one.score_samples(files)
    lean, whole = one.save(tmp_path / "lean"), one.save(tmp_path / "whole", with_encoder=True)
    assert (Detector.load(lean).score_samples(files) == scores).all()
    for name in ("mine.txt", "names.txt", "tiny.json", "tiny.pt"):
        (tmp_path / name).unlink()
    assert (Detector.load(whole, keep=False).score_samples(files) == scores).all()
    with pytest.raises(UserError, match=r"tiny\.(json|pt) does not exist"):
        Detector.load(lean)
    with pytest.raises(UserError, match="was saved for tiny.json"):
        Detector.load(lean, encoder="glyphs")


@pytest.mark.slow
def test_a_tokenizer_in_a_folder_is_saved_with_the_encoder(tmp_path: Path, files: Path) -> None:
    import open_clip
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    from oodbench.data.glyphs import weights as embedded

    place = tmp_path / "mine"
    place.mkdir()
    config = embedded.config()
    config["text_cfg"] = {**config["text_cfg"], "hf_tokenizer_name": "owner/words"}
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**embedded.config()).state_dict(), place / "open_clip_model.safetensors")
    words = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz", "photo", "of"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(place / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (place / "tokenizer_config.json").write_text(json.dumps(about))
    one = Detector("mcm", classes=["a", "b", "c"], encoder=f"local-dir:{place}", templates="photo of {}").fit(files)
    scores = one.score_samples(files)
    saved = one.save(tmp_path / "whole", with_encoder=True)
    assert {path.name for path in (saved / "encoder/tokenizer").iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    shutil.rmtree(place)
    shutil.rmtree(saved / "store")  # so that the prompts are encoded again
    recipe = json.loads((saved / "detector.json").read_text())
    recipe["contents"] = {name: one for name, one in recipe["contents"].items() if not name.startswith("store/")}
    recipe.pop("digest")
    (saved / "detector.json").write_text(json.dumps({**recipe, "digest": digest(recipe)}))
    assert (Detector.load(saved, keep=False).score_samples(files) == scores).all()


def test_states_are_packed_and_unpacked() -> None:
    import torch

    method = registry.load(registry.methods()["neglabel"])
    kind = vars(sys.modules[method.__module__])["Negatives"]
    value = {"a": [1, (0.1, None)], "b": kind(torch.ones(2, 3), ("x", "y"), torch.zeros(2)), "c": np.float64(0.3)}
    packed = pack(value, method)
    again = unpack(packed, method, "cpu")
    assert json.loads(json.dumps(packed.tree)) == packed.tree
    assert again["a"] == [1, (0.1, None)] and again["c"] == 0.3 and again["b"].words == ("x", "y")
    assert torch.equal(again["b"].vectors, torch.ones(2, 3))
    with pytest.raises(Unpackable):
        pack(torch.nn.Linear(1, 1), method)
