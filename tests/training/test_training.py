"""Training: the loss of the whole batch for any chunks, exact resuming, broken input, a real size."""

from __future__ import annotations

import csv
import dataclasses
import functools
import http.server
import io
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from oodbench.errors import Diverged, UserError
from oodbench.method import Batch, Encoder, Optimiser, Pairs, Task, TrainedMethod, registry
from oodbench.pipeline import weights as weights_of
from oodbench.pipeline.extract import EmbeddingConfig
from oodbench.pipeline.text_embeddings import PromptEmbeddings
from oodbench.storage.store import Store
from oodbench.tracking.connection import quiet_mlflow
from oodbench.training import batches
from oodbench.training.batches import PairBatches
from oodbench.training.checkpoints import Checkpoints
from oodbench.training.data import BATCH, TrainingData, embed_captions, prepare_data, truncation_note
from oodbench.training.loop import Trainer
from oodbench.training.losses import read_losses
from oodbench.training.plan import TrainRequest, make_plan
from oodbench.training.processes import ProcessGroup
from oodbench.training.schedule import Schedule, parameter_groups
from oodbench.training.train import TrainOutcome, TrainWatch, train
from tests.processes import Command, script_folder

Cli = Callable[..., subprocess.CompletedProcess[str]]

TOY = '''
"""Toy: a linear "no" (Nobody, Nowhere 2000)."""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus
from oodbench.method import Batch, Encoder, Needs, Optimiser, Pairs, Task, TrainedMethod


@dataclass(frozen=True)
class Toy(TrainedMethod[Tensor]):
    """Far from what a linear map of the class name says."""

    needs: ClassVar[Needs] = Needs.FEATURES | Needs.WEIGHTS
    optimiser: ClassVar[Optimiser] = Optimiser(lr=1e-3, warmup=2, epochs=3, batch=16)
    trained: ClassVar[tuple[str, ...]] = ("dropout",)
    dropout: float = 0.0
    explode: int = -1
    sleep: float = 0.0

    def fit(self, task: Task) -> Tensor:
        return task.weights.load(self.module(task.encoder))(task.text("simple"))

    def score(self, batch: Batch, task: Task, state: Tensor) -> Tensor:
        return -(batch.features @ state.T).amax(-1)

    def module(self, encoder: Encoder) -> nn.Module:
        width = encoder.text(["a"]).shape[1]
        return nn.Sequential(nn.Linear(width, 2 * width), nn.Dropout(self.dropout), nn.Linear(2 * width, width))

    def inputs(self, pairs: Pairs, encoder: Encoder) -> dict[str, Tensor]:
        import time
        time.sleep(self.sleep)
        factor = float("nan") if pairs.step == self.explode else 1.0
        drawn = pairs.draw(7)
        return {"image": pairs.features, "text": pairs.text(encoder) * factor, "drawn": drawn}

    def embed(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        said = inputs["text"] * (1 + inputs["drawn"][:, None] / 7)
        return {"image": inputs["image"], "no": normalize(module(said), dim=-1), "drawn": inputs["drawn"]}

    def loss(self, embedded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = 10 * embedded["image"] @ embedded["no"].T
        return {"own": softplus(logits.diagonal()).mean(), "others": 0.5 * softplus(-logits).mean()}
'''


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "toy.py"
    path.write_text(TOY)
    return path


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 pairs of 48 images, as a CSV with a further column."""
    folder = tmp_path_factory.mktemp("captions")
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "filepath", "caption"])
        for i in range(96):
            name = f"images/{i // 2}.png"
            (folder / "images").mkdir(exist_ok=True)
            Image.fromarray(render.image("pairs", i // 2)).save(folder / name)
            writer.writerow([i, name, f"{world.caption(i // 2)}, {'left' if i % 2 else 'right'}"])
    return folder / "captions.csv"


@pytest.fixture
def ask(plugin: Path, table: Path, tmp_path: Path) -> Callable[..., TrainRequest]:
    def make(**options: Any) -> TrainRequest:
        out = options.pop("out", tmp_path / "toy.safetensors")
        plain = TrainRequest("toy", plugins=(plugin,), captions=str(table), out=out, device="cpu")
        return dataclasses.replace(plain, **options)

    return make


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def losses(out: Path) -> list[dict[str, Any]]:
    return read_losses(Checkpoints(out).folder / "losses.jsonl")


# The loop


@pytest.fixture(scope="session")
def encoder() -> OpenClip:
    return OpenClip(resolve(parse_encoder("glyphs"), None, Store(Path(os.environ["OODBENCH_STORE"]))), "cpu", "fp32")


def trainer_of(encoder: OpenClip, request: TrainRequest, **settings: Any) -> Trainer:
    store = Store(Path(os.environ["OODBENCH_STORE"]))
    load = functools.partial(lambda one: one, encoder)
    recipe, alone = EmbeddingConfig(encoder.card.identity, "fp32", BATCH), ProcessGroup(0, 1, "cpu")
    data = prepare_data(request, recipe, store, load, alone, lambda what, n: lambda k: None)
    embed_captions(data, PromptEmbeddings(encoder.card.identity, "fp32", store), load, lambda what, n: lambda k: None)
    info = registry.methods(request.plugins)["toy"]
    method: Any = registry.make(info, {**info.defaults(), **settings})
    schedule = Schedule(Optimiser(lr=1e-3, batch=32), len(data), 9, 0)
    return Trainer(method, PairBatches(data, schedule, encoder, request.chunk), alone, "fp32")


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Of the first step, before any update."""
    trainer._backward(0, trainer._inputs(0))
    return {name: one.grad.clone() for name, one in trainer.module.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("chunk", [5, 16, 32, 100])
def test_the_gradient_is_that_of_the_whole_batch(
    encoder: OpenClip, ask: Callable[..., TrainRequest], table: Path, chunk: int
) -> None:
    """Against the loss written again in float64, of all 32 pairs at once, from the images and captions themselves."""
    trainer = trainer_of(encoder, ask(chunk=chunk))
    found = gradients(trainer)
    rows = rows_of(table)
    chosen = np.random.default_rng((0, 0)).permutation(96)[:32]
    pixels = torch.stack(
        [torch.from_numpy(np.array(Image.open(table.parent / rows[i]["filepath"]))).permute(2, 0, 1) for i in chosen]
    )
    with torch.no_grad():
        image = encoder.pixels(pixels.float() / 255).double()
        text = encoder.text([rows[i]["caption"] for i in chosen]).double()
    image, text = (x / x.norm(dim=1, keepdim=True) for x in (image, text))
    drawn = np.random.default_rng((0, 0, 0)).integers(7, size=32)
    values = {name: one.detach().double().requires_grad_() for name, one in trainer.module.named_parameters()}
    x = text * torch.from_numpy(1 + drawn / 7)[:, None]
    x = (x @ values["0.weight"].T + values["0.bias"]) @ values["2.weight"].T + values["2.bias"]
    logits = 10 * image @ (x / x.norm(dim=1, keepdim=True)).T
    total = torch.log1p(logits.diagonal().exp()).mean() + 0.5 * torch.log1p((-logits).exp()).mean()
    torch.autograd.backward(total)
    assert set(found) == set(values)
    for name, one in values.items():
        assert one.grad is not None
        scale = one.grad.abs().max()
        assert (found[name].double() - one.grad).abs().max() < 1e-5 * scale, name


def test_dropout_is_the_same_in_both_passes(encoder: OpenClip, ask: Callable[..., TrainRequest]) -> None:
    trainer = trainer_of(encoder, ask(chunk=8), dropout=0.5)
    found = gradients(trainer)
    trainer.optimiser.zero_grad()
    parts = [trainer._embed(0, start, inputs) for start, inputs in trainer._inputs(0)]  # one graph for all
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    torch.autograd.backward(torch.stack(list(trainer._method.loss(whole).values())).sum())
    for name, one in trainer.module.named_parameters():
        assert one.grad is not None
        torch.testing.assert_close(found[name], one.grad, rtol=1e-5, atol=1e-8)
    assert len({float(part["no"].detach().sum()) for part in parts}) == 4


def test_the_schedule_and_what_is_decayed() -> None:
    schedule = Schedule(Optimiser(lr=2.0, warmup=4, batch=10), 35, 12, seed=3)
    assert [schedule.lr(step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert schedule.lr(8) == pytest.approx(1.0) and 0 < schedule.lr(11) < 0.1
    assert dataclasses.replace(schedule, optimiser=Optimiser(lr=2.0, cosine=False)).lr(7) == 2.0
    epochs = [np.concatenate([schedule.batch(step) for step in range(3 * e, 3 * e + 3)]) for e in (0, 1)]
    assert all(len(set(epoch)) == 30 and set(epoch) <= set(range(35)) for epoch in epochs)
    assert list(epochs[0]) != list(epochs[1])
    module = torch.nn.ModuleDict({"fc": torch.nn.Linear(2, 2), "ln_1": torch.nn.Linear(2, 2)})
    decayed, bare = parameter_groups(module, Optimiser())
    assert [len(decayed["params"]), len(bare["params"])] == [1, 3] and bare["weight_decay"] == 0


@pytest.mark.parametrize("epsilon_hat", [True, False])
def test_adamw_adds_eps_before_or_after_the_bias_is_corrected(
    epsilon_hat: bool, encoder: OpenClip, ask: Callable[..., TrainRequest], tmp_path: Path
) -> None:
    """transformers' AdamW (4.x), and torch's, written out in NumPy and float64; and the same after a stop."""
    recipe = Optimiser(1e-3, (0.9, 0.999), 1e-6, 0.0, batch=32, cosine=False, epsilon_hat=epsilon_hat)

    def begun() -> Trainer:
        made = trainer_of(encoder, ask())
        batches_ = dataclasses.replace(made._batches, schedule=Schedule(recipe, 96, 9, 0))
        return Trainer(made._method, batches_, made.processes, "fp32")

    trainer = begun()
    checkpoints = Checkpoints(tmp_path / "adamw.safetensors")
    checkpoints.write_identity({})
    rng = np.random.default_rng(0)
    expected = [one.detach().double().numpy().copy() for one in trainer.parameters]
    first = [np.zeros(one.shape) for one in trainer.parameters]
    second = [np.zeros(one.shape) for one in trainer.parameters]
    for t in range(1, 7):
        if t == 4:
            checkpoints.save(trainer, 3)
            trainer = begun()
            checkpoints.restore(trainer, 3)
        for i, one in enumerate(trainer.parameters):
            one.grad = torch.from_numpy(rng.normal(scale=3e-6, size=one.shape).astype(np.float32))
            gradient = one.grad.double().numpy()
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            if epsilon_hat:
                step = 1e-3 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
                expected[i] -= step * first[i] / (np.sqrt(second[i]) + 1e-6)
            else:
                expected[i] -= 1e-3 * (first[i] / (1 - 0.9**t)) / (np.sqrt(second[i] / (1 - 0.999**t)) + 1e-6)
        trainer._update(t - 1, 1e-3)
    for one, other in zip(trainer.parameters, expected, strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other, rtol=0, atol=2e-7)


class ConstantWarmup(torch.optim.lr_scheduler.LRScheduler):
    """Dassl's: a constant rate until the end of the warm-up, and from there another scheduler; one step an epoch."""

    def __init__(self, optimiser: torch.optim.Optimizer, after: Any, epochs: int, rate: float) -> None:
        self.after, self.epochs, self.rate = after, epochs, rate
        super().__init__(optimiser)

    def get_lr(self) -> list[Any]:
        rates: list[Any] = self.after.get_last_lr()
        return [self.rate for _ in self.base_lrs] if self.last_epoch < self.epochs else rates

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch >= self.epochs:
            self.after.step()
        else:
            super().step()


@pytest.mark.parametrize("warmup_epochs", [0, 1, 2])
def test_sgd_and_its_rates_are_torch_s_stepped_as_in_dassl(
    warmup_epochs: int, encoder: OpenClip, ask: Callable[..., TrainRequest], tmp_path: Path
) -> None:
    """Against torch.optim.SGD with torch's schedulers in float64, three steps an epoch; and the same after a stop."""
    recipe = Optimiser(
        2e-3, weight_decay=5e-2, batch=32, kind="sgd", momentum=0.9, per_epoch=True,
        warmup_lr=1e-5 if warmup_epochs else None, warmup_epochs=warmup_epochs,
    )  # fmt: skip
    steps, stop = 15, 7

    def begun() -> Trainer:
        made = trainer_of(encoder, ask())
        batches_ = dataclasses.replace(made._batches, schedule=Schedule(recipe, 96, steps, 0))
        trainer = Trainer(made._method, batches_, made.processes, "fp32")
        trainer.module.double()
        return trainer

    trainer = begun()
    expected = {name: one.detach().clone().requires_grad_() for name, one in trainer.module.named_parameters()}
    decay = [{"params": [one for one in expected.values() if (one.ndim > 1) == wide]} for wide in (True, False)]
    reference = torch.optim.SGD(decay, lr=2e-3, momentum=0.9)
    reference.param_groups[0]["weight_decay"] = 5e-2
    scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(reference, steps // 3)
    if warmup_epochs:
        scheduler = ConstantWarmup(reference, scheduler, warmup_epochs, 1e-5)
    random = torch.Generator().manual_seed(0)
    checkpoints = Checkpoints(tmp_path / "sgd.safetensors")
    for number in range(steps):
        if number == stop:
            checkpoints.save(trainer, stop)
            trainer = begun()
            checkpoints.restore(trainer, stop)
        for one, other in zip(trainer.parameters, expected.values(), strict=True):
            one.grad = torch.randn(one.shape, generator=random, dtype=torch.float64)
            other.grad = one.grad.clone()
        assert trainer.schedule.lr(number) == pytest.approx(reference.param_groups[0]["lr"], rel=1e-12)
        trainer._update(number, trainer.schedule.lr(number))
        reference.step()
        if number % 3 == 2:
            scheduler.step()
    for name, one in trainer.module.named_parameters():
        torch.testing.assert_close(one, expected[name], rtol=1e-12, atol=1e-14)


def test_options_of_the_optimiser_apply_or_are_refused(
    ask: Callable[..., TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe with SGD and a warm-up in epochs; its fields are in its identity, and in no other."""
    assert not {"kind", "momentum", "warmup_epochs", "per_epoch"} & set(make_plan(ask()).identity()["optimiser"])
    sgd = Optimiser(kind="sgd", momentum=0.9, batch=16, epochs=2, warmup_lr=1e-5, warmup_epochs=2, per_epoch=True)
    monkeypatch.setattr(TrainedMethod, "optimisation", lambda self: sgd)
    recorded = make_plan(ask(lr=0.5, weight_decay=0.0)).identity()["optimiser"]
    assert [recorded[name] for name in ("lr", "weight_decay", "kind", "momentum")] == [0.5, 0.0, "sgd", 0.9]
    assert [recorded[name] for name in ("warmup", "warmup_lr", "warmup_epochs", "per_epoch")] == [0, 1e-5, 2, True]
    given = make_plan(ask(warmup=3)).optimiser
    rates = [Schedule(given, 96, 12, 0).lr(step) for step in (0, 2, 3)]
    assert (given.warmup, given.warmup_epochs, rates) == (3, 0, [1e-5, 1e-5, sgd.lr])
    with pytest.raises(UserError, match=r"--betas and --eps: for AdamW, but toy is trained with SGD"):
        make_plan(ask(betas=(0.9, 0.99), eps=1e-8))
    with pytest.raises(
        UserError, match=r"warm-up of toy, 2 epochs or 12 steps, must be less than the 12 steps .*--warm"
    ):
        train(ask())
    for wrong in ({"kind": "adam"}, {"momentum": 0.9}, {"warmup": 1, "warmup_epochs": 1}):
        with pytest.raises(ValueError, match="adamw|sgd|warmup"):
            Optimiser(**wrong)


def test_a_training_begun_before_epsilon_hat_goes_on(ask: Callable[..., TrainRequest]) -> None:
    plan = make_plan(ask())
    assert "epsilon_hat" not in plan.identity()["optimiser"]
    hat = dataclasses.replace(plan, optimiser=dataclasses.replace(plan.optimiser, epsilon_hat=True))
    assert hat.identity()["optimiser"]["epsilon_hat"] is True


def test_the_loss_decreases_and_the_file_has_the_recipe(
    ask: Callable[..., TrainRequest], plugin: Path, table: Path
) -> None:
    reports: list[Any] = []
    outcome = train(ask(epochs=8, settings=("toy.dropout=0.1",)), TrainWatch(step=reports.append))
    assert (outcome.done, outcome.steps, outcome.made) == (48, 48, 48)
    assert reports[-1].loss < 0.8 * reports[0].loss and reports[0].speed > 0
    found = losses(outcome.out)
    assert [line["step"] for line in found] == list(range(1, 49))
    assert found[3]["loss"] == pytest.approx(sum(found[3]["terms"].values()))
    recipe = weights_of.recipe_of(outcome.out)
    assert recipe["method"] == "toy" and recipe["parameters"] == {"dropout": 0.1, "explode": -1, "sleep": 0.0}
    assert recipe["captions"]["pairs"] == 96 and recipe["captions"]["images"] == 48
    assert recipe["captions"]["name"] == "captions.csv" and recipe["captions"]["skipped"] == 0
    assert recipe["encoder"]["name"] == "glyphs" and recipe["optimiser"]["epochs"] == 8 and recipe["steps"] == 48
    assert recipe["loss"]["own"] == pytest.approx(np.mean([line["terms"]["own"] for line in found]))
    file = weights_of.examine(outcome.out, Store(Path(os.environ["OODBENCH_STORE"])))
    assert file.recipe == recipe


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "amp-fp16"])
def test_mixed_precision(ask: Callable[..., TrainRequest], precision: str) -> None:
    outcome = train(ask(precision=precision, chunk=4))
    found = losses(outcome.out)
    assert np.mean([line["loss"] for line in found[-3:]]) < found[0]["loss"]
    assert weights_of.recipe_of(outcome.out)["precision"] == precision.removeprefix("amp-")


# Stopping and resuming


class Rows(TrainedMethod[None]):
    """A method whose gradient of `rows[drawn]` sums many pairs in one row, as that of CLIPN's offsets does."""

    def module(self, encoder: Encoder) -> torch.nn.Module:
        return torch.nn.ParameterList([torch.randn(2, 16_384)])

    def inputs(self, pairs: Pairs, encoder: Encoder) -> dict[str, Tensor]:
        return {"image": pairs.features, "drawn": pairs.draw(2)}

    def embed(self, module: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"row": module[0][inputs["drawn"]], "image": inputs["image"]}

    def loss(self, embedded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        image = embedded["image"]
        return {"loss": (embedded["row"] * image.repeat(1, 16_384 // image.shape[1])).sin().mean()}

    def score(self, batch: Batch, task: Task, state: None) -> Tensor:
        raise NotImplementedError


def test_two_trainings_have_the_same_bits_on_two_threads(encoder: OpenClip, ask: Callable[..., TrainRequest]) -> None:
    """torch's settings are restored afterwards."""
    made = trainer_of(encoder, ask(chunk=16))
    recipe = dataclasses.replace(made.schedule, optimiser=Optimiser(lr=0.1, batch=32, weight_decay=0.0))
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for _ in range(4):
            batches_ = dataclasses.replace(made._batches, schedule=recipe)
            trainer = Trainer(Rows(), batches_, made.processes, "fp32")
            for number in range(2):
                trainer.step(number)
            found.append(trainer.optimiser.state[trainer.parameters[0]]["exp_avg"].clone())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:]) and found[0].abs().min() > 0
    settings: Any = torch.utils.deterministic
    assert not torch.are_deterministic_algorithms_enabled() and settings.fill_uninitialized_memory


@pytest.mark.slow
def test_a_resumed_training_has_the_same_bits(ask: Callable[..., TrainRequest], tmp_path: Path) -> None:
    options: dict[str, Any] = {"settings": ("toy.dropout=0.3",), "chunk": 5}
    whole = train(ask(**options, out=tmp_path / "whole.safetensors"))
    first = train(ask(**options, max_steps=7))
    assert (first.done, first.steps) == (7, 18)
    assert weights_of.recipe_of(first.out)["steps"] == 7
    second = train(ask(**options))
    assert (second.done, second.made) == (18, 11)
    assert same(whole.out, second.out)
    assert [line["loss"] for line in losses(whole.out)] == [line["loss"] for line in losses(second.out)]
    before = second.out.stat().st_mtime_ns
    assert train(ask(**options)).made == 0 and second.out.stat().st_mtime_ns == before
    second.out.unlink()
    assert train(ask(**options)).made == 0 and same(whole.out, second.out)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(
    ask: Callable[..., TrainRequest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(ask(out=tmp_path / "whole.safetensors"))
    train(ask(max_steps=9, checkpoint_every=4))
    state = Checkpoints(tmp_path / "toy.safetensors")
    assert state.steps() == [8, 9]
    state.path(9).write_bytes(state.path(9).read_bytes()[:5000])
    resumed = train(ask(checkpoint_every=4))
    assert resumed.made == 10 and "cannot be read" in caplog.text
    assert same(whole.out, resumed.out)


def test_captions_that_the_encoder_cuts_are_counted(encoder: OpenClip) -> None:
    context = encoder.tokenize(["x"]).shape[1]
    fits, cut = " ".join("a" * (context - 2)), " ".join("a" * (context - 1))  # in addition to the start and the end
    assert truncation_note([fits, "short", fits], encoder) == ""
    said = truncation_note([fits, cut, cut, f"{cut} b"], encoder)
    assert (
        said == f'2 of 3 captions are truncated to the context length of glyphs, {context} tokens; the first is "{cut}"'
    )


@pytest.mark.slow
def test_another_training_in_the_same_place_is_refused(ask: Callable[..., TrainRequest], table: Path) -> None:
    train(ask(max_steps=2))
    with pytest.raises(UserError, match=r"another training: optimiser.lr was 0.001, now it is 0.5\n.*--restart"):
        train(ask(max_steps=2, lr=0.5))
    with pytest.raises(UserError, match=r"parameters.dropout was 0.0, now it is 0.5"):
        train(ask(max_steps=2, settings=("toy.dropout=0.5",)))
    assert train(ask(max_steps=2, lr=0.5, restart=True)).made == 2


def test_nan_stops_and_leaves_the_last_good_checkpoint(ask: Callable[..., TrainRequest], tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"the loss of step 6 is not finite \(own nan"):
        train(ask(settings=("toy.explode=5",), checkpoint_every=2))
    state = Checkpoints(tmp_path / "toy.safetensors")
    assert state.steps() == [2, 4] and not (tmp_path / "toy.safetensors").exists()
    good = torch.load(state.path(4), weights_only=True)
    assert all(bool(value.isfinite().all()) for value in good["module"].values())


# Bad input


def test_all_problems_of_a_request_are_reported_together(tmp_path: Path) -> None:
    asked = TrainRequest(
        "clipm", captions=str(tmp_path / "none.csv"), encoder="x", precision="fp8", lr=-1.0, epochs=1, steps=1
    )
    with pytest.raises(UserError) as error:
        train(asked)
    text = str(error.value)
    for part in ("no method 'clipm'; did you mean 'clipn'?", "none.csv cannot be read", "cannot read encoder 'x'"):
        assert part in text
    for part in ("--precision fp8", "--lr must be a number above 0", "--epochs and --steps both"):
        assert part in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "mcm"}, "mcm has nothing to train; methods that are trained: .*clipn"),
        ({"method": "all"}, "name one method"),
        ({"batch": 97}, "has 96 pairs, fewer than one batch of 97; .*--batch-size 48"),
        ({"captions": "words.txt"}, "give glyphs, a .csv file"),
        ({"captions": "http://x/{0..1}.tar", "augment": True}, "not supported over a network"),
        ({"captions": "none-{0..2}.tar"}, "3 of 3 shards do not exist, none-0.tar first"),
        ({"data": Path("/nowhere")}, "--data /nowhere is not a folder"),
        ({"warmup": 18}, "--warmup 18 must be less than the 18 steps"),
    ],
)
def test_bad_requests(ask: Callable[..., TrainRequest], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        train(ask(**options))


def broken_table(table: Path, tmp_path: Path) -> Path:
    good = rows_of(table)
    (tmp_path / "broken.png").write_bytes(b"no image")
    text = ["filepath,caption", *(f'{table.parent}/{row["filepath"]},"{row["caption"]}"' for row in good[:40])]
    text[3] += ",and, more"  # line 4
    text[5] = f"{table.parent}/images/2.png,"  # line 6
    text[7] = "gone.png,a thing that is gone"  # line 8
    text[9] = f"{tmp_path}/broken.png,a broken thing"  # line 10
    path = tmp_path / "broken.csv"
    path.write_bytes("\n".join(text).encode() + b"\nimages/1.png,caf\xe9\n")
    return path


@pytest.mark.slow
def test_broken_rows_are_named_and_counted(ask: Callable[..., TrainRequest], table: Path, tmp_path: Path) -> None:
    path = broken_table(table, tmp_path)
    with pytest.raises(UserError) as error:
        train(ask(captions=str(path)))
    text = str(error.value)
    assert text.startswith("broken.csv: 4 things cannot be used: line 4: 4 fields instead of 2; line 6: no caption;")
    assert f"line 8: no image {tmp_path}/gone.png" in text and "line 42: its caption is no UTF-8" in text
    assert "--on-error skip" in text
    told: list[Any] = []
    outcome = train(ask(captions=str(path), on_error="skip"), TrainWatch(ready=told.append))
    assert (told[0].pairs, told[0].images) == (36, 20) and len(told[0].skipped) == 5
    assert "broken.png: not an image format that Pillow supports" in told[0].skipped[-1]
    assert weights_of.recipe_of(outcome.out)["captions"]["skipped"] == 5
    mended = tmp_path / "mended.csv"
    mended.write_text(
        "\n".join(
            line
            for line in path.read_bytes().decode("latin-1").splitlines()[:41]
            if "gone" not in line and not line.endswith((", more", ","))
        )
        + "\n"
    )
    with pytest.raises(UserError, match=r"broken.png cannot be read .*--on-error skip"):
        train(ask(captions=str(mended), out=tmp_path / "other.safetensors"))


@pytest.mark.parametrize("text", ["", "file,text\na,b\n"])
def test_a_csv_without_the_header(ask: Callable[..., TrainRequest], tmp_path: Path, text: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match="need a first line `filepath,caption`"):
        train(ask(captions=str(tmp_path / "x.csv")))


# Tar shards


def pack(path: Path, samples: Sequence[tuple[str, bytes, str | None]]) -> Path:
    """A shard of key, image file, caption."""
    with tarfile.open(path, "w") as archive:
        for key, image, caption in samples:
            files = [(f"{key}.png", image), (f"{key}.json", b"{}")]
            for name, content in files + ([(f"{key}.txt", caption.encode())] if caption is not None else []):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def samples_of(table: Path, step: int = 2) -> list[tuple[str, bytes, str | None]]:
    rows = rows_of(table)[::step]
    return [(f"{i:05d}", (table.parent / row["filepath"]).read_bytes(), row["caption"]) for i, row in enumerate(rows)]


@pytest.mark.slow
def test_tar_shards_give_the_weights_of_the_csv(ask: Callable[..., TrainRequest], table: Path, tmp_path: Path) -> None:
    samples = samples_of(table)
    rows = [[row["number"], row["filepath"], row["caption"]] for row in rows_of(table)]
    with (table.parent / "half.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["number", "filepath", "caption"], *rows[::2]])
    pack(tmp_path / "all-0.tar", samples)
    as_csv = train(ask(captions=str(table.parent / "half.csv"), batch=8, out=tmp_path / "csv.safetensors"))
    as_tar = train(ask(captions=str(tmp_path / "all-0.tar"), batch=8, out=tmp_path / "tar.safetensors"))
    assert same(as_csv.out, as_tar.out)
    for i in range(2):
        pack(tmp_path / f"part-{i:03d}.tar", samples[24 * i : 24 * i + 24])
    parts = train(ask(captions=str(tmp_path / "part-{000..001}.tar"), batch=8, out=tmp_path / "parts.safetensors"))
    one, other = load_file(as_csv.out), load_file(parts.out)  # other batches in the encoder: other last digits
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_broken_shards_are_named_and_counted(ask: Callable[..., TrainRequest], table: Path, tmp_path: Path) -> None:
    samples = samples_of(table)
    lone = ("lone", samples[0][1], None)
    pack(tmp_path / "s-0.tar", [*samples[:20], lone, ("empty", samples[0][1], " ")])
    whole = pack(tmp_path / "s-1.tar", samples[20:30]).read_bytes()
    (tmp_path / "s-1.tar").write_bytes(whole[: len(whole) // 2])
    pack(tmp_path / "s-2.tar", samples[30:])
    asked = ask(captions=str(tmp_path / "s-{0..2}.tar"), batch=8)
    with pytest.raises(
        UserError, match=r"s-0.tar: 2 things cannot be used: lone.png of .*: no caption next to it; empty"
    ):
        train(asked)
    told: list[Any] = []
    train(dataclasses.replace(asked, on_error="skip"), TrainWatch(ready=told.append))
    assert told[0].pairs == 38 and len(told[0].skipped) == 3
    assert "s-1.tar is truncated or corrupt" in told[0].skipped[2]
    with pytest.raises(UserError, match=r"s-1.tar: 1 thing cannot be used: .* is truncated"):
        train(dataclasses.replace(asked, captions=str(tmp_path / "s-{1..2}.tar")))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server over tmp_path/web, and the requests that it saw."""
    asked: list[str] = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            asked.append(f"{self.command} {self.path}")

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    (tmp_path / "web").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()
        thread.join()


@pytest.mark.slow
def test_shards_behind_urls_are_fetched_once_and_not_kept(
    ask: Callable[..., TrainRequest],
    table: Path,
    tmp_path: Path,
    server: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, requests = server
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    samples = samples_of(table)
    pack(tmp_path / "web/a-0.tar", samples[:24]), pack(tmp_path / "web/a-1.tar", samples[24:])
    asked = ask(captions=f"{url}/a-{{0..1}}.tar", batch=8, max_steps=3, store=tmp_path / "store")
    train(asked)
    # asked again after it was fetched: what was fetched must be what was listed
    assert requests == [f"{what} /a-{i}.tar" for i in range(2) for what in ("HEAD", "GET", "HEAD")]
    assert not list((tmp_path / "scratch").iterdir())
    assert train(dataclasses.replace(asked, max_steps=4)).made == 1
    assert [one.split()[0] for one in requests[6:]] == ["HEAD", "HEAD"]
    monkeypatch.setattr("oodbench.storage.remote.PAUSE", 0.0)
    with pytest.raises(UserError, match=r"cannot fetch http.*b-0.tar: File not found; run the same command again"):
        train(dataclasses.replace(asked, captions=f"{url}/b-0.tar", on_error="skip"))


# Random crops


def test_crops_are_those_of_torchvision_in_area_and_shape() -> None:
    from torchvision.transforms import RandomResizedCrop

    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    picture = torch.zeros(3, 100, 120)
    ours = [batches.random_crop_box(120, 100, rng) for _ in range(2000)]
    theirs = [RandomResizedCrop.get_params(picture, [0.9, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    assert all(one.left + one.width <= 120 and one.top + one.height <= 100 for one in ours)
    for a, b in (
        ([one.left for one in ours], [one[1] for one in theirs]),
        ([one.top for one in ours], [one[0] for one in theirs]),
        ([one.width for one in ours], [one[3] for one in theirs]),
        ([one.height for one in ours], [one[2] for one in theirs]),
    ):
        assert np.mean(a) == pytest.approx(np.mean(b), abs=0.3) and np.std(a) == pytest.approx(np.std(b), abs=0.3)
    wide = batches.random_crop_box(200, 100, rng)  # no box of that shape and area fits: the middle
    assert [wide.top, wide.left, wide.height, wide.width] == list(
        RandomResizedCrop.get_params(torch.zeros(3, 100, 200), [0.9, 1.0], [3 / 4, 4 / 3])
    )
    grey = Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64))
    for image in (grey, grey.convert("P"), grey.convert("RGBA")):
        assert batches.random_crop(image, (32, 32), np.random.default_rng(1)).shape == (3, 32, 32)


@pytest.mark.slow
def test_augmented_training_resumes_exactly(ask: Callable[..., TrainRequest], tmp_path: Path) -> None:
    options: dict[str, Any] = {"augment": True, "chunk": 8, "workers": 2}
    whole = train(ask(**options, out=tmp_path / "whole.safetensors"))
    train(ask(**options, max_steps=5))
    resumed = train(ask(**options))
    assert same(whole.out, resumed.out)
    plain = train(ask(chunk=8, out=tmp_path / "plain.safetensors"))
    assert not same(plain.out, whole.out)
    assert weights_of.recipe_of(whole.out)["augment"] is True


def test_augmented_training_names_broken_images(ask: Callable[..., TrainRequest], table: Path, tmp_path: Path) -> None:
    asked = ask(captions=str(broken_table(table, tmp_path)), augment=True, on_error="skip", workers=1)
    told: list[Any] = []
    train(asked, TrainWatch(ready=told.append))
    assert told[0].pairs == 36 and "broken.png" in told[0].skipped[-1]


# Processes


def start(
    folder: Path, table: Path, plugin: Path, *more: str, launcher: Sequence[str] = ()
) -> Command | subprocess.Popen[str]:
    words = [
        "train", "toy", "--plugin", str(plugin), "--captions", str(table), "--device", "cpu",
        "--output", str(folder / "toy.safetensors"), "--tracking-uri", "none", *more,
    ]  # fmt: skip
    if not launcher:
        return Command(*words)
    program = str(Path(script_folder()) / "oodbench")
    return subprocess.Popen([*launcher, program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def await_lines(out: Path, number: int) -> None:
    for _ in range(1200):
        if len(losses(out)) >= number:
            return
        time.sleep(0.05)
    raise AssertionError("the training makes no steps")


@pytest.mark.slow
def test_killed_and_stopped_trainings_resume_with_the_same_bits(
    table: Path, plugin: Path, tmp_path: Path, ask: Callable[..., TrainRequest]
) -> None:
    settings = ("toy.dropout=0.2", "toy.sleep=0.02")
    whole = train(ask(settings=settings, steps=60, out=tmp_path / "whole.safetensors"))
    more = ("--steps", "60", "--checkpoint-every", "4", *(word for one in settings for word in ("--set", one)))
    out = tmp_path / "toy.safetensors"
    for number, how in ((6, signal.SIGKILL), (18, signal.SIGTERM), (32, signal.SIGINT)):
        process = start(tmp_path, table, plugin, *more)
        await_lines(out, number)
        process.send_signal(how)
        _, told = process.communicate(timeout=120)
        saved = Checkpoints(out).steps()[-1]
        if how == signal.SIGKILL:
            assert process.returncode == -9 and len(losses(out)) - saved <= 4
        else:
            assert process.returncode == 128 + how, told
            assert f"stopped after step {saved} of 60. Finished work is saved; rerun" in told
            assert len(losses(out)) == saved
        assert not out.exists()
    process = start(tmp_path, table, plugin, *more)
    printed, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    assert f"resuming after step {saved}" in told
    assert same(whole.out, out)
    start_of = f"oodbench run --methods toy --weights toy={out} --encoder glyphs"
    set_ = "".join(f" --set {one}" for one in settings)
    assert printed == f"{start_of}{set_} --plugin {plugin}\n"
    process = start(tmp_path, table, plugin, *more)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0 and "already finished: all 60 steps are done" in told


@pytest.mark.slow
def test_two_processes_have_the_results_of_one(
    table: Path, plugin: Path, tmp_path: Path, ask: Callable[..., TrainRequest]
) -> None:
    """Loss, gradient (from AdamW's first moment after one step) and weights."""
    settings = ("toy.dropout=0.2",)
    alone = ask(chunk=4, settings=settings, out=tmp_path / "alone.safetensors")
    train(dataclasses.replace(alone, max_steps=1))
    more = ("--chunk", "4", "--set", settings[0])
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = start(tmp_path, table, plugin, *more, "--max-steps", "1", launcher=torchrun)
    _, told = done.communicate(timeout=240)
    assert done.returncode == 0, told
    pair = [
        torch.load(Checkpoints(tmp_path / name).path(1), weights_only=True)
        for name in ("alone.safetensors", "toy.safetensors")
    ]
    moments = [[one["exp_avg"] for one in found["optimiser"]["state"].values()] for found in pair]
    assert len(moments[0]) == 4
    for one, other in zip(*moments, strict=True):
        assert (one - other).abs().max() < 1e-6 * one.abs().max()
    train(alone)
    done = start(tmp_path, table, plugin, *more, launcher=torchrun)
    printed, told = done.communicate(timeout=240)
    assert done.returncode == 0, told
    assert printed.count("oodbench run") == 1 and told.count("resuming after step 1\n") == 1
    for one, other in zip(losses(alone.out or Path()), losses(tmp_path / "toy.safetensors"), strict=True):
        assert one["terms"] == pytest.approx(other["terms"], rel=1e-5)
    first, second = load_file(tmp_path / "alone.safetensors"), load_file(tmp_path / "toy.safetensors")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)
    assert weights_of.recipe_of(tmp_path / "toy.safetensors")["processes"] == 2


def curve(database: Path, name: str) -> tuple[str, list[int]]:
    """Status of the one run of a store, and the steps of one of its metrics."""
    with quiet_mlflow():
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{database}")
        (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
        return run.info.status, [one.step for one in client.get_metric_history(run.info.run_id, name)]


@pytest.mark.slow
def test_a_file_is_used_by_run_and_nan_exits_with_1(cli: Cli, table: Path, plugin: Path, tmp_path: Path) -> None:
    out = tmp_path / "w/toy.safetensors"
    common = ("train", "toy", "--plugin", plugin, "--captions", table)
    done = cli(*common, "--output", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    start_of = "oodbench run --methods toy --weights toy=w/toy.safetensors --encoder glyphs"
    assert done.stdout == f"{start_of} --plugin {plugin}\n"
    words = (*done.stdout.split()[1:], "--limit", "20", "--tracking-uri", "none")
    ran = cli(*words, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    status, steps = curve(tmp_path / "w/mlflow.db", "loss/own")
    assert status == "FINISHED" and steps == list(range(1, 19))
    bad = cli(*common, "--output", tmp_path / "nan.safetensors", "--set", "toy.explode=3", "--tracking-uri", "none")
    assert bad.returncode == 1
    assert "error: the loss of step 4 is not finite" in bad.stderr and "Traceback" not in bad.stderr


@pytest.mark.slow
def test_a_training_without_tracking_needs_neither_mlflow_nor_ray(table: Path, plugin: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom oodbench.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'mlflow', 'ray', 'pandas'} & set(sys.modules)))"
    )
    words = ["train", "toy", "--plugin", plugin, "--captions", table, "--max-steps", "1", "--tracking-uri", "none"]
    command = [sys.executable, "-c", code, *map(str, words), "--output", str(tmp_path / "x.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


WORKER = """
import os, signal, sys, threading, time
from pathlib import Path
import torch.distributed as dist
from oodbench.training.plan import TrainRequest
from oodbench.training.train import train

folder, plugin, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
asked = TrainRequest(
    "toy", plugins=(plugin,), captions=str(folder / "s-{0..2}.tar"), device="cpu", batch=8, steps=40,
    out=folder / "toy.safetensors", store=folder / "store", settings=("toy.sleep=0.02",),
)

def stop():
    losses = folder / "toy.safetensors.training/losses.jsonl"
    while not losses.is_file() or losses.read_text().count("\\n") < 5:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
if rank == 1:
    threading.Thread(target=stop).start()
first = train(asked)
assert first.signal == signal.SIGTERM and 5 <= first.done < 40, first
again = train(asked)
assert again.done == 40 and again.made == 40 - first.done and dist.is_initialized(), again
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_share_the_shards_and_stop_together(
    table: Path, plugin: Path, tmp_path: Path, ask: Callable[..., TrainRequest]
) -> None:
    """The process group exists already, as in a Ray worker; SIGTERM to one process stops both."""
    samples = samples_of(table)
    for i in range(3):
        pack(tmp_path / f"s-{i}.tar", samples[16 * i : 16 * i + 16])
    (tmp_path / "worker.py").write_text(WORKER)
    alone = train(
        ask(captions=str(tmp_path / "s-{0..2}.tar"), batch=8, steps=40, out=tmp_path / "alone.safetensors",
            store=tmp_path / "store", settings=("toy.sleep=0.02",), max_steps=1)
    )  # fmt: skip
    assert alone.done == 1
    program = tmp_path / "worker.py"
    workers = [Command(tmp_path, plugin, str(rank), program=program) for rank in range(2)]
    for worker in workers:
        _, told = worker.communicate(timeout=240)
        assert worker.returncode == 0, told
    one, other = losses(alone.out)[0], losses(tmp_path / "toy.safetensors")
    assert one["terms"] == pytest.approx(other[0]["terms"], rel=1e-5) and len(other) == 40


@pytest.mark.slow
def test_a_dead_server_does_not_delay_training_and_gets_the_curves_later(
    cli: Cli, table: Path, plugin: Path, tmp_path: Path
) -> None:
    common = ("train", "toy", "--plugin", plugin, "--captions", table, "--output", tmp_path / "toy.safetensors")
    began = time.monotonic()
    done = cli(*common, "--tracking-uri", "http://127.0.0.1:9", "--max-steps", "6")
    assert done.returncode == 0, done.stderr
    assert "some curves were not sent to http://127.0.0.1:9" in done.stderr and time.monotonic() - began < 90
    again = cli(*common, "--tracking-uri", f"sqlite:///{tmp_path}/late.db")
    assert again.returncode == 0, again.stderr
    assert curve(tmp_path / "late.db", "loss") == ("FINISHED", list(range(1, 19)))


@pytest.mark.slow
def test_real_captions_and_a_vit_b_32_of_real_width(shared: Path, tmp_path: Path) -> None:
    """CLIPN on satellite images, as CSV, and resumed as tar shards: three steps, the same weights to the bit."""
    import open_clip

    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-32") | {"quick_gelu": True}
    for tower in ("vision_cfg", "text_cfg"):
        config[tower]["layers"] = 2  # of 12: all would take a minute
    (tmp_path / "b32.json").write_text(json.dumps(config))
    model = open_clip.CLIP(**config)
    torch.save(model.state_dict(), tmp_path / "b32.pt")
    source = shared / "data/ucm-captions/captions.csv"
    rows = rows_of(source)
    firsts = list({row["filepath"]: row for row in reversed(rows)}.values())[:32]
    for name, chosen in (("firsts", firsts), ("some", rows[:100])):  # of the latter five captions an image
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["filepath", "caption"], *([r["filepath"], r["caption"]] for r in chosen)])
    samples = [
        (f"{i:04d}", (source.parent / row["filepath"]).read_bytes(), row["caption"]) for i, row in enumerate(firsts)
    ]
    pack(tmp_path / "ucm-0.tar", samples)
    encoder = f"{tmp_path}/b32.json@{tmp_path}/b32.pt"
    plain = TrainRequest(
        "clipn", encoder=encoder, batch=8, max_steps=3, chunk=4, lr=1e-5, device="cpu", store=tmp_path / "store"
    )
    outcomes: list[TrainOutcome] = []
    for name, captions, data in (
        ("some", tmp_path / "some.csv", source.parent),
        ("csv", tmp_path / "firsts.csv", source.parent),
        ("tar", tmp_path / "ucm-{0..0}.tar", None),
    ):
        out = tmp_path / f"{name}.safetensors"
        asked = dataclasses.replace(plain, captions=str(captions), data=data, out=out)
        if name == "tar":  # in two pieces
            assert train(dataclasses.replace(asked, max_steps=1)).made == 1
        outcomes.append(train(asked))
        first = losses(out)[0]
        assert first["loss"] == pytest.approx(math.log(2) + (2 - 0.01) / 2, abs=1e-4)  # "no" is "yes"
        assert losses(out)[2]["loss"] < first["loss"]
        for step in Checkpoints(out).steps():  # they are large
            Checkpoints(out).path(step).unlink()
    assert [outcome.steps for outcome in outcomes] == [120, 40, 40]
    assert same(outcomes[1].out, outcomes[2].out)
    zoc = dataclasses.replace(plain, method="zoc", lr=1e-3, captions=str(tmp_path / "firsts.csv"), data=source.parent)
    for name in ("zoc-once", "zoc-twice"):
        asked = dataclasses.replace(zoc, out=tmp_path / f"{name}.safetensors")
        if name == "zoc-twice":
            assert train(dataclasses.replace(asked, max_steps=1)).made == 1
        outcomes.append(train(asked))
    assert same(outcomes[3].out, outcomes[4].out)
    assert losses(outcomes[3].out)[2]["loss"] < losses(outcomes[3].out)[0]["loss"]
    recipe = weights_of.recipe_of(outcomes[0].out)
    assert (recipe["captions"]["pairs"], recipe["captions"]["images"]) == (100, 20)


def test_the_loop_provides_the_documented_interface() -> None:
    assert TrainedMethod.__abstractmethods__ >= {"module", "inputs", "embed", "loss"}
    assert TrainingData().captions == [] and json.dumps(dataclasses.asdict(Optimiser()))
