"""Requests that are sent again: whatever the order and the faults between, each key's work is done once, and told the same."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.api.people import Person, Site, is_problem

KEYS = st.sampled_from(["a", "b", "c", "ä", "x" * 200])
NAMES = st.sampled_from(["Rex", "Bella", "Łukasz 猫"])


@pytest.fixture
def patience(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(site.service.rate_limiter), "check", lambda *_: None)


def machine_for(site: Site) -> type[RuleBasedStateMachine]:
    class Repeats(RuleBasedStateMachine):
        """Two people make subjects with keys of their choice; a model remembers what each key must answer."""

        @initialize()
        def begin(self) -> None:
            self.people: list[Person] = [site.person(), site.person()]
            self.answers: dict[tuple[int, str], tuple[str, Any]] = {}
            self.made: list[set[str]] = [set(), set()]

        @rule(who=st.integers(0, 1), key=KEYS, name=NAMES)
        def make(self, who: int, key: str, name: str) -> None:
            body = {"class_noun": "dog", "depicts": "no_person", "name": name}
            answer = self._post(who, body, key)
            known = self.answers.get((who, key))
            if known and known[0] != json.dumps(body):
                is_problem(answer, 422, "idempotency-mismatch")
            elif known:
                assert answer.json() == known[1]
            else:
                assert answer.status_code == 201
                self.answers[who, key] = (json.dumps(body), answer.json())
                self.made[who].add(answer.json()["id"])

        @rule(who=st.integers(0, 1), key=KEYS)
        def refused(self, who: int, key: str) -> None:
            """What is refused is not remembered: the key is free for what was meant."""
            if (who, key) not in self.answers:
                body = {"class_noun": "unicorn", "depicts": "no_person"}
                assert self._post(who, body, key).status_code == 422

        @rule(who=st.integers(0, 1), name=NAMES)
        def without_a_key(self, who: int, name: str) -> None:
            answer = self._post(who, {"class_noun": "dog", "depicts": "no_person", "name": name}, None)
            self.made[who].add(answer.json()["id"])

        @rule(who=st.integers(0, 1))
        def delete(self, who: int) -> None:
            """An answer stays what it was, also of what is gone."""
            if self.made[who]:
                gone = sorted(self.made[who])[0]
                assert self.people[who].ask("DELETE", f"/api/subjects/{gone}").status_code == 204
                self.made[who].discard(gone)

        def _post(self, who: int, body: dict[str, str], key: str | None) -> Any:
            headers = {"Idempotency-Key": key.encode()} if key else {}
            return self.people[who].post("/api/subjects", json=body, headers=headers)

        @invariant()
        def everything_is_there_once(self) -> None:
            for person, made in zip(self.people, self.made, strict=True):
                listed = [one["id"] for one in person.get("/api/subjects?limit=100").json()["items"]]
                assert sorted(listed) == sorted(made)

    return Repeats


@pytest.mark.usefixtures("patience")
def test_keys_are_kept_whatever_the_order(site: Site):
    site.service.settings.__dict__["subjects_max"] = 1000
    run_state_machine_as_test(
        machine_for(site),
        settings=settings(
            max_examples=8, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def pages_machine(site: Site) -> type[RuleBasedStateMachine]:
    class Pages(RuleBasedStateMachine):
        """Somebody pages through a list while rows come and go: none that stays is left out or shown twice."""

        @initialize()
        def begin(self) -> None:
            self.person, self.names = site.person(), itertools.count()
            self.rows: list[str] = []
            for _ in range(5):
                self.add()

        @rule()
        def add(self) -> None:
            self.rows.append(self.person.subject(name=f"s{next(self.names)}"))

        @rule(place=st.integers(0, 100))
        def remove(self, place: int) -> None:
            if self.rows:
                gone = self.rows.pop(place % len(self.rows))
                assert self.person.ask("DELETE", f"/api/subjects/{gone}").status_code == 204

        @rule(limit=st.integers(1, 4), add=st.booleans(), remove=st.integers(0, 100))
        def read_on(self, limit: int, add: bool, remove: int) -> None:
            stay, seen, cursor = set(self.rows), list[str](), ""
            while True:
                page = self.person.get("/api/subjects", params={"limit": limit, "cursor": cursor}).json()
                assert len(page["items"]) <= limit
                seen += [one["id"] for one in page["items"]]
                if add:
                    self.add()
                    add = False
                if remove % 3 == 0:
                    self.remove(remove)
                    remove = 1
                if page["next"] is None:
                    break
                cursor = page["next"]
            assert len(seen) == len(set(seen))
            assert stay & set(self.rows) <= set(seen)

    return Pages


@pytest.mark.usefixtures("patience")
def test_pages_show_each_row_once_whatever_comes_and_goes(site: Site):
    site.service.settings.__dict__["subjects_max"] = 1000
    run_state_machine_as_test(
        pages_machine(site),
        settings=settings(
            max_examples=6, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
