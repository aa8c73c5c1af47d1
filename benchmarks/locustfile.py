"""What one of a hundred people does; read by Locust in `benchmarks.load`."""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from pathlib import Path

from locust import FastHttpUser, task

PEOPLE = itertools.cycle(json.loads(Path(os.environ["PHOTOFLUX_PEOPLE"]).read_text()))
PHOTO = next((Path(__file__).parents[1] / "data/samples/dog").glob("*.jpg")).read_bytes()
BETWEEN_S, GENERATIONS_EVERY_S, UPLOADS_EVERY_S = 3.0, 30.0, 300.0
PLACES = ("on the beach", "in the snow", "in space", "in the city", "in the forest")


class ServiceUser(FastHttpUser):
    """Looks around every few seconds, asks for a picture every thirty, uploads now and then."""

    insecure = True  # the certificate is this machine's own
    connection_timeout = network_timeout = 60.0

    def wait_time(self) -> float:
        return random.expovariate(1 / BETWEEN_S)

    def on_start(self) -> None:
        me = next(PEOPLE)
        self.subject, self.noun = me["subject"], me["noun"]
        # Locust's own switch for it sets an attribute that its HTTP client calls otherwise by now.
        self.client.client.redirect_response_codes = frozenset()
        self.sign_in(me["email"], me["password"])
        time.sleep(random.expovariate(1 / BETWEEN_S))

    def sign_in(self, email: str, password: str) -> None:
        """The whole way that a browser goes: to the provider, through its form, and back."""
        page = self.client.get("/api/auth/login", name="sign in").headers["location"]
        form = {"email": email, "password": password}
        back = self.client.post(page, data=form, name="sign in: password").headers["location"]
        self.client.get(back, name="sign in: back")
        token = self.client.post("/api/auth/refresh", name="sign in: token").json()["access_token"]
        self.headers = {"Authorization": f"Bearer {token}"}

    @task
    def live(self) -> None:
        chance = random.random()
        if chance < BETWEEN_S / GENERATIONS_EVERY_S:
            self.generate()
        elif chance < BETWEEN_S * (1 / GENERATIONS_EVERY_S + 1 / UPLOADS_EVERY_S):
            self.upload()
        else:
            path = random.choice(
                ("/api/subjects", "/api/results?limit=10", "/api/models", f"/api/subjects/{self.subject}")
            )
            self.client.get(path, headers=self.headers, name="read " + path.split("?")[0].replace(self.subject, "{id}"))

    def generate(self) -> None:
        """From asking to the picture's bytes."""
        started = time.perf_counter()
        prompt = f"a photo of sks {self.noun} {random.choice(PLACES)}"
        body = {"subject": self.subject, "prompt": prompt, "seed": random.randrange(2**31)}
        answer = self.client.post("/api/generate", json=body, headers=self.headers)
        if answer.status_code != 202:
            return
        path, state = f"/api/results/{answer.json()['id']}", {}
        while time.perf_counter() - started < 60 and not state.get("finished"):
            state = self.client.get(f"{path}?wait=20", headers=self.headers, name="wait /api/results/{id}").json()
        error = None if state.get("images") else RuntimeError(f"{state.get('state')}: {state.get('error')}")
        if not error:
            self.client.get(state["images"][0]["url"], headers=self.headers, name="read /api/media/images/{id}")
        self.environment.events.request.fire(
            request_type="",
            name="generation",
            response_time=1000 * (time.perf_counter() - started),
            response_length=0,
            exception=error,
            context={},
        )

    def upload(self) -> None:
        files = {"photos": (f"{random.random()}.jpg", PHOTO, "image/jpeg")}
        self.client.post("/api/upload", data={"subject": self.subject}, files=files, headers=self.headers)
