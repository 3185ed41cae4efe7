"""Decoded images that outlive a run: in a process that executes many, the same file is decoded once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor


class DecodedImages:
    """The images used last, up to ``budget`` bytes; with the default of none, nothing is kept."""

    def __init__(self, budget: int = 0) -> None:
        self.budget = budget
        self._images: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, decode: Callable[[], Tensor]) -> Tensor:
        """The image of ``key`` (content of the file, and what was done with it), decoded if it is not here."""
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
                return self._images[key]
        image = decode()
        with self._lock:
            if key not in self._images and image.numel() <= self.budget:
                self._images[key] = image
                self._bytes += image.numel()
                while self._bytes > self.budget:
                    self._bytes -= self._images.popitem(last=False)[1].numel()
        return image


#: Of this process. Whoever executes many runs in it sets the budget.
DECODED = DecodedImages()
