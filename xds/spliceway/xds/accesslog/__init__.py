"""Envoy's access log on its way to flows: `entries` reads one, `flow` is what becomes of it.

`sampling` says how many of the allowed requests come at all.
"""
