from __future__ import annotations

import pytest

from api.limits import Limits
from api.problems import Problem
from tests.api.people import Person, Site, is_problem

COUNT = Limits.check


def test_each_has_room_of_their_own_and_is_told_when_there_is_more():
    limits = Limits("memory://", rates={"make": "2/minute"})
    for who in ("ada", "bob"):
        for _ in range(2):
            limits.check("make", who)
    with pytest.raises(Problem) as refused:
        limits.check("make", "ada")
    assert refused.value.status == 429
    assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
    limits.check("ask", "ada")


def test_one_person_asking_too_often_does_not_hold_up_another(
    site: Site, ada: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
):
    tight = Limits("memory://", rates={"ask": "3/minute"})
    monkeypatch.setattr(Limits, "check", lambda _, kind, who: COUNT(tight, kind, who))
    answers = [ada.get("/api/subjects") for _ in range(4)]
    assert [answer.status_code for answer in answers[:3]] == [200] * 3
    is_problem(answers[3], 429, "too-many-requests")
    assert int(answers[3].headers["retry-after"]) >= 1
    assert bob.get("/api/subjects").status_code == 200


def test_signing_in_is_limited_by_address(site: Site, monkeypatch: pytest.MonkeyPatch):
    tight = Limits("memory://", rates={"sign-in": "1/minute"})
    monkeypatch.setattr(Limits, "check", lambda _, kind, who: COUNT(tight, kind, who))
    is_problem(site.client.post("/api/auth/refresh"), 401, "signed-out")
    is_problem(site.client.post("/api/auth/refresh"), 429, "too-many-requests")
