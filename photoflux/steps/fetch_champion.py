"""fetch_champion: the version of the subject's model that a new adapter has to be held against, as one artifact."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from photoflux.manifest import digest, read_manifest, write_tar
from photoflux.steps import StepResult
from photoflux.vault import committed, opened

ADAPTER, EVALUATION = "adapter.tar", "evaluation.json"


def run(dataset: Path, *, champion: Path, name: str = "", key: str = "plain://demo") -> StepResult:
    """Fetch the champion of the model `name`, or of the subject of `dataset`: its adapter and its evaluation.

    The manifest says which version it is; where there is none yet, it says version 0 and nothing else is in the artifact. The version
    is opened with the key it was registered under, and kept under `key`. Raises InputError where the model is another subject's.
    """
    from photoflux.tracking import CHAMPION, Registry

    with opened(dataset, key=key) as unsealed:
        subject = read_manifest(unsealed)["subject"]
    name, registry = name or subject["id"], Registry()
    registry.check_same_subject(
        name, {"subject": subject["id"], "class_noun": subject["class_noun"], "trigger": subject["trigger"]}
    )
    version = registry.get_version(name, CHAMPION)
    with ExitStack() as stack:
        about = {"name": name, "version": version.number if version else 0}
        files: dict[str, bytes | Path] = {}
        if version:
            stored, own_key = registry.download_adapter(version)
            adapter = stack.enter_context(opened(stored, key=own_key))
            files[ADAPTER] = adapter
            about |= {"adapter": digest(adapter), "verdict": version.tags.get("verdict", "")}
            if judged := registry.download_document(version, EVALUATION):
                files[EVALUATION] = stack.enter_context(opened(judged, key=own_key))
        with committed(champion, key=key) as out:
            write_tar(out, files=files, manifest=about)
    return StepResult(metrics={"version": float(about["version"])})


def main(argv: Sequence[str]) -> int:
    """`photoflux fetch_champion`: for `photoflux evaluate --champion`."""
    parser = argparse.ArgumentParser(prog="photoflux fetch_champion", description=(run.__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset", type=Path, required=True, help="the data set of augment; names the subject")
    parser.add_argument("--champion", type=Path, required=True, help="the artifact to write")
    parser.add_argument("--name", default="", help="the registered model, where it is not called after the subject")
    parser.add_argument("--key", default="plain://demo", help="key URI that seals this step's artifacts")
    args = parser.parse_args(argv)
    print(json.dumps(run(args.dataset, champion=args.champion, name=args.name, key=args.key).metrics))
    return 0
