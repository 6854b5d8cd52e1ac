"""The node agent: control only, no user traffic passes through it.

Read it in the order in which a policy travels: `sources` (a directory of YAML becomes typed events), `inventory`
(events become one immutable `Cluster`; a refused document keeps its last good version), `reconcile` (a cluster becomes
a PolicyTable, and that becomes xDS resources and map rows, in the contract's order). And back up: `flows` (kernel and
HTTP verdicts become one stream with names). Around them: `config`, `app` (the composition root that owns every task),
`admin` (the JSON API on a Unix socket), `metrics`, and `cli` (which only ever talks to that API).
"""
