"""Images on their way to a device: as bytes, and one batch ahead as long as they have to be decoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ptmst.data.pairs import Pairs
from ptmst.support import devices

IMAGES_AT_ONCE = 256
"""Images that are embedded at a time where nothing is trained."""


def image_batches(pairs: Pairs, indices: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Normalized images, float32 [B, 3, H, W] on `device`, of each of several image indices int64 [B], in their order.

    They are `pairs.images` to the bit, but cross to the device as uint8 and are normalized there. As long as images
    have to be decoded, a thread does so for the next batch while the one before it is used.

    Raises InputError in place of the batch with a file that is not a whole, readable image, and names the file.
    """
    for pixels in map(pairs.pixels, indices) if pairs.in_memory else _ahead(pairs.pixels, indices):
        yield pairs.normalized(devices.sent(pixels, device))


def _ahead(read: Callable[[Tensor], Tensor], indices: Iterable[Tensor]) -> Iterator[Tensor]:
    """`map(read, indices)`, where the next one is read, on a thread, while the one before it is used."""
    thread = ThreadPoolExecutor(1, "images")
    reading: deque[Future[Tensor]] = deque()
    try:
        for index in indices:
            reading.append(thread.submit(read, index))
            if len(reading) > 1:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
