"""`spliceway policy istio translate`: documents on stdout, reasons on stderr, exit status 1 for refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from spliceway.agent.cli.root import app
from support.istiopolicies import CLUSTER, STRICT, allow, policy

RUNNER = CliRunner()
EXAMPLE = Path(__file__).parents[2] / "examples/istio"
OTHER = policy(
    "endpointSelector: {matchLabels: {app: front}}\n"
    "ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: '/a/[0-9]+'}]}}]}]",
    name="other",
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "cluster.yaml").write_text(f"{CLUSTER}---\n{STRICT}")
    (tmp_path / "web.yaml").write_text(allow("{path: /a}"))
    return tmp_path


def test_yaml(directory: Path) -> None:
    done = RUNNER.invoke(app, ["policy", "istio", "translate", str(directory)])
    assert done.exit_code == 0
    assert "note: pod shop/api: shows no sidecar yet" in done.stderr
    first, document = yaml.safe_load_all(done.stdout)
    assert (first["kind"], first["metadata"]["name"]) == ("EnvoyFilter", "spliceway-cnp-filter-0-0-web")
    assert document["apiVersion"] == "security.istio.io/v1"
    assert document["metadata"] == {
        "name": "spliceway-cnp-allow-0-0-web",
        "namespace": "shop",
        "labels": {"app.kubernetes.io/managed-by": "spliceway"},
        "annotations": {"spliceway.io/translated-from": "CiliumNetworkPolicy shop/web"},
    }


def test_what_is_refused_and_the_rest(directory: Path) -> None:
    (directory / "other.yaml").write_text(OTHER)
    done = RUNNER.invoke(app, ["policy", "istio", "translate", str(directory)])
    assert done.exit_code == 1
    assert len(list(yaml.safe_load_all(done.stdout))) == 2
    assert "CiliumNetworkPolicy shop/other: spec.ingress[0].toPorts[0].rules.http[0]: path /a/[0-9]+" in done.stderr


def test_json(directory: Path) -> None:
    (directory / "other.yaml").write_text(OTHER)
    files = [str(directory / name) for name in ("cluster.yaml", "web.yaml", "other.yaml")]
    done = RUNNER.invoke(app, ["policy", "istio", "translate", "--json", *files])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert [one["kind"] for one in told["policies"]] == ["EnvoyFilter", "AuthorizationPolicy"]
    assert [(one["policy"], one["field"]) for one in told["refused"]] == [
        ("CiliumNetworkPolicy shop/other", "spec.ingress[0].toPorts[0].rules.http[0]")
    ]
    assert {note.partition(":")[0] for note in told["notes"]} == {"pod shop/api", "pod shop/front"}


def test_nothing_is_translated_beside_a_document_that_is_refused(directory: Path) -> None:
    (directory / "bad.yaml").write_text("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}")
    done = RUNNER.invoke(app, ["policy", "istio", "translate", str(directory)])
    assert done.exit_code == 1
    assert list(yaml.safe_load_all(done.stdout)) == []
    assert "unsupported kind Deployment" in done.stderr


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ("5", "items: must be a list, is an integer (5)"),
        ("[{apiVersion: v1, kind: Pods}]", "items[0].kind: unsupported kind Pods"),
        (
            "[{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a}, spec: {mtls: STRICT}}]",
            "PeerAuthentication default/a: items[0].spec.mtls: must be a mapping",
        ),
    ],
)
def test_items_of_a_list_have_their_place(directory: Path, items: str, why: str) -> None:
    (directory / "list.yaml").write_text(f"apiVersion: v1\nkind: List\nitems: {items}")
    done = RUNNER.invoke(app, ["policy", "istio", "translate", str(directory)])
    assert done.exit_code == 1
    assert why in done.stderr


def test_nothing_to_translate_is_said(directory: Path) -> None:
    done = RUNNER.invoke(app, ["policy", "istio", "translate", str(directory / "cluster.yaml")])
    assert (done.exit_code, done.stdout) == (0, "")
    assert "no policy is here: there is nothing to translate" in done.stderr
    plain = policy("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]")
    (directory / "web.yaml").write_text(plain)
    done = RUNNER.invoke(app, ["policy", "istio", "translate", str(directory)])
    assert "no policy here has HTTP rules of ingress that are enforced" in done.stderr


def test_the_example() -> None:
    done = RUNNER.invoke(app, ["policy", "istio", "translate", str(EXAMPLE)])
    assert (done.exit_code, done.stderr) == (0, "")
    assert [one["kind"] for one in yaml.safe_load_all(done.stdout)] == ["EnvoyFilter", "AuthorizationPolicy"]


@pytest.mark.parametrize(("asked", "verdict"), [("/items", "allow"), ("/private", "allow"), (None, "deny")])
def test_the_example_on_the_wire(tmp_path: Path, asked: str | None, verdict: str) -> None:
    """Its HTTP rules are the sidecar's: on the wire peers and port are judged."""
    query = {"from": "shop/front-1", "to": "shop/basket-1", "port": 8080 if asked else 8081}
    queries = tmp_path / "queries.jsonl"
    queries.write_text(json.dumps(query | ({"http": {"path": asked}} if asked else {})))
    given = ["--policies", str(EXAMPLE / "policies.yaml"), "--inventory", str(EXAMPLE / "cluster.yaml")]
    done = RUNNER.invoke(app, ["policy", "evaluate", *given, "--queries", str(queries), "-o", "json"])
    assert (done.exit_code, json.loads(done.stdout)["verdict"]) == (0, verdict)


def test_what_an_earlier_translation_has_left_is_named(directory: Path) -> None:
    """`kubectl apply` takes nothing away: an ALLOW policy of a policy with another name adds to the new one."""
    asked = ["policy", "istio", "translate", str(directory)]
    first = RUNNER.invoke(app, asked).stdout
    (directory / "applied.yaml").write_text(first.partition("---\n")[2])
    again = RUNNER.invoke(app, asked)
    assert (again.stdout, "earlier" in again.stderr) == (first, False)
    (directory / "web.yaml").write_text(allow("{path: /a}").replace("name: web", "name: shop"))
    done = RUNNER.invoke(app, asked)
    assert done.exit_code == 0
    assert "note: AuthorizationPolicy shop/spliceway-cnp-allow-0-0-web: is of an earlier translation" in done.stderr
    emitted = first.replace("managed-by: spliceway", "managed-by: spliceway\n    spliceway.io/emitted: 'true'")
    (directory / "applied.yaml").write_text(emitted)
    assert "earlier" not in RUNNER.invoke(app, asked).stderr
    (directory / "applied.yaml").write_text(first.replace("spliceway.io/translated-from", "other"))
    done = RUNNER.invoke(app, asked)
    assert done.exit_code == 1
    assert "adds to it" in done.stderr


def test_options(directory: Path) -> None:
    (directory / "web.yaml").write_text(allow("{path: '/a/.*'}"))
    (directory / "cluster.yaml").write_text(f"{CLUSTER}---\n{STRICT.replace('istio-system', 'mesh')}")
    asked = [
        "policy",
        "istio",
        "translate",
        str(directory),
        "--trust-domain",
        "example.org",
        "--root-namespace",
        "mesh",
    ]
    assert RUNNER.invoke(app, [*asked, "--ambiguous", "refuse"]).exit_code == 1
    asked += ["--path-normalization", "DECODE_AND_MERGE_SLASHES", "--ambiguous", "pass"]
    done = RUNNER.invoke(app, asked)
    assert done.exit_code == 0, done.stderr
    (document,) = yaml.safe_load_all(done.stdout)
    (rule,) = document["spec"]["rules"]
    assert rule["from"][0]["source"]["principals"] == ["example.org/ns/shop/sa/front"]
    assert rule["to"][0]["operation"]["paths"] == ["/a/*"]


@pytest.mark.parametrize("option", ["--trust-domain", "--root-namespace"])
@pytest.mark.parametrize("value", ["*", "a/b", "", "a*"])
def test_names_that_would_be_patterns(directory: Path, option: str, value: str) -> None:
    done = RUNNER.invoke(app, ["policy", "istio", "translate", str(directory), option, value])
    assert done.exit_code == 2
