"""What `oodbench run --dry-run` prints: the jobs of a plan, what is stored and what is missing."""

from __future__ import annotations

from oodbench.cli import listings, placement
from oodbench.pipeline.plan import Plan
from oodbench.pipeline.score import find_scores
from oodbench.printable import printable


def describe(plan: Plan) -> str:
    """The plan in words; looks into the store, computes nothing."""
    card = plan.card
    lines = [
        f"benchmark  {plan.benchmark.name}: {plan.benchmark.title}",
        f"encoder    {card.name}, weights {card.weights[:12]}, {card.size[0]}x{card.size[1]} {card.interpolation} "
        f"{card.resize_mode}, scale {card.scale:.4g}, {plan.request.precision}",
        f"classes    {len(plan.classes.lines)} from '{plan.classes.name}'",
        f"store      {plan.store.root}",
        "",
        "images",
    ]
    total = 0
    for listing in plan.listings:
        missing = plan.work(listing).missing()
        total += missing
        state = "stored" if not missing else f"{missing:,} to encode"
        of = f" of {listing.dataset.count:,}" if listing.dataset.count and listing.dataset.count != len(listing) else ""
        lines.append(f"  {listing.dataset.name}: {len(listing):,}{of} images, {state}")
    width = card.embed_dim + (0 if card.activation == "embedding" else card.width)
    lines += [f"  {total:,} images to encode, about {listings.bytes_text(total * width * 4)} to store", "", "jobs"]
    for job in plan.jobs:
        have = [x.dataset.name for x in plan.listings if find_scores(plan, job, x)]
        lacking = [x.dataset.name for x in plan.listings if x.dataset.name not in have]
        state = "stored" if not lacking else f"to score: {', '.join(lacking)}"
        values = ", ".join(f"{k}={v}" for k, v in job.parameters.items())
        lines.append(f"  {job.label} ({values}): {state}")
    lines += [f"  left out: {name}: {reason}" for name, reason in (*plan.left_out, *plan.beyond)]
    placed = [placement.describe(plan)] if plan.request.ray else []
    return "\n".join([*map(printable, lines), *placed]).rstrip()
