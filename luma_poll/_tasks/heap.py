"""A heap whose entries can be removed."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Entry(Generic[T]):
    """An item in a heap."""

    item: T
    removed: bool = False


class Heap(Generic[T]):
    """Items ordered by key, the least first; items with equal keys in the order they came.

    Adding, removing and taking the first cost O(log n) on average.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry[T]]] = []
        self._numbers = count()
        self._removed = 0  # entries that are still in the list

    def __len__(self) -> int:
        return len(self._heap) - self._removed

    def __iter__(self) -> Iterator[T]:
        """All items, in no order."""
        return (entry.item for _, _, entry in self._heap if not entry.removed)

    def push(self, key: float, item: T) -> Entry[T]:
        """Add an item; return its entry, for `remove`."""
        entry = Entry(item)
        heapq.heappush(self._heap, (key, next(self._numbers), entry))
        return entry

    def remove(self, entry: Entry[T]) -> None:
        """Remove an item. Removing it a second time does nothing."""
        if entry.removed:
            return
        entry.removed = True
        self._removed += 1
        if self._removed > len(self._heap) / 2:  # many were removed behind one that stays first
            self._heap = [each for each in self._heap if not each[2].removed]
            heapq.heapify(self._heap)
            self._removed = 0

    def first(self) -> T | None:
        """Return the item with the least key, or None if the heap is empty."""
        self._drop_removed()
        return self._heap[0][2].item if self._heap else None

    def drop_first(self) -> None:
        """Remove the item with the least key."""
        self._drop_removed()
        heapq.heappop(self._heap)[2].removed = True

    def pop_up_to(self, key: float) -> Iterator[T]:
        """Remove and yield all items whose key is at most `key`, one after the other."""
        self._drop_removed()
        while self._heap and self._heap[0][0] <= key:
            _, _, entry = heapq.heappop(self._heap)
            entry.removed = True
            yield entry.item
            self._drop_removed()

    def _drop_removed(self) -> None:
        while self._heap and self._heap[0][2].removed:
            heapq.heappop(self._heap)
            self._removed -= 1
