"""Helm, in a process of its own: its library brings the runtime of another language, with threads and signal handlers.

One JSON value in each line, question and answer: {"chart": path, "values": …} renders, with "lint" it lints.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "charts/spliceway"
NAME, NAMESPACE = "spliceway", "spliceway-system"


class HelmError(Exception):
    """What Helm says of values or templates."""


class Helm:
    """Asks it; a context manager."""

    def __init__(self, chart: Path = CHART) -> None:
        self._chart = chart
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

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

    def __enter__(self) -> Helm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _ask(self, **question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"chart": str(self._chart), **question}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise HelmError(answer["error"])
        return answer["answer"]


def one(objects: list[dict[str, Any]], kind: str, name: str = NAME) -> dict[str, Any]:
    """The object of that kind and name; there must be one."""
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def _answers() -> None:
    import helm_python

    for line in sys.stdin:
        question = json.loads(line)
        try:
            if version := question.get("lint"):
                said: Any = helm_python.lint(
                    question["chart"], question["values"], strict=True, namespace=NAMESPACE, kube_version=version
                )
            else:
                with helm_python.Chart.load(question["chart"]) as chart:
                    said = chart.render(question["values"], name=NAME, namespace=NAMESPACE, is_install=True)
            answer = {"answer": said}
        except helm_python.HelmError as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _answers()
