"""Limits by person in this process: on requests that are held open, and on work that waits for a place."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request

from api.transport.connections import SHUTDOWN
from api.transport.problems import Problem

HELD_MAX = {"stream": 5, "poll": 16}
"""Event streams and long polls that a person may have open at a time."""
RETRY_S = 5
POLL_THREADS = 4
"""Threads that check for news on behalf of held requests, so that all others stay free for requests that do work."""
CLIENT_CLOSED_REQUEST = 499
"""Status that is logged for a request whose client has disconnected (as nginx does); nobody receives it."""
P = ParamSpec("P")
T = TypeVar("T")


async def is_disconnected(request: Request) -> bool:
    """Whether the client has closed the connection."""
    # the first call may read the end of the body instead
    return await request.is_disconnected() or await request.is_disconnected()


def is_shutting_down(request: Request) -> bool:
    """Whether the server shuts down and waits for open requests."""
    ending = request.scope.get("state", {}).get(SHUTDOWN)
    return ending is not None and ending.is_set()


class HeldRequests:
    """Counts the requests that are held open, by person. Used on the event loop alone, so that it needs no lock."""

    def __init__(self, limit: Mapping[str, int] = HELD_MAX) -> None:
        self._limits, self._held = limit, Counter[tuple[str, str]]()
        self._poll_threads: CapacityLimiter | None = None

    @contextmanager
    def hold(self, kind: str, person: str) -> Iterator[None]:
        """Count a request for as long as it is held. A problem of 429 where the person holds as many as they may."""
        one, limit = (kind, person), self._limits[kind]
        if self._held[one] >= limit:
            raise Problem(
                429,
                "too-many-streams",
                f"You have {limit} requests of this kind open; end one of them first.",
                headers={"Retry-After": str(RETRY_S)},
            )
        self._held[one] += 1
        try:
            yield
        finally:
            self._held[one] -= 1
            if not self._held[one]:
                del self._held[one]

    def count(self, kind: str, person: str) -> int:
        """How many requests of a person are held."""
        return self._held[kind, person]

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a short function for a held request, in one of POLL_THREADS."""
        self._poll_threads = self._poll_threads or CapacityLimiter(POLL_THREADS)
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._poll_threads)


class MemoryBudget:
    """An amount of memory that is handed out in order of arrival."""

    def __init__(self, amount: int) -> None:
        self.amount, self._free = amount, amount
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def take(self, amount: int) -> AsyncIterator[None]:
        """Wait until so much is free, all of it at most, and have it until the end."""
        amount = min(amount, self.amount)
        if self._waiting or self._free < amount:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((amount, turn))
            try:
                await turn
            except BaseException:
                if turn.done() and not turn.cancelled():  # it was granted just then
                    self._release(amount)
                else:
                    with suppress(ValueError):  # it was granted and cancelled
                        self._waiting.remove((amount, turn))
                    self._grant_waiting()
                raise
        else:
            self._free -= amount
        try:
            yield
        finally:
            self._release(amount)

    def _release(self, amount: int) -> None:
        self._free += amount
        self._grant_waiting()

    def _grant_waiting(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            amount, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= amount
                turn.set_result(None)


class PersonShare:
    """One person's part of a `FairLimiter`."""

    def __init__(self, places: int, memory_bytes: int) -> None:
        self.places, self.memory = asyncio.Semaphore(places), MemoryBudget(memory_bytes)


class FairLimiter:
    """Limits concurrent work that takes much memory or time.

    One person gets `per_person` places and half of the memory at most: their further requests wait behind their own, not in front of
    others'.
    """

    def __init__(
        self, places: int, *, per_person: int, wait_s: float, busy_message: str, memory_bytes: int = 0
    ) -> None:
        self.per_person, self.wait_s, self.busy_message = per_person, wait_s, busy_message
        self._places, self._memory = asyncio.Semaphore(places), MemoryBudget(memory_bytes)
        self._own: WeakValueDictionary[str, PersonShare] = WeakValueDictionary()

    @asynccontextmanager
    async def take(self, person: str, memory_bytes: int = 0) -> AsyncIterator[None]:
        """Wait for a place and for memory, and have them until the end. A problem of 503 where none is free in `wait_s` seconds."""
        own = self._own.setdefault(person, PersonShare(self.per_person, self._memory.amount // 2))
        memory_bytes = min(memory_bytes, own.memory.amount)
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self.wait_s):
                    await held.enter_async_context(own.places)
                    await held.enter_async_context(own.memory.take(memory_bytes))
                    await held.enter_async_context(self._places)
                    await held.enter_async_context(self._memory.take(memory_bytes))
            except TimeoutError as error:
                raise Problem(503, "busy", self.busy_message, headers={"Retry-After": str(RETRY_S)}) from error
            yield
