"""Consents: to a wording, one by one, taken back as easily as given."""

from __future__ import annotations

import hashlib

from api.privacy import consents
from tests.api.people import Site, is_problem


def test_the_wordings_are_public_and_their_digests_are_of_the_files(site: Site):
    shown = site.client.get("/api/terms").json()["items"]
    assert [(one["purpose"], one["agree"]) for one in shown] == [
        ("terms", True),
        ("likeness", True),
        ("privacy", False),
    ]
    for one in shown:
        file = consents.TEXTS / f"{one['purpose']}.md"
        assert one["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert file.read_text().startswith(f"<!-- version {one['version']} -->")
        assert one["version"] and not one["text"].startswith("<!--")


def test_agreeing_twice_is_agreeing_once_and_to_other_words_is_refused(site: Site):
    eve = site.person(agreed=False)
    terms = next(w for w in eve.get("/api/terms").json()["items"] if w["purpose"] == "terms")
    for _ in range(2):
        assert eve.post("/api/consents", json={"purpose": "terms", "sha256": terms["sha256"]}).status_code == 201
    assert len(eve.get("/api/consents").json()["items"]) == 1
    is_problem(eve.post("/api/consents", json={"purpose": "terms", "sha256": "0" * 64}), 409, "wording-changed")
    is_problem(eve.post("/api/consents", json={"purpose": "privacy", "sha256": terms["sha256"]}), 422, "invalid")


def test_what_is_withdrawn_is_asked_for_again(site: Site):
    eve = site.person()
    subject = eve.subject_with_model()
    assert eve.ask("DELETE", "/api/consents/terms").status_code == 204
    asked = {"subject": subject, "prompt": "a dog"}
    is_problem(eve.post("/api/generate", json=asked), 403, "consent-required")
    is_problem(eve.upload(subject, {"a.jpg": b"x"}), 403, "consent-required")
    assert [one["purpose"] for one in eve.get("/api/consents").json()["items"]] == ["likeness"]


def test_changed_words_need_a_new_consent(site: Site, monkeypatch):
    eve = site.person()
    subject = eve.subject_with_model()
    terms_documents = dict(consents.terms_documents())
    terms_documents["terms"] = consents.TermsDocument("terms", "2027-01", "1" * 64, "new")
    monkeypatch.setattr(consents, "terms_documents", lambda: terms_documents)
    is_problem(eve.post("/api/generate", json={"subject": subject, "prompt": "a dog"}), 403, "consent-required")
