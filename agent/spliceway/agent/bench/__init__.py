"""Comparing data paths, on a virtual node of its own: `spliceway bench`.

`paths` lists the data paths that can be compared, `load` what is measured on each. `site` builds the pods (nginx
serves, wrk asks), `measure` runs the rounds, `figures` makes medians, spreads and ratios of them (pure), `report`
prints them. `wrk` and `nginx` know those two programs, `counters` what the kernel counts meanwhile.

`spliceway bench policy-latency` asks another question, how long an edit of a policy takes until it is in force:
`edits` are the policies that are written, `prober` runs in a pod and asks without pause, `timeline` reads what it got.

The demo measures with the same parts.
"""
