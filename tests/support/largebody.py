"""A large body that comes back from a server while it is still being sent, with digests compared at the end."""

from __future__ import annotations

from spliceway.agent.testbed.node import Pod
from support.node import python_in

_CODE = """
import hashlib, http.client, random, socket, sys, threading
address, size, chunked = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "chunked"
pieces = [random.Random(number).randbytes(1 << 20) for number in range(4)]
connection = socket.create_connection((address, 80), 60)
framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
connection.sendall(b"POST /echo HTTP/1.1\\r\\nHost: echo\\r\\n" + framing + b"\\r\\n\\r\\n")
sent, received = hashlib.sha256(), hashlib.sha256()
def send():
    for number in range(size >> 20):
        piece = pieces[number % 4]
        sent.update(piece)
        connection.sendall(b"%x\\r\\n%b\\r\\n" % (len(piece), piece) if chunked else piece)
    if chunked:
        connection.sendall(b"0\\r\\n\\r\\n")
sender = threading.Thread(target=send)
sender.start()
answer = http.client.HTTPResponse(connection, method="POST")
answer.begin()
length = 0
while data := answer.read(1 << 18):
    received.update(data)
    length += len(data)
sender.join()
print(answer.status, length, sent.digest() == received.digest())
"""


def echoed(client: Pod, address: str, size: int, framing: str) -> str:
    """POST /echo to port 80 on one connection, with its `length` or `chunked`: «status length whether-it-is-the-same».

    `size`: of the body, in whole MiB.
    """
    done = python_in(client, _CODE, address, str(size), framing, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()
