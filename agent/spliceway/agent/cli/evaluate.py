"""`spliceway policy evaluate`: verdicts by the interpreter alone, without an agent and without a node."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer
import typer.core

from spliceway.agent.cli.common import Output, OutputOption, RootNamespaceOption, TrustDomainOption

if TYPE_CHECKING:
    from spliceway.policy.errors import PolicyError
    from spliceway.policy.model import Cluster
    from spliceway.policy.parse_authorization_source import IstioNames

#: Longest line of a query, in bytes.
_MAX_LINE = 1 << 20
#: Longest file, in bytes, and most values in it. The files are the caller's own, and `kubectl get -o yaml` prints much
#: more of each object than an agent's limits are made for.
MAX_FILE = 256 << 20
MAX_VALUES = 10_000_000
#: How many answers are written together.
_BATCH = 1000
_COLUMNS = ("FROM", "TO", "PORT", "REQUEST", "VERDICT", "REASON", "RULES")


class Spread(typer.core.TyperCommand):
    """Takes several values after one option: `--policies a b` is `--policies a --policies b`."""

    _SPREAD = ("--policies", "--inventory")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values."""
        spread: list[str] = []
        option = ""
        for arg in args:
            if arg.startswith("-") and arg != "-":
                option = arg if arg in self._SPREAD else ""
            elif option and spread[-1] != option:
                spread.append(option)
            spread.append(arg)
        return super().parse_args(ctx, spread)


_PathsOption = Annotated[
    list[Path], typer.Option(exists=True, metavar="PATH...", help="Files, or directories of YAML or JSON files.")
]


def evaluate(
    policies: _PathsOption,
    inventory: _PathsOption,
    queries: Annotated[typer.FileBinaryRead, typer.Option(help="JSON lines; - is standard input.", metavar="FILE")],
    output: OutputOption = Output.TABLE,
    skip_refused: Annotated[
        bool, typer.Option("--skip-refused", help="Go on without documents that are refused.")
    ] = False,
    trust_domain: TrustDomainOption = "cluster.local",
    root_namespace: RootNamespaceOption = "istio-system",
) -> None:
    """What policies say of connections and requests, by the interpreter alone: for tests of policies.

    Exit status 1 when a document is refused (nothing is answered then, but with --skip-refused) or a query is wrong.
    """
    from spliceway.agent.cli.queries import Asker
    from spliceway.policy.parse_authorization_source import IstioNames

    cluster, refusals = read_cluster((*policies, *inventory), IstioNames(trust_domain, root_namespace))
    for refusal in refusals:
        typer.echo(str(refusal), err=True)
    if refusals:
        left = "left out" if skip_refused else "refused, so no query is answered (--skip-refused leaves them out)"
        count = "1 document is" if len(refusals) == 1 else f"{len(refusals)} documents are"
        typer.echo(f"spliceway: {count} {left}", err=True)
        if not skip_refused:
            raise typer.Exit(1)
    if not cluster.policies:
        typer.echo("spliceway: there is no policy in these files, so everything is allowed", err=True)
    asker = Asker(cluster)
    answers = (asker.line(line) for line in _lines(queries))
    if output is Output.JSON:
        _write_lines(answers)
    else:
        _write_table(answers)
    if asker.wrong:
        typer.echo(f"spliceway: {asker.wrong} of {asker.asked} queries are wrong; {asker.first_error}", err=True)
        raise typer.Exit(1)


def read_cluster(paths: Iterable[Path], istio: IstioNames | None = None) -> tuple[Cluster, list[PolicyError]]:
    """Everything that these files and directories say, and what is refused. Raises SourceError.

    A file that is named twice, also by its directory, is read once; an object that two files have is refused.
    """
    from spliceway.policy.documents import Limits
    from spliceway.policy.errors import PolicyError
    from spliceway.policy.model import Cluster, Object, object_key
    from spliceway.policy.parse import parse_text

    limits = Limits(MAX_FILE, MAX_VALUES)
    found: dict[tuple[str, str], Object] = {}
    refusals: list[PolicyError] = []
    for file, text in texts(paths):
        if isinstance(text, PolicyError):
            refusals.append(text)
            continue
        parsed = parse_text(text, file, limits, istio)
        refusals += parsed.errors
        for item in parsed.objects:
            kind, name = key = object_key(item)
            if key in found:
                refusals.append(PolicyError(file, f"{kind} {name}", "", f"is already in {found[key].file}"))
            else:
                found[key] = item
    return Cluster().with_objects(found.values()), refusals


def texts(paths: Iterable[Path]) -> Iterator[tuple[str, str | PolicyError]]:
    """Each file once, and its text or why it is refused."""
    from spliceway.policy.errors import PolicyError

    seen: set[Path] = set()
    for path in paths:
        for file in _below(path) if path.is_dir() else [path]:
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            try:
                # Only what was named itself may be a pipe: opening a stray one in a directory would wait for ever.
                if file is not path and not file.is_file():
                    raise ValueError("is not a regular file")
                yield str(file), _read(file)
            except OSError as error:
                yield str(file), PolicyError(str(file), "", "", f"can't be read: {error.strerror}")
            except ValueError as error:
                yield str(file), PolicyError(str(file), "", "", str(error))


def _below(directory: Path) -> Iterator[Path]:
    """YAML and JSON files of a directory and of all below it, but the hidden ones. Raises SourceError."""
    from spliceway.agent.errors import SourceError
    from spliceway.agent.sources.scan import wanted

    def fail(error: OSError) -> None:
        raise SourceError(f"{error.filename} can't be read: {error.strerror}") from error

    seen: set[Path] = set()
    for root, directories, names in os.walk(directory, onerror=fail, followlinks=True):
        here = Path(root)
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        if here.resolve() in seen:  # a loop of symbolic links
            directories.clear()
            continue
        seen.add(here.resolve())
        yield from (here / name for name in sorted(names) if wanted(name))


def _read(file: Path) -> str:
    """Text of a file. Raises OSError, or ValueError with the reason why it is refused."""
    with file.open("rb") as stream:
        data = stream.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"is larger than {MAX_FILE} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start})") from error


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines that are not blank. Raises SourceError for one without end."""
    from spliceway.agent.errors import SourceError

    number = 0
    while line := stream.readline(_MAX_LINE + 1):
        number += 1
        if len(line) > _MAX_LINE:
            raise SourceError(f"line {number} of the queries is longer than {_MAX_LINE} bytes")
        if not line.isspace():
            yield line


def _write_lines(answers: Iterator[bytes]) -> None:
    out = sys.stdout.buffer
    while batch := list(islice(answers, _BATCH)):
        out.write(b"\n".join(batch) + b"\n")
    out.flush()


def _write_table(answers: Iterator[bytes]) -> None:
    import msgspec

    from spliceway.agent.cli.render import table

    columns: tuple[str, ...] = _COLUMNS
    while batch := list(islice(answers, _BATCH)):
        table(columns, [_row(msgspec.json.decode(text)) for text in batch])
        columns = ()


def _row(said: dict[str, Any]) -> tuple[Any, ...]:
    http = said.get("http") or {}
    request = f"{http.get('method', 'GET')} {http.get('path', '/')}" if http else ""
    ends = said.get("from", said.get("query")), said.get("to")
    protocol = str(said.get("protocol", "TCP")).lower()
    port = f"{said['port']}/{protocol}" if "port" in said else protocol
    if "error" in said:
        return (*ends, port, request, "error", said["error"], "")
    rules = [
        f"{rule['kind']} {'/'.join(filter(None, (rule['namespace'], rule['name'])))} {rule['path']}"
        for rule in said["rules"]
    ]
    verdict = "audit" if said.get("audit") else said["verdict"]
    # A miss names its rule itself; default deny is by no rule, but at one end.
    why = said.get("nearestMiss") or rules or [f"({end})" for end in ("egress", "ingress") if said[end] == "deny"]
    return (*ends, port, request, verdict, said["reason"], why)
