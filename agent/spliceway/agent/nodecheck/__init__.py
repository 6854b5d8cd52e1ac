"""Checks of a node (`spliceway preflight`): each says what it found and what to do, and changes nothing.

`texts`, `marks`, `kernelconfig` and `judge` are pure: texts of /proc, iptables and nft in, values and checks out. The
other modules read the node and hand on. docs/preflight.md tells every check.
"""
