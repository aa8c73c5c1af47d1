"""The import component, whole: from a DVC-tracked set with an empty cache, and from what does not exist."""

import json
import re
from pathlib import Path

import pytest
from kfp.dsl import Dataset, Metrics

from components.import_data import import_data
from photoflux.errors import InputError
from photoflux.manifest import read_manifest
from photoflux.params import ImportParams


def imported(tmp_path: Path, source: str) -> Path:
    (tmp_path / "import_data").mkdir()
    photos = Dataset(name="photos", uri=str(tmp_path / "import_data" / "photos"))
    metrics = Metrics(name="metrics", uri=str(tmp_path / "import_data" / "metrics"))
    block = ImportParams(source=source, class_noun="dog").block()
    import_data.python_func(photos=photos, metrics=metrics, key="plain://demo", params=block, source_state="")
    assert metrics.metadata["files"] > 0
    return Path(photos.path)


def test_a_dvc_set_is_imported_at_a_revision(dvc_repo, tmp_path: Path):
    assert not (dvc_repo.folder / ".dvc" / "cache").exists()
    manifest = read_manifest(imported(tmp_path, f"dvc:{dvc_repo.folder}@{dvc_repo.first}:photos/dog"))
    assert [f["name"] for f in manifest["files"]] == ["00.jpg", "01.jpg", "02.jpg"]
    assert manifest["source"] == f"dvc:repo@{dvc_repo.first}:photos/dog"
    assert manifest["subject"]["class_noun"] == "dog"


def test_a_missing_folder_leaves_its_sentence_for_the_exit_step(tmp_path: Path):
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/none: does not exist")):
        imported(tmp_path, f"{tmp_path}/none")
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["message"].startswith(f"{tmp_path}/none: does not exist")
    assert list((tmp_path / "import_data").iterdir()) == []
