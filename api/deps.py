"""What routes are given: the parts of the service, and who is asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from api.db import Records
from api.identity import Identities
from api.problems import Problem
from api.sessions import SignIns
from api.settings import ApiSettings
from api.tokens import Bearer, Tokens
from photoflux.vault.keyring import Keyring


@dataclass(frozen=True)
class Service:
    """Everything the routes work with, made once when the application starts."""

    settings: ApiSettings
    records: Records
    keyring: Keyring
    tokens: Tokens
    sign_ins: SignIns
    identities: Identities


def get_service(request: Request) -> Service:
    """The parts of this application."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


ServiceDep = Annotated[Service, Depends(get_service)]
_bearer = HTTPBearer(auto_error=False, bearerFormat="JWT", description="an access token of POST /api/auth/refresh")


def get_caller(
    service: ServiceDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Bearer:
    """Who is asking. A problem of 401 without a good token, or with one whose sign-in is over."""
    if credentials is None:
        raise Problem(401, "unauthorized", "Sign in first.", headers={"WWW-Authenticate": "Bearer"})
    caller = service.tokens.bearer(credentials.credentials)
    if not service.sign_ins.is_open(caller.sign_in_id):
        raise Problem(401, "signed-out", "This sign-in is over; sign in again.", headers={"WWW-Authenticate": "Bearer"})
    return caller


Caller = Annotated[Bearer, Depends(get_caller)]
