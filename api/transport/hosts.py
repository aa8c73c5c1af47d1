"""Which `Host` headers the service answers: other names, and proxies that the settings do not name, get 421.

This stops DNS rebinding, and shows by the first request that a proxy exposes a service that was set up for this machine alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from api.settings import ApiSettings, is_loopback
from api.transport.problems import problem

HOST = re.compile(
    rb"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\.?)(?::(?P<port>[0-9]{1,5}))?"
)
PROBES, METRICS = ("/livez", "/readyz"), "/metrics"
"""Asked by machines, by whatever address they have; METRICS where they show a token, which no page of somebody else's has."""
PROXIED = re.compile(rb"forwarded|x-real-ip|x-forwarded-.*", re.IGNORECASE)
WRONG_HOST = "This address is not the service's own; use the one that it was set up with."
LOOPBACK_ONLY = (
    "This service was started for this machine alone, and the request came by another name or through a proxy. "
    "Set PHOTOFLUX_ENVIRONMENT: production, or development to try it on a network."
)


class TrustedHosts:
    """Answers 421 to requests for other hosts than `host`; without one, only loopback names are known, and no proxy.

    Where `host` is a loopback name, the others are as good. `probes` are paths that are answered by any name.
    """

    def __init__(self, app: ASGIApp, *, host: str = "", probes: Collection[str] = PROBES) -> None:
        self.app, self.host, self.probes = app, _normalised(host), probes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._is_trusted(scope):
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        detail = WRONG_HOST if self.host else LOOPBACK_ONLY
        return await problem(421, "misdirected", detail, headers={"Connection": "close"})(scope, receive, send)

    def _is_trusted(self, scope: Scope) -> bool:
        if not self.host and any(PROXIED.fullmatch(name) for name, _ in scope["headers"]):
            return False
        if scope["path"] in self.probes:
            return True
        host = requested_host(scope["headers"])
        if not self.host or is_loopback(self.host):
            return is_loopback(host)
        return host == self.host


def trusted_hosts(app: ASGIApp, settings: ApiSettings) -> ASGIApp:
    """`app` behind the host of the public address, or behind loopback alone where no environment is named."""
    probes = (*PROBES, METRICS) if settings.metrics_token.get_secret_value() else PROBES
    return TrustedHosts(app, host=settings.public_host if settings.environment else "", probes=probes)


def requested_host(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The host that a request is for, as names and addresses are compared; empty unless there is exactly one, well-formed."""
    values = [value for name, value in headers if name.lower() == b"host"]
    found = HOST.fullmatch(values[0]) if len(values) == 1 else None
    if found is None or int(found["port"] or 0) > 65535:
        return ""
    if found["v6"] is None:
        return _normalised(found["name"].decode())
    try:
        return str(ipaddress.IPv6Address(found["v6"].decode()))
    except ValueError:
        return ""


def _normalised(host: str) -> str:
    """A name in lower case without its last dot, an address in its usual form."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower().removesuffix(".")
