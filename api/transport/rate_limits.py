"""How often things may be asked for, and how long somebody waits who keeps getting a password wrong."""

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

from api.transport.addresses import counted_as
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
    """The library's counts of one process, for many threads.

    By itself it sweeps in a timer's thread that is begun anew with nearly every request: two threads that meet there start one timer
    twice, which raises; and it goes over every name that it ever saw, since it drops none. Names are dropped here once nothing of
    them counts, now and then, by whoever counts just then.
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
        """What the library's own timer does, which is begun once where this is made."""


class RateLimiter:
    """Counts in `storage`: of this process (`memory://`), or of all (`redis://…`)."""

    def __init__(self, storage: str, *, rates: Mapping[str, str] | None = None) -> None:
        """`rates` go before RATES. Raises InputError for a kind that is not there, or a rate that cannot be read."""
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
        """Know somebody for so long."""
        known = self._key(kind, who, "known")
        self._storage.clear(known)
        self._storage.incr(known, seconds)

    def is_known(self, kind: str, who: str) -> bool:
        """Whether somebody is remembered."""
        return bool(self._storage.get(self._key(kind, who, "known")))

    @staticmethod
    def _key(kind: str, who: str, what: str) -> str:
        """Names what is counted without saying whose it is: `who` may be an e-mail address."""
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
    """Whom a request is counted for that nobody signed. Behind a proxy the server takes the address from forwarded headers."""
    return counted_as(request.client.host) if request.client else "nowhere"
