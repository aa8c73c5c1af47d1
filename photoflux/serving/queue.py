"""The queue before the engine: bounded, and fair to owners, whoever asks most."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class HasOwner(Protocol):
    @property
    def owner(self) -> str: ...


T = TypeVar("T", bound=HasOwner)


class QueueFull(Exception):
    """The queue is full."""


class QueueClosed(Exception):
    """The queue is closed and takes no items; on `get`, it is also empty."""


class FairQueue(Generic[T]):
    """Owners take turns; an owner's own items keep their order. At most `limit` items wait."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._by_owner: OrderedDict[str, deque[T]] = OrderedDict()
        self._count, self._closed = 0, False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Raises QueueFull or QueueClosed."""
        with self._changed:
            if self._closed:
                raise QueueClosed
            if self._count >= self.limit:
                raise QueueFull
            self._by_owner.setdefault(item.owner, deque()).append(item)
            self._count += 1
            self._changed.notify()

    def get(self) -> T:
        """The next item, waited for. Raises QueueClosed when the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._count or self._closed)
            if not self._count:
                raise QueueClosed
            owner, items = self._by_owner.popitem(last=False)
            item = items.popleft()
            if items:
                self._by_owner[owner] = items  # to the end: the other owners come first
            self._count -= 1
            return item

    def peek(self) -> T | None:
        """The item that `get` would give now, without removing it."""
        with self._changed:
            return next(iter(self._by_owner.values()))[0] if self._by_owner else None

    def remove(self, item: T) -> bool:
        """Take an item out of the queue; False where it is not in it."""
        with self._changed:
            items = self._by_owner.get(item.owner, deque())
            if item not in items:
                return False
            items.remove(item)
            if not items:
                del self._by_owner[item.owner]
            self._count -= 1
            return True

    def close(self) -> None:
        """Take no more items; those that wait can still be got."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def ahead_of(self, owner: str) -> Iterator[T]:
        """Items that `get` gives before a new one of this owner: of every owner as many as this one has waiting, plus one."""
        with self._changed:
            turns = len(self._by_owner.get(owner, ())) + 1
            found = [item for name, items in self._by_owner.items() for item in [*items][: turns - (name == owner)]]
        yield from found

    def __len__(self) -> int:
        return self._count
