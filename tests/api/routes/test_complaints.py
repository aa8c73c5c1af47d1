"""Complaints from anybody, answers from operators, and what is taken down with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select

from api.accounts.roles import grant_role, main
from api.records.audit_log import AuditLog
from api.records.tables import AuditEntry, Complaint, Generation, Model, User
from tests.api.people import Person, Site, is_problem
from tests.api.routes.test_generations import ask, finish

TEXT = "this is my face"


@pytest.fixture(autouse=True)
def patience(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(type(site.service.rate_limiter), "check", lambda *_: None)
    yield


def complaint(site: Site, **more: object) -> str:
    answer = site.client.post("/api/complaints", json={"reason": "likeness", "text": TEXT, **more})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_anybody_complains_and_only_operators_read_it(site: Site, ada: Person):
    sent = complaint(site, contact="bob@example.org")
    row = ada.row(Complaint, sent)
    assert TEXT.encode() not in row.details
    assert b"bob@" not in row.details
    operator = site.person(role="operator")
    (shown,) = [one for one in operator.get("/api/complaints?limit=100").json()["items"] if one["id"] == sent]
    assert (shown["text"], shown["contact"], shown["state"]) == (TEXT, "bob@example.org", "open")
    for person in (ada, site.person(role="auditor")):
        is_problem(person.get("/api/complaints"), 403, "forbidden")
        is_problem(person.post(f"/api/complaints/{sent}/close", json={"outcome": "removed"}), 403, "forbidden")


def test_what_is_removed_is_gone_for_its_owner(site: Site, ada: Person, bob: Person):
    sha256 = "ab12" * 16
    subject, other = ada.subject_with_model(sha256=sha256), bob.subject_with_model()
    result, theirs = ask(ada, subject)["id"], ask(bob, other)["id"]
    finish(site, ada, result)
    sent, operator = complaint(site, adapter=sha256), site.person(role="operator")
    answer = operator.post(f"/api/complaints/{sent}/close", json={"outcome": "removed"}).json()
    assert (answer["state"], answer["closed"] is not None) == ("removed", True)
    assert ada.get("/api/models").json()["items"] == []
    assert ada.get(f"/api/subjects/{subject}").json()["champion"] is None
    is_problem(ada.get(f"/api/results/{result}"), 404, "not-found")
    assert bob.row(Generation, theirs) is not None
    assert len(bob.get("/api/models").json()["items"]) == 1
    assert operator.post(f"/api/complaints/{sent}/close", json={"outcome": "dismissed"}).json()["state"] == "removed"


def test_what_is_dismissed_stays(site: Site, ada: Person):
    sha256 = "cd34" * 16
    subject = ada.subject_with_model(sha256=sha256)
    sent, operator = complaint(site, adapter=sha256), site.person(role="operator")
    assert operator.post(f"/api/complaints/{sent}/close", json={"outcome": "dismissed"}).status_code == 200
    assert ada.get(f"/api/subjects/{subject}").json()["champion"] is not None
    assert sent in [one["id"] for one in operator.get("/api/complaints?state=dismissed&limit=100").json()["items"]]
    is_problem(operator.post(f"/api/complaints/{'0' * 32}/close", json={"outcome": "removed"}), 404, "not-found")


@pytest.mark.parametrize(
    "asked", [{}, {"reason": "x", "text": "y"}, {"reason": "other", "text": ""}, {"reason": "other", "text": "x" * 4001},
              {"reason": "other", "text": "x", "adapter": "zz"}, {"reason": "other", "text": "\x00"}],
)  # fmt: skip
def test_a_complaint_without_sense_is_a_problem(site: Site, asked: dict[str, str]):
    is_problem(site.client.post("/api/complaints", json=asked), 422, "invalid")


def test_auditors_read_the_log_and_check_its_chain(site: Site, ada: Person):
    subject = ada.subject()
    auditor = site.person(role="auditor")
    chain = auditor.get("/api/audit/chain").json()
    assert chain["broken"] is None
    entries = auditor.get("/api/audit/entries", params={"limit": 1000}).json()["items"]
    assert [one["number"] for one in entries] == list(range(1, len(entries) + 1))
    (made,) = [one for one in entries if one["object"] == subject]
    assert (made["action"], made["actor"]) == ("subject.created", site.service.audit_log.pseudonym(ada.id))
    assert ada.id not in str(entries)
    after = auditor.get("/api/audit/entries", params={"cursor": made["number"]}).json()["items"]
    assert all(one["number"] > made["number"] for one in after)
    for person in (ada, site.person(role="operator")):
        is_problem(person.get("/api/audit/chain"), 403, "forbidden")
        is_problem(person.get("/api/audit/entries"), 403, "forbidden")


def test_a_role_is_given_and_holds_from_the_next_token_on(site: Site, ada: Person):
    service = site.service
    assert grant_role(service.records, AuditLog(service.audit_log.pepper), ada.id, "operator")
    is_problem(ada.get("/api/complaints"), 403, "forbidden")
    begun = service.login_sessions.begin(ada.id)
    assert begun.role == "operator"
    assert not grant_role(service.records, service.audit_log, "0" * 32, "operator")


def test_who_was_given_a_role_is_named_by_a_pseudonym(site: Site, ada: Person):
    """The log is kept longer than an account."""
    service = site.service
    assert grant_role(service.records, service.audit_log, ada.id, "auditor")
    with service.records.reading() as session:
        entries = session.scalars(select(AuditEntry).where(AuditEntry.action == "role.given")).all()
    assert service.audit_log.pseudonym(ada.id) in {entry.object for entry in entries}
    assert ada.id not in {entry.object for entry in entries}


def test_a_role_is_given_from_the_shell(
    site: Site, ada: Person, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    url = site.service.settings.records_url
    monkeypatch.setenv("PHOTOFLUX_DATABASE_URL", url)
    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", str(site.folder / "state"))
    assert main([ada.id, "auditor"]) == 0
    assert ada.row(User, ada.id).role == "auditor"
    assert "auditor from the next sign-in" in capsys.readouterr().out
    assert main(["0" * 32, "auditor"]) == 1
    assert "nobody here has the id" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([ada.id, "emperor"])


def test_a_model_that_was_taken_down_is_no_row(site: Site, ada: Person):
    sha256 = "ef56" * 16
    ada.subject_with_model(sha256=sha256)
    model = ada.get("/api/models").json()["items"][0]["id"]
    sent, operator = complaint(site, adapter=sha256), site.person(role="operator")
    operator.post(f"/api/complaints/{sent}/close", json={"outcome": "removed"})
    assert ada.row(Model, model) is None
