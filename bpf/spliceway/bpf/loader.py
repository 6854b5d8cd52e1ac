"""The loader: a short-lived child that compiles with BCC, loads, pins and exits, so that LLVM never stays in the agent.

What is compiled is kept (see `progcache`), and loaded without BCC the next time.

`python -m spliceway.bpf.loader PARENT` reads one LoadRequest as JSON from stdin and answers with one LoadReply on
stdout. It ends with the process PARENT, which made it: nobody else would take its answer.
Programs are pinned into `<pin root>/staging`; the agent puts them in place. Maps are pinned as the programs are
loaded, or reused where they are pinned already.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import structlog

from spliceway.bpf import progcache
from spliceway.bpf.compiled import load_again, record
from spliceway.bpf.errors import DatapathError, LoadError
from spliceway.bpf.parent import end_with
from spliceway.bpf.source import STUBS, flatten, units


class LoadRequest(msgspec.Struct, frozen=True):
    """What to load: where to pin, and the definitions (sizes, PIN_ROOT) to compile with.

    `cache`: directory of compiled programs; empty: none.
    """

    pin_root: str
    defines: dict[str, str]
    cache: str = ""


class LoadReply(msgspec.Struct, frozen=True):
    """What came of it. `error` is empty on success; `compiled`: whether it took the compiler.

    `note`: why what was kept did not serve, or why nothing could be kept.
    """

    error: str = ""
    programs: list[str] = []
    compiled: bool = True
    note: str = ""


_log = structlog.get_logger(__name__)


async def load(request: LoadRequest) -> LoadReply:
    """Run the loader as a child. Raises LoadError with the compiler's or verifier's last words."""
    if not request.cache or not progcache.holds(Path(request.cache), progcache.key(request.defines)):
        _log.info("compiling the kernel programs", takes="10 to 60 seconds", kept_in=request.cache or "no directory")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "spliceway.bpf.loader",
        str(os.getpid()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(msgspec.json.encode(request))
    try:
        reply = msgspec.json.decode(out, type=LoadReply)
    except msgspec.DecodeError:
        reply = LoadReply(error=f"the loader ended with status {process.returncode}")
    if reply.error:
        tail = "\n".join(err.decode(errors="replace").strip().splitlines()[-12:])
        raise LoadError(f"{reply.error}\n{tail}".strip())
    if reply.note:
        _log.warning("kernel programs: the cache does not serve", directory=request.cache, reason=reply.note)
    return reply


def _load(request: LoadRequest) -> LoadReply:
    """From the cache, or by the compiler. Raises OSError."""
    root = _directories(request)
    if not request.cache:
        return _compile_and_pin(request)
    directory, key, note = Path(request.cache), progcache.key(request.defines), ""
    try:
        found = progcache.load(directory, key)
        if found is not None:
            return LoadReply(programs=load_again(found, root, request.defines), compiled=False)
    except (OSError, DatapathError) as error:
        note = f"compiled anew: {error}"
    new = not any((root / "maps").iterdir())  # a map that was there may have another size than this one's programs want
    modules: dict[str, Any] = {}
    reply = _compile_and_pin(request, modules)
    if new and not reply.error:
        try:
            progcache.store(directory, record(key, root / "maps", modules))
        except (OSError, DatapathError) as error:
            note = note or f"not kept: {error}"
    return msgspec.structs.replace(reply, note=note)


def _directories(request: LoadRequest) -> Path:
    root = Path(request.pin_root)
    (root / "maps").mkdir(parents=True, exist_ok=True)
    (root / "staging").mkdir(exist_ok=True)
    return root


def _compile_and_pin(request: LoadRequest, modules: dict[str, Any] | None = None) -> LoadReply:
    """`modules` gets what BCC made, by source file."""
    os.environ["BCC_KERNEL_SOURCE"] = str(STUBS)
    try:
        from bcc import BPF, lib
    except ImportError as error:
        return LoadReply(
            error=f"BCC can't be imported: {error} (install Debian's python3-bpfcc; PyPI's bcc is another package)"
        )
    flags = ["-nostdinc", f"-I{STUBS}/include", "-Wno-unused-function"]
    flags += [f"-D{name}={value}" for name, value in request.defines.items()]
    staging = _directories(request) / "staging"
    lib.bpf_obj_pin.argtypes = [ctypes.c_int, ctypes.c_char_p]
    loaded = []
    for source, programs in units(request.defines).items():
        try:
            module = BPF(text=flatten(source), cflags=flags)
        except Exception as error:
            return LoadReply(error=f"{source} can't be compiled, or its maps can't be made: {error}")
        for program in programs:
            extra = {} if program.attach_type < 0 else {"attach_type": program.attach_type}
            try:
                function = module.load_func(program.name, program.program_type, **extra)
            except Exception as error:
                return LoadReply(
                    error=f"the kernel refuses {program.name} of {source}: {error} (needs CAP_BPF and CAP_NET_ADMIN)"
                )
            path = staging / program.name
            path.unlink(missing_ok=True)
            if lib.bpf_obj_pin(function.fd, str(path).encode()):
                return LoadReply(error=f"can't pin {path}: {os.strerror(ctypes.get_errno())} (is it on a bpffs?)")
            loaded.append(program.name)
        if modules is not None:
            modules[source] = module
    return LoadReply(programs=loaded)


def main() -> None:
    """Entry of the child."""
    end_with(int(sys.argv[1]))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # BCC prints to stdout as it likes
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=LoadRequest)
    try:
        reply = _load(request)
    except OSError as error:
        reply = LoadReply(error=f"{request.pin_root}: {error}")
    out.write(msgspec.json.encode(reply))
    out.flush()
    os._exit(0 if not reply.error else 1)


if __name__ == "__main__":
    main()
