"""`abi.py` says what the compiler makes of `abi.h`: every size, offset and number."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import textwrap
from enum import IntEnum
from pathlib import Path

import msgspec
import pytest

from spliceway.bpf import abi, lbabi
from spliceway.bpf.source import PROGRAMS, STUBS, flatten
from spliceway.bpf.types import Hook, Leg, SpliceState
from spliceway.policy import numbering
from spliceway.policy.entity import Reserved
from spliceway.policy.verdict import Direction, Reason, Verdict
from spliceway.proxy.relay import end, sockets
from support.ownmounts import in_own_mounts

pytestmark = pytest.mark.kernel

_ENUMS: dict[str, type[IntEnum]] = {
    "hook": Hook,
    "direction": Direction,
    "verdict": Verdict,
    "leg": Leg,
    "reason": Reason,
    "splice_word": SpliceState,
    "splice_why": abi.Why,
    "judgement": abi.Judgement,
}
_STRUCTS = abi.STRUCTS | lbabi.STRUCTS
_CONSTANTS = {
    "ABI_VERSION": abi.ABI_VERSION,
    "REASON_SLOTS": abi.REASON_SLOTS,
    "VERDICTS": abi.VERDICTS,
    "HOOKS": abi.HOOKS,
    "RULE_SET_AUDIT": abi.RULE_SET_AUDIT,
    "POLICY_PREFIX_ANY": abi.POLICY_PREFIX_ANY,
    "POLICY_PREFIX_PROTOCOL": abi.POLICY_PREFIX_PROTOCOL,
    "CONFIG_SPLICE_CLIENTS": abi.ConfigFlag.SPLICE_CLIENTS,
    "CONFIG_SPLICE_SERVERS": abi.ConfigFlag.SPLICE_SERVERS,
    "CONFIG_SPLICE_OFF": abi.ConfigFlag.SPLICE_OFF,
    "CONFIG_AUDIT": abi.ConfigFlag.AUDIT,
    "CONFIG_DISABLED": abi.ConfigFlag.DISABLED,
    "CONFIG_LENIENT": abi.ConfigFlag.LENIENT,
    "CONFIG_NOTES_STAY": abi.ConfigFlag.NOTES_STAY,
    "SOCKOPT_LEVEL": abi.SOCKOPT_LEVEL,
    "SOCKOPT_ROOM": abi.SOCKOPT_ROOM,
    "FORSAKEN": abi.FORSAKEN,
    "SIDECAR_LEG": abi.SIDECAR_LEG,
    "SIDECAR_OUTBOUND": abi.SIDECAR_OUTBOUND,
    "SIDECAR_INBOUND": abi.SIDECAR_INBOUND,
    "REMAINS": abi.REMAINS,
    "SERVED_BY_NODE": abi.SERVED_BY_NODE,
    "SERVICE_ADDRESS": abi.SERVICE_ADDRESS,
    "UNREAD_FLOOR": abi.UNREAD_FLOOR,
    "MESSAGE_COST": abi.MESSAGE_COST,
    "HELD_BACK": abi.HELD_BACK,
    "ENFORCE_INGRESS": abi.Enforce.INGRESS,
    "ENFORCE_EGRESS": abi.Enforce.EGRESS,
    "ENFORCE_READY": abi.Enforce.READY,
    "IDENTITY_HOST": Reserved.HOST,
    "FIRST_HOST_VARIANT": numbering.FIRST_HOST_VARIANT,
    "FIRST_CIDR_IDENTITY": numbering.FIRST_CIDR_IDENTITY,
    "LAST_HOST_VARIANT": numbering.LAST_HOST_VARIANT,
    "IDENTITY_UNMANAGED": Reserved.UNMANAGED,
    "IDENTITY_REMOTE_NODE": Reserved.REMOTE_NODE,
    "IDENTITY_WORLD_IPV4": Reserved.WORLD_IPV4,
    "IDENTITY_WORLD_IPV6": Reserved.WORLD_IPV6,
    "CT_CLIENT": abi.CtFlag.CLIENT,
    "CT_FIN_OUT": abi.CtFlag.FIN_OUT,
    "CT_FIN_IN": abi.CtFlag.FIN_IN,
    "CT_RESET": abi.CtFlag.RESET,
    "CT_REPLIED": abi.CtFlag.REPLIED,
    "CT_TRANSLATED": abi.CtFlag.TRANSLATED,
    "CT_UNSEEN": abi.CtFlag.UNSEEN,
    "NOTE_ENDED": abi.Note.ENDED,
    "NOTE_WHY": abi.Note.WHY,
    "NOTE_STOP": abi.Note.STOP,
    "SIDE_POD": abi.Side.POD,
    "SIDE_NETWORK": abi.Side.NETWORK,
    "SIDE_TRANSLATED": abi.Side.TRANSLATED,
    "LB_ROW": lbabi.LB_ROW,
    "LB_TALKS": lbabi.LB_TALKS,
    "END_POD": abi.End.POD,
    "END_PROXY": abi.End.PROXY,
}


def enumerators(name: str) -> list[str]:
    body = re.search(rf"enum {name} \{{(.*?)\}}", flatten("abi.h"), re.DOTALL)
    assert body is not None
    words = re.sub(r"//.*", "", body[1]).split(",")
    return [word.split("=")[0].strip() for word in words if word.strip()]


def compiled(expressions: list[str]) -> list[int]:
    """Values of C expressions, as BCC's compiler sees them: a program stores them in a map."""
    stores = "\n".join(f"k = {i}; v = (u64)({e}); out.update(&k, &v);" for i, e in enumerate(expressions))
    text = (
        flatten("abi.h")
        + "\n"
        + flatten("lbabi.h")
        + f"\nBPF_ARRAY(out, u64, {len(expressions)});\n"
        + f"int run(struct __sk_buff *skb) {{ u32 k; u64 v;\n{stores}\nreturn 0; }}\n"
    )
    code = textwrap.dedent("""
        import json, sys
        from bcc import BPF
        from spliceway.bpf.libbpf import run_on_packet
        request = json.load(sys.stdin)
        module = BPF(text=request["text"], cflags=request["flags"])
        run_on_packet(module.load_func("run", BPF.SCHED_CLS).fd, bytes(64))
        print(json.dumps([module["out"][i].value for i in range(request["count"])]))
    """)
    request = {"text": text, "flags": ["-nostdinc", f"-I{STUBS}/include"], "count": len(expressions)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=msgspec.json.encode(request),
        capture_output=True,
        env={**os.environ, "BCC_KERNEL_SOURCE": str(STUBS)},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return msgspec.json.decode(done.stdout, type=list[int])


def test_every_offset_size_and_number() -> None:
    expected: dict[str, int] = {}
    for name, mirror in _STRUCTS.items():
        expected[f"sizeof(struct {name})"] = struct.calcsize("0s") + _size(mirror)
        for field in mirror._fields_:
            described = getattr(mirror, field[0])
            expected[f"__builtin_offsetof(struct {name}, {field[0]})"] = described.offset
            expected[f"sizeof(((struct {name} *)0)->{field[0]})"] = described.size
    for name, mirror_enum in _ENUMS.items():
        for word in enumerators(name):
            if word in ("HOOKS", "VERDICTS", "KERNEL_REASONS", "WHYS"):
                continue
            plain = re.sub(r"^(HOOK|LEG|VERDICT|WHY)_", "", word)
            expected[f"(int){word}"] = mirror_enum[plain]
    expected |= {f"(long){name}": int(value) for name, value in _CONSTANTS.items()}
    assert dict(zip(expected, compiled(list(expected)), strict=True)) == expected


def _size(mirror: type) -> int:
    import ctypes

    return ctypes.sizeof(mirror)


@pytest.mark.parametrize("name", _ENUMS)
def test_the_header_names_every_number(name: str) -> None:
    """Neither side has a member that the other lacks (HTTP reasons never come from the kernel)."""
    ours = {member.name for member in _ENUMS[name] if not (name == "reason" and member >= Reason.HTTP_ALLOWED)}
    theirs = {re.sub(r"^(HOOK|LEG|VERDICT|WHY)_", "", word) for word in enumerators(name)}
    assert ours == theirs - {"HOOKS", "VERDICTS", "KERNEL_REASONS", "WHYS"}


def test_every_struct_is_mirrored() -> None:
    text = "".join(flatten(name) for name in ("abi.h", "lbabi.h"))
    declared = set(re.findall(r"^struct (\w+) \{", text, re.MULTILINE))
    assert declared - set(_STRUCTS) == {"fragment_key", "fragment_value"}  # user space never reads those


def test_the_proxy_asks_by_the_same_option() -> None:
    assert sockets.ROOM == (abi.SOCKOPT_LEVEL, abi.SOCKOPT_ROOM)
    assert end.MESSAGE_COST == abi.MESSAGE_COST


def test_programs_compile_where_no_headers_are_installed(tmp_path: Path) -> None:
    """In a mount namespace whose /usr/include, /usr/src and /lib/modules are empty."""
    code = """
        import sys
        from pathlib import Path
        from spliceway.agent.testbed.syscalls import mount
        from spliceway.bpf.loader import LoadRequest, _compile_and_pin
        for hidden in map(Path, ("/usr/include", "/usr/src", "/lib/modules")):
            if hidden.is_dir():
                mount("tmpfs", hidden, "tmpfs")
                assert not any(hidden.iterdir())
        root = Path(sys.argv[1])
        mount("bpf", root, "bpf")
        defines = {"PIN_ROOT": f'"{root}/v"', "MAX_ENDPOINTS": "16", "MAX_IPCACHE": "64", "MAX_ROWS": "64",
                   "MAX_PAIRS": "64", "MAX_CONNECTIONS": "64", "EVENT_BYTES": "4096", "SOCKET_LB": "1",
                   "MAX_FRONTENDS": "64", "MAX_BACKENDS": "64", "MAX_AFFINITIES": "64"}
        reply = _compile_and_pin(LoadRequest(pin_root=f"{root}/v", defines=defines))
        print(reply.error or "loaded " + " ".join(reply.programs))
    """
    every = [program.name for programs in PROGRAMS.values() for program in programs]
    assert in_own_mounts(textwrap.dedent(code), str(tmp_path)).strip().endswith("loaded " + " ".join(every))
