"""Route by route and role by role: who may ask for what. A new route fails here until somebody says for whom it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.people import Person, Site

ANYBODY = {
    "livez", "readyz", "metrics", "login", "callback", "refresh", "logout", "jwks", "getTerms", "getErasure", "createComplaint",
}  # fmt: skip
"""What is answered without signing in; /metrics by a token of its own, or on this machine alone."""
OPERATORS = {"listComplaints", "closeComplaint", "listSignOffs", "signOff"}
AUDITORS = {"listAuditEntries", "checkAuditChain"}
PEOPLE = {
    "me", "listConsents", "giveConsent", "withdrawConsent", "createSubject", "listSubjects", "getSubject", "deleteSubject",
    "listPhotos", "upload", "deletePhoto", "createRun", "listRuns", "getRun", "cancelRun", "watchRun", "generate", "listResults",
    "getResult", "deleteResult", "giveFeedback", "listModels", "getModel", "promoteModel", "suggestPrompts", "createExport",
    "getExport", "downloadExport", "eraseMe", "createWebhook", "listWebhooks", "testWebhook", "deleteWebhook", "getThumbnail",
    "getImage", "getReport", "getCard",
}  # fmt: skip
"""What everybody who is signed in may ask for, whatever their role: about their own things."""
ROLES = ("user", "operator", "auditor")


@pytest.fixture(autouse=True)
def patience(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(type(site.service.rate_limiter), "check", lambda *_: None)
    yield


def operations(site: Site) -> dict[str, tuple[str, str]]:
    """Method and address by operation; ids in it are nobody's."""
    found = {}
    for path, methods in site.client.get("/openapi.json").json()["paths"].items():
        address = re.sub(r"{step}", "gate", re.sub(r"{(\w*id|receipt)}", "0" * 32, path))
        address = address.replace("{position}", "0").replace("{purpose}", "terms")
        found |= {one["operationId"]: (method.upper(), address) for method, one in methods.items()}
    return found


def test_every_operation_is_for_somebody(site: Site):
    groups: list[set[str]] = [ANYBODY, PEOPLE, OPERATORS, AUDITORS]
    assert set().union(*groups) == set(operations(site))
    assert sum(map(len, groups)) == len(operations(site))


def refused(answer: Any) -> bool:
    return answer.status_code in (401, 403) and answer.headers["content-type"] == "application/problem+json"


def test_nobody_is_answered_what_is_for_people(site: Site):
    for operation, (method, address) in operations(site).items():
        answer = site.client.request(method, address, follow_redirects=False)
        open_to_all = operation in ANYBODY - {"refresh"}  # which wants the cookie of a sign-in
        assert refused(answer) == (not open_to_all), (operation, answer.status_code)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_opens_what_is_for_it_and_nothing_else(site: Site, role: str):
    """What is not refused may well be a 404 or a 422: nothing was asked for."""
    person = site.person(role=role)
    allowed = (
        ANYBODY | PEOPLE | (OPERATORS if role == "operator" else set()) | (AUDITORS if role == "auditor" else set())
    )
    for operation, (method, address) in operations(site).items():
        if operation in ("eraseMe", "refresh", "login", "callback"):
            continue  # asked on purpose elsewhere; the first ends the person that asks
        answer = person.ask(method, address, follow_redirects=False)
        assert answer.status_code < 500, (operation, answer.text)
        assert refused(answer) == (operation not in allowed), (operation, role, answer.status_code)


def test_no_role_opens_another_persons_things(site: Site, ada: Person):
    """Neither operators nor auditors see photos, pictures, prompts, reports or exports of anybody."""
    subject = ada.subject_with_photos(5)
    photo = ada.get(f"/api/subjects/{subject}/photos").json()["photos"][0]["id"]
    result = ada.post("/api/generate", json={"subject": subject, "prompt": "a dog"}).json()
    export = ada.post("/api/me/export").json()["id"]
    places = [
        f"/api/subjects/{subject}",
        f"/api/subjects/{subject}/photos",
        f"/api/results/{result['id']}",
        f"/api/runs/{result['run']}",
        f"/api/runs/{result['run']}/events",
        f"/api/me/exports/{export}",
        f"/api/media/photos/{photo}",
        f"/api/media/images/{result['id']}.0",
        f"/api/media/reports/{result['run']}/gate",
        f"/api/media/exports/{export}",
        f"/api/media/cards/{result['run']}",
        f"/api/prompts/suggest?subject={subject}",
    ]
    for role in ROLES:
        other = site.person(role=role)
        for place in places:
            assert other.get(place).status_code == 404, (role, place)


def test_a_role_in_a_token_is_signed(site: Site, ada: Person):
    """Nobody makes themselves an operator: another payload has another signature."""
    import base64
    import json

    head, payload, signature = ada.token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    claims["role"] = "operator"
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    answer = site.client.get("/api/complaints", headers={"Authorization": f"Bearer {head}.{forged}.{signature}"})
    assert answer.status_code == 401
