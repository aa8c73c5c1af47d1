"""What a new adapter is held against: the champion's adapter and evaluation, or that there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from photoflux.errors import InputError
from photoflux.manifest import digest, read_manifest, unpack, write_tar
from photoflux.steps.fetch_champion import main, run
from tests.steps.test_register import SUBJECT, judged


@pytest.fixture(autouse=True)
def tables(empty_registry: Path, own_state: Path) -> None:
    shutil.copy(empty_registry, own_state / "mlflow.db")


def dataset(folder: Path, *, subject: str = "rex") -> Path:
    write_tar(folder / f"{subject}.tar", files={}, manifest={"subject": SUBJECT | {"id": subject}})
    return folder / f"{subject}.tar"


def test_before_the_first_version_there_is_none(tmp_path: Path) -> None:
    assert run(dataset(tmp_path), champion=tmp_path / "champion.tar").metrics == {"version": 0.0}
    assert read_manifest(tmp_path / "champion.tar") == {"name": "rex", "version": 0}


def test_the_champion_comes_with_what_it_is_judged_by(tmp_path: Path) -> None:
    case = judged(tmp_path / "case", weights=b"1")
    case.run()
    assert run(dataset(tmp_path), champion=tmp_path / "champion.tar").metrics == {"version": 1.0}
    about = unpack(tmp_path / "champion.tar", tmp_path / "out")
    assert about == {"name": "rex", "version": 1, "adapter": digest(case.path("adapter.tar")), "verdict": "PASS"}
    for kept, written in (("adapter.tar", "adapter.tar"), ("evaluation.json", "evaluation.json")):
        assert (tmp_path / "out" / kept).read_bytes() == case.path(written).read_bytes()


def test_the_champion_is_there_after_the_state_folder_was_moved(
    tmp_path: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fetched is the same artifact, byte for byte, so that steps after it are the same."""
    judged(tmp_path / "case", weights=b"1").run()
    run(dataset(tmp_path), champion=tmp_path / "before.tar")
    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", str(own_state.rename(tmp_path / "moved")))
    run(dataset(tmp_path), champion=tmp_path / "after.tar")
    assert unpack(tmp_path / "after.tar", tmp_path / "out")["version"] == 1
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["adapter.tar", "evaluation.json"]
    assert (tmp_path / "after.tar").read_bytes() == (tmp_path / "before.tar").read_bytes()
    assert not own_state.exists()


def test_a_name_chosen_by_hand_is_looked_up(tmp_path: Path) -> None:
    judged(tmp_path / "case", weights=b"1").run(name="m")
    assert run(dataset(tmp_path), champion=tmp_path / "a.tar").metrics == {"version": 0.0}
    assert run(dataset(tmp_path), champion=tmp_path / "b.tar", name="m").metrics == {"version": 1.0}


def test_somebody_elses_model_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    judged(tmp_path / "case", weights=b"1").run(name="m")
    with pytest.raises(InputError, match="holds the subject 'rex', not 'bello'"):
        run(dataset(tmp_path, subject="bello"), champion=tmp_path / "a.tar", name="m")
    assert not (tmp_path / "a.tar").exists()


def test_it_is_sealed_anew_under_the_key_of_the_run(tmp_path: Path) -> None:
    judged(tmp_path / "case", weights=b"1").run()
    from photoflux.vault import committed, opened

    with committed(tmp_path / "sealed" / "dataset.tar", key="vault://ada") as unsealed:
        shutil.copy(dataset(tmp_path), unsealed)
    run(tmp_path / "sealed" / "dataset.tar", champion=tmp_path / "champion.tar", key="vault://ada")
    with opened(tmp_path / "champion.tar", key="vault://ada") as unsealed:
        assert read_manifest(unsealed)["version"] == 1
    with pytest.raises(InputError):
        read_manifest(tmp_path / "champion.tar")


def test_the_command_line_prints_the_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dataset", str(dataset(tmp_path)), "--champion", str(tmp_path / "c.tar")]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": 0.0}
