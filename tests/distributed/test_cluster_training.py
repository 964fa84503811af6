"""A training on Ray: the curve of one process, a worker that dies, errors that are not retried."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from oodbench.data.glyphs import render, world
from oodbench.distributed.training import train as on_ray
from oodbench.errors import Diverged, UserError
from oodbench.pipeline import weights
from oodbench.training.checkpoints import Checkpoints
from oodbench.training.losses import read_losses
from oodbench.training.plan import TrainRequest
from oodbench.training.train import TrainWatch, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray Train's own are many
    pytest.mark.usefixtures("cluster"),
]

TOY = '''"""Toy: a linear "no" (Nobody, Nowhere 2000)."""
import os, pathlib, signal
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import nn
from torch.nn.functional import normalize, softplus
from oodbench.method import Needs, Optimiser, TrainedMethod

@dataclass(frozen=True)
class Toy(TrainedMethod):
    """Far from what a linear map of the class name says."""

    needs: ClassVar[Needs] = Needs.FEATURES | Needs.WEIGHTS
    optimiser: ClassVar[Optimiser] = Optimiser(lr=1e-3, warmup=2, epochs=3, batch=16)
    explode: int = -1
    die: str = ""

    def fit(self, task):
        return None

    def score(self, batch, task, state):
        return batch.features.sum(-1)

    def module(self, encoder):
        width = encoder.text(["a"]).shape[1]
        return nn.Sequential(nn.Linear(width, width), nn.Dropout(0.2), nn.Linear(width, width))

    def inputs(self, pairs, encoder):
        mark = pathlib.Path(self.die[1:])  # @PATH: as a file it would be part of what is trained
        if self.die and pairs.step == 9 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        factor = float("nan") if pairs.step == self.explode else 1
        return {"image": pairs.features, "text": pairs.text(encoder) * factor}

    def embed(self, module, inputs):
        return {"image": inputs["image"], "no": normalize(module(inputs["text"]), dim=-1)}

    def loss(self, embedded):
        logits = 10 * embedded["image"] @ embedded["no"].T
        return {"own": softplus(logits.diagonal()).mean(), "others": 0.5 * softplus(-logits).mean()}
'''


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy.py, and captions.csv of 96 pairs."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "toy.py").write_text(TOY)
    (folder / "images").mkdir()
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "caption"])
        for i in range(96):
            Image.fromarray(render.image("pairs", i)).save(folder / f"images/{i}.png")
            writer.writerow([f"images/{i}.png", world.caption(i)])
    return folder


def request(data: Path, out: Path, **options: Any) -> TrainRequest:
    captions, store = str(data / "captions.csv"), out.parent / "s"
    plain = TrainRequest("toy", plugins=(data / "toy.py",), captions=captions, device="cpu", store=store, chunk=4)
    return dataclasses.replace(plain, out=out, **options)


@pytest.fixture
def ask(data: Path, tmp_path: Path) -> Callable[..., TrainRequest]:
    return lambda name, **options: request(data, tmp_path / f"{name}.safetensors", **options)


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of an undisturbed training in this process."""
    return train(request(data, tmp_path_factory.mktemp("alone") / "alone.safetensors")).out


def losses(path: Path | None) -> list[dict[str, Any]]:
    assert path
    return read_losses(Checkpoints(path).folder / "losses.jsonl")


def equal(one: Path, other: Path) -> None:
    for first, second in zip(losses(one), losses(other), strict=True):
        assert first["terms"] == pytest.approx(second["terms"], rel=1e-5) and first["step"] == second["step"]
    a, b = load_file(one), load_file(other)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_two_workers_give_the_curve_of_one_process(ask: Callable[..., TrainRequest], alone: Path) -> None:
    ready: list[Any] = []
    steps: list[int] = []
    watch = TrainWatch(ready=ready.append, step=lambda report: steps.append(report.step))
    pair = on_ray(ask("pair"), "auto", 2, watch)
    assert (pair.done, pair.steps, pair.made) == (18, 18, 18) and steps == list(range(1, 19))
    assert ready[0].pairs == 96 and ready[0].plan.job.info.name == "toy"
    assert weights.recipe_of(pair.out)["processes"] == 2
    equal(alone, pair.out)
    assert not [path for path in pair.out.parent.iterdir() if path.name.endswith(".ray")]


def test_a_worker_that_dies_resumes_from_the_checkpoint(
    ask: Callable[..., TrainRequest], alone: Path, tmp_path: Path
) -> None:
    ready: list[Any] = []
    asked = ask("pair", checkpoint_every=4, settings=(f"toy.die=@{tmp_path / 'died'}",))
    pair = on_ray(asked, "auto", 2, TrainWatch(ready=ready.append))
    assert (tmp_path / "died").exists() and [one.done for one in ready] == [0, 8]
    equal(alone, pair.out)


def test_a_restart_discards_once_and_only_if_it_can_begin(
    ask: Callable[..., TrainRequest], alone: Path, tmp_path: Path
) -> None:
    kept = train(ask("pair", max_steps=5, checkpoint_every=4))
    wrong = ask("pair", restart=True, batch=15)
    with pytest.raises(UserError, match="a batch of 15 cannot be divided evenly"):
        on_ray(wrong, "auto", 2)
    assert Checkpoints(kept.out).steps()  # what was there is still there
    ready: list[Any] = []
    asked = ask("pair", restart=True, checkpoint_every=4, settings=(f"toy.die=@{tmp_path / 'died'}",))
    pair = on_ray(asked, "auto", 2, TrainWatch(ready=ready.append))
    assert (tmp_path / "died").exists() and [one.done for one in ready] == [0, 8]  # a worker's death is not a restart
    equal(alone, pair.out)


def test_a_nan_loss_is_not_retried(ask: Callable[..., TrainRequest]) -> None:
    with pytest.raises(UserError, match="--num-workers 3: the Ray cluster has room for 2"):
        on_ray(ask("many"), "auto", 3)
    steps: list[int] = []
    with pytest.raises(Diverged, match="the loss of step 4 is not finite"):
        on_ray(
            ask("nan", settings=("toy.explode=3",)),
            "auto",
            2,
            TrainWatch(step=lambda report: steps.append(report.step)),
        )
    assert steps == [1, 2, 3]
