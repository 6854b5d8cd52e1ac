"""The Kubernetes API server as a source.

`resources` says what is read, `connection` asks, `discovery` knows what is served, `objects` takes JSON apart,
`reflector` follows one kind (`figures` says how that does), and `source` makes batches of all.
"""
