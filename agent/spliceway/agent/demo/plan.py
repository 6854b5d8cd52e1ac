"""What the demo asks: `requests.yaml` beside this file, and the manifests in `examples/`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from spliceway.agent.errors import AgentError

REQUESTS = Path(__file__).with_name("requests.yaml")
#: The top of the source tree, where `examples` is.
_TOP = Path(__file__).resolve().parents[4]


class DemoError(AgentError):
    """The demo can't be run; the message says why and what to do."""


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must come of a request, see requests.yaml."""

    answer: str
    reason: str
    data_path: Literal["kernel", "proxy", "proxy + splice"]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from", "target": "to"}):
    """One request. `source` and `target` are names of pods or hosts; method and path count for TCP only."""

    source: str
    target: str
    expect: Expected
    port: int = 80
    protocol: Literal["TCP", "UDP"] = "TCP"
    method: str = "GET"
    path: str = "/"

    @property
    def text(self) -> str:
        """As the table shows it: `frontend → api GET /articles/1`."""
        what = f"{self.method} {self.path}" if self.protocol == "TCP" else "UDP"
        port = f":{self.port}" if self.port != 80 else ""
        return f"{self.source} → {self.target}{port}  {what}"


class Chapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requests that show one policy."""

    title: str
    requests: tuple[Request, ...]


def load_chapters(path: Path = REQUESTS) -> tuple[Chapter, ...]:
    """Read what is asked. Raises DemoError with file and field."""
    import msgspec.yaml

    try:
        return msgspec.yaml.decode(path.read_bytes(), type=tuple[Chapter, ...])
    except (OSError, msgspec.MsgspecError) as error:
        raise DemoError(f"{path}: {error}") from error


def examples(name: str) -> Path:
    """A directory of `examples/`. Raises DemoError when there is none (an installed wheel has no examples)."""
    path = _TOP / "examples" / name
    if not path.is_dir():
        raise DemoError(f"{path} is not there: the demo runs from a source tree (git clone, then `make demo`)")
    return path
