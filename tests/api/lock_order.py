"""Reads the statements of every transaction: which tables' rows it locks, and whether in the one order that all keep."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Engine, event

from api.records.tables import LOCK_ORDER

CHANGES = re.compile(r"^\s*(?:UPDATE|DELETE FROM)\s+(\w+)", re.IGNORECASE)
LOCKS = re.compile(r"^\s*SELECT\b.*?\bFROM\s+(\w+).*\bFOR (?:NO KEY )?(?:UPDATE|SHARE)", re.IGNORECASE | re.DOTALL)
LOG = re.compile(r"pg_advisory_xact_lock")
RANK = {table: rank for rank, table in enumerate(LOCK_ORDER)}


def locked_by(statement: str) -> str | None:
    """The table of whose rows a statement locks some; None where it locks none that others wait for."""
    if LOG.search(statement):
        return "audit_log"
    found = CHANGES.match(statement) or LOCKS.match(statement)
    return found[1] if found and found[1] in RANK else None


class LockOrder:
    """Transactions of an engine that locked a table's rows after those of a later table."""

    def __init__(self, engine: Engine) -> None:
        self.wrong: list[list[str]] = []
        event.listen(engine, "begin", self._begin)
        event.listen(engine, "before_cursor_execute", self._execute)

    def _begin(self, connection: Any) -> None:
        connection.info["locked"] = []

    def _execute(self, connection: Any, _: Any, statement: str, *__: Any) -> None:
        table, locked = locked_by(statement), connection.info.setdefault("locked", [])
        if table is None or table in locked:  # whoever locks a table twice locked all that it needs at first
            return
        locked.append(table)
        if locked != sorted(locked, key=RANK.__getitem__):
            self.wrong.append([*locked, statement.split("\n")[0][:120]])
