"""The Kubernetes API server as a source.

`resources` says what is read, `connection` asks, `discovery` knows what is served, `objects` takes JSON apart,
`reflector` follows one kind, and `source` makes batches of all.
"""
