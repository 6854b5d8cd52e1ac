"""The settings file of `spliceway proxy`, and the log."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import msgspec
import structlog

from spliceway.proxy.errors import ProxyError
from spliceway.proxy.model import ProxySettings

LEVELS = ("debug", "info", "warning", "error")
_MOST_WORKERS = 1024


def load_settings(file: Path) -> ProxySettings:
    """Read the file.

    Raises:
        ProxyError: it can't be read, or a field is wrong; the message names both.
    """
    try:
        settings = msgspec.json.decode(file.read_bytes(), type=ProxySettings, dec_hook=_path)
    except OSError as error:
        raise ProxyError(f"{file}: {error.strerror}") from None
    except msgspec.ValidationError as error:
        why, _, where = str(error).partition(" - at `$")
        raise ProxyError(f"{file}: {where.strip('`.') or 'the whole'}: {why}") from None
    except msgspec.DecodeError as error:
        raise ProxyError(f"{file}: not JSON: {error}") from None
    for name in ("xds_socket", "admin_socket", "handover_socket", "state_file"):
        if not getattr(settings, name).is_absolute():
            raise ProxyError(f"{file}: {_camel(name)}: {getattr(settings, name)} is not an absolute path")
    if not 0 <= settings.workers <= _MOST_WORKERS:
        raise ProxyError(f"{file}: workers: {settings.workers} is not between 0 and {_MOST_WORKERS}")
    if settings.log_level not in LEVELS:
        raise ProxyError(f"{file}: logLevel: {settings.log_level!r} is none of {', '.join(LEVELS)}")
    return settings


def configure_log(level: str) -> None:
    """One JSON object a line on stderr; the standard library's records (grpc, uvicorn, asyncio) go the same way."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str),
    ]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def _path(kind: type, value: object) -> Path:
    """Msgspec knows no paths."""
    if kind is not Path or not isinstance(value, str):
        raise TypeError(f"Expected a path, got {value!r}")
    return Path(value)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)
