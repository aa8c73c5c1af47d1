"""Rates of requests, and waits that grow with each wrong password."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request
from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage, Storage, storage_from_string
from limits.strategies import MovingWindowRateLimiter

from api.transport.addresses import client_key
from api.transport.problems import Problem
from photoflux.errors import InputError

RATES = {
    "login": "240/minute; 1000/10 minutes",
    "form": "240/minute",
    "callback": "240/minute",
    "account": "20/5 minutes",
    "refresh": "30/minute",
    "unknown-token": "60/minute",
    "request": "900/minute",
    "work": "120/minute",
    "complaint": "10/hour",
}
"""Kind -> requests allowed; more than one rate, divided by semicolons, hold together.

By address, generously, since many people may share one: `login` begins a sign-in, which is kept for ten minutes; `form` sends the embedded
provider's password form; `callback` comes back from the provider; `unknown-token` refreshes with a token that never
was; `complaint` files a complaint. By account: `account` finishes a sign-in. By sign-in: `refresh`. By person: `request` is any
request, `work` uploads and starts work.
"""
FAILURES_S = 24 * 3600
"""How long failures are counted, from the first on."""
SWEEP_S = 30.0


@dataclass(frozen=True)
class BackOff:
    """From the failure number `first` on each is followed by a wait: 1 s, 2 s, 4 s … up to `most_s`."""

    first: int
    most_s: int

    def wait_s(self, failures: int) -> int:
        """How long to wait after so many failures."""
        over = failures - self.first
        return min(self.most_s, 2 ** min(over, 20)) if over >= 0 else 0


BACK_OFFS = {
    "password": BackOff(first=5, most_s=900),
    "password-address": BackOff(first=20, most_s=900),
    "password-account": BackOff(first=100, most_s=60),
}
"""Wrong passwords: for an account from one address; from an address, whatever the accounts; for an account, from anywhere."""


class MemoryCounts(MemoryStorage):
    """The library's counters of one process, safe for threads and bounded.

    The library itself sweeps in a timer thread that it starts anew with nearly every request: two threads at once start one timer
    twice, which raises; and it goes over every key that it ever saw, since it drops none. Here the thread that counts drops expired
    keys, every SWEEP_S at most.
    """

    def __init__(self) -> None:
        self._own_lock, self._last_sweep_s = threading.RLock(), time.monotonic()
        super().__init__()

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        with self._own_lock:
            return super().acquire_entry(key, limit, expiry, amount)

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        with self._own_lock:
            return super().incr(key, expiry, amount)

    def get(self, key: str) -> int:
        with self._own_lock:
            return super().get(key)

    def clear(self, key: str) -> None:
        with self._own_lock:
            super().clear(key)

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        with self._own_lock:
            return super().get_moving_window(key, limit, expiry)

    def _MemoryStorage__schedule_expiry(self) -> None:  # noqa: N802 (the library's own name)
        if time.monotonic() - self._last_sweep_s < SWEEP_S:
            return
        self._last_sweep_s, now = time.monotonic(), time.time()
        for key, entries in list(self.events.items()):
            self.events[key] = [entry for entry in entries if entry.expiry > now]
            if not self.events[key]:
                del self.events[key]
        for key, until in list(self.expirations.items()):
            if until <= now:
                del self.expirations[key]
                self.storage.pop(key, None)
        self.locks.clear()  # nobody holds one: all of them are taken within `_own_lock`

    def _MemoryStorage__expire_events(self) -> None:  # noqa: N802
        """What the library's own timer calls, which starts once, when this is made."""


class RateLimiter:
    """Counts requests in `storage`: those of this process (`memory://`), or of all processes (`redis://…`)."""

    def __init__(self, storage: str, *, rates: Mapping[str, str] | None = None) -> None:
        """`rates` override RATES. Raises InputError for an unknown kind, or a rate that cannot be read."""
        if unknown := set(rates or {}) - set(RATES):
            raise InputError(f"there is no rate '{min(unknown)}'; PHOTOFLUX_RATES knows {', '.join(RATES)}")
        opened = MemoryCounts() if storage.startswith("memory:") else storage_from_string(storage)
        if not isinstance(opened, Storage):
            raise InputError("PHOTOFLUX_LIMITS: use memory:// or redis://host:port")
        self._storage = opened
        self._limiter = MovingWindowRateLimiter(self._storage)
        self._rates = {kind: _parsed(kind, rate) for kind, rate in {**RATES, **(rates or {})}.items()}

    def check(self, kind: str, who: str) -> None:
        """Count one more. A problem of 429 that says when there is room again."""
        for rate in self._rates[kind]:
            if not self._limiter.hit(rate, kind, who):
                left = self._limiter.get_window_stats(rate, kind, who).reset_time - time.time()
                raise too_many_requests(f"Too many requests: {rate}", wait_s=left)

    def wait_s(self, kind: str, who: str) -> int:
        """Seconds until somebody who failed may try again; 0: now."""
        waiting = self._key(kind, who, "waits")
        if not self._storage.get(waiting):
            return 0
        return max(1, math.ceil(self._storage.get_expiry(waiting) - time.time()))

    def record_failure(self, kind: str, who: str) -> None:
        """Count one more failure of a kind of BACK_OFFS."""
        wait_s = BACK_OFFS[kind].wait_s(self._storage.incr(self._key(kind, who, "failures"), FAILURES_S))
        if wait_s:
            waiting = self._key(kind, who, "waits")
            self._storage.clear(waiting)
            self._storage.incr(waiting, wait_s)

    def clear_failures(self, kind: str, who: str) -> None:
        """Forget all failures."""
        for what in ("failures", "waits"):
            self._storage.clear(self._key(kind, who, what))

    def mark_known(self, kind: str, who: str, *, seconds: int) -> None:
        """Mark somebody as known for so many seconds."""
        known = self._key(kind, who, "known")
        self._storage.clear(known)
        self._storage.incr(known, seconds)

    def is_known(self, kind: str, who: str) -> bool:
        """Whether somebody is marked as known."""
        return bool(self._storage.get(self._key(kind, who, "known")))

    @staticmethod
    def _key(kind: str, who: str, what: str) -> str:
        """The storage's key: `who` is hashed, since it may be an e-mail address."""
        return f"{what}/{kind}/{hashlib.sha256(who.encode()).hexdigest()}"


def _parsed(kind: str, rate: str) -> list[RateLimitItem]:
    try:
        return parse_many(rate)
    except ValueError as error:
        raise InputError(f"the rate of '{kind}' cannot be read: write it like 30/minute") from error


def too_many_requests(sentence: str, *, wait_s: float) -> Problem:
    """A problem of 429: `sentence`, and when to try again."""
    wait = max(1, round(wait_s))
    return Problem(429, "too-many-requests", f"{sentence}; try again in {wait} s.", headers={"Retry-After": str(wait)})


def client_address(request: Request) -> str:
    """The key that an anonymous request is counted under. Behind a trusted proxy uvicorn takes the address from its headers."""
    return client_key(request.client.host) if request.client else "nowhere"
