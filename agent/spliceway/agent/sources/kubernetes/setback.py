"""A server that was set back: etcd from a backup counts its revisions from where that was made.

A watch that goes on at a later one is silent until the server has come so far again, since only what is newer is sent
(apiserver, pkg/storage/cacher/cache_watcher.go), and an object of the same resourceVersion need not be the same.
"""

from __future__ import annotations


def is_older(one: str, other: str) -> bool:
    """Whether a revision is older than another one; what is no number says nothing."""
    return one.isdecimal() and other.isdecimal() and int(one) < int(other)
