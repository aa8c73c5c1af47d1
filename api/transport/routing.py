"""Routes that run again when the database has rolled their transaction back."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute

from api.records.database import retry_on_rollback


class RetryingRoute(APIRoute):
    """A route whose function is called again after a deadlock or a serialization failure: all that it wrote was rolled back."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:
        waits = inspect.iscoroutinefunction(endpoint) or inspect.isasyncgenfunction(endpoint)
        repeated = hasattr(endpoint, "__wrapped__")  # a router that is included makes its routes once more
        super().__init__(path, endpoint if waits or repeated else retry_on_rollback(endpoint), **more)


def make_router(**more: Any) -> APIRouter:
    """A router of such routes."""
    return APIRouter(route_class=RetryingRoute, **more)
