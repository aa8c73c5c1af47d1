"""Password checks: a few at a time, others wait for a place, and each further failure adds a longer wait."""

from __future__ import annotations

import asyncio
import hashlib

from starlette.concurrency import run_in_threadpool

from api.accounts.embedded_provider import CHECKS_AT_ONCE, EMAIL_MAX_CHARS, PASSWORD_MAX_CHARS, Account, Accounts
from api.transport.problems import Problem
from api.transport.rate_limits import RateLimiter, too_many_requests

QUEUE_TIMEOUT_S = 20.0
"""Longest wait for a place; enough for a hundred people at once."""
KNOWN_S = 30 * 24 * 3600
"""How long an address counts as known after somebody signed in from it."""


class PasswordChecks:
    """Checks passwords for whoever sends the form: a few at a time, and ever more slowly for whoever fails.

    Failures count for the account from this address, for the address, and for the account from anywhere. The last two do
    not hold back somebody who signed in from here before: else anybody could lock them out by failing in their name.
    Checks that were begun together are all finished, so that CHECKS_AT_ONCE - 1 guesses more than counted may pass.
    """

    def __init__(self, rate_limiter: RateLimiter) -> None:
        self.rate_limiter = rate_limiter
        self._places = asyncio.Semaphore(CHECKS_AT_ONCE)

    async def account(self, accounts: Accounts, *, email: str, password: str, address: str) -> Account | None:
        """The account, if the password is right. Raises a problem of 429 or 503 where nothing was checked."""
        email = email[: EMAIL_MAX_CHARS + 1].lower()
        await run_in_threadpool(self._check_waits, email, address)
        try:
            async with asyncio.timeout(QUEUE_TIMEOUT_S):
                await self._places.acquire()
        except TimeoutError:
            sentence = "Many people are signing in; try again in a moment."
            raise Problem(503, "busy", sentence, headers={"Retry-After": "5"}) from None
        try:
            return await run_in_threadpool(self._checked, accounts, email, password, address)
        finally:
            self._places.release()

    def _check_waits(self, email: str, address: str) -> None:
        account, here = _digest(email), _digest(email, address)
        waits = [self.rate_limiter.wait_s("password", here)]
        if not self.rate_limiter.is_known("password", here):
            waits.append(self.rate_limiter.wait_s("password-address", address))
            waits.append(self.rate_limiter.wait_s("password-account", account))
        if wait := max(waits):
            raise too_many_requests("Too many wrong passwords", wait_s=wait)

    def _checked(self, accounts: Accounts, email: str, password: str, address: str) -> Account | None:
        self._check_waits(email, address)  # again: others may have failed while this one waited for its turn
        fits = len(email) <= EMAIL_MAX_CHARS and len(password) <= PASSWORD_MAX_CHARS
        account = accounts.check(email, password) if fits else None
        who = {"password": _digest(email, address), "password-account": _digest(email), "password-address": address}
        if account is None:
            for kind, one in who.items():
                self.rate_limiter.record_failure(kind, one)
            return None
        for kind in ("password", "password-account"):
            self.rate_limiter.clear_failures(kind, who[kind])
        self.rate_limiter.mark_known("password", who["password"], seconds=KNOWN_S)
        return account


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
