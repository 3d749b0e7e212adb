"""Images on their way to a device: as bytes, and one batch ahead as long as they have to be decoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from ptmst.support import devices

IMAGES_AT_ONCE = 256
"""Images that are embedded at a time where nothing is trained."""


class Images(Protocol):
    """Where batches come from: the images of `Pairs`, or views of them."""

    @property
    def in_memory(self) -> bool:
        """Whether nothing has to be decoded."""

    def pixels(self, indices: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] on the CPU, for indices int64 [B]."""

    def normalized(self, pixels: Tensor) -> Tensor:
        """float32 images of pixels uint8 [..., 3, H, W], on the device where those are."""


def image_batches(images: Images, indices: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Normalized images, float32 [B, 3, H, W] on `device`, of each of several indices int64 [B], in their order.

    They cross to the device as uint8 and are normalized there. As long as images have to be decoded, a thread does so
    for the next batch while the one before it is used.

    Raises InputError in place of the batch with a file that is not a whole, readable image, and names the file.
    """
    for pixels in map(images.pixels, indices) if images.in_memory else _ahead(images.pixels, indices):
        yield images.normalized(devices.sent(pixels, device))


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
