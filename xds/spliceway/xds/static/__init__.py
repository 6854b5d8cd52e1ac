"""Serving Envoy resources from files: `spliceway xds serve`, for tests of clients and for control by hand."""
