"""Comparing data paths, on a virtual node of its own: `spliceway bench`.

`paths` lists the data paths that can be compared, `load` what is measured on each. `site` builds the pods (nginx
serves, wrk asks), `measure` runs the rounds, `figures` makes medians, spreads and ratios of them (pure), `report` prints
them. `wrk` and `nginx` know those two programs. `latency` is another question, how long a policy edit takes until it is
in force: `edits` are the policies it writes, `prober` runs in a pod and asks without pause, `timeline` reads its answers.

The demo measures with the same parts.
"""
