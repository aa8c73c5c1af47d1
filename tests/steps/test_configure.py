"""`photoflux configure`: what each step gets, written to a file of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from photoflux.__main__ import main
from photoflux.params import STEP_PARAMS, FinetuneParams
from photoflux.params.files import load_params
from photoflux.params.resolve import STEPS


@pytest.fixture(autouse=True)
def in_the_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def configure(tmp_path: Path, *words: str, params: str = "{}") -> int:
    (tmp_path / "params.yaml").write_text(params)
    return main(["configure", "--params", str(tmp_path / "params.yaml"), "--blocks", str(tmp_path / "blocks"), *words])


def test_each_step_reads_its_file_as_what_was_settled(tmp_path: Path):
    words = ["--set", "finetune_lr=1e-7", "--set", "augment_heldout=2", "--set", "import_photos_subject_id=7"]
    assert configure(tmp_path, *words, params="finetune: {rank: 8}\n") == 0
    blocks = tmp_path / "blocks"
    assert {file.name for file in blocks.iterdir()} == {*(f"{step}.yaml" for step in STEPS), "summary.md"}
    assert load_params("finetune", path=blocks / "finetune.yaml") == FinetuneParams(rank=8, lr=1e-7)
    assert load_params("augment", path=blocks / "augment.yaml").heldout == 2
    for step in STEPS:
        block = yaml.safe_load((blocks / f"{step}.yaml").read_text())
        assert [*block] == [step]
        assert [*block[step]] == [*STEP_PARAMS[step].model_fields]


def test_a_value_that_changes_changes_one_file(tmp_path: Path):
    configure(tmp_path)
    before = {file.name: file.read_bytes() for file in (tmp_path / "blocks").iterdir()}
    configure(tmp_path, params="finetune: {steps: 101}\n")
    after = {file.name: file.read_bytes() for file in (tmp_path / "blocks").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"finetune.yaml", "summary.md"}


def test_the_summary_says_what_is_changed(tmp_path: Path):
    configure(tmp_path, "--set", "gate_leakage_max=0.2")
    changed, _, rest = (tmp_path / "blocks" / "summary.md").read_text().partition("\n## import_photos")
    assert "| gate_leakage_max | `0.2` | `0.3` |" in changed
    assert changed.count("\n| ") == 2
    assert "| trigger | `sks` |" in rest


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "finetune_rank=0"], "finetune.rank is 0: choose a value from 1 to 256."),
        (["--set", "finetune_rnk=8"], "finetune_rnk: no such parameter; did you mean finetune_rank"),
        (["--set", "finetune_rank"], "--set finetune_rank: write NAME=VALUE"),
        (["--set", "base=none"], "base 'none': models/none.yaml cannot be read"),
        (["--set", "import_photos_class_noun=zeppelin"], "class noun 'zeppelin' is unknown to base 'pocket'"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
):
    assert configure(tmp_path, *words) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "blocks").exists()
