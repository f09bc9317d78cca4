"""The names that a user finds in imgcurate."""

from __future__ import annotations

import inspect

import pytest

import imgcurate as ic


def test_every_name_is_there_when_it_is_used_and_says_what_it_is() -> None:
    assert dir(ic) == sorted(ic.__all__)
    for name in ic.__all__:
        found = getattr(ic, name)
        assert inspect.getdoc(found), name
        assert inspect.ismodule(found) or found.__name__ == name


def test_what_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(ic, "read_everything")


def test_an_editor_that_runs_nothing_sees_every_name_and_what_a_verb_takes() -> None:
    jedi = pytest.importorskip("jedi")
    shown = jedi.Script("import imgcurate as ic\nic.").complete()
    assert {name.name for name in shown} >= set(ic.__all__)
    (signature,) = jedi.Script("import imgcurate as ic\nic.semantic_duplicates(").get_signatures()
    assert [parameter.name for parameter in signature.params][:2] == ["frame", "eps"]
    assert signature.to_string().endswith("-> Duplicates")
