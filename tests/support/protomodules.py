"""All modules of Envoy's protos."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import envoy
import udpa
import xds


def modules() -> Iterator[Any]:
    """Every `_pb2` module below `envoy`, `udpa` and `xds`; each must be in the folder of its package."""
    for package in (envoy, udpa, xds):
        root = Path(next(iter(package.__path__)))
        for file in sorted(root.rglob("*_pb2.py")):
            parts = file.relative_to(root.parent).with_suffix("").parts
            module = importlib.import_module(".".join(parts))
            assert module.DESCRIPTOR.package == ".".join(parts[:-1]), parts
            yield module
