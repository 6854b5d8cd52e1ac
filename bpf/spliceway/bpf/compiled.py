"""What BCC has made becomes a `Compiled`, and that is loaded into the kernel again, without BCC."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from spliceway.bpf import creation, libbpf
from spliceway.bpf.progcache import Code, Compiled, DamagedError, MapPlan, bind, unbind
from spliceway.bpf.source import PROGRAMS, ProgramSpec, units


def record(key: str, pins: Path, modules: Mapping[str, Any]) -> Compiled:
    """Take down what BCC made: source file → `bcc.BPF` whose programs are loaded.

    `pins`: where maps that are shared are pinned. Raises DatapathError: it can't be kept.
    """
    from bcc import lib

    # BCC's Python does not use these.
    lib.bpf_num_tables.restype, lib.bpf_num_tables.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    lib.bpf_table_name.restype, lib.bpf_table_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_size_t]
    lib.bpf_table_fd_id.restype, lib.bpf_table_fd_id.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_size_t]
    recorder = _Recorder(pins, lib)
    for source, module in modules.items():
        recorder.add(source, module.module)
    types = [creation.btf_bytes(number) for number in recorder.types]
    return Compiled(key, types, [*recorder.maps.values()], recorder.programs)


class _Recorder:
    """`types`: the kernel's number of a BTF object → index; `maps`: by label."""

    def __init__(self, pins: Path, lib: Any) -> None:
        self._pins, self._lib = pins, lib
        self.types: dict[int, int] = {}
        self.maps: dict[str, MapPlan] = {}
        self.programs: list[Code] = []

    def add(self, source: str, module: int) -> None:
        """One module of BCC's."""
        labels = {}
        for number in range(self._lib.bpf_num_tables(module)):
            name = self._lib.bpf_table_name(module, number).decode()
            descriptor = self._lib.bpf_table_fd_id(module, number)
            plan = self._plan(name, "" if (self._pins / name).exists() else source, descriptor)
            labels[descriptor] = self.maps.setdefault(plan.label, plan).label
        for program in PROGRAMS[source]:
            name = program.name.encode()
            start, size = self._lib.bpf_function_start(module, name), self._lib.bpf_function_size(module, name)
            self.programs.append(unbind(program.name, ctypes.string_at(start, size), labels))

    def _plan(self, name: str, source: str, descriptor: int) -> MapPlan:
        info, types = libbpf.map_info(descriptor), creation.map_types(descriptor)
        return MapPlan(
            name=name,
            source=source,
            kind=info.type,
            key_size=info.key_size,
            value_size=info.value_size,
            max_entries=info.max_entries,
            flags=info.flags,
            types=self.types.setdefault(types.btf, len(self.types)) if types.btf else -1,
            key_type=types.key,
            value_type=types.value,
        )


def load_again(compiled: Compiled, root: Path, defines: Mapping[str, str]) -> list[str]:
    """Load the programs and pin them into `<root>/staging`, their maps into `<root>/maps` or from there.

    `defines`: what they were compiled with. Returns the programs' names. Raises DatapathError, OSError: none of what
    it made is left then.
    """
    programs = {spec.name: spec for specs in units(defines).values() for spec in specs}
    if [code.name for code in compiled.programs] != list(programs):
        raise DamagedError("these are other programs")
    with _undone() as made, ExitStack() as opened:
        maps = _maps(compiled, root / "maps", made, opened)
        for code in compiled.programs:
            descriptor = _load(code, programs[code.name], maps)
            opened.callback(os.close, descriptor)
            path = root / "staging" / code.name
            path.unlink(missing_ok=True)
            libbpf.pin(descriptor, path)
            made.append(path)
    return list(programs)


def _maps(compiled: Compiled, pins: Path, made: list[Path], opened: ExitStack) -> dict[str, int]:
    """Label → descriptor."""
    types = []
    for content in compiled.types:
        types.append(creation.load_btf(content))
        opened.callback(os.close, types[-1])
    maps = {}
    for plan in compiled.maps:
        path = pins / plan.name
        if not plan.source and path.exists():
            descriptor = libbpf.open_pin(path)
            opened.callback(os.close, descriptor)
        else:
            known = creation.MapTypes()
            if plan.types >= 0:
                known = creation.MapTypes(types[plan.types], plan.key_type, plan.value_type)
            descriptor = creation.create_map(
                plan.name, plan.kind, plan.key_size, plan.value_size, plan.max_entries, plan.flags, known
            )
            opened.callback(os.close, descriptor)
            if not plan.source:
                libbpf.pin(descriptor, path)
                made.append(path)
        maps[plan.label] = descriptor
    return maps


def _load(code: Code, spec: ProgramSpec, maps: dict[str, int]) -> int:
    def descriptor(label: str) -> int:
        if label not in maps:
            raise DamagedError(f"{code.name} has a map {label}, which there is not")
        return maps[label]

    return creation.load_program(code.name, spec.program_type, spec.attach_type, bind(code, descriptor))


@contextmanager
def _undone() -> Iterator[list[Path]]:
    """Pins that go again when it fails."""
    made: list[Path] = []
    try:
        yield made
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
