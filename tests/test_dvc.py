"""DVC re-runs what changed and nothing else; and what it watches is all that a step uses."""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from dvc.stage import PipelineStage

from photoflux.__main__ import main

PURE = ("import_photos", "validate", "augment", "finetune", "evaluate", "audit")
RUN = ("configure", *PURE)
COMMANDS = {"sample_data": "photoflux/pocket/photosets.py", "pretrain": "photoflux/pocket/pretrain.py"}
MODULES_WITHOUT_EFFECT = {
    "photoflux/__init__.py", "photoflux/errors.py", "photoflux/settings.py",
    "photoflux/steps/__init__.py", "photoflux/flux/__init__.py", "photoflux/judges/__init__.py",
    "photoflux/pages/__init__.py", "photoflux/photos/__init__.py", "photoflux/pocket/__init__.py",
}  # fmt: skip
"""They hold no arithmetic: names, messages and folders."""
CARRIED = [
    "photoflux", "models", "data", "metrics", ".dvc", ".dvcignore", ".gitignore", "dvc.yaml", "dvc.lock", "params.yaml",
]  # fmt: skip


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Repo]:
    """DVC at work in a folder: it looks for its files in the current one."""
    with contextlib.chdir(folder), Repo() as repo:
        yield repo


def stages(folder: Path) -> dict[str, PipelineStage]:
    """The stages as DVC reads them, with the parameters filled in."""
    with opened(folder) as repo:
        return {stage.name: stage for stage in repo.index.stages}


def watched(stage: PipelineStage) -> set[str]:
    """The paths of code a stage depends on."""
    return {dep.def_path for dep in stage.deps if dep.def_path.startswith("photoflux")}


def module_file(root: Path, name: str) -> str | None:
    """The file of a module or package of ours."""
    path = Path(*name.split("."))
    return next((p.as_posix() for p in (path.with_suffix(".py"), path / "__init__.py") if (root / p).is_file()), None)


def imported(root: Path, file: str) -> Iterator[str]:
    """The files of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse((root / file).read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from filter(None, (module_file(root, name) for name in names if name.split(".")[0] == "photoflux"))


def used(root: Path, file: str) -> set[str]:
    """Every file of ours that running `file` can load. Parameters are watched by value, but by who settles them."""
    found, waiting = set(), [file]
    while waiting:
        if (one := waiting.pop()) not in found:
            found.add(one)
            waiting.extend(imported(root, one))
    settles = file == "photoflux/steps/configure.py"
    return {one for one in found - MODULES_WITHOUT_EFFECT if settles or not one.startswith("photoflux/params/")}


def covers(dep: str, file: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


@pytest.mark.parametrize("name", ["sample_data", "pretrain", *RUN])
def test_a_stage_watches_all_the_code_it_uses_and_no_other(root: Path, name: str):
    deps = watched(stages(root)[name])
    code = used(root, COMMANDS.get(name, f"photoflux/steps/{name}.py"))
    assert {file for file in code if not any(covers(dep, file) for dep in deps)} == set(), "add these to deps"
    assert {dep for dep in deps if not any(covers(dep, file) for file in code)} == set(), "drop these from deps"


def test_stages_are_the_steps_and_watch_their_own_parameters(root: Path):
    found = stages(root)
    assert set(found) == {"sample_data", "pretrain", *RUN}
    for step in RUN:
        assert f"python -m photoflux {step} " in str(found[step].cmd)
        assert "${" not in str(yaml.safe_load((root / "dvc.yaml").read_text())["stages"][step]["cmd"]), (
            "a shell reads it"
        )
    for step in PURE:
        own = f"build/params/{step}.yaml"
        assert f" --params {own} " in str(found[step].cmd)
        assert [dep.def_path for dep in found[step].deps if dep.def_path.startswith("build/params/")] == [own]


def test_whatever_stands_in_the_file_of_parameters_is_settled_anew(root: Path):
    written = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    assert written["configure"]["params"] == [{"params.yaml": None}]
    assert [name for name, stage in written.items() if "params" in stage] == ["configure"]
    made = {out.def_path for out in stages(root)["configure"].outs}
    assert made == {f"build/params/{step}.yaml" for step in (*PURE, "gate", "register")}


def test_the_graph_is_a_line_that_ends_in_two_judges(root: Path):
    with opened(root) as repo:
        edges = {(maker.name, user.name) for user, maker in repo.index.graph.edges}
    steps = {edge for edge in edges if set(edge) <= set(PURE)}
    assert steps == {
        ("import_photos", "validate"),
        ("validate", "augment"),
        ("augment", "finetune"),
        ("augment", "evaluate"),
        ("finetune", "evaluate"),
        ("finetune", "audit"),
    }
    assert ("sample_data", "import_photos") in edges
    drawing = {"augment", "finetune", "evaluate", "audit"}
    assert {user for maker, user in edges if maker == "pretrain"} == {"configure", *drawing}
    assert {user for maker, user in edges if maker == "configure"} == set(PURE)


def test_what_git_carries_is_kept_out_of_the_cache_and_outlasts_a_stage_that_fails(root: Path):
    """DVC deletes other outputs before it runs their stage."""
    found = stages(root)
    outs = [out for stage in found.values() for out in stage.outs]
    carried = {out.def_path for out in outs if not out.use_cache}
    metrics = {f"metrics/{name}.json" for name in (*PURE, "curves")}
    assert carried == {"data/samples/dog", "models/pocket", "models/pocket.yaml", *metrics}
    assert {out.def_path for out in outs if out.persist} == carried
    assert found["pretrain"].frozen
    assert all(out.def_path.startswith("build/") for step in RUN for out in found[step].outs if out.use_cache)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which every stage is recorded as done; what a stage made is stood in for by its name, but for parameters."""
    root, folder = Path(__file__).resolve().parent.parent, tmp_path_factory.mktemp("project")
    _copy(root, folder)
    _configure(folder)
    with opened(folder) as repo:
        for stage in repo.index.stages:
            for out in stage.outs:
                _make(folder / out.def_path)
        repo.commit(force=True)
    return folder


def _copy(root: Path, folder: Path) -> None:
    """The files git tracks, or would, as a repository of their own; caches and environments stay behind."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run([*listed, "--", *CARRIED], cwd=root, capture_output=True, text=True, check=True).stdout
    for name in filter(lambda n: (root / n).is_file(), names.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, folder / name)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)


def _make(path: Path) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.name)


def _configure(folder: Path) -> None:
    """What the stage `configure` runs."""
    words = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]["configure"]["cmd"].split()
    assert words[:3] == ["python", "-m", "photoflux"]
    with contextlib.chdir(folder):
        assert main(words[3:]) == 0


def changed(folder: Path) -> set[str]:
    """The stages that would run again now, not counting those that only follow from them."""
    with opened(folder) as repo:
        return {stage.name for stage in repo.reproduce(dry=True)}


def followers(folder: Path, names: set[str]) -> set[str]:
    """The stages downstream of `names`."""
    with opened(folder) as repo:
        graph = repo.index.graph
        found, waiting = set(), [stage for stage in graph if stage.name in names]
        while waiting:
            ahead = list(graph.predecessors(waiting.pop()))
            found |= {stage.name for stage in ahead}
            waiting += ahead
    return found - names


@pytest.fixture
def edited(project: Path) -> Iterator[dict[Path, str]]:
    """Files to write into; each is put back as it was."""
    kept: dict[Path, str] = {}
    yield kept
    for file, text in kept.items():
        file.write_text(text)


def edit(file: Path, old: str, new: str, kept: dict[Path, str]) -> None:
    kept[file] = file.read_text()
    assert old in kept[file]
    file.write_text(kept[file].replace(old, new, 1))


def test_nothing_runs_when_nothing_changed(project: Path):
    assert changed(project) == set()


@pytest.mark.parametrize(
    ("values", "runs"),
    [
        ("finetune: {steps: 101}", {"finetune"}),
        ("audit: {alpha: 0.04}", {"audit"}),
        ("gate: {copy_max: 0.04}", set()),
        ("# nothing but a remark", set()),
    ],
)
def test_a_parameter_runs_its_own_step_and_what_follows_only(
    project: Path, edited: dict[Path, str], values: str, runs: set[str]
):
    edit(project / "params.yaml", "\n", f"\n{values}\n", edited)
    edited |= {
        file: file.read_text() for file in (project / "dvc.lock", *(project / "build" / "params").glob("*.yaml"))
    }
    assert changed(project) <= {"configure"}
    _configure(project)
    with opened(project) as repo:
        repo.commit("configure", force=True)
    assert changed(project) == runs
    assert followers(project, {"finetune"}) == {"evaluate", "audit"}


@pytest.mark.parametrize(
    ("file", "runs"),
    [
        ("photoflux/steps/validate.py", {"validate"}),
        ("photoflux/steps/augment.py", {"augment"}),
        ("photoflux/steps/finetune.py", {"finetune"}),
        ("photoflux/steps/audit.py", {"audit"}),
        ("photoflux/judges/scores.py", {"evaluate", "audit"}),
        ("photoflux/photos/suite.py", {"validate"}),
        ("data/expectations/photos.json", {"validate"}),
        ("photoflux/photos/captions.py", {"augment"}),
        ("photoflux/steps/gate.py", set()),
        ("photoflux/tracking.py", set()),
        ("photoflux/params/finetune.py", {"configure"}),
    ],
)
def test_edited_code_runs_the_steps_that_use_it_only(project: Path, edited: dict[Path, str], file: str, runs: set[str]):
    edit(project / file, "\n", "\n# edited\n", edited)
    assert changed(project) == runs


def test_an_edit_to_the_world_does_not_pretrain_again(project: Path, edited: dict[Path, str]):
    edit(project / "photoflux/pocket/world.py", "\n", "\n# edited\n", edited)
    assert changed(project) == {"sample_data"}


def test_a_fresh_clone_has_nothing_to_do(root: Path, tmp_path: Path):
    _copy(root, tmp_path)
    assert (tmp_path / "dvc.lock").is_file(), "run `make repro` and commit dvc.lock"
    with opened(tmp_path) as repo:
        assert [stage.name for stage in repo.reproduce(dry=True, allow_missing=True)] == []


def test_the_samples_are_what_their_stage_draws(root: Path, tmp_path: Path):
    words = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]["sample_data"]["cmd"].split()
    where = words.index("data/samples/dog")
    assert words[:3] == ["python", "-m", "photoflux"]
    assert main([*words[3:where], str(tmp_path / "drawn"), *words[where + 1 :]]) == 0
    kept = {path.name: path.read_bytes() for path in (root / "data/samples/dog").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "drawn").iterdir()} == kept


def test_metrics_and_plots_can_be_shown(root: Path):
    with opened(root) as repo:
        shown = repo.metrics.show()[""]["data"]
        plots = repo.plots.show()
    assert {Path(name).stem for name in shown} == set(PURE)
    assert all(entry["data"] for entry in shown.values())
    assert plots["workspace"]["definitions"]["data"]["dvc.yaml"]["data"]


@pytest.mark.slow
def test_a_changed_parameter_runs_three_steps_for_real(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    _copy(root, tmp_path)
    params = tmp_path / "params.yaml"
    quick = {"profile": "smoke", "bootstrap": 200}
    said = yaml.safe_load(params.read_text()) | {"evaluate": quick, "audit": quick | {"permutations": 200}}
    params.write_text(yaml.safe_dump(said | {"finetune": {"steps": 12}}))
    assert set(RUN) <= ran(tmp_path)
    assert ran(tmp_path) == set()
    params.write_text(yaml.safe_dump(said | {"finetune": {"steps": 13}}))
    assert ran(tmp_path) == {"configure", "finetune", "evaluate", "audit"}


def ran(folder: Path) -> set[str]:
    """The stages that `dvc repro` ran."""
    with opened(folder) as repo:
        return {stage.name for stage in repo.reproduce()}
