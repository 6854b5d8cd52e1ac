"""Where fields lie in the running kernel's structs, from its BTF (`/sys/kernel/btf/vmlinux`), by libbpf.

The programs look at other sockets with these offsets (`c/measure.h`). Programs that are compiled on the node need no
CO-RE relocations: the offsets are constants in them, and part of their digest.
"""

from __future__ import annotations

import ctypes

from spliceway.bpf.libbpf import library

_STRUCT, _UNION = 4, 5
_MODIFIERS = frozenset({8, 9, 10, 11, 18})  # typedef, volatile, const, restrict, type tag
_HEADER, _MEMBER = 12, 12  # sizes of struct btf_type and struct btf_member

#: Definition for the compiler → (struct, path of fields).
FIELDS: dict[str, tuple[str, str]] = {
    "SOCK_COOKIE": ("sock", "__sk_common.skc_cookie"),
    "SOCK_REFERENCES": ("sock", "__sk_common.skc_refcnt"),
    "SOCK_UNREAD": ("sock", "sk_backlog.rmem_alloc"),
    "SOCK_RECEIVE_BUFFER": ("sock", "sk_rcvbuf"),
    "SOCK_OWNED": ("sock", "sk_lock.owned"),
    "SOCK_USER_DATA": ("sock", "sk_user_data"),
    "SOCK_WRITERS": ("sock", "sk_write_pending"),
    "SOCK_WRITTEN": ("tcp_sock", "write_seq"),
    "SOCK_AWAITED": ("tcp_sock", "rcv_nxt"),
    "SOCK_SHUTDOWN": ("sock", "sk_shutdown"),
    "SOCK_UID": ("sock", "sk_uid"),
    "PSOCK_REFERENCES": ("sk_psock", "refcnt"),
    "PSOCK_MESSAGES": ("sk_psock", "ingress_msg"),
}


class _Type(ctypes.Structure):
    _fields_ = (("name", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size_or_type", ctypes.c_uint32))


class _Btf:
    """The kernel's types. Close it: it holds some megabytes."""

    def __init__(self) -> None:
        self._lib = library()
        self._lib.btf__load_vmlinux_btf.restype = ctypes.c_void_p
        self._lib.btf__type_by_id.restype = ctypes.POINTER(_Type)
        self._lib.btf__type_by_id.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        self._lib.btf__name_by_offset.restype = ctypes.c_char_p
        self._lib.btf__name_by_offset.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        self._lib.btf__find_by_name_kind.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]
        self._lib.btf__free.argtypes = [ctypes.c_void_p]
        self._lib.btf__free.restype = None
        self._lib.libbpf_get_error.argtypes = [ctypes.c_void_p]
        self._lib.libbpf_get_error.restype = ctypes.c_long
        self._btf = self._lib.btf__load_vmlinux_btf()
        if not self._btf or self._lib.libbpf_get_error(self._btf):
            raise LookupError("the kernel has no BTF (/sys/kernel/btf/vmlinux; CONFIG_DEBUG_INFO_BTF)")

    def close(self) -> None:
        self._lib.btf__free(self._btf)

    def find(self, struct: str) -> int:
        number = self._lib.btf__find_by_name_kind(self._btf, struct.encode(), _STRUCT)
        if number <= 0:
            raise LookupError(f"the kernel's BTF has no struct {struct}")
        return int(number)

    def members(self, number: int) -> list[tuple[str, int, int]]:
        """(name, type, offset in bits) of a struct or union, through modifiers; nothing else has any."""
        found = self._lib.btf__type_by_id(self._btf, number)
        kind = found.contents.info >> 24 & 0x1F
        while kind in _MODIFIERS:
            found = self._lib.btf__type_by_id(self._btf, found.contents.size_or_type)
            kind = found.contents.info >> 24 & 0x1F
        if kind not in (_STRUCT, _UNION):
            return []
        first = ctypes.addressof(found.contents) + _HEADER
        has_bitfields = found.contents.info >> 31
        result = []
        for i in range(found.contents.info & 0xFFFF):
            name, kind_of, offset = (ctypes.c_uint32 * 3).from_address(first + i * _MEMBER)
            text = self._lib.btf__name_by_offset(self._btf, name).decode()
            result.append((text, kind_of, offset & 0xFFFFFF if has_bitfields else offset))
        return result

    def offset(self, number: int, name: str) -> tuple[int, int] | None:
        """(type, offset in bits) of a field, also inside of nameless structs and unions."""
        for text, kind, bits in self.members(number):
            if text == name:
                return kind, bits
            inner = self.offset(kind, name) if not text else None
            if inner is not None:
                return inner[0], bits + inner[1]
        return None


def offsets() -> dict[str, int]:
    """Bytes from the start of the struct, for each of FIELDS. Raises LookupError: no BTF, or a field is not there."""
    btf = _Btf()
    try:
        found = {}
        for define, (struct, path) in FIELDS.items():
            number, bits = btf.find(struct), 0
            for name in path.split("."):
                step = btf.offset(number, name)
                if step is None:
                    raise LookupError(f"the kernel's struct {struct} has no field {path}")
                number, bits = step[0], bits + step[1]
            if bits % 8:
                raise LookupError(f"the kernel's field {struct}.{path} is a bit field")
            found[define] = bits // 8
        return found
    finally:
        btf.close()
