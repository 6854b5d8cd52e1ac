"""What the agent says, put for people. Pure: decoded JSON in, rows and sentences out."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from spliceway.agent.cli.istiotext import istio_line
from spliceway.agent.cli.splices import gate_line, other_owner_notes, self_test_line, splice_line, splice_notes
from spliceway.agent.cli.writing import writing_line
from spliceway.agent.printable import printable

Json = dict[str, Any]


def summary(status: Json) -> list[tuple[str, str]]:
    """Rows of `spliceway status`."""
    policy, datapath, proxy, splice = status["policy"], status["datapath"], status["proxy"], status["splice"]
    source = status["source"]
    attached = ", ".join(datapath["attached"]) or "nothing"
    listeners, clients = _many(len(proxy["listeners"]), "listener"), _many(proxy["clients"], "xDS client")
    return [
        (
            "node",
            f"{status['node']} (agent pid {status['pid']}, up {_duration(time.time() - _seconds(status['started']))})",
        ),
        (
            "source",
            _place(source),
        ),
        (
            "policy",
            f"revision {policy['revision']} in force{held_up(status)}, "
            f"{_many(policy['rows'], 'row')}, {_many(policy['ruleSets'], 'rule set')}",
        ),
        ("enforcement", _disabled(status) or _enforcement(status["enforcement"])),
        ("services", _services(status["services"])),
        *(("cni", text) for text in _cni(status.get("cni", {}))),
        *(("status", text) for text in writing_line(status.get("policyStatus", {}), time.time())),
        *(("istio", text) for text in istio_line(status.get("istio", {}))),
        *([("socket-lb", _socket_lb(found))] if (found := datapath.get("socketLb")) else []),
        (
            "kernel",
            f"generation {datapath['generation']}, ABI {datapath['abi']}, attached: {attached}"
            + "".join(f"; draining {each}" for each in datapath.get("draining", ())),
        ),
        *([("hooks", _hooks(datapath["hooks"]))] if datapath.get("hooks") else []),
        *([("devices", _devices(datapath["devices"]))] if datapath.get("devices") else []),
        *([("uncovered", _uncovered(datapath["uncovered"]))] if datapath.get("uncovered") else []),
        (
            "proxy",
            f"{_process(proxy)}: {listeners}, {clients}, {_many(proxy['nacks'], 'NACK')}",
        ),
        ("ports", _ports(proxy["ports"])),
        ("splice", splice_line(splice)),
        ("gate", gate_line(splice)),
        ("self-test", self_test_line(splice)),
        ("flows", f"{status['flows']['published']} seen, {datapath['lostEvents']} lost by the kernel's buffer"),
    ]


def _place(source: Json) -> str:
    """«/etc/manifests: 3 files, 9 objects», «kubernetes URL: 9 kinds listed, 3 not served, 7 objects; WHAT FAILS»."""
    objects = _many(source["objects"], "object")
    if (found := source.get("kubernetes")) is None:
        return f"{source['directory']}: {_many(source['files'], 'file')}, {objects}"
    states = [one["state"] for one in found["resources"]]
    text = f"kubernetes {found['server']}: {_many(states.count('listed'), 'kind')} listed"
    for state, told in (("absent", "not served"), ("waiting", "not seen yet"), ("refused", "refused")):
        if count := states.count(state):
            text += f", {count} {told}"
    errors = [one["error"] for one in found["resources"] if one["error"]]
    return printable(f"{text}, {objects}" + (f"; {errors[0]}" if errors else ""))


def _hooks(hooks: Json) -> str:
    """«tcx: 7 watched; 1 put back, 2 moved to the front; last, 3m07s ago: WHAT»."""
    found = f"{hooks['kind'] or 'none'}: {hooks['watched']} watched"
    found += "".join(
        f", {hooks[field]} {told}"
        for field, told in (("missing", "without our program"), ("behind", "where others come before ours"))
        if hooks[field]
    )
    if hooks["last"]:
        found += f"; {hooks['putBack']} put back, {hooks['moved']} moved to the front"
        found += f"; last, {_duration(time.time() - hooks['lastTime'])} ago: {printable(hooks['last'])}"
    return found


def _devices(devices: list[Json]) -> str:
    """«eth0, flannel.1 (vxlan); without our program: wg0: WHY»: by which interfaces packets come from outside."""
    there = [one["name"] + (f" ({one['kind']})" if one["kind"] else "") for one in devices if one["attached"]]
    lacking = [f"; without our program: {one['name']}" for one in devices if one["program"] and not one["attached"]]
    return printable(
        (", ".join(there) or "none: what comes from outside is judged at the pods only") + "".join(lacking)
    )


def _uncovered(pods: list[str]) -> str:
    """«further interfaces of pods, which no policy covers: default/client: net1 (macvlan)»."""
    shown = "; ".join(pods[:3]) + (f"; and of {len(pods) - 3} more pods" if len(pods) > 3 else "")
    return printable(f"further interfaces of pods, which no policy covers: {shown}")


def _process(proxy: Json) -> str:
    """«embedded 0.1.0, 2 workers»; only the kind when none runs."""
    process = proxy.get("process") or {}
    if not process.get("running"):
        return str(proxy["kind"])
    text = f"{proxy['kind']} {process['version']}, {_many(process['workers'], 'worker')}"
    if replaced := process.get("workerRestarts"):
        text += f" ({replaced} replaced)"
    for old in process.get("draining", ()):
        text += f", pid {old['pid']} of before drains for {_duration(time.time() - old['since'])}"
    return text


def _ports(use: Json) -> str:
    """«28232 for a client and a server; most: 120 (CLIENT -> SERVER); 100 connections to servers, 20 in TIME_WAIT»."""
    most = f"; most: {use['most']} ({use['client']} -> {use['server']})" if use["most"] else ""
    return (
        f"{use['ports']} for a client and a server{most}; "
        f"{_many(use['open'], 'connection')} to servers, {use['timeWait']} in TIME_WAIT"
    )


def _seconds(moment: str) -> float:
    """Since 1970, of a time in RFC 3339."""
    return datetime.fromisoformat(moment).timestamp()


def problems(status: Json) -> list[str]:
    """Everything that is not as it should be, one sentence each."""
    policy = status["policy"]
    process = status["proxy"]["process"] or {}
    found = [
        *_kill_switch(status),
        *refusals(status),
        *(f"reconcile: {text}" for text in (policy["error"], policy["endpointError"]) if text),
        *(f"services: {text}" for text in (policy.get("serviceError"),) if text),
        *_rule_sets(status),
        *(f"datapath: {text}" for text in status["datapath"]["problems"]),
        *_cni_problems(status.get("cni", {})),
        *(f"proxy: {text}" for text in process.get("problems", ())),
        *(f"proxy: refused {_about(other)}" for other in status["proxy"]["refused"]),
    ]
    if policy["revision"] != policy["wanted"]:
        found.append(f"policy: revision {policy['wanted']} is wanted, {policy['revision']} is in force")
    if policy["refusedPairs"]:
        found.append(
            f"policy: no room for {policy['refusedPairs']} pairs of rule sets (datapath.maxPairs): connections that "
            "meet both are dropped (no-listener)"
        )
    if not status["proxy"]["clients"]:
        found.append("proxy: none is connected over xDS")
    return [printable(text) for text in found]


def refusals(status: Json) -> list[str]:
    """What is not in force as it is written, one sentence each: «refused: file: document: field: reason»."""
    return [printable(f"refused: {_refusal(item)}") for item in status["source"]["refusals"]]


def not_applied(status: Json) -> list[str]:
    """What `policy get` shows and is not applied, or does not show yet, one sentence each.

    Policies that the proxy has not taken over as they are, for each resource; and whether anything is held back.
    """
    found = [
        f"{policy['policy']} ({policy['file'] or 'no file any more'}): {_why(why)}"
        for policy in status["policy"]["notApplied"]
        for why in policy["why"]
    ]
    if (wanted := status["policy"]["wanted"]) != (revision := status["policy"]["revision"]):
        found.append(f"revision {revision} is shown, {wanted} is wanted: what is held back is not in the table")
    return [printable(text) for text in found]


def warnings(status: Json) -> list[str]:
    """What should be known, and is no reason for an exit status of 1."""
    splice = status["splice"]
    return [
        *map(printable, status["proxy"]["warnings"]),
        *(f"datapath: {printable(text)}" for text in status["datapath"].get("warnings", ())),
        *_conflicts(status["services"]),
        *splice_notes(splice),
        *other_owner_notes(splice["counters"]),
    ]


def _rule_sets(status: Json) -> list[str]:
    """Rule sets that are not ready, with what the proxy says and whose they are."""
    policies = status["policy"]["notApplied"]
    why = {each["ruleSet"]: each for policy in policies for each in policy["why"]}
    whose: dict[str, list[str]] = {}
    for policy in policies:
        for each in policy["why"]:
            whose.setdefault(each["ruleSet"], []).append(f"{policy['policy']} in {policy['file']}")
    return [
        f"rule set {name}: {_why({**why[name], 'state': state}) if name in why else state}"
        + (f" ({', '.join(whose[name])})" if name in whose else "")
        for name, state in _not_ready(status).items()
    ]


def _not_ready(status: Json) -> dict[str, str]:
    """Rule sets that the proxy has not taken over, by name, with the state of each."""
    return {**status["policy"]["waiting"], **dict.fromkeys(status["proxy"]["unfit"], "refused")}


def held_up(status: Json) -> str:
    """« (1 rule set refused, 2 rule sets waiting)»: theirs of the revision isn't in force. Empty when all of it is."""
    states = list(_not_ready(status).values())
    refused = states.count("refused")
    waiting = len(states) - refused  # also those whose port is taken: they move to another one
    found = [
        f"{_many(count, 'rule set')} {state}" for count, state in ((refused, "refused"), (waiting, "waiting")) if count
    ]
    return f" ({', '.join(found)})" if found else ""


def _why(why: Json) -> str:
    return ": ".join(part for part in (why["state"], _about(why)) if part)


def _about(answer: Json) -> str:
    """«RDS rule-set-3: what the proxy says»."""
    parts = (f"{answer['type']} {answer['resource']}".strip(), " ".join(answer["message"].split()))
    return ": ".join(part for part in parts if part)


def _enforcement(found: Json) -> str:
    mode, count = found["mode"], found["policiesInAudit"]
    policies = f"{found['policies']} {'policy' if found['policies'] == 1 else 'policies'}"
    if mode == "audit":
        return f"audit: nothing is denied by any policy ({policies})"
    return f"{mode}: {policies}" + (f", {count} of them in audit" if count else "")


def _disabled(status: Json) -> str:
    """«OFF for 3m07s: the kill switch is on», or empty."""
    found = status.get("killSwitch") or {}
    if not found.get("on"):
        return ""
    return f"OFF for {_duration(time.time() - found['since'])}: the kill switch is on, nothing is enforced or steered"


def unenforced(status: Json) -> str:
    """Why a direction that a policy covers is not enforced all the same, or empty."""
    if (status.get("killSwitch") or {}).get("on"):
        return "the kill switch is on: nothing is enforced"
    if status["enforcement"]["mode"] == "audit":
        return "enforcement is audit: nothing is denied"
    return ""


def _kill_switch(status: Json) -> list[str]:
    found = status.get("killSwitch") or {}
    told = []
    if found.get("on"):
        why = "; ".join(found["why"]) or "it is being turned off"
        told.append(f"kill switch: ON, no policy is enforced on this node: {why}")
    elif found.get("why"):
        told.append(f"kill switch: is to be on, and is not yet: {'; '.join(found['why'])}")
    if found.get("error"):
        told.append(f"kill switch: could not be turned: {found['error']}")
    return told


def _services(found: Json) -> str:
    """«12 Services, 30 frontends (2 without backends)»."""
    without = f" ({found['withoutBackends']} without backends)" if found["withoutBackends"] else ""
    return f"{_many(found['services'], 'Service')}, {_many(found['frontends'], 'frontend')}{without}"


def _cni(found: Json) -> list[str]:
    if not found.get("enabled"):
        left = f"off; {_many(found.get('wired', 0), 'pod')} of a time with it keep their policy"
        return [left] if found.get("wired") else []
    file = found["chain"]["file"]
    there = f", {found['found']} of them found" if found["found"] else ""
    return [f"{_many(found['wired'], 'pod')} wired{there}; plugin in {file or 'no chain'}"]


def _cni_problems(found: Json) -> list[str]:
    if not found:
        return []
    problem = found["chain"]["problem"]
    return [
        *([f"cni: {problem}"] if problem else []),
        *(
            f"cni: {text} was cni.confDir before, and may still have the plugin in its chain: "
            "`spliceway cleanup` on the node takes it out"
            for text in found["chain"].get("left", ())
        ),
        *(f"cni: no policy covers {text}" for text in found["without"]),
    ]


def _socket_lb(found: Json) -> str:
    """«auto: 30 frontends and 80 backends in the kernel», «off», or who translates instead."""
    if found["mode"] == "off":
        return "off"
    if found["foreign"]:
        return printable(f"{found['mode']}, but off: others translate: {', '.join(found['foreign'])}")
    return (
        f"{found['mode']}: {_many(found['frontends'], 'frontend')}, {_many(found['backends'], 'backend')} in the kernel"
    )


def _conflicts(found: Json) -> list[str]:
    if not found["conflicts"]:
        return []
    which = _many(found["conflicts"], "frontend")
    return [f"services: several Services want the same address and port ({which}), see `spliceway service list`"]


def _refusal(item: Json) -> str:
    text = ": ".join(part for part in (item["file"], item["document"], item["field"], item["reason"]) if part)
    return f"{text} (the last good version stays in force)" if item["kept"] else text


def _many(count: int, noun: str) -> str:
    """«1 rule set», «2 rule sets»."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
