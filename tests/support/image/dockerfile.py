"""Reading a Dockerfile, as far as ours goes: FROM, ARG, COPY, RUN, ENV, LABEL, USER, ENTRYPOINT, CMD. Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_KNOWN = ("FROM", "ARG", "COPY", "RUN", "ENV", "LABEL", "USER", "ENTRYPOINT", "CMD")


@dataclass(frozen=True)
class Copy:
    """`COPY [--from=STAGE] SOURCE… TARGET`; `stage` empty: from the context."""

    sources: tuple[str, ...]
    target: str
    stage: str = ""


@dataclass(frozen=True)
class Run:
    """`RUN COMMAND`, by /bin/sh, with these variables."""

    command: str
    variables: Mapping[str, str]


@dataclass
class Stage:
    """One FROM with all that follows."""

    base: str
    name: str
    steps: list[Copy | Run] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    user: str = ""
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def stages(text: str, arguments: Mapping[str, str] | None = None) -> list[Stage]:
    """The stages, with `arguments` in place of the defaults of ARGs. Raises ValueError for what this does not know."""
    given = dict(arguments or {})
    asked: set[str] = set()
    before: dict[str, str] = {}  # ARGs in front of the first FROM count in FROMs only
    found: list[Stage] = []
    variables: dict[str, str] = {}
    for word, rest in _instructions(text):
        if word == "ARG":
            name, _, default = rest.partition("=")
            asked.add(name)
            (variables if found else before)[name] = given.get(name, default)
        elif word == "FROM":
            base, _, name = re.sub(r"\s+AS\s+", " AS ", _filled(rest, before)).partition(" AS ")
            found.append(Stage(base, name))
            variables = {}
        elif not found:
            raise ValueError(f"{word} in front of the first FROM")
        else:
            _take(found[-1], word, rest, variables)
    if unknown := given.keys() - asked:
        raise ValueError(f"no ARG is called {', '.join(sorted(unknown))}")
    return found


def _take(stage: Stage, word: str, rest: str, variables: Mapping[str, str]) -> None:
    known = {**stage.environment, **variables}
    if word == "RUN":
        # Variables of the build are in the environment of the command, whose shell puts them in.
        stage.steps.append(Run(rest, known))
    elif word == "COPY":
        words = shlex.split(_filled(rest, known))
        source = ""
        if words[0].startswith("--from="):
            source = words.pop(0).removeprefix("--from=")
        if words[0].startswith("--"):
            raise ValueError(f"COPY {words[0]}: not known")
        stage.steps.append(Copy(tuple(words[:-1]), words[-1], source))
    elif word in ("ENV", "LABEL"):
        pairs = stage.environment if word == "ENV" else stage.labels
        for each in shlex.split(_filled(rest, known)):
            name, _, value = each.partition("=")
            pairs[name] = value
    elif word == "USER":
        stage.user = _filled(rest, known)
    elif word == "ENTRYPOINT":
        stage.entrypoint = json.loads(rest)
    else:
        stage.command = json.loads(rest)


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", " ", lines).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            if word not in _KNOWN:
                raise ValueError(f"{word}: not known")
            yield word, rest.strip()


def _filled(text: str, variables: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ValueError(f"${{{match[1]}}} is not set")
        return variables[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)
