"""HTTP/1.1 without I/O: bytes and values in, values out.

`head` reads a request's head: a strict scan of the raw bytes, then h11, and both must agree. `decision` judges it by a
rule set and writes what is sent upstream. `body` frames requests' bodies (chunks are written anew), `response` follows
the framing of answers, which are relayed as they are. `answers` are the proxy's own.
"""
