"""Helm, in a process of its own: its library brings the runtime of another language, with threads and signal handlers.

One JSON value in each line, question and answer: {"chart": path, "values": …} renders, with "lint" it lints.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

CHART = Path(__file__).parents[2] / "charts/spliceway"
NAME, NAMESPACE = "spliceway", "spliceway-system"


class HelmError(Exception):
    """What Helm says of values or templates."""


class Asked:
    """A program that answers JSON with JSON, line by line; a context manager."""

    def __init__(self, file: str, *arguments: str) -> None:
        """`file`: the program's; what it imports is found as here."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", file, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def ask(self, **question: Any) -> Any:
        """Its answer. Raises HelmError, what it says when it has none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise HelmError(answer["error"])
        return answer["answer"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


def answer_all(answer: Callable[[Any], Any]) -> None:
    """The other side of `Asked`: answer each question by this."""
    import helm_python

    for line in sys.stdin:
        try:
            said = {"answer": answer(json.loads(line))}
        except helm_python.HelmError as error:
            said = {"error": str(error)}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


class Helm(Asked):
    """Asks it."""

    def __init__(self, chart: Path = CHART) -> None:
        super().__init__(__file__)
        self._chart = chart

    def render(self, values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Every object of the chart with these values. Raises HelmError."""
        texts = self._ask(values=values or {})
        found = [
            document
            for path, text in sorted(texts.items())
            if not path.endswith("NOTES.txt")
            for document in yaml.safe_load_all(text)
            if document
        ]
        assert all(isinstance(each, dict) for each in found)
        return found

    def notes(self, values: dict[str, Any] | None = None) -> str:
        """What is told after an installation."""
        return str(self._ask(values=values or {})[f"{NAME}/templates/NOTES.txt"])

    def lint(self, values: dict[str, Any] | None = None, kube_version: str = "v1.36.0") -> dict[str, Any]:
        """The findings of `helm lint --strict`."""
        found: dict[str, Any] = self._ask(values=values or {}, lint=kube_version)
        return found

    def _ask(self, **question: Any) -> Any:
        return self.ask(chart=str(self._chart), **question)


def one(objects: list[dict[str, Any]], kind: str, name: str = NAME) -> dict[str, Any]:
    """The object of that kind and name; there must be one."""
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def _answer(question: dict[str, Any]) -> Any:
    import helm_python

    chart, values = question["chart"], question["values"]
    if version := question.get("lint"):
        return helm_python.lint(chart, values, strict=True, namespace=NAMESPACE, kube_version=version)
    with helm_python.Chart.load(chart) as loaded:
        return loaded.render(values, name=NAME, namespace=NAMESPACE, is_install=True)


if __name__ == "__main__":
    answer_all(_answer)
