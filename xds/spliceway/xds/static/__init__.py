"""A control plane that serves Envoy's resources from files, and what its admin API has changed.

`files` says what is in which file, `layers` what wins, `state` makes snapshots of that; these are pure. `control` hands
the snapshots to the server, `api` is the admin API.
"""
