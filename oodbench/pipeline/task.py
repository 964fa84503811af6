"""The device, the encoder, the task and the resources of a run, in this process or on a Ray worker."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from oodbench.data.imageset import ImageSet
from oodbench.errors import UserError
from oodbench.pipeline import assign_weights, extract
from oodbench.pipeline.events import Event, Watch
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.plan import Plan
from oodbench.pipeline.score import ENGINE, feature_batches
from oodbench.pipeline.text_embeddings import WordAverage, class_embeddings, prompt_embeddings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from oodbench.encoder.openclip import LoadedEncoder
    from oodbench.method import Batch, MethodResources, Task
    from oodbench.pipeline.extract import EmbeddedSet


def pick_device(asked: str) -> str:
    """Return the device to compute on: `auto` is the GPU if there is one. Raise UserError if it cannot be used."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=asked)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"--device {asked} cannot be used: {reason}; without a GPU, use --device cpu") from error
    return asked


def encoder_loader(plan: Plan, device: str) -> Callable[[], LoadedEncoder]:
    """Return a function that returns the plan's encoder; the first call loads it."""

    @functools.cache
    def load() -> LoadedEncoder:
        from oodbench.encoder.openclip import load_encoder

        return load_encoder(plan.encoder, device, plan.request.precision)

    return load


def make_task(plan: Plan, encoder: Callable[[], LoadedEncoder], device: str, watch: Watch) -> Task:
    """Return the Task of the plan's methods, which reads from the store, or computes and stores."""
    import torch

    from oodbench.method import Sources, Task

    def text(templates: str, average: str = "normalised") -> torch.Tensor:
        return torch.from_numpy(class_embeddings(plan, templates, encoder, watch.prompts, average)).to(device)

    def words(prompts: tuple[str, ...], templates: str = "", average: str = "normalised") -> torch.Tensor:
        chosen = WordAverage(templates, average) if templates else None
        return torch.from_numpy(prompt_embeddings(plan, prompts, encoder, watch.prompts, chosen)).to(device)

    def calibration(*, labelled: bool = False) -> Iterable[Batch]:
        images = plan.labelled if labelled else plan.calibration
        assert images  # make_plan() lists them if a method declares Needs.CALIBRATION
        return feature_batches(extract_images(plan, images, encoder, watch), device, labelled=labelled)

    sources = Sources(text, words, encoder, calibration, functools.partial(calibration, labelled=True))
    return Task(plan.classes.lines, plan.card.scale, sources, plan.request.seed)


def method_resources(plan: Plan, job: Job, device: str) -> MethodResources:
    """Return the resources of one method of the plan: its weights, and its cache in the store."""
    import torch

    from oodbench.method import MethodResources

    images = None  # the calibration images that fit() reads, and the key of their embeddings
    if listing := plan.calibration_of(job):
        images = {"list": listing.digest, **plan.extraction_job(listing).inputs(0, len(listing))}
        if job.reads_labels:
            images["labels"] = listing.list_digest
        if plan.request.on_error == "skip":
            images["on_error"] = "skip"

    def keep(depends: Mapping[str, object], make: Callable[[], torch.Tensor]) -> torch.Tensor:
        inputs = {
            **assign_weights.cache_inputs(job, plan.classes.digest, depends),
            "encoder": plan.card.identity,
            "precision": plan.request.precision,
            "seed": plan.request.seed,
            "engine": ENGINE,
            "calibration": images,
        }
        entry = plan.store.find("kept", inputs)
        if entry is None:
            arrays = {"kept": make().detach().cpu().numpy()}
            entry = plan.store.write("kept", inputs, arrays, {"method": job.info.name})
        return torch.from_numpy(np.array(entry.array("kept"))).to(device)

    return MethodResources(
        functools.cache(lambda: assign_weights.load_weights(job, plan.encoder, plan.store, device)), keep
    )


def extract_images(plan: Plan, listing: ImageSet, encoder: Callable[[], LoadedEncoder], watch: Watch) -> EmbeddedSet:
    """Return the embeddings of an image set; report to `watch` if some of them have to be computed."""
    work = plan.extraction_job(listing)
    missing = work.missing()
    if not missing:
        return extract.extract(work, encoder)
    task, began = f"extract[{listing.dataset.name}]", time.perf_counter()
    watch.event(Event("started", "extract", task))
    embedded = extract.extract(work, encoder, watch.extracting(listing.dataset.name, work.images()))
    watch.event(Event("done", "extract", task, missing, round(time.perf_counter() - began, 3)))
    return embedded
