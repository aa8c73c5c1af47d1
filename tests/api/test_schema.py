"""The whole schema, asked at random: no answer is a 5xx, and every answer is as the schema says."""

from __future__ import annotations

import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.routes import generations
from tests.api.people import Person, Site, is_problem

CHECKS = (not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance)
OPEN = {
    "getTerms",
    "getErasure",
    "login",
    "callback",
    "refresh",
    "logout",
    "jwks",
    "livez",
    "readyz",
    "metrics",
    "createComplaint",
}
"""What anybody may ask for without signing in."""
EXAMPLES = 30
ENDING = {"eraseMe", "logout", "login", "callback"}


@pytest.mark.slow
def test_every_operation_keeps_to_its_schema(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked by somebody who is signed in, with what the schema allows; ids in paths are mostly nobody's."""
    monkeypatch.setattr(type(site.service.rate_limiter), "check", lambda *_: None)
    monkeypatch.setattr(generations, "POLL_INTERVAL_S", 30.0)
    headers = {"Authorization": f"Bearer {site.person().token}"}
    schema = schemathesis.openapi.from_dict(site.client.get("/openapi.json").json())
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.definition.raw["operationId"] in ENDING:
            continue  # it would end the person that every case is asked as; test_me and test_main do it on purpose

        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None, database=None)
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            case.validate_response(sent(site, case, headers), checks=list(CHECKS))

        ask()
        asked += 1
    assert asked >= 30


def sent(site: Site, case: Any, headers: dict[str, str]) -> Any:
    """A case as the site's own client sends it."""
    asked = case.as_transport_kwargs(base_url=str(site.client.base_url))
    more = {name: asked[name] for name in ("params", "json", "files") if asked.get(name) is not None}
    if "files" in more:
        more["files"] = [(name, _as_bytes(part)) for name, part in more["files"]]
    if asked.get("data") is not None:
        more["data" if isinstance(asked["data"], dict) else "content"] = asked["data"]
    kept = {name: value for name, value in dict(asked.get("headers") or {}).items() if value is not None}
    request = site.client.build_request(asked["method"], asked["url"], headers=kept | headers, **more)
    request.read()
    return site.client.send(request, follow_redirects=False)


def _as_bytes(part: Any) -> Any:
    """A part of a form: what is no text or file there is sent as its text."""
    if isinstance(part, tuple):
        return (part[0], _as_bytes(part[1]), *part[2:])
    return part if isinstance(part, bytes | str) else str(part).encode()


def test_ids_are_unique_and_every_operation_says_what_it_does(site: Site) -> None:
    schema = site.client.get("/openapi.json").json()
    operations = [(path, method, one) for path, methods in schema["paths"].items() for method, one in methods.items()]
    ids = [one["operationId"] for _, _, one in operations]
    assert len(ids) == len(set(ids))
    assert schema["openapi"].startswith("3.1")
    for path, method, one in operations:
        assert one.get("summary"), (path, method)
        assert one.get("description"), (path, method)
        assert re.fullmatch(r"[a-z][A-Za-z]+", one["operationId"])


def test_nobody_gets_anything_without_signing_in(site: Site) -> None:
    """Route by route: what is not open answers 401 to no token, a broken one, and one of another audience."""
    schema = site.client.get("/openapi.json").json()
    capability = "x.y.z"
    for path, methods in schema["paths"].items():
        address = re.sub(r"{step}", "gate", re.sub(r"{(\w*id|receipt)}", "0" * 32, path))
        address = address.replace("{position}", "0").replace("{purpose}", "terms")
        for method, one in methods.items():
            if one["operationId"] in OPEN:
                continue
            for headers in ({}, {"Authorization": f"Bearer {capability}"}):
                answer = site.client.request(method.upper(), address, headers=headers)
                is_problem(answer, 401, "unauthorized")


def test_somebody_elses_ids_are_nobodys(site: Site, ada: Person, bob: Person) -> None:
    """Route by route with an id in it: bob gets 404 for what is ada's."""
    subject = ada.subject_with_photos(5)
    photo = ada.get(f"/api/subjects/{subject}/photos").json()["photos"][0]["id"]
    result = ada.post("/api/generate", json={"subject": subject, "prompt": "a dog"}).json()
    model = ada.get("/api/models", params={"subject": ada.subject_with_model()}).json()["items"][0]["id"]
    export = ada.post("/api/me/export").json()["id"]
    ids = {
        "subject_id": subject,
        "photo_id": photo,
        "run_id": result["run"],
        "result_id": result["id"],
        "model_id": model,
        "export_id": export,
        "position": "0",
        "step": "gate",
    }
    bodies = {"giveFeedback": {"rating": 3}}
    asked = 0
    for path, methods in site.client.get("/openapi.json").json()["paths"].items():
        names = re.findall(r"{(\w+)}", path)
        if not names or not set(names) <= set(ids):
            continue
        for method, one in methods.items():
            if one["operationId"] in ("signOff", "closeComplaint"):
                continue  # for operators, who see nobody's things either; test_roles asks them
            asked += 1
            answer = bob.ask(method.upper(), path.format(**ids), json=bodies.get(one["operationId"]))
            is_problem(answer, 404, "not-found")
    assert asked >= 15
