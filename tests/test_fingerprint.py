"""What stands for a value does so in every process, and changes with what the value does."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imgcurate import fingerprint

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


@given(values, values)
def test_two_values_share_a_fingerprint_where_they_are_equal_and_of_one_kind(one: Any, other: Any) -> None:
    same = repr(_sorted(one)) == repr(_sorted(other))
    assert (fingerprint.of(one) == fingerprint.of(other)) == same


def _sorted(value: Any) -> Any:
    """The value with dictionaries in order and tuples as lists, which count as the same."""
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list | tuple) else value


SCRIPT = """
import functools, numpy as np, torch
from imgcurate import fingerprint
torch.manual_seed(0)
network = torch.nn.Linear(3, 2)
matrix = np.arange(6.0).reshape(3, 2)

def helper(batch):
    return batch @ matrix

class Encoder:
    def __init__(self):
        self.names = {{"a", "b", "c", "d"}}
    def __call__(self, batch):
        return helper(batch), network(batch)

def encode(batch, scale=2):
    return helper(batch) * scale

{change}
print(fingerprint.of(encode, Encoder(), Encoder().__call__, functools.partial(encode, scale=3), network, {{1, "b", None}}))
"""


Said = Callable[[Path], str]


@pytest.fixture(scope="module")
def said() -> Said:
    """Runs a script in a process of its own, a fork of one that has loaded what they all import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "imgcurate.fingerprint"])

    def run(script: Path) -> str:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run_here, args=(script, theirs))
        process.start()
        theirs.close()
        try:
            return ours.recv()
        finally:
            process.join()

    return run


def _run_here(script: Path, answer: Any) -> None:
    sys.path.insert(0, str(script.parent))
    sys.dont_write_bytecode = True
    with contextlib.redirect_stdout(io.StringIO()) as said:
        runpy.run_path(str(script), run_name="__main__")
    answer.send(said.getvalue())


def test_functions_and_networks_have_one_fingerprint_in_all_processes(tmp_path: Path) -> None:
    said = []
    for name, change, seed in (("script.py", "", "1"), ("moved.py", "\n# a remark, further down\n", "2")):
        (tmp_path / name).write_text(SCRIPT.format(change=change))
        run = subprocess.run(
            [sys.executable, tmp_path / name],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        said.append(run.stdout)
    assert said[0] == said[1]


def test_what_a_function_takes_from_its_module_is_part_of_it(tmp_path: Path, said: Said) -> None:
    def of(change: str) -> str:
        (tmp_path / "script.py").write_text(SCRIPT.format(change=change))
        return said(tmp_path / "script.py")

    before = of("")
    assert of("matrix[0, 0] = 1") != before
    assert of("network.weight.data[0, 0] += 1") != before
    assert of("def helper(batch):\n    return batch") != before
    assert of("") == before


def test_arrays_and_arguments_count() -> None:
    def times(batch: Any, by: float) -> Any:
        return batch * by

    of = fingerprint.of
    assert of(partial(times, by=1)) != of(partial(times, by=2))
    assert of(np.zeros(2, np.float32)) != of(np.zeros(2, np.float64)) != of(np.zeros((2, 1)))
    assert of(torch.nn.Linear(2, 2)) != of(torch.nn.Linear(2, 2))


def test_a_value_that_holds_itself_has_a_fingerprint() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert len(fingerprint.of(loop)) == 32


def _by_change(said: Said, folder: Path, before: str, after: str, helper: tuple[str, str] = ("", "")) -> bool:
    """Tell whether a script's value has another fingerprint after it, or the module beside it, was changed."""
    found = []
    for script, module in zip((before, after), helper, strict=True):
        (folder / "hlp.py").write_text(module)
        (folder / "script.py").write_text("import functools, torch\nfrom imgcurate import fingerprint\n" + script)
        found.append(said(folder / "script.py"))
    return found[0] != found[1]


NETWORK = """
class Net(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        {keep}
    def forward(self, x):
        return x
print(fingerprint.of(Net({n})))
"""
WRAPPED = """
def twice(f):
    @functools.wraps(f)
    def inner(b):
        return f(b) * {n}
    return inner
@twice
def encode(b):
    return b
print(fingerprint.of(encode))
"""
METHOD = """
def helper(b):
    return b * {n}
class Encoder:
    def __call__(self, b):
        return helper(b)
print(fingerprint.of(Encoder()))
"""


def test_what_changes_a_models_answers_changes_its_fingerprint(tmp_path: Path, said: Said) -> None:
    attribute, buffer = "self.n = n", "self.register_buffer('b', torch.tensor(float(n)), persistent=False)"
    for script in (NETWORK.replace("{keep}", attribute), NETWORK.replace("{keep}", buffer), WRAPPED, METHOD):
        assert _by_change(said, tmp_path, script.replace("{n}", "1"), script.replace("{n}", "3")), script
        assert not _by_change(said, tmp_path, script.replace("{n}", "1"), script.replace("{n}", "1")), script
    module = "import hlp\ndef f(b):\n    return hlp.net(b)\nprint(fingerprint.of(f))"
    assert _by_change(said, tmp_path, module, module, ("net = lambda b: b", "net = lambda b: b * 2"))


def test_two_lambdas_of_one_line_differ() -> None:
    one, other = (lambda b: b * 2), (lambda b: b * 4)
    assert fingerprint.of(one) != fingerprint.of(other)
