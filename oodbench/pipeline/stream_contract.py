"""The contract of a StreamMethod, checked on streams of the toy dataset."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import cast

import torch

from oodbench.method import StreamMethod, check_predictions, registry
from oodbench.method.toy import CLASSES
from oodbench.pipeline.batches import contents, difference
from oodbench.pipeline.trial import STEP, Trial, auroc_problem

OTHERS, LARGE_STEP = 2304, 128  # images of the stream between two equal streams, and of its steps


def gives_one_finite_score_per_image(t: Trial) -> str:
    """step() returns [b] finite scores, for one image and for many."""
    images, _ = t.world.stream()
    scores = t.stream(images, [1, 2, len(images) - STEP - 3, STEP]).scores
    return "" if scores.isfinite().all() else "a score is NaN or infinite"


def is_reset_by_begin(t: Trial) -> str:
    """A stream scores the same after begin(), also when the method is imported again and scores other images first."""
    images, _ = t.world.stream()
    first = t.scores(images)
    if not t.same(first, t.scores(images)):
        return (
            "the same stream scores differently the second time: learning belongs to the state that step() returns, "
            "and random numbers must follow from task.seed"
        )
    with registry.fresh_import(t.info):
        again = t.again()
        if not t.same(first, again.scores(images)):
            return "scores of the same stream differ between runs"
        again.scores(t.world.ood)
        again.scores(t.world.id.flip(0))
        return "" if t.same(first, again.scores(images)) else "a stream scores differently after other streams"


def keeps_nothing_outside_its_state(t: Trial) -> str:
    """After a stream of thousands of images, attributes, begin() and the scores of a stream are as before."""
    images, _ = t.world.stream()
    attributes, begun, first = contents(vars(t.method)), contents(t.begin(), "state"), t.scores(images)
    t.stream(torch.cat([t.world.ood, t.world.id]).repeat(OTHERS // len(images), 1, 1, 1), LARGE_STEP)
    if (place := difference(attributes, contents(vars(t.method)))) is not None:
        return f"step() changes self{place}; learning belongs to the state that step() returns"
    if (place := difference(begun, contents(t.begin(), "state"))) is not None:
        return f"begin() returns another {place} after a stream; it must begin each stream the same way"
    if t.same(first, t.scores(images)):
        return ""
    return f"the same stream scores differently after {OTHERS:,} other images: learning belongs to the state"


def does_not_use_later_images(t: Trial) -> str:
    """The scores of a step do not depend on later images, and do not change after they were returned."""
    images, _ = t.world.stream()
    seen = 3 * STEP
    one = t.stream(images)
    other = t.stream(torch.cat([images[:seen], t.world.train[: len(images) - seen]]))
    if not t.same(one.scores[:seen], other.scores[:seen]):
        return "scores of a step differ with the images of later steps"
    later = torch.cat([scores.detach().cpu().double() for scores in one.returned])
    return "" if torch.equal(one.scores, later) else "step() changes scores that it returned before; return a clone"


def declares_sees_itself(t: Trial) -> str:
    """Unless `sees_itself` is True, no image's score changes with later images of its batch.

    This detects a method that learns from a whole batch before it scores the batch. It cannot detect one that learns
    from each image just before it scores that image: its score is a function of the image and of those before it,
    whatever it declares.
    """
    if cast(StreamMethod[object], t.method).sees_itself:
        return ""
    images, _ = t.world.stream()
    half, before = STEP // 2, 3 * STEP
    for start in (0, before):  # an empty memory, and one that is filled
        same = images[: start + half]
        first, second = (
            t.stream(torch.cat([same, rest[:half]])).scores[: start + half]
            for rest in (images[start + half :], t.world.train)
        )
        if not t.same(first, second):
            return (
                "an image's score changes with later images of its batch, so that it may be learnt from before it is "
                "scored; write sees_itself: ClassVar[bool] = True"
            )
    return ""


def leaves_its_input_alone(t: Trial) -> str:
    """step() and predict() do not write into images of this or an earlier step, nor into class vectors."""
    images, _ = t.world.stream()
    output = t.stream(images)
    if not t.task.intact():
        return "step() changed in place a tensor of task.text() or task.logits()"
    if not all(batch.intact() for batch in output.batches):
        return "step() changed in place its input or that of an earlier step; clone it first"
    t.predictions(output.batches[0])
    return "" if t.task.intact() and output.batches[0].intact() else "predict() changed its input in place"


def predicts_classes(t: Trial) -> str:
    """step() returns one class index per image in all steps or in none; then predict() does, or returns None."""
    images, _ = t.world.stream()
    output = t.stream(images)
    if len(output.predictions) not in (0, len(images)):
        return "step() returns class indices in some steps only"
    predictions = t.predictions(output.batches[0])
    if predictions is not None and not len(output.predictions):
        check_predictions(predictions, output.batches[0].size, len(CLASSES))
    return ""


def ranks_id_above_ood(t: Trial) -> str:
    """Higher means more in-distribution: in a shuffled stream ID images of the toy dataset score above OOD images."""
    images, is_id = t.world.stream()
    scores = t.scores(images)
    return auroc_problem(scores[is_id], scores[~is_id])


def has_a_picklable_state(t: Trial) -> str:
    """The state can be pickled in the middle of a stream, which then continues with the same scores."""
    images, _ = t.world.stream()
    seen = 3 * STEP
    state = t.stream(images[:seen]).state
    try:
        copied = pickle.loads(pickle.dumps(state))
    except Exception as error:
        return f"the state cannot be pickled: {error}"
    first, second = (t.stream(images[seen:], state=one).scores for one in (state, copied))
    return "" if t.same(first, second) else "the state scores differently after pickling"


CHECKS: tuple[Callable[[Trial], str], ...] = (
    gives_one_finite_score_per_image,
    is_reset_by_begin,
    keeps_nothing_outside_its_state,
    does_not_use_later_images,
    declares_sees_itself,
    leaves_its_input_alone,
    predicts_classes,
    ranks_id_above_ood,
    has_a_picklable_state,
)
QUICK = (gives_one_finite_score_per_image, leaves_its_input_alone, predicts_classes)
