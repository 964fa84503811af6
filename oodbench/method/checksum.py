"""Checksums of tensors' bits, and the detection of writes into tensors that several methods read.

torch counts its own writes in place (`Tensor._version`), but sees neither writes through NumPy, which shares the memory
(`batch.features.numpy()`, scikit-learn with copy=False), nor writes through `Tensor.data`.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

COLUMNS = 256  # 64-bit words in a row of the matrix that is summed
ROWS_PER_BLOCK = 2048  # 4 MB


def checksum(tensor: Tensor) -> bytes:
    """Return 16 bytes that change with any bit of a tensor, and with the order of its elements.

    The memory is read as a matrix of 64-bit words. The sums of its rows together with the sums of its columns detect
    what one plain sum does not: elements that were sorted, reversed or swapped. For the row sums every word loses its
    lowest 16 bits, so that its highest bit, the sign of a float, counts in full; modulo 2^64 only its parity would.
    """
    memory = tensor.detach().contiguous().reshape(-1)
    if memory.storage_offset() * memory.element_size() % 8:
        memory = memory.clone()  # words begin at multiples of 8 bytes
    memory = memory.view(torch.uint8)
    full = len(memory) // (8 * COLUMNS) * (8 * COLUMNS)  # bytes in full rows
    columns, sums = torch.zeros(COLUMNS, dtype=torch.int64, device=memory.device), [memory[full:].long()]
    for rows in torch.split(memory[:full].view(torch.int64).view(-1, COLUMNS), ROWS_PER_BLOCK):
        columns += rows.sum(0)
        sums.append((rows >> 16).sum(1))
    return hashlib.blake2b(torch.cat([columns, *sums]).cpu().numpy().tobytes(), digest_size=16).digest()


class SharedTensors:
    """Tensors that several methods read, each with its checksum from before the first method read it.

    With `copies`, a copy of each is kept, from which restore() undoes writes.
    """

    def __init__(self, *, copies: bool = False) -> None:
        self._copies = copies
        self._tracked: dict[int, tuple[Tensor, int, bytes, Tensor | None]] = {}

    def track(self, tensor: Tensor) -> Tensor:
        """Record the checksum of a tensor unless it is recorded already, and return the tensor itself."""
        if id(tensor) not in self._tracked:
            copied = tensor.detach().clone() if self._copies else None
            self._tracked[id(tensor)] = (tensor, _writes(tensor), checksum(tensor), copied)
        return tensor

    def intact(self) -> bool:
        """Return whether no tensor was written into, by torch or otherwise."""
        tracked = list(self._tracked.values())
        return all(_writes(tensor) == count and checksum(tensor) == bits for tensor, count, bits, _ in tracked)

    def restore(self) -> None:
        """Write the copies back into the same memory, which a method's state may share."""
        for tensor, _, bits, copied in list(self._tracked.values()):
            if copied is not None:
                if tensor.shape == copied.shape:
                    tensor.data.copy_(copied)
                else:
                    tensor.data = copied.clone()
                self._tracked[id(tensor)] = (tensor, _writes(tensor), bits, copied)

    def forget(self, *tensors: Tensor) -> None:
        """Stop tracking these tensors; without any, all tensors."""
        for key in [id(tensor) for tensor in tensors] or [*self._tracked]:
            self._tracked.pop(key, None)


def _writes(tensor: Tensor) -> int:
    """Return torch's count of in-place writes, which tensors created in inference mode do not have."""
    return 0 if tensor.is_inference() else tensor._version
