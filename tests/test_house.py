"""The rules of the house, each held by a test."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOMAIN = sorted((ROOT / "photoflux").rglob("*.py"))
CODE = [p for folder in ("photoflux", "components", "pipelines") for p in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Top-level names of every module a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Everything that runs at import: statements outside function bodies."""
    stack: list[ast.AST] = list(tree.body)
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            stack.extend(ast.iter_child_nodes(node))


def tracked() -> list[Path]:
    """Files git tracks (or would), except binary ones."""
    out = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    binary = {".png", ".jpg", ".jpeg", ".webp", ".safetensors", ".npz"}
    return [ROOT / name for name in out if Path(name).suffix not in binary and (ROOT / name).is_file()]


@pytest.mark.parametrize("banned", ["kfp", "dvc", "fastapi", "torchvision", "components", "pipelines", "api"])
def test_the_domain_library_never_imports(banned: str):
    assert [p for p in DOMAIN if banned in imports(p)] == []


def test_only_tracking_imports_mlflow():
    assert [p.name for p in CODE if "mlflow" in imports(p)] == ["tracking.py"]


def test_the_mlflow_folder_holds_no_python():
    assert (ROOT / "mlflow").is_dir()
    assert list((ROOT / "mlflow").rglob("*.py")) == []


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_read_at_import(path: Path):
    forbidden = {"getenv", "open", "read_text", "read_bytes", "mkdir", "get_settings", "load_spec"}
    for node in module_level(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr != "environ", f"{path}:{node.lineno} reads the environment at import"
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            assert name not in forbidden, f"{path}:{node.lineno} calls {name}() at import"


THE_FORM = ROOT / "components" / "configure.py"
"""Its one function has a line for the type and a line for the help of each field that a person meets."""


def test_functions_stay_short():
    lengths = [
        node.end_lineno - node.lineno + 1
        for path in CODE
        if path != THE_FORM
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    assert statistics.median(lengths) <= 12
    assert statistics.quantiles(lengths, n=10)[-1] <= 30
    assert max(lengths) <= 70


def test_components_are_a_screen_each_and_the_form_is_short():
    components = [path for path in sorted((ROOT / "components").glob("[a-z]*.py")) if "@component" in path.read_text()]
    assert len(components) == 11
    assert [path.name for path in components if path != THE_FORM and len(path.read_text().splitlines()) > 40] == []
    (form,) = [node for node in ast.walk(ast.parse(THE_FORM.read_text())) if isinstance(node, ast.FunctionDef)]
    assert len(form.args.args) - 1 <= 25, "its first argument is an output"


def test_no_source_text_is_executed():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("photoflux", "components", "pipelines", "api", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("exec", "eval", "compile")
    ]
    assert found == []


def test_public_functions_are_annotated():
    bare = [
        f"{path.relative_to(ROOT)}:{node.name}"
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.returns is None
    ]
    assert bare == []


def test_what_the_readme_names_exists():
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", readme, re.MULTILINE))
    assert named, "the README shows no make target"
    assert named <= targets
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", readme)
    assert linked, "the README links nothing"
    assert [link for link in linked if not (ROOT / link).exists()] == []


def test_no_machine_path_and_no_registry_host_is_tracked():
    machine = [
        f"{folder}/" for folder in (Path.home(), ROOT.parent) if len(folder.parts) > 1 and folder != Path("/tmp")
    ]
    hosts = "|".join(["pypi" + r"\.org", "files\\.pythonhosted" + r"\.org", "registry\\.npmjs" + r"\.org"])
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked()
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1)
        if re.search("|".join([*map(re.escape, machine), hosts]), line)
    ]
    assert found == []


RENAMING = {
    "photoflux/flux/base.py", "photoflux/manifest.py", "photoflux/pocket/pretrain.py", "photoflux/vault/__init__.py",
}  # fmt: skip
"""Where files and folders are renamed into place: each under a temporary name that is the writer's own."""


def test_whatever_replaces_a_file_is_written_under_a_name_of_its_own():
    """A fixed one (`.x.partial`) is another writer's too: everybody else uses `manifest.replacing` or `vault.committed`."""
    written = [path for folder in ("api", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))] + CODE
    fixed, renaming = [], set[str]()
    for path in written:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and re.search(
                r"^\.?partial\.|\.(partial|tmp|temp|old|bak)$", str(node.value)
            ):
                fixed.append(f"{path.relative_to(ROOT)}:{node.lineno}")
            if isinstance(node, ast.Call) and _renames(node):
                renaming.add(str(path.relative_to(ROOT)))
    assert fixed == []
    assert renaming == RENAMING


def _renames(call: ast.Call) -> bool:
    """`os.replace(a, b)`, or `a.replace(b)` of paths: that of texts takes two arguments, that of dates names them."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("replace", "rename") or call.keywords:
        return False
    of_os = isinstance(call.func.value, ast.Name) and call.func.value.id == "os"
    return len(call.args) == (2 if of_os else 1)


def test_no_shipped_configuration_says_where_it_was_loaded_from():
    found = [
        path.relative_to(ROOT) for path in tracked() if path.suffix == ".json" and "_name_or_path" in path.read_text()
    ]
    assert found == []


def test_every_module_says_what_it_is_for():
    assert [str(p) for p in CODE if not ast.get_docstring(ast.parse(p.read_text())) and p.stat().st_size] == []
