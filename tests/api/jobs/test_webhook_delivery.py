"""Webhooks: signed so that a receiver can check them, sent to public addresses alone, tried again, and free of words."""

from __future__ import annotations

import json
import socket
import sqlite3
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import trustme
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from standardwebhooks import Webhook as Receiver
from standardwebhooks import WebhookVerificationError

from api.jobs import webhook_delivery
from api.jobs.webhook_delivery import ATTEMPTS, WebhookSender, check_address
from api.records.tables import Webhook, WebhookDelivery, now_ms
from photoflux.errors import InputError
from tests.api.people import Person, Site, is_problem
from tests.api.routes.test_generations import ask
from tests.api.routes.test_runs import queued_job


@dataclass
class Listener:
    """Somebody's address, which keeps what it is told and answers as it is set to."""

    url: str
    status: int = 204
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as made:
        yield made


class listening:  # noqa: N801
    """A server on loopback; over TLS with a context."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        found = Listener("")

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                found.heard.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(found.status)
                self.send_header("location", "http://127.0.0.1:1/")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        found.url = f"http{'s' if context else ''}://localhost:{self.server.server_port}/told?by=photoflux"
        self.listener = found

    def __enter__(self) -> Listener:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self.listener

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def sender(site: Site, **more: Any) -> WebhookSender:
    redeliver = site.service.queue.enqueue_redelivery
    return WebhookSender(
        site.service.records, site.service.keyring, **{"private": True, "redeliver": redeliver, **more}
    )


def deliveries(site: Site, person: Person) -> list[WebhookDelivery]:
    with site.service.records.reading() as session:
        query = select(WebhookDelivery).where(WebhookDelivery.user_id == person.id).order_by(WebhookDelivery.created_ms)
        return list(session.scalars(query))


def subscribed(person: Person, listener: Listener) -> dict[str, Any]:
    answer = person.post("/api/webhooks", json={"url": listener.url})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def test_an_ended_generation_is_told_in_a_message_that_can_be_checked(site: Site, ada: Person, listener: Listener):
    made = subscribed(ada, listener)
    result = ask(ada, ada.subject_with_model(), prompt="a photo of sks dog, secretly")["id"]
    with site.service.records.writing() as session:
        site.service.audit_log.record(session, "system", "generation.ended", result, "succeeded")
    (delivery,) = deliveries(site, ada)
    queued = queued_job(site, delivery.id)
    assert queued is not None
    assert (queued["name"], queued["queue_name"]) == ("deliver_webhook", "deliveries")
    assert sender(site).deliver(delivery.id) == "succeeded"
    assert sender(site).deliver(delivery.id) == "succeeded"
    ((headers, body),) = listener.heard
    said = Receiver(made["secret"]).verify(body, headers)
    assert said["type"] == "generation.ended"
    assert said["data"] == {"id": result, "state": "succeeded"}
    assert b"secretly" not in body
    assert headers["webhook-id"] == delivery.id
    (shown,) = ada.get("/api/webhooks").json()["items"]
    assert (shown["last"], shown["secret"], shown["url"]) == ("succeeded", None, listener.url)


def test_a_message_is_worth_nothing_when_altered_late_or_of_another(site: Site, ada: Person, listener: Listener):
    made = subscribed(ada, listener)
    ada.post(f"/api/webhooks/{made['id']}/test")
    (delivery,) = deliveries(site, ada)
    sender(site).deliver(delivery.id)
    ((headers, body),) = listener.heard
    receiver = Receiver(made["secret"])
    assert receiver.verify(body, headers)["type"] == "test"
    for changed, by in ((headers | {"webhook-id": "x"}, receiver), (headers, Receiver("whsec_" + "A" * 40))):
        with pytest.raises(WebhookVerificationError):
            by.verify(body, changed)
    with pytest.raises(WebhookVerificationError):
        receiver.verify(body + b" ", headers)
    other = subscribed(ada, listener)
    ada.post(f"/api/webhooks/{other['id']}/test")
    late = sender(site, clock=lambda: datetime.now(UTC) - timedelta(minutes=10))
    late.deliver(deliveries(site, ada)[-1].id)
    headers, body = listener.heard[-1]
    with pytest.raises(WebhookVerificationError, match="too old"):
        Receiver(other["secret"]).verify(body, headers)


def test_what_could_not_be_recorded_is_not_sent_again(
    site: Site, ada: Person, listener: Listener, monkeypatch: pytest.MonkeyPatch
):
    """The database was written to by others for long: recording waits for it, and the message is out."""
    ada.post(f"/api/webhooks/{subscribed(ada, listener)['id']}/test")
    delivery = deliveries(site, ada)[-1]
    busy = sqlite3.OperationalError("database is locked")
    busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
    records, left = site.service.records, [True] * 3
    writing = records.writing

    def late() -> Any:
        if left:
            left.pop()
            raise OperationalError("begin", {}, busy)
        return writing()

    monkeypatch.setattr("api.records.database.OUTAGE_RETRY_S", 0.01)
    monkeypatch.setattr(records, "writing", late)
    assert sender(site).deliver(delivery.id) == "succeeded"
    assert (len(listener.heard), left) == (1, [])


@pytest.mark.parametrize("status", [302, 400, 404, 500, 503])
def test_what_is_not_taken_is_sent_again(site: Site, ada: Person, listener: Listener, status: int):
    made = subscribed(ada, listener)
    ada.post(f"/api/webhooks/{made['id']}/test")
    (delivery,) = deliveries(site, ada)
    listener.status = status
    assert sender(site).deliver(delivery.id) == "queued"
    later = queued_job(site, f"{delivery.id}:2")
    assert later is not None
    assert (later["name"], later["queue_name"], later["queue_partition_key"]) == (
        "deliver_webhook",
        "deliveries",
        ada.id,
    )
    assert 1000 < later["delay_until_epoch_ms"] - now_ms() <= 2000
    listener.status = 200
    assert sender(site).deliver(delivery.id) == "succeeded"
    first, second = (headers["webhook-id"] for headers, _ in listener.heard)
    assert first == second, "a receiver knows it by its id"


def test_what_nobody_takes_is_given_up(site: Site, ada: Person, listener: Listener):
    made = subscribed(ada, listener)
    ada.post(f"/api/webhooks/{made['id']}/test")
    (delivery,) = deliveries(site, ada)
    listener.status = 500
    assert sender(site).deliver(delivery.id, ATTEMPTS) == "failed"
    listener.heard.clear()
    assert ada.get("/api/webhooks").json()["items"][0]["last"] == "failed"
    assert sender(site).deliver(delivery.id) == "failed"
    assert listener.heard == []


def test_a_receiver_that_drips_is_given_up_in_time(site: Site, ada: Person, monkeypatch: pytest.MonkeyPatch):
    """A byte now and then holds every timeout of a client off but the one for the whole."""
    monkeypatch.setattr(webhook_delivery, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def drip() -> None:
            taken, _ = server.accept()
            with taken:
                for byte in b"HTTP/1.1 204 No Content\r\n" * 1000:
                    if over.wait(0.05):
                        return
                    try:
                        taken.sendall(bytes([byte]))
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        made = ada.post("/api/webhooks", json={"url": f"http://127.0.0.1:{server.getsockname()[1]}/"}).json()
        ada.post(f"/api/webhooks/{made['id']}/test")
        assert sender(site).deliver(deliveries(site, ada)[0].id) == "queued"
        over.set()
        thread.join()


def test_an_address_that_is_gone_hears_no_more(site: Site, ada: Person, listener: Listener):
    made = subscribed(ada, listener)
    ada.post(f"/api/webhooks/{made['id']}/test")
    (delivery,) = deliveries(site, ada)
    listener.status = 410
    assert sender(site).deliver(delivery.id) == "cancelled"
    assert ada.get("/api/webhooks").json()["items"] == []
    assert sender(site).deliver(delivery.id) == "cancelled"


def test_address_and_secret_are_sealed(site: Site, ada: Person, listener: Listener):
    made = subscribed(ada, listener)
    row = ada.row(Webhook, made["id"])
    assert b"localhost" not in row.address
    assert made["secret"].encode() not in row.secret


def test_webhooks_are_their_owners_and_few(site: Site, ada: Person, bob: Person, listener: Listener):
    made = subscribed(ada, listener)
    assert bob.get("/api/webhooks").json()["items"] == []
    is_problem(bob.post(f"/api/webhooks/{made['id']}/test"), 404, "not-found")
    is_problem(bob.ask("DELETE", f"/api/webhooks/{made['id']}"), 404, "not-found")
    for _ in range(4):
        subscribed(ada, listener)
    is_problem(ada.post("/api/webhooks", json={"url": listener.url}), 409, "too-many-webhooks")
    assert ada.ask("DELETE", f"/api/webhooks/{made['id']}").status_code == 204
    assert len(ada.get("/api/webhooks").json()["items"]) == 4


def test_nobody_else_is_told(site: Site, ada: Person, bob: Person, listener: Listener):
    subscribed(ada, listener)
    result = ask(bob, bob.subject_with_model())["id"]
    with site.service.records.writing() as session:
        site.service.audit_log.record(session, "system", "generation.ended", result, "succeeded")
    assert deliveries(site, ada) == []


INWARD = [
    "https://127.0.0.1/", "https://localhost/", "https://[::1]/", "https://10.0.0.1/", "https://192.168.1.1/",
    "https://169.254.169.254/latest/meta-data", "https://[fe80::1]/", "https://0.0.0.0/", "https://224.0.0.1/",
    "https://[::ffff:127.0.0.1]/", "https://2130706433/", "https://0x7f.1/", "https://100.64.0.1/",
]  # fmt: skip


@pytest.mark.parametrize("address", INWARD)
def test_no_message_goes_into_the_network(address: str):
    with pytest.raises(InputError, match=r"public internet|not known"):
        check_address(address, private=False)


@pytest.mark.parametrize(
    "address",
    ["", "x", "http://example.org/", "ftp://93.184.216.34/", "https://", "https://a:b@93.184.216.34/", "https://:443/",
     "https://93.184.216.34/#x", "https://93.184.216.34:99999/", "https://93.184.216.34:0/", "https://exa mple/",
     "//93.184.216.34/", "https://[::1", "http://93.184.216.34/"],
)  # fmt: skip
def test_addresses_that_are_none_are_refused(address: str):
    for private in (False, True):
        with pytest.raises(InputError):
            check_address(address, private=private)


def test_a_name_that_turns_inward_later_leads_nowhere(
    site: Site, ada: Person, listener: Listener, monkeypatch: pytest.MonkeyPatch
):
    """It is looked up for each message, and the message goes to the address that was checked."""
    made = subscribed(ada, listener)
    ada.post(f"/api/webhooks/{made['id']}/test")
    (delivery,) = deliveries(site, ada)
    answers = [("93.184.216.34", 443), ("127.0.0.1", 443)]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", one) for one in answers]
    )
    assert sender(site).deliver(delivery.id) == "queued"
    assert listener.heard == []


def test_over_tls_the_name_is_checked_though_the_ip_is_asked(site: Site, ada: Person):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    with listening(context) as listener:
        made = subscribed(ada, listener)
        ada.post(f"/api/webhooks/{made['id']}/test")
        (delivery,) = deliveries(site, ada)
        assert sender(site).deliver(delivery.id) == "queued"
        assert listener.heard == []
        assert sender(site, verify=trusted).deliver(delivery.id) == "succeeded"
        ((headers, _),) = listener.heard
        assert headers["host"].startswith("localhost:")


def test_a_wrong_address_is_a_problem(ada: Person):
    for url in ("https://10.0.0.1/", "x" * 501, "http://93.184.216.34/"):
        is_problem(ada.post("/api/webhooks", json={"url": url}), 422, "invalid")


def test_messages_hold_nothing_else(site: Site, ada: Person, listener: Listener):
    made = subscribed(ada, listener)
    ada.post(f"/api/webhooks/{made['id']}/test")
    (delivery,) = deliveries(site, ada)
    sender(site).deliver(delivery.id)
    ((_, body),) = listener.heard
    assert json.loads(body).keys() == {"type", "timestamp", "data"}
    assert ada.id.encode() not in body
