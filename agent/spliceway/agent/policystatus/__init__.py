"""What the agents tell the API server: a status for each policy, Events of refusals, a taint that goes.

    source → `ledger` (what was seen, what is in force) → `local` → `report` (this node's, whole) → `reporter`
    reports → `tally` (counts by policy) → `conditions` (what a status says) → `writer` (one agent: `election`)

`ledger`, `report`, `naming`, `tally`, `conditions` and `events` are pure. Enforcement waits for none of it. `side` is
what the composition root sees.
"""
