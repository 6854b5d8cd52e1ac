"""The embedded HTTP proxy: h11 on uvloop, an xDS client of the agent. docs/proxy.md says what it does.

`process` is how it runs: a supervisor and its workers. The supervisor hears from the agent by `ads`, reads what it
hears with `resources`, and hands it to the workers as `model.Change`. A worker is one `relay`: sockets, and what bytes
mean by `http`. `resources` and `http` are pure. Verdicts are `spliceway.policy`'s; nothing of `bpf`, `xds` or `agent`
is imported.
"""
