"""CLIPN: losses and scores at golden values, prompts by rule, released checkpoints, weights in the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from oodbench import Detector
from oodbench.cli import main
from oodbench.data import prompts
from oodbench.method import Batch, MethodResources, Needs, Sources, Task, TrainedMethod, Weights, registry
from oodbench.method.toy import ToyWorld
from oodbench.pipeline import weights

Array = npt.NDArray[np.float64]
INFO = registry.methods()["clipn"]


def clipn(**parameters: Any) -> TrainedMethod[Any]:
    made = registry.make(INFO, registry.parameters(INFO, parameters))
    assert isinstance(made, TrainedMethod)
    return made


def golden() -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows f, g, h [4 6], by formula."""
    i, k = np.meshgrid(np.arange(4), np.arange(6), indexing="ij")

    def unit(x: Array) -> Array:
        rows: Array = x / np.linalg.norm(x, axis=1, keepdims=True)
        return rows

    f = unit(np.sin(0.2 + 0.7 * i + 1.3 * k * (1 + 0.1 * i)))
    g = unit(f + 0.8 * np.cos(0.9 * i * k + 0.4))
    h = unit(f + 0.9 * np.cos(1.1 * i * k + 1.9 + 0.3 * i))
    return torch.from_numpy(f), torch.from_numpy(g), torch.from_numpy(h)


@pytest.mark.parametrize(
    ("s", "yes", "no", "tso", "total"),
    [
        (1, 0.551972, 0.811309, 0.449168, 0.906225),
        (10, 0.662433, 3.280024, 0.449168, 2.195812),
        (100, 6.390233, 31.863244, 0.449168, 19.351323),
    ],
)
def test_losses_at_golden_values(s: float, yes: float, no: float, tso: float, total: float) -> None:
    f, g, h = golden()
    terms = clipn().loss({"image": f, "yes": g, "no": h, "scale": torch.full((4,), float(s), dtype=torch.float64)})
    found = {name: 2 * value.item() for name, value in terms.items()}  # each stands with weight 0.5
    assert found == pytest.approx({"yes": yes, "no": no, "tso": tso}, abs=1e-6)
    assert sum(value.item() for value in terms.values()) == pytest.approx(total, abs=1e-6)


def test_loss_weights_are_hyper_parameters() -> None:
    f, g, h = golden()
    embedded = {"image": f, "yes": g, "no": h, "scale": torch.ones(4, dtype=torch.float64)}
    base, other = clipn().loss(embedded), clipn(yes=0.0, no=1.0, tso=2.0).loss(embedded)
    assert [other[k].item() for k in other] == pytest.approx([0, 2 * base["no"].item(), 4 * base["tso"].item()])


def small(yes: Tensor, scale: float = 100.0) -> Task:
    """A task whose class vectors are given."""

    def nothing(*_: Any) -> Any:
        raise AssertionError("not asked for")

    return Task([f"c{i}" for i in range(len(yes))], scale, Sources(lambda templates: yes, nothing, nothing, nothing))


def scored(method: Any, images: Tensor, yes: Tensor, no: Tensor) -> Array:
    batch = Batch(Needs.FEATURES, len(images), images)
    found: Array = method.score(batch, small(yes), no).double().numpy()
    return found


CTW = {1: [0.769964, 0.647388, 0.642763, 0.799757], 10: [0.999994, 0.997707, 0.997196, 0.999999]}
ATD = {1: [0.553715, 0.554071, 0.578975, 0.653412], 10: [0.730572, 0.995908, 0.980752, 0.999239]}
MSP = [0.391887, 0.407226, 0.362537, 0.429325]
MAXLOGIT = [0.630970, 0.897923, 0.829953, 0.904643]
ENERGY = [1.567752, 1.796309, 1.844582, 1.750183]


@pytest.mark.parametrize("s", [1, 10])
@pytest.mark.parametrize(("rule", "expected"), [("ctw", CTW), ("atd", ATD)])
def test_the_score_is_the_paper_s_at_golden_values(s: int, rule: str, expected: dict[int, list[float]]) -> None:
    f, g, h = (x.float() for x in golden())
    odds = scored(clipn(rule=rule, scale=float(s)), f, g, h)
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), expected[s], atol=2e-6)
    probability = scored(clipn(rule=rule, scale=float(s), form="probability"), f, g, h)
    np.testing.assert_allclose(probability, expected[s], atol=2e-6)


def test_neighbours_at_golden_values() -> None:
    f, g, _ = (x.float() for x in golden())
    batch = Batch(Needs.FEATURES, len(f), f)
    for name, expected in (("msp", np.log(MSP)), ("maxlogit", np.array(MAXLOGIT)), ("energy", np.array(ENERGY))):
        method = registry.make(registry.methods()[name], {})
        np.testing.assert_allclose(method.score(batch, small(g, scale=1.0), None).double().numpy(), expected, atol=2e-6)


def test_log_odds_do_not_tie_where_float32_probabilities_do() -> None:
    """At scale 100 confident images all have probability 1 in the released float32 form; log-odds order them."""
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=shape) for shape in ((200, 16), (5, 16), (5, 16))]
    f, g, h = (torch.nn.functional.normalize(torch.from_numpy(x), dim=-1) for x in vectors)
    a, b = 100 * (f @ g.T).numpy(), 100 * (f @ h.T).numpy()
    p = np.exp(a - a.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    unsure = (p / (1 + np.exp(a - b))).sum(1)  # p_(C+1), exact even if it is tiny
    sure = (p / (1 + np.exp(b - a))).sum(1)
    odds = scored(clipn(), f, g, h)
    np.testing.assert_allclose(odds, np.log(sure) - np.log(unsure), rtol=1e-6, atol=1e-6)
    tied = scored(clipn(form="probability"), f.float(), g.float(), h.float())
    assert len(np.unique(tied)) < 150 < len(np.unique(scored(clipn(), f.float(), g.float(), h.float())))


@pytest.mark.parametrize("decision", ["raw", "shrunk"])
def test_decisions_are_the_paper_s_rules(decision: str) -> None:
    rng = np.random.default_rng(1)
    f, g, h = (
        torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=s)), dim=-1) for s in ((300, 8), (6, 8), (6, 8))
    )
    a, b = 3 * (f @ g.T).numpy(), 3 * (f @ h.T).numpy()
    p = np.exp(a) / np.exp(a).sum(1, keepdims=True)
    yes = 1 / (1 + np.exp(b - a))
    batch = Batch(Needs.FEATURES, len(f), f)
    ctw = clipn(rule="ctw", scale=3.0).decide(batch, small(g), h)
    assert ctw is not None
    np.testing.assert_array_equal(ctw.numpy(), yes[np.arange(300), a.argmax(1)] > 0.5)
    atd = clipn(scale=3.0, decision=decision).decide(batch, small(g), h)
    assert atd is not None
    unknown = (p * (1 - yes)).sum(1)
    known = p if decision == "raw" else p * yes
    np.testing.assert_array_equal(atd.numpy(), unknown <= known.max(1))
    assert 0 < atd.sum() < 300 and 0 < ctw.sum() < 300


def start(**parameters: Any) -> tuple[TrainedMethod[Any], ToyWorld, torch.nn.Module]:
    world = ToyWorld()
    method = clipn(**parameters)
    return method, world, method.module(world.encoder)


@pytest.mark.parametrize("prompt", ["learnable", "handcrafted"])
def test_before_training_everything_is_undecided(prompt: str) -> None:
    """With the same captions for both towers: ln 2, ln 2, 1.99 and one half everywhere."""
    same = {"templates": "a {}", "no_templates": "a {}"}
    method, world, module = start(prompt=prompt, **same)
    with torch.no_grad():
        terms = method.loss(method.embed(module, method.inputs(world.pairs(0), world.encoder)))
    found = {name: 2 * value.item() for name, value in terms.items()}
    assert found == pytest.approx({"yes": math.log(2), "no": math.log(2), "tso": 1.99}, abs=1e-5)
    assert sum(value.item() for value in terms.values()) == pytest.approx(1.688147, abs=1e-5)
    task = world.task().for_method(
        method.needs, MethodResources(lambda: Weights(module.state_dict(), {}), lambda depends, make: make())
    )
    for rule in ("ctw", "atd"):
        one = clipn(rule=rule, prompt=prompt, **same)
        odds = one.score(world.batch(world.id, one.needs), task, one.fit(task))
        np.testing.assert_allclose(odds, 0, atol=1e-4)


def test_exactly_the_no_parameters_are_trained() -> None:
    method, world, module = start()
    before = world.encoder.text(["a bell", "a drum"])
    pairs = world.pairs(0)
    with torch.no_grad():
        inputs = method.inputs(pairs, world.encoder)
    loss = torch.stack(list(method.loss(method.embed(module, inputs)).values())).sum()
    torch.autograd.backward(loss)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), name
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    assert torch.equal(world.encoder.text(["a bell", "a drum"]), before)


def test_offsets_are_drawn_per_pair_and_the_mean_among_them() -> None:
    _, world, _ = start()
    pairs = world.pairs(0)
    drawn = torch.cat([replace(pairs, step=step).draw(17) for step in range(40)])
    assert torch.bincount(drawn, minlength=17).min() > 200  # of 5,120 draws
    few = {int(i) for i in clipn(offsets=2, mean_draw=False).inputs(pairs, world.encoder)["offset"]}
    more = {int(i) for i in clipn(offsets=2).inputs(pairs, world.encoder)["offset"]}
    assert few == {0, 1} and more == {0, 1, 2}
    half = replace(
        pairs, embeddings=pairs.embeddings[64:], captions=pairs.captions[64:], positions=pairs.positions[64:]
    )
    assert torch.equal(half.draw(17), pairs.draw(17)[64:])  # whatever the chunk


def test_mean_offset_and_mean_feature_differ() -> None:
    _, world, module = start()
    with torch.no_grad():
        module.prompt_no.normal_()  # type: ignore[operator]
    tokens = world.encoder.tokenize(["a bell"])
    tower: Callable[..., Tensor] = module.tower  # type: ignore[assignment]
    offsets: Tensor = module.prompt_no  # type: ignore[assignment]
    one_by_one = torch.stack([tower(tokens, o) for o in offsets]).mean(0)
    evaluate: Callable[..., Tensor] = module.evaluate  # type: ignore[assignment]
    assert torch.allclose(evaluate(tokens, "mean_feature"), one_by_one)
    assert torch.allclose(evaluate(tokens, "mean_offset"), tower(tokens, offsets.mean(0)))


def test_the_128_prompts_follow_from_the_80() -> None:
    gone = ("embroidered", "plastic", "origami", "toy", "cartoon", "plushie", "hard to see", "art of the", "itap of my")
    first = [t for t in prompts.templates("openai80").lines if not any(word in t for word in gone)]
    assert len(first) == 64
    second = [
        t.replace("in a video", "appearing in a video") if "video" in t else t.replace("of", "with", 1) for t in first
    ]
    never = []
    for t in first:
        if "video" in t:
            never.append("no a {} in a video game." if t.startswith("a ") else "the {} not in a video game.")
        elif "of many" in t:
            never.append(t.replace("of many", "of no many"))
        else:
            word = next(w for w in ("of a ", "of the ", "of my ", "of one ") if w in t)
            never.append(t.replace(word, "of no "))
    without = [
        t.replace("appearing", "not appearing") if "video" in t else t.replace("with", "without", 1) for t in second
    ]
    positive, negative = [*first, *second], [*never, *without]
    assert prompts.templates("clipn-128-clean").lines == tuple(positive)
    assert prompts.templates("clipn-128-no-clean").lines == tuple(negative)
    assert len(set(never)) == 33 and len(set(negative)) == 97
    for name, lines in (("clipn-128", positive), ("clipn-128-no", negative)):
        quoted = [f"'{t}'" + ("," if i in (34, 98) else "") for i, t in enumerate(lines)]
        assert prompts.templates(name).lines == tuple(quoted)


def test_quotes_reach_the_tokenizer() -> None:
    from open_clip import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    quoted = [tokenizer.decode([t]).strip() for t in tokenizer.encode("'the plain bell.'")]
    assert quoted[0] == "'t" and quoted[-1] == ".'"


# --- weights: files, releases, the command line


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as `oodbench train` writes it, for the embedded encoder, with a "no" tower moved at random."""
    return written(tmp_path_factory.mktemp("weights") / "clipn.safetensors", {})


def written(path: Path, parameters: dict[str, Any], seed: int = 0) -> Path:
    encoder = embedded()
    method = clipn(**parameters)
    module = method.module(encoder)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    recipe = {
        "method": "clipn",
        "parameters": registry.parameters(INFO, parameters),
        "encoder": json.loads(json.dumps(encoder.card.row())),
    }
    weights.write(path, module.state_dict(), recipe)
    return path


def embedded() -> Any:
    from oodbench.encoder.card import parse_encoder
    from oodbench.encoder.openclip import OpenClip
    from oodbench.encoder.resolve import resolve
    from oodbench.storage.store import Store, default_root

    return OpenClip(resolve(parse_encoder("glyphs"), None, Store(default_root())), "cpu", "fp32")


def run(folder: Path, *arguments: str) -> Result:
    small = ["--id", "glyphs", "--ood", "glyphs-letters", "--limit", "20", "--tracking-uri", "none"]
    return CliRunner().invoke(main, ["run", *small, "--results", str(folder), *arguments])


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in (folder / "runs").rglob("*.json")]
    return {row["label"]: row for row in found}


@pytest.mark.slow
def test_two_rules_are_two_rows_that_name_their_weights(trained: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "--methods", "clipn[rule=ctw],clipn[rule=atd],msp", "--weights", f"clipn={trained}")
    assert done.exit_code == 0, done.output
    found = rows(tmp_path)
    assert set(found) == {"clipn[rule=ctw]", "clipn", "msp"}
    assert found["clipn"]["weights"]["digest"] == found["clipn[rule=ctw]"]["weights"]["digest"]
    assert found["clipn"]["weights"]["name"] == "clipn.safetensors" and not found["msp"]["weights"]
    assert found["clipn"]["scores"] != found["clipn[rule=ctw]"]["scores"]


@pytest.mark.slow
def test_other_weights_give_another_row(trained: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other.safetensors", {}, seed=1)
    for file in (trained, other):
        assert run(tmp_path, "--methods", "clipn", "--weights", f"clipn={file}").exit_code == 0
    digests = {json.loads(p.read_text())["weights"]["digest"] for p in (tmp_path / "runs").rglob("*.json")}
    assert len(digests) == 2


@pytest.mark.slow
def test_trained_hyper_parameters_come_from_the_header_alone(tmp_path: Path) -> None:
    file = written(tmp_path / "hand.safetensors", {"prompt": "handcrafted", "tso": 0.0})
    done = run(tmp_path, "--methods", "clipn", "--weights", f"clipn={file}")
    assert done.exit_code == 0, done.output
    (row,) = rows(tmp_path).values()
    assert row["parameters"]["prompt"] == "handcrafted" and row["parameters"]["tso"] == 0.0
    refused = run(tmp_path, "--methods", "clipn[tso=0.25]", "--weights", f"clipn={file}")
    assert refused.exit_code == 2 and "trained with tso=0.0, not with tso=0.25" in refused.output
    refused = run(tmp_path, "--methods", "clipn[prompt=learnable]", "--weights", f"clipn={file}")
    assert refused.exit_code == 2 and "trained with prompt=handcrafted, not with prompt=learnable" in refused.output
    refused = run(tmp_path, "--methods", "clipn,clipn[tso=0.0]", "--weights", f"clipn={file}")
    assert refused.exit_code == 2 and "is requested twice" in refused.output


def test_weights_of_another_encoder_or_method_are_refused(trained: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for change, message in (
        ({"method": "zoc"}, "holds weights of zoc"),
        ({"encoder": {"name": "ViT-B-16/openai", "weights": "ab" * 32, "config": {}}}, "trained for ViT-B-16/openai"),
        ({"format": 99}, "are of format 99"),
    ):
        file = tmp_path / "other.safetensors"
        weights.write(file, load_file(trained), {**weights.recipe_of(trained), **change})
        done = run(tmp_path, "--methods", "clipn", "--weights", f"clipn={file}", "--encoder", "glyphs")
        assert done.exit_code == 2 and message in done.output


def test_damaged_weights_are_reported(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "cut.safetensors"
    file.write_bytes(trained.read_bytes()[:5])
    done = run(tmp_path, "--methods", "clipn", "--weights", f"clipn={file}")
    assert done.exit_code == 2 and "cannot be read: it is truncated" in done.output


def stock() -> dict[str, Tensor]:
    from oodbench.encoder.card import parse_encoder
    from oodbench.encoder.resolve import load_state_dict, resolve
    from oodbench.storage.store import Store, default_root

    return load_state_dict(resolve(parse_encoder("glyphs"), None, Store(default_root())))


def release(trained: Path, *, learnable: bool = True) -> dict[str, Tensor]:
    """Return weights in the released layout: everything in one model, `_no` after the first part of a name."""
    from safetensors.torch import load_file

    state = dict(stock())
    for name, tensor in load_file(trained).items():
        if name == "prompt_no":
            if learnable:
                state[name] = tensor
            continue
        first, dot, rest = name.removeprefix("tower.").partition(".")
        state[f"{first}_no{dot}{rest}"] = tensor
    return state


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 3e-4}]}
    torch.save(
        {"epoch": 10, "name": "x", "state_dict": wrapped, "optimizer": optimizer, "scaler": {"scale": 1.0}}, path
    )
    return path


@pytest.mark.slow
def test_a_released_checkpoint_scores_as_our_file(trained: Path, tmp_path: Path) -> None:
    released = saved(tmp_path / "CLIPN_ATD_Repeat2_epoch_10.pt", release(trained))
    for folder, file in (("ours", trained), ("theirs", released)):
        done = run(tmp_path / folder, "--methods", "clipn,clipn[rule=ctw]", "--weights", f"clipn={file}")
        assert done.exit_code == 0, done.output
    ours, theirs = rows(tmp_path / "ours"), rows(tmp_path / "theirs")
    for label in ("clipn", "clipn[rule=ctw]"):
        assert ours[label]["ood"] == theirs[label]["ood"]
    assert theirs["clipn"]["weights"]["recipe"] == {}


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_reason(trained: Path, tmp_path: Path) -> None:
    whole = release(trained)
    moved = {**whole, "visual.conv1.weight": whole["visual.conv1.weight"] + 1}
    texted = {**whole, "positional_embedding": whole["positional_embedding"] + 1}
    lacking = {k: v for k, v in whole.items() if k != "ln_final_no.weight"}
    more = {**whole, "extra.weight": torch.zeros(1)}
    short = {**whole, "prompt_no": whole["prompt_no"][:, :5]}
    for state, asked, message in (
        (moved, "clipn", "its frozen image tower is not the encoder's: visual.conv1.weight differs"),
        (texted, "clipn", "its frozen text tower is not the encoder's"),
        (lacking, "clipn", "lack ln_final.weight"),
        (more, "clipn", "have extra.weight"),
        (short, "clipn", "prompt_no has shape"),
        (stock(), "clipn", "not a checkpoint of CLIPN"),
        (whole, "clipn[prompt=handcrafted]", "--set clipn.prompt=learnable"),
        (release(trained, learnable=False), "clipn", "--set clipn.prompt=handcrafted"),
    ):
        done = run(tmp_path, "--methods", asked, "--weights", f"clipn={saved(tmp_path / 'x.pt', state)}")
        assert done.exit_code == 2 and message in done.output, (message, done.output)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "args": SimpleNamespace(a=1)}, tmp_path / "x.pt")
    done = run(tmp_path, "--methods", "clipn", "--weights", f"clipn={tmp_path / 'x.pt'}")
    assert done.exit_code == 2 and "Python objects" in done.output


@pytest.mark.slow
def test_weights_are_shown_and_written_in_the_released_format(trained: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(main, ["weights", str(trained)])
    assert shown.exit_code == 0 and "clipn" in shown.output and "glyphs" in shown.output
    out = tmp_path / "released.pt"
    made = CliRunner().invoke(main, ["weights", str(trained), "--output", str(out), "--encoder", "glyphs"])
    assert made.exit_code == 0, made.output
    state = torch.load(out, weights_only=True)["state_dict"]
    expected = release(trained)
    assert set(state) == set(expected) and all(torch.equal(state[name], expected[name]) for name in expected)
    assert run(tmp_path, "--methods", "clipn", "--weights", f"clipn={out}").exit_code == 0


def test_without_weights_the_error_names_the_command_that_trains_them(tmp_path: Path) -> None:
    done = run(tmp_path, "--methods", "clipn", "--encoder", "ViT-B-16/openai")
    assert done.exit_code == 2
    assert "oodbench train clipn --encoder ViT-B-16/openai --captions FILE" in done.output
    assert "--weights clipn=FILE" in done.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clipn", "write METHOD=FILE"),
        ("clipm=x.pt", "did you mean 'clipn'"),
        ("mcm=x.pt", "mcm reads no weights"),
        ("clipn=nowhere.pt", "nowhere.pt does not exist"),
    ],
)
def test_impossible_weights_are_refused(text: str, message: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--methods", "clipn", "--weights", text)
    assert done.exit_code == 2 and message in done.output


def test_shipped_weights_serve_the_embedded_encoder(tmp_path: Path) -> None:
    done = run(tmp_path, "--methods", "clipn")
    assert done.exit_code == 0, done.output
    (row,) = rows(tmp_path).values()
    assert row["weights"]["recipe"]["captions"]["pairs"] == 40_000 and row["label"] == "clipn"


@pytest.mark.slow
def test_packed_weights_are_exported_completely(tmp_path: Path) -> None:
    from oodbench.pipeline.weights import SHIPPED

    out = tmp_path / "new" / "released.pt"
    made = CliRunner().invoke(main, ["weights", str(SHIPPED / "clipn.safetensors"), "--output", str(out)])
    assert made.exit_code == 0, made.output
    for folder, options in (("a", []), ("b", ["--weights", f"clipn={out}"])):
        assert run(tmp_path / folder, "--methods", "clipn", *options).exit_code == 0
    (shipped,), (released,) = (list(rows(tmp_path / folder).values()) for folder in ("a", "b"))
    assert shipped["ood"] == released["ood"]


def test_no_offsets_are_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "--methods", "clipn[offsets=0]")
    assert done.exit_code == 2 and "Traceback" not in done.output


@pytest.mark.slow
def test_scores_use_the_prompts_of_the_training(tmp_path: Path) -> None:
    """The "no" tower of the hand-crafted variant was trained with its own templates."""
    own = {"templates": "a {}", "no_templates": "no {}"}
    file = written(tmp_path / "hand.safetensors", {"prompt": "handcrafted", **own})
    one = Detector("clipn", classes=["cloud", "comet"], weights=file).fit()
    told = Detector("clipn", classes=["cloud", "comet"], weights=file, settings=own).fit()
    other = Detector("clipn", classes=["cloud", "comet"], weights=file, templates="the {}").fit()
    (found,), (given,), (changed,) = (each._engine.plan.jobs for each in (one, told, other))
    assert {name: found.parameters[name] for name in own} == own and found.parameters == given.parameters
    assert found.templates and found.templates.lines == ("a {}",)
    assert changed.parameters["templates"] == "the {}" and changed.parameters["no_templates"] == "no {}"
    again = Detector.load(one.save(tmp_path / "saved"))
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    assert again.score_samples(images).tolist() == told.score_samples(images).tolist()
