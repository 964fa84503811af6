"""A training with all that is seen of it: the bar, and live curves in MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

from oodbench import api as session
from oodbench.cli.bar import Bar, log
from oodbench.tracking.curves import Sender, following
from oodbench.training.plan import place
from oodbench.training.request import TrainRequest
from oodbench.training.train import Outcome, Ready, TrainWatch, train


def followed(
    request: TrainRequest,
    tracking_uri: str | None,
    ready: Callable[[Ready], None],
    carry_out: Callable[[TrainRequest, TrainWatch], Outcome] = train,
) -> Outcome:
    """Train and show. `tracking_uri` None: the sqlite file beside the weights; "" or "none": no MLflow.

    `carry_out` trains: in this process, or elsewhere.
    """
    tracker = session.tracker_of(place(request), tracking_uri)
    if os.environ.get("RANK", "0") != "0":
        return train(request)
    with Bar() as bar, ExitStack() as stack:
        sender = Sender()

        def begin(one: Ready) -> None:
            nonlocal sender
            ready(one)
            bar.start(one.done, one.steps)
            if tracker is not None:
                sender = stack.enter_context(following(tracker, one.folder))

        outcome = carry_out(request, TrainWatch(bar.extracting, begin, bar.step))
        sender.status = "KILLED" if outcome.signal else "FINISHED"
    if sender.reason:
        log.warning("%s", sender.reason)
    return outcome
