"""Signing in and out: the redirect to the provider and back, and access tokens for whoever holds the cookie."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import Cookie, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from api.accounts.login_sessions import LoginSessions, RefreshedSession, SignedOut
from api.accounts.openid_client import SignInFailed
from api.accounts.tokens import AccessTokenClaims
from api.deps import CurrentUser, IdentitiesDep, LoginSessionsDep, RateLimiterDep, RecordsDep, SettingsDep, TokensDep
from api.records.tables import User
from api.schemas import Role
from api.settings import ApiSettings
from api.transport.problems import SIGNED_IN, Problem, problem_responses
from api.transport.rate_limits import RateLimiter, client_address
from api.transport.routing import make_router

router = make_router(prefix="/api/auth", tags=["sign-in"])
REFRESH, STATE, MEDIA = "photoflux_refresh", "photoflux_sign_in", "photoflux_media"
PATH, MEDIA_PATH = "/api/auth", "/api/media"
FLOW_S = 600


class AccessToken(BaseModel):
    """What to send as `Authorization: Bearer …`."""

    access_token: str
    token_type: str = "Bearer"
    expires_in: int = Field(description="seconds", examples=[600])


class UserPublic(BaseModel):
    """Who is signed in."""

    id: str
    role: Role
    name: str
    email: str


@router.get(
    "/login",
    operation_id="login",
    status_code=302,
    response_class=RedirectResponse,
    responses=problem_responses(400, 429),
)
def login(request: Request, identities: IdentitiesDep, rate_limiter: RateLimiterDep, settings: SettingsDep) -> Response:
    """Send the browser to the provider."""
    rate_limiter.check("login", client_address(request))
    url, state = identities.begin()
    answer = RedirectResponse(url, 302)
    _set_cookie(answer, settings, STATE, state, seconds=FLOW_S, same_site="lax")
    return answer


@router.get(
    "/callback",
    operation_id="callback",
    status_code=302,
    response_class=RedirectResponse,
    responses=problem_responses(400, 401, 422, 429),
)
def callback(
    request: Request,
    identities: IdentitiesDep,
    login_sessions: LoginSessionsDep,
    rate_limiter: RateLimiterDep,
    settings: SettingsDep,
    state: Annotated[str, Query(max_length=200)],
    code: Annotated[str, Query(max_length=2000)] = "",
    photoflux_sign_in: Annotated[str | None, Cookie()] = None,
) -> Response:
    """Where the provider sends the browser back to: it must be the browser that was sent there."""
    rate_limiter.check("callback", client_address(request))
    if not photoflux_sign_in or not secrets.compare_digest(photoflux_sign_in.encode(), state.encode()):
        raise SignInFailed("this sign-in was begun in another browser; sign in again")
    if not code:
        raise SignInFailed("the sign-in provider gave no consent; sign in again")
    user = identities.account(identities.finish(state=state, code=code))
    rate_limiter.check("account", user.id)
    login_session = login_sessions.begin(user.id)
    answer = RedirectResponse("/", 302)
    answer.delete_cookie(STATE, path=PATH)
    _set_refresh_cookie(answer, settings, login_session)
    return answer


@router.post("/refresh", operation_id="refresh", responses=problem_responses(401, 403, 413, 429))
def refresh(
    request: Request,
    response: Response,
    login_sessions: LoginSessionsDep,
    tokens: TokensDep,
    rate_limiter: RateLimiterDep,
    settings: SettingsDep,
    photoflux_refresh: Annotated[str | None, Cookie()] = None,
) -> AccessToken:
    """A fresh access token for the browser that holds the sign-in, and a cookie that pictures load with.

    The sign-in's own cookie is exchanged, too.
    """
    _refuse_other_sites(request, settings)
    if not photoflux_refresh:
        raise SignedOut("you are not signed in; sign in first")
    _limit_refreshes(request, login_sessions, rate_limiter, photoflux_refresh)
    refreshed = login_sessions.refresh(photoflux_refresh)
    if not refreshed.superseded:  # the browser holds a newer cookie, which this answer would replace
        _set_refresh_cookie(response, settings, refreshed)
    claims, seconds = (
        AccessTokenClaims(refreshed.user_id, refreshed.role, refreshed.login_session_id),
        settings.access_token_s,
    )
    pictures = tokens.media_token(claims)
    _set_cookie(response, settings, MEDIA, pictures, seconds=seconds, same_site="strict", path=MEDIA_PATH)
    response.headers["Cache-Control"] = "no-store"
    return AccessToken(access_token=tokens.access_token(claims), expires_in=seconds)


@router.post("/logout", operation_id="logout", status_code=204, responses=problem_responses(403, 413))
def logout(
    request: Request,
    response: Response,
    login_sessions: LoginSessionsDep,
    settings: SettingsDep,
    photoflux_refresh: Annotated[str | None, Cookie()] = None,
) -> None:
    """End this sign-in."""
    _refuse_other_sites(request, settings)
    if photoflux_refresh:
        login_sessions.end(photoflux_refresh)
    response.delete_cookie(REFRESH, path=PATH)
    response.delete_cookie(MEDIA, path=MEDIA_PATH)


@router.get("/me", operation_id="me", responses=problem_responses(*SIGNED_IN))
def me(identities: IdentitiesDep, records: RecordsDep, current_user: CurrentUser) -> UserPublic:
    """Who is signed in."""
    with records.reading() as session:
        user = session.get_one(User, current_user.user_id)
    return UserPublic(id=user.id, role=user.role, **identities.profile(user))  # type: ignore[arg-type]


@router.get("/jwks", operation_id="jwks")
def jwks(tokens: TokensDep) -> dict[str, Any]:
    """The public keys that access tokens are signed with (RFC 7517)."""
    return tokens.jwks()


def _set_refresh_cookie(answer: Response, settings: ApiSettings, one: RefreshedSession) -> None:
    _set_cookie(answer, settings, REFRESH, one.token, seconds=settings.session_days * 24 * 3600, same_site="strict")


def _set_cookie(
    answer: Response, settings: ApiSettings, name: str, value: str, *, seconds: int, same_site: Any, path: str = PATH
) -> None:
    answer.set_cookie(
        name, value, max_age=seconds, path=path, httponly=True, secure=settings.secure, samesite=same_site
    )


def _limit_refreshes(request: Request, login_sessions: LoginSessions, rate_limiter: RateLimiter, token: str) -> None:
    """Counts by login session, so that people who share an address do not share a limit; unknown tokens by address."""
    login_session_id = login_sessions.session_of(token)
    if login_session_id is None:
        rate_limiter.check("unknown-token", client_address(request))
    else:
        rate_limiter.check("refresh", login_session_id)


def _refuse_other_sites(request: Request, settings: ApiSettings) -> None:
    """A problem of 403 for another origin: browsers send the cookie by themselves."""
    origin = request.headers.get("origin")
    if origin is not None and origin != settings.public_url.rstrip("/"):
        raise Problem(403, "other-site", "This can only be asked for from the service's own pages.")
