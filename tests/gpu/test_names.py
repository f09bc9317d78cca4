"""Every name of RAPIDS that is used exists and takes what it is given: what can be known where its packages are but no GPU is."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import pytest

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("cudf", "cuml", "cupy", "dask_cuda", "dask_cudf", "pylibcudf", "rmm")
_FILES = sorted(
    path.relative_to(_ROOT).as_posix()
    for path in [*_ROOT.glob("imgcurate/**/*.py"), *_ROOT.glob("tests/gpu/*.py"), _ROOT / "benchmarks" / "gpu.py"]
)


class Use(NamedTuple):
    """A name of RAPIDS in a file, and how it is called, where it is."""

    line: int
    path: str
    call: ast.Call | None


class _Uses(ast.NodeVisitor):
    """Gathers them; what a function imports is known in that function alone."""

    def __init__(self, known: dict[str, str]) -> None:
        self.known, self.uses, self._calls = known, list[Use](), dict[int, ast.Call]()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outside, self.known = self.known, dict(self.known)
        self.generic_visit(node)
        self.known = outside

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if _is_rapids(alias.name):
                self.known[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                self.uses.append(Use(node.lineno, alias.name, None))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            path = f"{node.module}.{alias.name}"
            if _is_rapids(path):
                self.known[alias.asname or alias.name] = path
                self.uses.append(Use(node.lineno, path, None))
            else:
                self.known.pop(alias.asname or alias.name, None)

    def visit_Call(self, node: ast.Call) -> None:
        self._calls[id(node.func)] = node
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._note(node)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if id(node) in self._calls:
            self._note(node)

    def _note(self, node: ast.expr) -> None:
        name, *rest = _dotted(node) or [""]
        if name in self.known:
            self.uses.append(Use(node.lineno, ".".join([self.known[name], *rest]), self._calls.get(id(node))))


def uses(file: str) -> list[Use]:
    """Return the names of RAPIDS in a file."""
    # What `vectors.namespace` returns is called xp everywhere: NumPy, or CuPy.
    visitor = _Uses({"xp": "cupy"} if file.startswith("imgcurate/") else {})
    visitor.visit(ast.parse((_ROOT / file).read_text()))
    return visitor.uses


def _is_rapids(module: str) -> bool:
    return module.split(".")[0] in _PACKAGES


def _dotted(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return [*before, node.attr] if before else []
    return [node.id] if isinstance(node, ast.Name) else []


def _find(path: str) -> Any:
    parts = path.split(".")
    found: Any = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:number]))
        found = getattr(found, part)
    return found


def _refusal(call: ast.Call, taken: Any) -> str | None:
    given = [*call.args, *(keyword.arg for keyword in call.keywords)]
    if None in given or any(isinstance(argument, ast.Starred) for argument in call.args):
        return None
    try:
        signature = inspect.signature(taken)
    except (TypeError, ValueError):  # compiled, and says nothing of what it takes
        return None
    try:
        signature.bind(*call.args, **{str(keyword.arg): keyword for keyword in call.keywords})
    except TypeError as problem:
        return f"{problem}: {signature}"
    return None


def test_names_are_found_in_the_source() -> None:
    found = {use.path for file in _FILES for use in uses(file)}
    assert {"cudf.DataFrame.from_arrow", "pylibcudf.copying.gather", "cuml.dask.cluster.KMeans", "cupy.einsum"} <= found


@pytest.mark.parametrize("file", [file for file in _FILES if uses(file)])
def test_every_name_exists_and_takes_what_it_is_given(file: str) -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    wrong = []
    for line, path, call in uses(file):
        try:
            found = _find(path)
        except (AttributeError, ImportError) as problem:
            wrong.append(f"{file}:{line}: {path}: {problem}")
            continue
        refused = _refusal(call, found) if call is not None else None
        if refused:
            wrong.append(f"{file}:{line}: {path}: {refused}")
    assert not wrong, "\n".join(wrong)
