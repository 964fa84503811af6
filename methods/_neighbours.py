"""Exact search for the largest inner products with a bank of vectors, in chunks of the bank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from oodbench.method import Task, UserError

from ._id_features import calibration

PRODUCTS = 1 << 24  # of a chunk in memory, for each thread that scores: 64 MB, and with what is sorted 128


@dataclass(frozen=True)
class Nearest:
    """The k largest products of every query in descending order, and their rows in the bank."""

    products: Float[Tensor, "b k"]
    rows: Int64[Tensor, "b k"]


def nearest(
    queries: Float[Tensor, "b d"], bank: Float[Tensor, "n d"], k: int, offsets: Float[Tensor, " n"] | None = None
) -> Nearest:
    """Return the k largest of queries @ bank^T + offsets; a bank of half precision is widened chunk by chunk."""
    products, rows = queries.new_empty(len(queries), 0), queries.new_empty(len(queries), 0).long()
    chunk = max(1, PRODUCTS // max(1, *queries.shape))  # rows whose products, and whose widened copy, fit
    for start in range(0, len(bank), chunk):
        part = bank[start : start + chunk].to(queries.dtype)
        all_products = queries @ part.T
        if offsets is not None:
            all_products += offsets[start : start + chunk]
        found = all_products.topk(min(k, len(part)))
        products = torch.cat([products, found.values], dim=1)
        rows = torch.cat([rows, found.indices + start], dim=1)
        products, order = products.topk(min(k, products.shape[1]))
        rows = rows.gather(1, order)
    return Nearest(products, rows)


def count_images(task: Task, k: int, method: str) -> int:
    """Return how many calibration images there are; fewer than k is a UserError."""
    images = sum(batch.size for batch in calibration(task))
    if images < k:
        raise UserError(
            f"k={k} neighbours of {images} calibration images; --set {method}.k={images}, or give more images"
        )
    return images
