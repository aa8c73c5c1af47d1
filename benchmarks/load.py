"""A hundred people at once, each with an adapter of their own, over TLS, on the machine that also asks.

    make load
    python -m benchmarks.load --people 10 --seconds 30 --out build

Everybody signs in as a browser does, with the limits that ship, asks for a picture every 30 s on average (exponential), looks around
between, and now and then uploads a photo. A generation counts from asking to the picture's bytes. Adapters are 20-step fine-tunings of
as many subjects of the pocket world, kept in `.cache/load`. Writes `load.json`; Locust runs as a process of its own on the same cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.chaos import PASSWORD, RunningService
from benchmarks.pocket_base import machine
from photoflux.manifest import write_json

ADAPTERS = Path(".cache/load")
STEPS, SEED = 20, 0
SPAWN_PER_S = 10
AIMS = {"failures": 0, "reads_p95_ms": 100, "generation_p95_ms": 2000}


def make_adapters(count: int, folder: Path) -> list[Path]:
    """So many adapters, each of a subject of its own, fine-tuned for `STEPS` steps from the base's start."""
    files = [folder / f"{number:03}.tar" for number in range(count)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        from photoflux.flux import lora
        from photoflux.flux.spec import load_spec
        from photoflux.params import FinetuneParams
        from photoflux.pocket import train_start

        train_start.STEPS = STEPS
        spec = load_spec("pocket")
        learner = train_start.Learner(spec, FinetuneParams())
        lora.load_start_adapter(learner.transformer, spec.start_adapter, rank=FinetuneParams().rank, scale=1.0)
        start = {name: p.detach().clone() for name, p in lora.subject_parameters(learner.transformer).items()}
        for file in missing:
            number = 500_000 + int(file.stem)
            lora.copy_weights(learner.transformer, start)
            learner.tune(number)
            _write(file, learner, spec, noun=learner.nouns[number % len(learner.nouns)])
            print(f"{file.name}: {len(missing)} to be made", end="\r", flush=True)
    return files


def _write(file: Path, learner: Any, spec: Any, *, noun: str) -> None:
    from photoflux.flux.lora import save_adapter
    from photoflux.manifest import write_tar

    with TemporaryDirectory() as scratch:
        weights = save_adapter(learner.transformer, Path(scratch) / "pytorch_lora_weights.safetensors")
        subject = {"id": f"load-{file.stem}", "class_noun": noun, "trigger": "sks", "consent": "sample"}
        manifest = {"subject": subject, "base": {"name": spec.name, "hash": spec.hash}}
        write_tar(file, files={weights.name: weights}, manifest=manifest)


def populate_state(adapters: Sequence[str], out: str) -> None:
    """People who can sign in, with consents, a subject and a model each; runs with the site's environment."""
    from api.accounts.embedded_provider import Accounts
    from api.main import PROVIDER_PATH
    from api.privacy import consents
    from api.records.database import Records, migrate, open_engine
    from api.records.service_secrets import keyed_digest, pepper
    from api.records.tables import Model, Run, Subject, User, new_id
    from api.settings import ApiSettings
    from photoflux.manifest import digest, read_manifest
    from photoflux.vault import open_keyring
    from photoflux.vault.objects import open_objects

    settings = ApiSettings()
    migrate(settings.records_url)
    records, keyring = Records(open_engine(settings.records_url)), open_keyring()
    objects, accounts = open_objects(keyring), Accounts(settings.state_dir / "accounts")
    people = []
    for number, adapter in enumerate(map(Path, adapters)):
        email = f"p{number}@example.org"
        account = accounts.add(email, name=f"Person {number}", password=PASSWORD)
        login = keyed_digest(pepper(keyring), f"{settings.issuer}{PROVIDER_PATH}", account.sub)
        noun, ids = read_manifest(adapter)["subject"]["class_noun"], [new_id() for _ in range(4)]
        user, subject, run, model = ids
        depicts = "me" if noun == "person" else "no_person"
        with records.writing() as session:
            session.add(User(id=user, login=login))
            session.flush()
            for purpose in consents.PURPOSES:
                consents.grant(session, user, purpose, consents.terms_documents()[purpose].sha256)
            session.add(
                Subject(id=subject, user_id=user, class_noun=noun, trigger="sks", depicts=depicts, champion_id=model)
            )
            session.flush()
            session.add(
                Run(
                    id=run,
                    user_id=user,
                    subject_id=subject,
                    state="succeeded",
                    params={},
                    orchestrator="local",
                    estimate={},
                    steps=[],
                )
            )
            session.flush()
            session.add(
                Model(
                    id=model,
                    user_id=user,
                    subject_id=subject,
                    run_id=run,
                    number=1,
                    registry_name=subject,
                    registry_version="1",
                    adapter_sha256=digest(adapter),
                    verdict="PASS",
                    metrics={},
                )
            )
        objects.put(user, "adapter", model, adapter.read_bytes())
        people.append({"email": email, "password": PASSWORD, "subject": subject, "noun": noun})
    write_json(Path(out), people)


def run_locust(served: RunningService, people: Path, *, count: int, seconds: int, scratch: Path) -> dict[str, Any]:
    """Run Locust and read its figures."""
    out = scratch / "locust"
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(Path(__file__).with_name("locustfile.py")),
        "--headless",
        "--only-summary",
        "-u",
        str(count),
        "-r",
        str(SPAWN_PER_S),
        "-t",
        f"{seconds}s",
        "--host",
        served.base,
        "--json-file",
        str(out),
    ]
    environment = os.environ | {"PHOTOFLUX_PEOPLE": str(people)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    file = out.with_suffix(".json") if out.with_suffix(".json").is_file() else out
    if not file.is_file():
        raise SystemExit(done.stdout + done.stderr)
    return figures(json.loads(file.read_text()), seconds=seconds, said=done.stderr[-2000:])


def figures(rows: Sequence[dict[str, Any]], *, seconds: int, said: str) -> dict[str, Any]:
    """Counts, failures and percentiles by name, and of reads together."""
    table, reads = {}, {}
    for row in rows:
        times = {int(float(ms)): count for ms, count in row["response_times"].items()}
        table[row["name"]] = {
            "count": row["num_requests"],
            "failures": row["num_failures"],
            **{f"p{share}_ms": percentile(times, share / 100) for share in (50, 95, 99)},
        }
        if row["name"].startswith("read"):
            for ms, count in times.items():
                reads[ms] = reads.get(ms, 0) + count
    total = sum(one["count"] for name, one in table.items() if name != "generation")
    return {
        "failures": sum(one["failures"] for one in table.values()),
        "reads_p95_ms": percentile(reads, 0.95),
        "generation_p95_ms": table.get("generation", {}).get("p95_ms"),
        "requests_per_s": round(total / seconds, 1),
        "by_name": table,
        "said": said if any(one["failures"] for one in table.values()) else "",
    }


def percentile(times: dict[int, int], share: float) -> int | None:
    """The time that so large a share of the requests did not exceed."""
    left = share * sum(times.values())
    for ms in sorted(times):
        left -= times[ms]
        if left <= 0:
            return ms
    return None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(argv)
    adapters = make_adapters(options.people, ADAPTERS)
    with TemporaryDirectory(prefix="photoflux-load-") as scratch:
        people = Path(scratch) / "people.json"
        served = RunningService(
            Path(scratch), "--no-mlflow", "--tls", before=lambda site: populate_service(site, adapters, people)
        )
        try:
            found = run_locust(served, people, count=options.people, seconds=options.seconds, scratch=Path(scratch))
        finally:
            served.stop()
    met = {name: found[name] is not None and found[name] <= aim for name, aim in AIMS.items()}
    result = {
        "kind": "benchmark-load",
        "schema_version": 1,
        "machine": machine(),
        "people": options.people,
        "seconds": options.seconds,
        "aims": AIMS,
        "met": met,
        **found,
    }
    write_json(options.out / "load.json", result)
    print(json.dumps(result, indent=2))
    return 0 if all(met.values()) else 1


def populate_service(site: RunningService, adapters: Sequence[Path], people: Path) -> None:
    code = "import sys; from benchmarks.load import populate_state; populate_state(sys.argv[2:], sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(people), *map(str, adapters)], env=site.environment, check=True)


if __name__ == "__main__":
    raise SystemExit(main())
