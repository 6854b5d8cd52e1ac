"""The examples of policy kinds say what their comments say."""

from __future__ import annotations

from pathlib import Path

import msgspec
from typer.testing import CliRunner

from spliceway.agent.cli.root import app
from spliceway.agent.config import parse_config
from spliceway.agent.testbed import manifests
from spliceway.agent.testbed.plan import make_plan
from spliceway.agent.testbed.slices import slices_of

KINDS = Path(__file__).parents[2] / "examples" / "kinds"
SERVICES = KINDS.parent / "services"


def test_the_services_are_read_and_lead_to_the_pods() -> None:
    assert CliRunner().invoke(app, ["policy", "validate", str(SERVICES / "policies")]).exit_code == 0
    text = f"source: {{directory: /p}}\n{(SERVICES / 'agent.yaml').read_text()}"
    assert parse_config(text, "agent.yaml").datapath.socket_lb == "on"
    plan = make_plan(manifests.load([SERVICES / "pods.yaml"]))
    found = manifests.described(manifests.files(SERVICES / "policies"))
    named = {str(end) for one in found if one.kind == "EndpointSlice" for end in addresses(one)}
    assert named == {str(each) for pod in plan.pods if pod.name.startswith("web-") for each in pod.addresses}
    assert slices_of(found, plan.pods) == {}


def addresses(piece: manifests.Manifest) -> list[str]:
    return [text for end in piece.items("endpoints") for text in end["addresses"]]


def test_the_kinds_are_read_and_answered() -> None:
    assert CliRunner().invoke(app, ["policy", "validate", str(KINDS / "policies")]).exit_code == 0
    asked = {
        "--policies": KINDS / "policies",
        "--inventory": KINDS / "cluster.yaml",
        "--queries": KINDS / "queries.jsonl",
    }
    options = [part for name, path in asked.items() for part in (name, str(path))]
    done = CliRunner().invoke(app, ["policy", "evaluate", *options, "-o", "json"])
    assert done.exit_code == 0, done.output
    answers = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    assert [(one["from"], one["port"], one["verdict"], one.get("audit", False)) for one in answers] == [
        ("shop/web", 8080, "allow", False),  # by the name of the port
        ("shop/web", 9100, "deny", False),  # no team `platform`
        ("monitoring/prober", 9100, "allow", False),  # before the NetworkPolicy, which does not name it
        ("shop/batch", 8080, "deny", False),  # by the NetworkPolicy, which is enforced
        ("shop/batch", 443, "allow", True),
    ]
