"""What `oodbench run --dry-run --ray ...` prints: which workers would be started, and how much would travel."""

from __future__ import annotations

import pickle

from oodbench.cli.listings import bytes_text
from oodbench.distributed.cluster import Demand, chosen, connected, here, layout, nodes
from oodbench.distributed.payload import pack, unmark
from oodbench.distributed.worker import parts
from oodbench.pipeline.plan import Plan


def describe(plan: Plan) -> str:
    """The placement in words; "" for a run in this process. UserError when the cluster is not there or too small."""
    request = plan.request
    where = chosen(request.ray, request.device)
    if not where:
        return ""
    if where == "local":
        offered = here()
    else:
        with connected(where):
            offered = nodes()
    found = layout(Demand(request.device, request.actors, request.gpus_per_actor), offered)
    cpus, gpus = (sum(node.get(kind, 0) for node in offered) for kind in ("CPU", "GPU"))
    works = parts(plan)
    missing = [s for work in works for s in work.shards() if not work.store.has("embeddings", work.inputs(*s))]
    card = plan.card
    width = card.embed_dim + (0 if card.activation == "embedding" else card.width)
    images = sum(stop - start for start, stop in missing)
    parcel = pack(plan)
    unmark(parcel)
    return "\n".join(
        (
            "",
            f"ray        {where}: {len(offered)} nodes with {cpus:g} CPU and {gpus:g} GPU",
            f"  {found.words()}",
            f"  {len(missing):,} shards to encode, about {bytes_text(images * width * 4)} to the store",
            f"  {bytes_text(len(pickle.dumps(parcel)))} sent to every worker; scores and embeddings go by the store",
        )
    )
