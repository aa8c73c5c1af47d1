"""The rules of the house, each held by a test."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("photoflux", "components", "pipelines", "api", "benchmarks", "tests")
DOMAIN = sorted((ROOT / "photoflux").rglob("*.py"))
CODE = [p for folder in ("photoflux", "components", "pipelines") for p in sorted((ROOT / folder).rglob("*.py"))]
SERVICE = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "api").rglob("*.py"))
}
AREAS = (
    ("main",), ("routes",), ("deps",), ("jobs",), ("images", "training"), ("transport",), ("ops", "privacy"), ("accounts",),
    ("records",), ("settings", "schemas"),
)  # fmt: skip
"""Of the service, from the top down: each knows those in the rows below its own, and none beside it."""


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
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
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


OLD_WORDS = """
Album Artist Answered Bearer Bodies Caller Candidates Contest Delivery Dossier Drawer Drawing Drawn Draws FineTuning
Forget GivenUp Gone Guard Hands Intake Journal Keep Line Listed Maker Messenger Notice Once Outermost Painter Pace
Preserved Refused Revalidated SafeHeaders Seen SignIns Subscriptions Taken Uploaded Viewer Wanted Wording abandon
acting fine_tune give_up_telling last_words let_go look_s outranks pointed preserve_class put_erasure put_generation
put_run settle take_away was_started wrong_bits yardstick
"""
"""Names of earlier programs for what docs/glossary.md calls otherwise."""


def test_no_identifier_is_an_old_word():
    old = set(OLD_WORDS.split())
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {name}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (getattr(node, field, None) for field in ("id", "attr", "arg", "name"))
        if isinstance(name, str) and name in old
    ]
    assert found == []


def test_what_the_readme_names_exists():
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", readme, re.MULTILINE))
    assert named, "the README shows no make target"
    assert named <= targets
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", readme)
    assert linked, "the README links nothing"
    assert [link for link in linked if not (ROOT / link).exists()] == []


DOCS_PATH = re.compile(r"(?:(?<![\w/.-])|(?<=\./))docs/(\w[\w./-]*)")
"""A path below `docs/` in any text, from the checkout or relative to a file; `/docs/...` is an address of the API."""


def docs_missing(text: str) -> set[str]:
    """What a text names below `docs/` and is not there; a page of decisions may be named by its number."""
    named = {name.rstrip("./-") for name in DOCS_PATH.findall(text)}
    return {name for name in named if not (ROOT / "docs" / name).exists() and not _decision(name)}


def _decision(name: str) -> bool:
    """Whether `decisions/0023` is the number of one page."""
    number = re.fullmatch(r"decisions/(\d{4})", name)
    return bool(number) and len(list((ROOT / "docs" / "decisions").glob(f"{number[1]}-*.md"))) == 1


def test_every_page_of_docs_that_is_named_exists():
    """In code, tests, configuration and texts alike."""
    named = {path: docs_missing(path.read_text(errors="ignore")) for path in tracked()}
    assert {str(path.relative_to(ROOT)): sorted(missing) for path, missing in named.items() if missing} == {}


def test_every_link_between_texts_leads_somewhere():
    """Of every Markdown file, relative to where it lies; of another's headings the file alone."""
    texts = [path for path in tracked() if path.suffix == ".md"]
    links = [
        (path, link)
        for path in texts
        for link in re.findall(r"\]\((?![a-z]+:|#|/)([^)#\s]+)", path.read_text(encoding="utf-8"))
    ]
    assert links, "no text links another"
    assert [f"{path.relative_to(ROOT)}: {link}" for path, link in links if not (path.parent / link).exists()] == []


def test_every_decision_is_in_the_list():
    """Once each, in order."""
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^\| \[\d{4}\]\(([^)]+)\)", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == sorted(page.name for page in folder.glob("[0-9]*.md"))


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


def known_to(module: str) -> set[str]:
    """Modules of the service that one imports: wherever in its file, for its types alone too."""
    found = set[str]()
    for node in ast.walk(ast.parse(SERVICE[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno}: write imports from the top"
            found |= {
                name if (name := f"{node.module}.{alias.name}") in SERVICE else str(node.module) for alias in node.names
            }
    return found & SERVICE.keys()


def used_in(path: Path) -> set[str]:
    """Every plain name that a file uses."""
    return {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}


def area_of(module: str) -> str:
    return module.split(".")[1]


def test_imports_inside_the_service_go_down():
    row = {area: number for number, areas in enumerate(AREAS) for area in areas}
    assert {area_of(module) for module in SERVICE if module != "api"} == row.keys()
    wrong = [
        f"{module} knows {other}"
        for module in SERVICE
        for other in known_to(module)
        if area_of(module) != area_of(other) and row[area_of(module)] >= row[area_of(other)]
    ]
    assert wrong == []


def test_no_modules_of_the_service_know_each_other_in_a_circle():
    try:
        TopologicalSorter({module: known_to(module) for module in SERVICE}).prepare()
    except CycleError as circle:
        pytest.fail(" knows ".join(reversed(circle.args[1])))


def test_no_route_knows_another():
    """What two of them need lies below them."""
    wrong = [
        f"{module} knows {other}"
        for module in SERVICE
        for other in known_to(module)
        if area_of(module) == area_of(other) == "routes"
    ]
    assert wrong == []


def test_a_route_says_in_its_signature_what_it_needs():
    """None is given the whole service: `api.deps` has a type for each part of it."""
    whole = [module for module in SERVICE if module.startswith("api.routes.") and "Service" in used_in(SERVICE[module])]
    assert whole == []


def test_a_module_of_the_service_has_a_name_of_its_own():
    """No two have the same, and none is called like a library that a neighbour imports."""
    names = Counter(module.rpartition(".")[2] for module in SERVICE)
    assert [name for name, count in names.items() if count > 1] == []
    libraries = sys.stdlib_module_names | {name for path in SERVICE.values() for name in imports(path)} - {"api"}
    assert names.keys() & libraries == set()


RENAMING = {
    "photoflux/flux/provision.py", "photoflux/manifest.py", "photoflux/pocket/pretrain.py", "photoflux/vault/__init__.py",
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


LAYERS = (
    "__main__ pyfunc sign_off",
    "generate label steps",
    "pages preflight serving",
    "judges pocket styles",
    "flux",
    "fingerprint images photos report runs tracking",
    "params signing vault",
    "manifest",
    "correlation errors priority sandbox screen settings watermark wording",
)
"""Modules and packages of photoflux, uppermost first: each may import what is below it, and nothing beside or above it."""
INSIDE = {
    "flux": ("callbacks", "module", "data", "lora sampling", "loading step", "provision text", "ema memory spec"),
    "judges": (
        "case scores", "bias sampling", "champion checkpoint_selection prevalence prompts",
        "colour copying encoders gate_rules quality stats",
    ),
    "pages": (
        "audit augment evaluate finetune gate validate", "contact_sheet data_docs label page plots", "palette",
    ),
    "params": (
        "files form page", "resolve", "__init__", "audit", "augment evaluate finetune gate generate import_photos register validate",
        "model",
    ),
    "photos": (
        "suite", "table", "decode verdict", "augment captions gather heif jpeg png sandboxed score tiff",
        "colour inspect kinds normalise rules sets words",
    ),
    "pocket": (
        "pretrain", "train_adapter train_judges", "train_flow train_start train_vae", "data photosets", "render",
        "models places shapes", "tokenizers training world",
    ),
    "serving": ("engine", "merging", "adapters queue"),
    "steps": ("audit augment configure evaluate fetch_champion finetune gate import_photos register validate", "__init__"),
    "vault": ("commands objects sealed_store", "__init__", "sealed", "keyring", "blobs kek"),
}  # fmt: skip
"""The same inside the packages."""


def module_names() -> dict[str, Path]:
    """Dotted name → file of every module of photoflux; a package's own code is its `__init__`."""
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in DOMAIN}


def modules_imported(file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """What a file imports of photoflux, wherever in it, also for types alone."""
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [one if (one := f"{node.module}.{a.name}") in known else node.module for a in node.names]
        ours = (name if name in known else f"{name}.__init__" for name in names if name.split(".")[0] == "photoflux")
        yield from (name for name in ours if known[name] != file)


def ranks(layers: Sequence[str]) -> dict[str, int]:
    return {name: rank for rank, names in enumerate(reversed(layers)) for name in names.split()}


def test_imports_of_the_domain_library_go_down():
    """A stranger finds what a module rests on below it: in another package as LAYERS says, in its own as INSIDE does."""
    known, between = module_names(), ranks(LAYERS)
    inside = {package: ranks(layers) for package, layers in INSIDE.items()}
    upward = []
    for name, file in known.items():
        unit, module = name.split(".")[1], name.split(".")[-1]
        for used in set(modules_imported(file, known)) - {"photoflux.__init__"}:
            other, part = used.split(".")[1], used.split(".")[-1]
            down = between[other] < between[unit] if other != unit else inside[unit][part] < inside[unit][module]
            upward += [] if down else [f"{name} imports {used}"]
    assert upward == []


def test_every_module_has_its_place():
    """Also those that import nothing: who adds one says where it belongs, and none that is gone is listed."""
    empty = {f"photoflux.{package}.__init__" for package, layers in INSIDE.items() if "__init__" not in ranks(layers)}
    modules = module_names().keys() - empty - {"photoflux.__init__"}
    places = {f"photoflux.{name}" for name in ranks(LAYERS) if name not in INSIDE}
    places |= {f"photoflux.{package}.{name}" for package, layers in INSIDE.items() for name in ranks(layers)}
    assert modules == places


def test_no_modules_import_each_other_in_a_circle():
    """Not even for types alone."""
    known = module_names()
    graph = {name: set(modules_imported(file, known)) for name, file in known.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them


def test_only_tables_of_data_are_kept_from_the_formatter():
    """A table is what a module or a class says once, the cases of a test, or the rows that a function of rules gives."""
    loose = []
    for file in (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))):
        text = file.read_text()
        lines = [number for number, line in enumerate(text.splitlines(), 1) if line.endswith("# fmt: skip")]
        tables = set(table_ends(ast.parse(text)))
        loose += [f"{file.relative_to(ROOT)}:{number}" for number in lines if number not in tables]
    assert loose == []


def table_ends(tree: ast.Module) -> Iterator[int]:
    """The last lines of statements that hold data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            yield from (one.end_lineno for one in node.body if isinstance(one, ast.Assign | ast.AnnAssign))
        elif isinstance(node, ast.FunctionDef) and node.name.endswith("rules"):
            yield from (one.end_lineno for one in node.body if isinstance(one, ast.Return))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (one.end_lineno for one in node.decorator_list if "parametrize" in ast.unparse(one))


def test_what_a_page_names_as_holding_it_exists():
    """Tests as `tests/….py::test_…`, and files of results."""
    missing = []
    for page in (path for path in tracked() if path.suffix == ".md"):
        text = page.read_text(encoding="utf-8")
        named = [(file, name) for file, name in re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", text)]
        named += [(file, "") for file in re.findall(r"\b((?:benchmarks/results|metrics)/\w+\.\w+)", text)]
        missing += [f"{page.relative_to(ROOT)}: {file} {name}" for file, name in named if not _is_there(file, name)]
    assert missing == []


def _is_there(file: str, test: str) -> bool:
    path = ROOT / file
    return path.is_file() and (not test or re.search(rf"^(async )?def {test}\(", path.read_text(), re.M) is not None)
