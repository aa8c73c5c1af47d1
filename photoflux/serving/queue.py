"""The line before the engine: bounded, and fair, since whoever asks most does not wait least."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Owned(Protocol):
    @property
    def owner(self) -> str: ...


T = TypeVar("T", bound=Owned)


class Full(Exception):
    """There is no room in the line."""


class Closed(Exception):
    """Nothing more is taken, and nothing is left."""


class FairQueue(Generic[T]):
    """Owners take turns; an owner's own items keep their order. At most `limit` items wait."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()
        self._count, self._closed = 0, False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Raises Full or Closed."""
        with self._changed:
            if self._closed:
                raise Closed
            if self._count >= self.limit:
                raise Full
            self._lines.setdefault(item.owner, deque()).append(item)
            self._count += 1
            self._changed.notify()

    def get(self, timeout_s: float | None = None) -> T:
        """The next item, waited for. Raises Closed when there will be none, TimeoutError when there was none in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._count or self._closed, timeout_s):
                raise TimeoutError
            if not self._count:
                raise Closed
            owner, line = self._lines.popitem(last=False)
            item = line.popleft()
            if line:
                self._lines[owner] = line  # to the end: the others first
            self._count -= 1
            return item

    def peek(self) -> T | None:
        """What `get` would give now, left where it is."""
        with self._changed:
            return next(iter(self._lines.values()))[0] if self._lines else None

    def remove(self, item: T) -> bool:
        """Take an item out of the line; False where it is no longer in it."""
        with self._changed:
            line = self._lines.get(item.owner, deque())
            if item not in line:
                return False
            line.remove(item)
            if not line:
                del self._lines[item.owner]
            self._count -= 1
            return True

    def close(self) -> None:
        """Take nothing more; what waits can still be got."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def ahead_of(self, owner: str) -> Iterator[T]:
        """What would be drawn before a new item of this owner: of every line as much as this owner has waiting, and one."""
        with self._changed:
            turns = len(self._lines.get(owner, ())) + 1
            found = [item for name, line in self._lines.items() for item in [*line][: turns - (name == owner)]]
        yield from found

    def __len__(self) -> int:
        return self._count
