"""Lists in pages, newest first: a cursor says after which row the next page begins, so that new rows shift nothing."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, Query
from sqlalchemy import Select, tuple_
from sqlalchemy.orm import Session

from api.transport.problems import Problem

LIMIT, LIMIT_MAX = 20, 100


class PageQuery:
    """Which page of a list is asked for: size and cursor."""

    def __init__(
        self,
        limit: Annotated[int, Query(ge=1, le=LIMIT_MAX, description="rows per page")] = LIMIT,
        cursor: Annotated[str, Query(max_length=200, description="`next` of the page before")] = "",
    ) -> None:
        self.limit, self.after = limit, _parsed(cursor) if cursor else None

    def rows(self, session: Session, query: Select[Any], kind: Any) -> tuple[list[Any], str | None]:
        """The page of a query over `kind`, and the cursor of the next one, if there is one."""
        place = tuple_(kind.created_ms, kind.id)
        if self.after:
            query = query.where(place < self.after)
        query = query.order_by(kind.created_ms.desc(), kind.id.desc()).limit(self.limit + 1)
        found: Sequence[Any] = list(session.scalars(query))
        rows = list(found[: self.limit])
        return rows, _cursor_of(rows[-1]) if len(found) > self.limit else None


def _cursor_of(row: Any) -> str:
    return base64.urlsafe_b64encode(f"{row.created_ms}:{row.id}".encode()).decode()


def _parsed(cursor: str) -> tuple[int, str]:
    try:
        created, _, row_id = base64.b64decode(cursor, altchars=b"-_", validate=True).decode("ascii").partition(":")
        place = int(created), row_id
    except (ValueError, binascii.Error) as error:
        raise Problem(422, "invalid", "The cursor is not one of this list; begin with the first page.") from error
    if not 0 <= place[0] < 2**63 or not re.fullmatch("[0-9a-f]{32}", place[1]):
        raise Problem(422, "invalid", "The cursor is not one of this list; begin with the first page.")
    return place


PageQueryDep = Annotated[PageQuery, Depends(PageQuery)]
