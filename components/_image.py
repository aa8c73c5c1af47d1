"""How a wrapper becomes a component: one pinned image, nothing installed, parameters as a flat form."""

import ast
import functools
import inspect
import itertools
import linecache
import textwrap
import typing
from collections.abc import Callable
from typing import Any

from kfp import dsl

from components._fields import scalar_fields

IMAGE = "photoflux-python:0.1.0"  # a release puts its digest here; kfp.local warns unless "python" is in it

_component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
_serial = itertools.count()


def step(wrapper: Callable[..., Any]) -> Any:
    """A KFP component from a wrapper function.

    kfp ships a component as source text and reads its inputs from its signature. So the text is written here:
    `params: XParams` becomes one typed, described input per field, and the body runs inside `reported`, where
    `params` is built from them again. The wrapper's first output says where a failure is recorded.
    """
    return _component(_compiled(wrapper.__name__, source(wrapper), wrapper.__globals__))


def source(wrapper: Callable[..., Any]) -> str:
    """The text that kfp ships for a wrapper."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(wrapper))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    tree.decorator_list = []
    block = typing.get_type_hints(wrapper).get("params")
    described = [ast.Expr(ast.Constant(_docstring(wrapper, block)))]
    tree.body = described + _framed(tree, block)
    tree.args.args = [argument for argument in tree.args.args if argument.arg != "params"]
    tree.args.args += [ast.arg(field.name, ast.Name(kind.__name__)) for field, kind in scalar_fields(block)]
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def _framed(tree: ast.FunctionDef, block: type | None) -> list[ast.stmt]:
    output = next(a.arg for a in tree.args.args if a.annotation and "Output[" in ast.unparse(a.annotation))
    prologue = "from photoflux.runs import reported\n"
    values = ", ".join(f"{field.name}={field.name}" for field, _ in scalar_fields(block))
    built = f"    params = {block.__name__}({values})\n" if block else ""
    if block:
        prologue += f"from {block.__module__} import {block.__name__}\n"
    frame = ast.parse(f"{prologue}with reported('{tree.name}', beside={output}.path):\n{built}    pass").body
    guarded = frame[-1]
    assert isinstance(guarded, ast.With)
    guarded.body = guarded.body[:-1] + tree.body[1:]  # the wrapper's docstring stays outside
    return frame


def _docstring(wrapper: Callable[..., Any], block: type | None) -> str:
    """The wrapper's own, with the block's fields among its arguments."""
    text, _, own = (inspect.getdoc(wrapper) or "").partition("\n\nArgs:\n")
    lines = [*own.splitlines(), *(f"    {field.name}: {field.metadata['help']}" for field, _ in scalar_fields(block))]
    return "\n".join([text, *(["", "Args:", *lines] if lines else [])])


def _compiled(name: str, text: str, scope: dict[str, Any]) -> Callable[..., Any]:
    """The function of a source text, findable by `inspect.getsource`."""
    file = f"<component {name} {next(_serial)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    namespace = dict(scope)
    exec(compile(text, file, "exec", dont_inherit=True), namespace)
    return namespace[name]
