"""What the API server says when it refuses: a Status object (meta/v1)."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


class ApiError(Exception):
    """A request that is answered with a Status; `body` is that."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.metadata: Json = {}
        self.details = details
        self.reason = reason
        self.message = message

    @property
    def body(self) -> Json:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            **({"details": self.details} if self.details else {}),
            "code": self.code,
        }


def expired(message: str) -> ApiError:
    """The history that is asked for is gone."""
    return ApiError(410, "Expired", message)


def too_large(wanted: int, current: int) -> ApiError:
    """A revision that is not there yet."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return ApiError(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {wanted}, current: {current}",
        causes=[cause],
        retryAfterSeconds=1,
    )


def invalid_options(field: str, why: str) -> ApiError:
    """ListOptions that contradict themselves, or that need a feature which is off."""
    message = f'ListOptions.meta.k8s.io "" is invalid: {field}: Forbidden: {why}'
    cause = {"reason": "FieldValueForbidden", "message": f"Forbidden: {why}", "field": field}
    return ApiError(422, "Invalid", message, group="meta.k8s.io", kind="ListOptions", causes=[cause])


def invalid(kind: str, group: str, name: str, field: str, why: str) -> ApiError:
    """An object that can't be."""
    where = f"{kind}.{group}" if group else kind
    cause = {"reason": "FieldValueInvalid", "message": why, "field": field}
    message = f'{where} "{name}" is invalid: {field}: {why}'
    return ApiError(422, "Invalid", message, name=name, group=group, kind=kind, causes=[cause])


def bad_request(message: str) -> ApiError:
    """What can't be understood."""
    return ApiError(400, "BadRequest", message)


def not_found(plural: str, group: str, name: str) -> ApiError:
    """No such object."""
    where = f"{plural}.{group}" if group else plural
    return ApiError(404, "NotFound", f'{where} "{name}" not found', name=name, group=group, kind=plural)


def exists(plural: str, group: str, name: str) -> ApiError:
    """A name that is taken."""
    where = f"{plural}.{group}" if group else plural
    return ApiError(409, "AlreadyExists", f'{where} "{name}" already exists', name=name, group=group, kind=plural)


def conflict(plural: str, group: str, name: str, why: str = "") -> ApiError:
    """Somebody else was quicker."""
    where = f"{plural}.{group}" if group else plural
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {where} "{name}": {why}'
    return ApiError(409, "Conflict", message, name=name, group=group, kind=plural)
