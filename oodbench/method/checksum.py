"""Checksums of tensors' bits, and the tensors that several methods read: a write into one of them is found.

torch counts its own writes in place (`Tensor._version`), but sees neither those through NumPy, which shares the memory
(`batch.features.numpy()`, scikit-learn with copy=False), nor those through `Tensor.data`.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

WORDS = 256  # 64-bit words in a row of the sums
BLOCK = 2048  # rows at once: 4 MB


def checksum(tensor: Tensor) -> bytes:
    """16 bytes that change with any bit of a tensor, and with the order of its elements.

    The memory is read as a matrix of 64-bit words. The sums of its rows together with those of its columns see what
    one plain sum does not: elements that were sorted, reversed or swapped. For the rows every word loses its lowest
    16 bits, so that its highest bit, the sign of a float, counts in full; modulo 2^64 only its parity would.
    """
    memory = tensor.detach().contiguous().reshape(-1)
    if memory.storage_offset() * memory.element_size() % 8:
        memory = memory.clone()  # words begin at multiples of 8 bytes
    memory = memory.view(torch.uint8)
    whole = len(memory) // (8 * WORDS) * (8 * WORDS)
    columns, sums = torch.zeros(WORDS, dtype=torch.int64, device=memory.device), [memory[whole:].long()]
    for rows in torch.split(memory[:whole].view(torch.int64).view(-1, WORDS), BLOCK):
        columns += rows.sum(0)
        sums.append((rows >> 16).sum(1))
    return hashlib.blake2b(torch.cat([columns, *sums]).cpu().numpy().tobytes(), digest_size=16).digest()


class Lent:
    """Tensors that several methods read, each with its checksum from before any of them had it.

    `copies`: a copy of each is kept, too, from which restore() puts right what was written into.
    """

    def __init__(self, *, copies: bool = False) -> None:
        self._copies = copies
        self._known: dict[int, tuple[Tensor, int, bytes, Tensor | None]] = {}

    def out(self, tensor: Tensor) -> Tensor:
        """The tensor itself, known from now on."""
        if id(tensor) not in self._known:
            whole = tensor.detach().clone() if self._copies else None
            self._known[id(tensor)] = (tensor, _writes(tensor), checksum(tensor), whole)
        return tensor

    def intact(self) -> bool:
        """Whether no tensor was written into, by torch or past it."""
        known = list(self._known.values())
        return all(_writes(tensor) == count and checksum(tensor) == bits for tensor, count, bits, _ in known)

    def restore(self) -> None:
        """Write the copies back, into the same memory: what was learnt may lie there, too."""
        for tensor, _, bits, whole in list(self._known.values()):
            if whole is not None:
                if tensor.shape == whole.shape:
                    tensor.data.copy_(whole)
                else:
                    tensor.data = whole.clone()
                self._known[id(tensor)] = (tensor, _writes(tensor), bits, whole)

    def forget(self, *tensors: Tensor) -> None:
        """These are handed out no more; without any, all."""
        for key in [id(tensor) for tensor in tensors] or [*self._known]:
            self._known.pop(key, None)


def _writes(tensor: Tensor) -> int:
    """How often torch wrote in place; tensors made in inference mode do not count it."""
    return 0 if tensor.is_inference() else tensor._version
