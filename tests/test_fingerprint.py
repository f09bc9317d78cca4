"""What stands for a value does so in every process, and changes with what the value does."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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


def _run(tmp_path: Path, change: str, name: str = "script.py", seed: str = "0") -> str:
    script = tmp_path / name
    script.write_text(SCRIPT.format(change=change))
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
    )
    return run.stdout


def test_functions_and_networks_have_one_fingerprint_in_all_processes(tmp_path: Path) -> None:
    assert _run(tmp_path, "", seed="1") == _run(tmp_path, "\n# a remark, further down\n", "moved.py", seed="2")


def test_what_a_function_takes_from_its_module_is_part_of_it(tmp_path: Path) -> None:
    before = _run(tmp_path, "")
    assert _run(tmp_path, "matrix[0, 0] = 1") != before
    assert _run(tmp_path, "network.weight.data[0, 0] += 1") != before
    assert _run(tmp_path, "def helper(batch):\n    return batch") != before


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
