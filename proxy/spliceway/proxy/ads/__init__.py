"""The proxy as a client of its agent: configuration (incremental xDS, aggregated) and access log (ALS), on one channel.

`values` are what the parts hand each other, `state` is the protocol (pure), `refusal` what a NACK says, `wire` between
values and messages, `channel` the connection, `client` the stream, `store` the last good configuration on a disk;
`entries` and `accesslog` send records of requests.
"""

import os

# gRPC's own log has a line for each attempt to reach an agent that is away.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
