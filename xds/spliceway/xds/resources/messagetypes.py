"""The class of a message by its type name, of everything that `xds-protos` has.

A protobuf type can be used once its module is imported. Importing all 637 takes 0.7 s; but a type's package is its
module's folder (a test holds that), so that only the modules of one folder are imported, when they are asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from functools import lru_cache
from pathlib import Path

from google.protobuf import any_pb2, descriptor_pool, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2, wrappers_pb2
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

PREFIX = "type.googleapis.com/"
_NAME = re.compile(r"(?:envoy|xds|udpa)(?:\.[A-Za-z][A-Za-z0-9_]*)+")
#: Types of `google.protobuf` that may stand in an Any.
_GOOGLE = frozenset(
    f"google.protobuf.{name}"
    for module in (any_pb2, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2, wrappers_pb2)
    for name in module.DESCRIPTOR.message_types_by_name
)


@lru_cache(maxsize=4096)
def message_class(name: str) -> type[Message] | None:
    """The class of the type with this full name (`envoy.config.cluster.v3.Cluster`), None if there is no such type."""
    if name not in _GOOGLE:
        if not _NAME.fullmatch(name):
            return None
        _import_package(name)
    try:
        return GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))
    except KeyError:
        return None


def _import_package(name: str) -> None:
    """Import the modules in the folder of the package that a type name begins with."""
    top, *parts = name.split(".")
    folder = _root(top)
    for part in parts:
        # The last folder that there is: names of messages, also of those inside others, begin in upper case.
        if not (folder / part).is_dir():
            break
        folder /= part
    package = ".".join(folder.relative_to(_root(top).parent).parts)
    _import_folder(folder, package)


@lru_cache(maxsize=1024)
def _import_folder(folder: Path, package: str) -> None:
    for file in sorted(folder.glob("*_pb2.py")):
        importlib.import_module(f"{package}.{file.stem}")


@lru_cache(maxsize=4)
def _root(top: str) -> Path:
    spec = importlib.util.find_spec(top)
    assert spec is not None  # a dependency
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))
