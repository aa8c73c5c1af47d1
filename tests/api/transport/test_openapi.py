"""The API's description, held against what the operations do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts

from api.deps import get_current_user, get_idempotency_guard, get_media_user
from tests.api.conftest import innermost
from tests.api.people import Site

TIMES = {
    "at", "begun", "closed", "created", "done", "ended", "expires", "finished", "granted", "started",
}  # fmt: skip
SIGNED_IN, BODY, IDEMPOTENT = {401, 429}, {400, 408, 413, 422}, {408, 409, 413, 422}
LIMITED = {"login", "callback", "refresh", "createComplaint"}
"""Counted though nobody signed in for them."""
MORE: dict[str, set[int]] = {
    "login": {400}, "callback": {400, 401}, "refresh": {401, 403}, "logout": {403},
    "giveConsent": {409}, "createSubject": {403}, "upload": {403, 404, 411, 503}, "createWebhook": {503}, "createRun": {403, 404},
    "generate": {403, 404}, "suggestPrompts": {404}, "createComplaint": {409}, "closeComplaint": {409}, "signOff": {409},
    "getErasure": {404}, "getImage": {503}, "readyz": {503}, "metrics": {401, 403},
}  # fmt: skip
"""What else operations answer, by what they do."""


@pytest.fixture
def schema(site: Site) -> dict[str, Any]:
    return dict(site.client.get("/openapi.json").json())


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and operation."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def resolved(schema: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    """A schema, or what it refers to."""
    name = str(one.get("$ref", "")).rpartition("/")[2]
    return dict(schema["components"]["schemas"][name]) if name else one


def flat(dependant: Dependant) -> Iterator[Dependant]:
    """A dependant and all that it depends on."""
    yield dependant
    for one in dependant.dependencies:
        yield from flat(one)


def implied(route: Any) -> set[int]:
    """What an operation may answer by what it depends on."""
    parts = list(flat(route.dependant))
    calls = {part.call for part in parts}
    name, statuses = str(route.operation_id), set[int]()
    if calls & {get_current_user, get_media_user}:
        statuses |= SIGNED_IN
    if any(getattr(call, "__name__", "") == "get_user_with_role" for call in calls):
        statuses |= {403}
    if route.body_field is not None:
        statuses |= BODY
    if get_idempotency_guard in calls:
        statuses |= IDEMPOTENT
    if route.methods & {"POST", "PUT"}:
        statuses |= {413}
    if any(part.path_params or part.query_params for part in parts):
        statuses |= {422}
    if name in LIMITED:
        statuses |= {429}
    if re.search(r"{\w*_id}", route.path_format):
        statuses |= {404}
    return statuses | MORE.get(name, set())


def test_every_operation_declares_the_problems_that_it_may_answer_with_and_no_other(
    site: Site, schema: dict[str, Any]
) -> None:
    routes = {
        str(route.operation_id): implied(route)
        for route in iter_route_contexts(innermost(site.client.app).routes)  # type: ignore[attr-defined]
        if isinstance(route.original_route, APIRoute) and route.include_in_schema
    }
    declared = {
        one["operationId"]: {int(status) for status in one["responses"] if int(status) >= 400}
        for _, _, one in operations(schema)
    }
    assert len(declared) >= 45
    assert declared.keys() == routes.keys()
    wrong = {
        name: {"missing": sorted(routes[name] - said), "too many": sorted(said - routes[name])}
        for name, said in declared.items()
        if said != routes[name]
    }
    assert wrong == {}


def test_problems_are_described_as_they_are_sent(schema: dict[str, Any]) -> None:
    for path, method, one in operations(schema):
        for status, answer in one["responses"].items():
            if int(status) < 400:
                continue
            said = answer["content"]
            assert list(said) == ["application/problem+json"], (path, method, status)
            assert said["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/ProblemDetails"}
            assert answer["description"].endswith("."), (path, method, status)
            if status in ("429", "503"):
                assert "Retry-After" in answer["headers"]
    assert not {"HTTPValidationError", "ValidationError"} & schema["components"]["schemas"].keys()


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    names = set(re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(schema)))
    assert names
    assert names <= schema["components"]["schemas"].keys()


def test_times_are_times(schema: dict[str, Any]) -> None:
    seen = set()
    for name, one in schema["components"]["schemas"].items():
        for field in TIMES & one.get("properties", {}).keys():
            said = one["properties"][field]
            kinds = [kind for kind in said.get("anyOf", [said]) if kind.get("type") != "null"]
            assert [kind.get("format") for kind in kinds] == ["date-time"], (name, field)
            seen.add(field)
    assert seen == TIMES


def test_no_list_is_a_bare_array(schema: dict[str, Any]) -> None:
    lists = {"getTerms", "listConsents", "listWebhooks", "listAuditEntries", "listRuns"}
    for path, _, one in operations(schema):
        content = one["responses"].get("200", {}).get("content", {}).get("application/json")
        if content:
            said = resolved(schema, content["schema"])
            assert said.get("type") != "array", path
            if one["operationId"] in lists:
                assert set(said["properties"]) == {"items", "next"}
                lists.remove(one["operationId"])
    assert not lists


def test_events_say_what_they_carry(schema: dict[str, Any]) -> None:
    said = schema["paths"]["/api/runs/{run_id}/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    kinds = {name: one for one in said["itemSchema"]["oneOf"] for name in one["properties"]["event"]["enum"]}
    assert set(kinds) == {"run", "ended", "deleted", "signed-out"}
    for name in ("run", "ended"):
        assert kinds[name]["properties"]["data"]["contentSchema"] == {"$ref": "#/components/schemas/RunPublic"}
    assert all(one["properties"]["data"]["contentMediaType"] == "application/json" for one in kinds.values())


def test_failures_have_codes_that_are_known(schema: dict[str, Any]) -> None:
    for name, field in (
        ("RunPublic", "RunFailure"),
        ("GenerationPublic", "GenerationFailure"),
        ("ExportPublic", "ExportFailure"),
    ):
        said = schema["components"]["schemas"][name]["properties"]["error"]
        assert {"$ref": f"#/components/schemas/{field}"} in said["anyOf"]
        assert "internal" in schema["components"]["schemas"][field]["properties"]["code"]["enum"]


def test_headers_are_described_and_tags_explained(schema: dict[str, Any]) -> None:
    for word in ("Idempotency-Key", "ETag", "X-Request-Id", "Retry-After", "problem", "cursor"):
        assert word in schema["info"]["description"]
    explained = {tag["name"] for tag in schema["tags"] if tag["description"]}
    assert {tag for _, _, one in operations(schema) for tag in one["tags"]} == explained
    keyed = [
        one for _, _, one in operations(schema) for p in one.get("parameters", ()) if p["name"] == "idempotency-key"
    ]
    assert len(keyed) >= 6
    for _, _, one in operations(schema):
        for parameter in one.get("parameters", ()):
            if parameter["in"] == "header" and parameter["name"] != "authorization":
                assert parameter["description"], one["operationId"]
