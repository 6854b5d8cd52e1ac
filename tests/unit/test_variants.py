"""Samples of parametrised tests."""

from __future__ import annotations

from pathlib import Path

from support.variants import LEFT_OUT, left_out, sample


def test_every_function_and_every_value_is_met() -> None:
    names = [
        f"test_{function}[{veth}-{leg}-{version}]"
        for function in "abcdef"
        for veth in ("plain", "rps")
        for leg in ("client", "server")
        for version in (4, 6)
    ]
    names += ["test_single", "test_pair[x]", "test_pair[y]"]
    kept = sample(names, 3)
    assert kept == sorted(kept, key=names.index)
    assert len(kept) < len(names) / 2
    assert {name.partition("[")[0] for name in kept} == {name.partition("[")[0] for name in names}
    for function in "abcdef":
        of_it = " ".join(name for name in kept if name.startswith(f"test_{function}["))
        assert all(value in of_it for value in ("plain", "rps", "client", "server", "4", "6"))
    assert sample(names, 1) == names


def test_another_beginning_for_each_file_and_the_same_within() -> None:
    names = [
        f"{function}[{number}]" for function in ("a.py::f", "a.py::g", "b.py::f", "c.py::f") for number in range(3)
    ]
    assert sample(names, 5) == ["a.py::f[0]", "a.py::g[0]", "b.py::f[1]", "c.py::f[2]"]


def test_what_is_left_out_is_there() -> None:
    for name in LEFT_OUT:
        file, _, function = name.partition("::")
        assert f"def {function}(" in Path(file).read_text(), name
        assert left_out(f"{name}[x]")
