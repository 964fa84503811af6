"""CoOp, LoCoOp, SCT and GalLoP: loss and gradient of a step, and scores, against their papers' formulas in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from oodbench.data.glyphs import render, world
from oodbench.encoder.card import parse_encoder
from oodbench.encoder.openclip import OpenClip
from oodbench.encoder.resolve import resolve
from oodbench.errors import UserError
from oodbench.method import Batch, FewShotMethod, MethodResources, Pairs, Sources, Task, Weights, registry
from oodbench.storage.store import Store
from oodbench.training.batches import LABELLED_CROPS, random_crop
from tests.encoder.test_encoder_families import FAMILIES
from tests.encoder.test_patches import encoder
from tests.encoder.test_text_tower import reference_text

INFO = registry.methods()
CLASSES = ("cat", "dog", "two large trees", "fox", "red car", "hen", "owl")
IMAGES, PATCHES, WIDTH, BEFORE = 9, 6, 24, 32  # width in the joint space, and before the last linear map
SETTINGS: dict[str, dict[str, Any]] = {
    "coop": {"context": 3},
    "locoop": {"context": 3, "lam": 0.7},
    "sct": {"context": 3, "lam": 0.7},
    "gallop": {"top": 2, "local_prompts": 3},
}
Module = Any


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> OpenClip:
    return encoder(FAMILIES["vit"], tmp_path_factory.mktemp("clip"))[0]


def make(name: str, **parameters: Any) -> FewShotMethod[Any]:
    method = registry.make(INFO[name], SETTINGS[name] | parameters)
    assert isinstance(method, FewShotMethod)
    return method


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def pairs(positions: range = range(IMAGES), dtype: torch.dtype = torch.float64) -> Pairs:
    """Labelled images at some positions of a batch, each patch near to the image or to another class's text."""
    random = torch.Generator().manual_seed(3)
    images = torch.randn(IMAGES, WIDTH, generator=random, dtype=dtype)
    patches = unit(torch.randn(IMAGES, PATCHES, WIDTH, generator=random, dtype=dtype))
    before = torch.randn(IMAGES, PATCHES, BEFORE, generator=random, dtype=dtype)
    rows = torch.tensor(positions)
    labels = torch.arange(IMAGES) % len(CLASSES)
    parts = {"_labels": labels[rows], "_patches": patches[rows], "_patch_activations": before[rows]}
    return Pairs(images[rows], (), rows, 5, 11, IMAGES, **parts)


def module_of(method: FewShotMethod[Any], clip: OpenClip) -> Module:
    """The method's module in float64, with prompts that have moved."""
    torch.manual_seed(1)
    module: Module = method.module(clip, CLASSES).double()
    module.names.tower.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def class_vectors(module: Module, context: Tensor, clip: OpenClip, ending: str) -> Tensor:
    """The class vectors of one prompt, with "x" in place of the context, tokenized as in the released code."""
    vectors = context.shape[-2]
    tokens = clip.tokenize([" ".join(["x"] * vectors + [name + ending]) for name in CLASSES])
    return unit(reference_text(dict(module.names.tower.state_dict()), tokens, context))


def log_softmax(x: Tensor) -> Tensor:
    return x - (x - x.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True).log() - x.amax(-1, keepdim=True)


def terms(
    name: str, module: Module, clip: OpenClip, given: Pairs, eps: float = 1e-5, rank: int = 2
) -> dict[str, Tensor]:
    """The terms of a method's loss, image by image and patch by patch."""
    if name == "gallop":
        return gallop_terms(module, clip, given)
    t, scale = class_vectors(module, module.ctx, clip, "."), clip.scale
    ce, ood = [], []
    for v, patches, y in zip(unit(given.embeddings), given.patches, given.labels.tolist(), strict=True):
        log_p = log_softmax(scale * t @ v)[y]
        ce.append(-log_p * (1 - log_p.exp() if name == "sct" else 1))
        for patch in patches:
            p = log_softmax(scale * t @ patch).exp()
            if y not in p.argsort(descending=True)[:rank].tolist():
                h = -sum((each * (each + eps).log() for each in p), start=torch.zeros(()))
                ood.append(-h * (log_p.exp() if name == "sct" else 1))
    assert 0 < len(ood) < IMAGES * PATCHES
    mean = torch.stack(ce).mean()
    return {"ce": mean} if name == "coop" else {"ce": mean, "ood": 0.7 * torch.stack(ood).mean()}


def gallop_terms(module: Module, clip: OpenClip, given: Pairs) -> dict[str, Tensor]:
    """One of four global prompts for each image, and the mean of the 2, 4 and 6 nearest patches of three local ones."""
    whole = [class_vectors(module, context, clip, "") for context in module.global_prompt]
    local = [class_vectors(module, context, clip, "") for context in module.local_prompts]
    drawn = np.random.default_rng((11, 5, 0)).integers(4, size=IMAGES)
    first, second = [], []
    images = zip(unit(given.embeddings), reference_patches(module, clip, given), given.labels.tolist(), strict=True)
    for i, (v, mapped, y) in enumerate(images):
        first.append(-log_softmax(clip.scale * whole[drawn[i]] @ v)[y])
        for j, u in enumerate(local):
            nearest = (mapped @ u.T).sort(0, descending=True).values[: 2 * (j + 1)]
            second.append(-log_softmax(clip.scale * nearest.mean(0))[y])
    return {"global": torch.stack(first).mean(), "local": torch.stack(second).mean()}


def reference_patches(module: Module, clip: OpenClip, given: Pairs) -> Tensor:
    """The patches by W and then by the matrix `proj` of the encoder's file."""
    proj = load_file(clip.card.name.partition("@")[2])["visual.proj"].double()
    assert proj.shape == (BEFORE, WIDTH)
    return unit(given.patch_activations.double() @ module.local_proj["linear"].weight.T @ proj)


def inputs_of(method: FewShotMethod[Any], clip: OpenClip, positions: range = range(IMAGES)) -> dict[str, Tensor]:
    found = method.inputs(pairs(positions), clip)
    return {key: value.double() if value.is_floating_point() else value for key, value in found.items()}


def numbers(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in terms.items()}


def gradients(terms: dict[str, Tensor], module: Module) -> list[Tensor]:
    return list(torch.autograd.grad(torch.stack(list(terms.values())).sum(), list(module.parameters())))


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradient_of_a_step(name: str, clip: OpenClip) -> None:
    method = make(name)
    module = module_of(method, clip)
    expected = terms(name, module, clip, pairs())
    found = method.loss(method.embed(module, inputs_of(method, clip)))
    assert numbers(found) == pytest.approx(numbers(expected), rel=1e-6)
    for one, other in zip(gradients(found, module), gradients(expected, module), strict=True):
        assert float(other.abs().max()) > 0
        assert float((one - other).abs().max()) < 1e-6 * float(other.abs().max())

    with torch.no_grad():  # chunks, as in a training with little memory
        chunks = [method.embed(module, inputs_of(method, clip, part)) for part in (range(4), range(4, IMAGES))]
        joined = method.loss({key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]})
    assert numbers(joined) == pytest.approx(numbers(expected), rel=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_only_trained_tensors_are_saved(name: str, clip: OpenClip) -> None:
    torch.manual_seed(0)
    module = make(name).module(clip, CLASSES)
    learnt = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    if name == "gallop":
        words = (4, 16)  # tokens of "A photo of a", width of the text tower
        expected = {"global_prompt": (4, *words), "local_prompts": (3, *words), "local_proj.linear.weight": (32, 32)}
        assert torch.equal(module.get_parameter("local_proj.linear.weight"), torch.eye(32))
        assert torch.equal(module.get_parameter("global_prompt")[2], embeddings_of(clip, "a photo of a"))
    else:
        expected = {"ctx": (3, 16)}
    assert learnt == expected
    settings = make(name).optimisation()
    recipe = (settings.kind, settings.lr, settings.momentum, settings.weight_decay, settings.batch, settings.epochs)
    schedule = (settings.cosine, settings.per_epoch, settings.warmup, settings.warmup_epochs, settings.warmup_lr)
    assert settings.no_decay == ()
    dassl = (True, True, 0, 1, 1e-5)  # one epoch at 1e-5, then a cosine that falls once an epoch
    assert (recipe, schedule) == {
        "coop": (("sgd", 2e-3, 0.9, 5e-4, 32, 200), dassl),
        "locoop": (("sgd", 2e-3, 0.9, 5e-4, 32, 50), dassl),
        "sct": (("sgd", 2e-3, 0.9, 5e-4, 32, 25), dassl),
        "gallop": (("sgd", 2e-3, 0.9, 1e-2, 128, 50), (True, True, 0, 0, None)),
    }[name]


def test_hyper_parameters_are_the_released_ones() -> None:
    """They are those of the papers' ImageNet runs; other tests set other values."""
    one = {"context": 16, "context_init": "", "class_specific": False, "temperature": 1.0}
    regularised = {**one, "lam": 0.25, "rank": None, "eps": 1e-5, "rule": "gl-mcm"}
    several = {"context_init": "A photo of a", "global_prompts": 4, "local_prompts": 4, "dropout": 0.75, "top": 5}
    expected = {"coop": one, "locoop": regularised, "sct": regularised}
    expected["gallop"] = {**several, "joint": False, "temperature": 1.0, "rule": "gl-mcm"}
    assert {name: vars(registry.make(INFO[name], {})) for name in SETTINGS} == expected


def embeddings_of(clip: OpenClip, words: str) -> Tensor:
    tokens = clip.tokenize([words])[0]
    return clip.text_tower().get_parameter("token_embedding.weight")[tokens[1 : 1 + len(words.split())]]


def test_the_context_starts_at_random_or_at_words(clip: OpenClip) -> None:
    torch.manual_seed(0)
    drawn = make("coop", context=7, class_specific=True).module(clip, CLASSES).get_parameter("ctx").detach()
    assert drawn.shape == (len(CLASSES), 7, 16)
    assert float(drawn.mean()) == pytest.approx(0, abs=4 * 0.02 / drawn.numel() ** 0.5)
    assert float(drawn.std()) == pytest.approx(0.02, rel=0.15)
    words = make("locoop", context_init="a photo of a").module(clip, CLASSES)
    assert torch.equal(words.get_parameter("ctx"), embeddings_of(clip, "a photo of a"))
    with torch.no_grad():  # it then is the hand-written prompt
        gap = words() - torch.nn.functional.normalize(clip.text([f"a photo of a {name}." for name in CLASSES]), dim=-1)
        assert float(gap.abs().max()) < 1e-6


def reference_scores(v: Tensor, patches: Tensor, whole: Tensor, local: Tensor, temperature: float) -> dict[str, Tensor]:
    mcm = log_softmax(v @ whole.T / temperature).amax(-1)
    parts = log_softmax(patches @ local.T / temperature).exp().amax((1, 2))
    return {"mcm": mcm, "gl-mcm": mcm.exp() + parts, "l-mcm": parts}


@pytest.mark.parametrize(
    ("name", "rule", "temperature"),
    [("coop", "mcm", 1.0), ("locoop", "gl-mcm", 1.0), ("locoop", "mcm", 0.5), ("sct", "gl-mcm", 0.01)]
    + [("gallop", rule, 0.1) for rule in ("gl-mcm", "mcm", "l-mcm")],
)
def test_the_score_is_the_paper_s_with_the_prompt(name: str, rule: str, temperature: float, clip: OpenClip) -> None:
    method = make(name, temperature=temperature, **({} if name == "coop" else {"rule": rule}))
    module = module_of(method, clip)
    weights = {key: value.detach().float() for key, value in module.state_dict().items()}
    given = pairs(dtype=torch.float32)
    task = Task(CLASSES, clip.scale, Sources(_nothing, _nothing, lambda: clip, _nothing))
    task = task.for_method(method.needs, MethodResources(lambda: Weights(weights, {}), lambda depends, make: make()))
    parts: dict[str, Any] = {"_patches": given.patches, "_patch_activations": given.patch_activations}
    batch = Batch(method.needs, IMAGES, given.features, given.embeddings, **parts)
    with torch.no_grad():
        state = method.fit(task)
        found, predicted = method.score(batch, task, state), method.predict(batch, task, state)
        v, patches = unit(given.embeddings.double()), given.patches.double()
        if name == "gallop":
            whole, local = (
                torch.stack([class_vectors(module, context, clip, "") for context in contexts])
                for contexts in (module.global_prompt, module.local_prompts)
            )
            patches = reference_patches(module, clip, given)
            tops = [(patches @ u.T).sort(1, descending=True).values[:, : 2 * (j + 1)] for j, u in enumerate(local)]
            logits = v @ whole.mean(0).T + torch.stack([top.mean(1) for top in tops]).mean(0)
            expected = reference_scores(v, patches, whole.mean(0), local.mean(0), temperature)
        else:
            whole = class_vectors(module, module.ctx, clip, ".")
            logits, expected = v @ whole.T, reference_scores(v, patches, whole, whole, temperature)
    assert found.numpy() == pytest.approx(expected[rule].numpy(), rel=1e-4)
    assert predicted is not None
    assert predicted.tolist() == logits.argmax(-1).tolist()
    assert len(set(predicted.tolist())) > 2


def _nothing(*_: object) -> Any:
    raise AssertionError("not asked for")


def test_the_map_of_patches_is_float32_in_mixed_precision(clip: OpenClip) -> None:
    with torch.no_grad():
        learnt = make("gallop").module(clip, CLASSES)()
        activations = pairs(dtype=torch.float32).patch_activations
        with torch.autocast("cpu", torch.bfloat16):
            found = learnt.patches(activations)
        expected = unit(activations.double() @ learnt.projection.double() + learnt.bias.double())
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) < 1e-6


def test_rank_and_entropy(clip: OpenClip) -> None:
    """K of LoCoOp is a fifth of the classes rounded up, 200 of ImageNet; without patches the term is 0."""
    method: Any = make("locoop")
    assert [method.top(k) for k in (2, 5, 6, 100, 1000)] == [1, 1, 2, 20, 200]
    given, module = pairs(), module_of(method, clip)
    for rank, eps in ((4, 1e-5), (6, 0.0)):
        changed = make("locoop", rank=rank, eps=eps)
        found = changed.loss(changed.embed(module, inputs_of(changed, clip)))
        expected = terms("locoop", module, clip, given, max(eps, 1e-300), rank)
        assert numbers(found) == pytest.approx(numbers(expected), rel=1e-9)
    inputs = inputs_of(method, clip)
    inputs["patches"].zero_()  # all classes tie: none is before the label
    assert numbers(method.loss(method.embed(module, inputs)))["ood"] == 0


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("coop", {"context": 0}, "context=0 must be at least 1"),
        (
            "coop",
            {"context": 12},
            "'two large trees' leaves room for 10 context vectors, not 12; --set coop.context=10",
        ),
        (
            "sct",
            {"context_init": "x " * 12},
            "room for 10 context vectors, not 12; sct.context_init may have 10 tokens",
        ),
        ("locoop", {"rank": 7}, "rank=7 selects no patch with 7 classes"),
        ("locoop", {"rank": 0}, "rank=0 must be at least 1"),
        ("sct", {"lam": -1.0}, "lam=-1.0 and eps=1e-05 must be at least 0"),
        ("locoop", {"temperature": 0.0}, "temperature must be above 0"),
        ("gallop", {"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ("gallop", {"local_prompts": 0}, "local_prompts=0 must be at least 1"),
        ("gallop", {"context_init": " "}, "gallop.context_init is empty"),
    ],
)
def test_misfits_are_reported(name: str, parameters: dict[str, Any], said: str, clip: OpenClip) -> None:
    with pytest.raises((UserError, ValueError)) as error:
        make(name, **parameters).module(clip, CLASSES)
    assert said in str(error.value)


def test_many_classes_in_parts_have_the_gradient_of_all_at_once(
    clip: OpenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("coop", class_specific=True)
    module = module_of(method, clip)

    def step() -> tuple[Tensor, Tensor]:
        vectors = module()
        return vectors, torch.autograd.grad((vectors * torch.arange(24.0)).square().sum(), module.ctx)[0]

    whole = step()
    monkeypatch.setitem(type(module.names).__call__.__globals__, "CLASSES", 3)
    for one, other in zip(step(), whole, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=0)


def test_released_checkpoints(clip: OpenClip, tmp_path: Path) -> None:
    frozen = {"positional_embedding": torch.zeros(16, 16)}
    context = torch.randn(3, 16).half()
    kept = make("locoop").translate({"ctx": context, "token_prefix": torch.zeros(1)}, frozen)
    assert {key: value.dtype for key, value in kept.items()} == {"ctx": torch.float32}
    assert torch.equal(kept["ctx"], context.float())
    with pytest.raises(ValueError, match="no tensor `ctx`"):
        make("coop").translate({"global_prompt": context}, frozen)
    with pytest.raises(ValueError, match="width 16, the encoder's text tower 512"):
        make("sct").translate({"ctx": context}, {"positional_embedding": torch.zeros(77, 512)})
    with pytest.raises(ValueError, match="no tensor global_prompt"):
        make("gallop").translate({"ctx": context}, frozen)
    learnt = {name: value.half() for name, value in make("gallop").module(clip, CLASSES).state_dict().items()}
    vit = {"visual.proj": torch.zeros(BEFORE, WIDTH)}
    resnet = {"visual.attnpool.c_proj.weight": torch.zeros(BEFORE, 64)}
    kept = make("gallop").translate(learnt | {"visual.proj": context}, vit)
    assert {key: value.dtype for key, value in kept.items()} == dict.fromkeys(learnt, torch.float32)
    assert make("gallop", joint=True).translate(learnt, resnet).keys() == kept.keys()
    for joint, frozen, said in (
        (True, vit, r"of 32 numbers, not of 24: write gallop\[joint=false\]"),
        (False, resnet, r"of 32 numbers, not of 64: write gallop\[joint=true\]"),
        (False, {"visual.proj": torch.zeros(20, 16)}, "of 32 numbers, not of 20, of another encoder"),
    ):
        with pytest.raises(ValueError, match=said):
            make("gallop", joint=joint).translate(learnt, frozen)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_the_map_of_patches_comes_before_or_after_the_last_one(family: str, joint: bool, tmp_path: Path) -> None:
    """At the identity it changes nothing; else it is W and then CLIP's map, or with `joint` the other way round."""
    ours, _ = encoder(FAMILIES[family], tmp_path)
    state = {name: value.double() for name, value in load_file(tmp_path / "weights.safetensors").items()}
    images = torch.rand(2, 3, *ours.size)
    module: Module = make("gallop", joint=joint).module(ours, CLASSES)
    with torch.no_grad():
        seen = ours.patch_activations(images)
        assert float((module().patches(seen) - unit(ours.patches(images))).abs().max()) < 1e-6
        w = module.local_proj["linear"].weight
        w.add_(0.3 * torch.randn_like(w))
        found, x, w = module().patches(seen), seen.double(), w.double()
        if family == "vit":
            expected = x @ state["visual.proj"] @ w.T if joint else x @ w.T @ state["visual.proj"]
        else:
            c, bias = state["visual.attnpool.c_proj.weight"], state["visual.attnpool.c_proj.bias"]
            expected = (x @ c.T + bias) @ w.T if joint else x @ w.T @ c.T + bias
    assert float((found - unit(expected)).abs().max()) < 1e-5


@pytest.mark.slow
def test_patches_of_glyphs_are_selected(tmp_path: Path) -> None:
    """LoCoOp's term is there for the embedded encoder, with random crops of glyphs, as --crops and --augment make them.

    The encoder has one patch an image, the whole of it, which is among the ten nearest classes of an image in full.
    """
    ours = OpenClip(resolve(parse_encoder("glyphs"), None, Store(tmp_path)), "cpu", "fp32")
    rng = np.random.default_rng(0)
    crops = [
        random_crop(Image.fromarray(render.image("id-train", i)), ours.size, rng, LABELLED_CROPS) for i in range(48)
    ]
    images = torch.stack(crops) / 255
    labels = torch.tensor([world.label("id-train", i) for i in range(48)])
    with torch.no_grad():
        patches = torch.nn.functional.normalize(ours.patches(images), dim=-1)
        shown = Pairs(ours.pixels(images), (), torch.arange(48), 0, 0, 48, _labels=labels, _patches=patches)
        method = make("locoop", context=4)
        embedded = method.embed(method.module(ours, world.CLASSES), method.inputs(shown, ours))
    assert 0 < int(embedded["outside"].sum()) < 48 * patches.shape[1]
    assert numbers(method.loss(embedded))["ood"] < 0
