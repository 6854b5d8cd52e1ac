"""A client as Envoy is one, as a model without I/O: it says whether what it is sent may be sent.

Messages are on their way for any time in both directions. As in Envoy the ACK of clusters comes when the last of them
has its endpoints; what is refused of listeners and clusters is one of them, and the others apply, unless it can't even
be decoded (every other time).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.route.v3 import route_pb2

from spliceway.xds.protocol.delta import DeltaRequest
from spliceway.xds.protocol.ledger import Response
from spliceway.xds.protocol.references import endpoints_of
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.stream import AdsStream
from spliceway.xds.protocol.subscription import Request
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE

_NAMED = {ENDPOINT: CLUSTER, ROUTE: LISTENER}


class Client:
    """What it holds is in `held`: type URL -> name -> message. `refuse` is asked about each resource that is new."""

    def __init__(self, delta: bool, refuse: Callable[[], bool]) -> None:
        self.delta, self.refuse = delta, refuse
        self.held: dict[str, dict[str, bytes]] = {url: {} for url in (CLUSTER, ENDPOINT, LISTENER, ROUTE)}
        #: Clusters that requests can use, perhaps in an earlier version, and those that have what they wait for.
        self.usable: set[str] = set()
        self.warm: set[str] = set()
        self._digests: dict[str, dict[str, str]] = {url: {} for url in self.held}
        self._streams = self._refusals = 0
        self.connect()

    def connect(self) -> None:
        """A new stream: everything is asked for again; what is on its way is lost."""
        self._streams += 1
        self.stream = AdsStream(str(self._streams), delta=self.delta)
        self.requests: deque[Request | DeltaRequest] = deque()
        self.responses: deque[Response] = deque()
        self._nonces: dict[str, str] = {}
        self._asked: dict[str, set[str]] = {ENDPOINT: set(), ROUTE: set()}
        self._late: tuple[Response, str | None] | None = None
        #: (type URL, name, version) -> how often it was sent and how often there was a reason to.
        self._sent: dict[tuple[str, str, str], int] = {}
        self._reasons: dict[tuple[str, str], int] = {}
        self._last_set: dict[str, frozenset[tuple[str, str]]] = {}
        #: Routes that this stream has given: of others a state-of-the-world server can't know.
        self._known = set(self.held[ROUTE]) if self.delta else set()
        for url in (CLUSTER, LISTENER):
            self._say(url, first=True)
        self._follow()

    # On the way: one message arrives.

    def server_reads(self) -> None:
        """The oldest request arrives at the server."""
        if self.requests:
            self.stream.receive(self.requests.popleft())

    def server_writes(self, snapshot: Snapshot) -> int:
        """The server says all that it has to say; returns the number of responses."""
        found = self.stream.responses(snapshot)
        self.responses.extend(found)
        return len(found)

    def client_reads(self) -> None:
        """The oldest response arrives, is checked, applied or refused, and answered."""
        if not self.responses:
            return
        response = self.responses.popleft()
        url = response.type_url
        names = [resource.name for resource in response.resources]
        assert len({*names, *response.removed}) == len(names) + len(response.removed), "a name twice"
        self._nonces[url] = response.nonce
        self._check_repetition(response)
        error = self._apply_set(response) if url in (CLUSTER, LISTENER) else self._apply_part(response)
        if url == CLUSTER:
            assert self._late is None, "two outstanding responses"
            self._late = (response, error)
        else:
            self._say(url, response, error)
        self._follow()
        self._acknowledge_clusters()

    @property
    def idle(self) -> bool:
        """Nothing is on its way."""
        return not self.requests and not self.responses

    # What it does with a response.

    def _check_repetition(self, response: Response) -> None:
        url = response.type_url
        if url in (CLUSTER, LISTENER) and not self.delta:
            found = frozenset((resource.name, resource.version) for resource in response.resources)
            assert self._last_set.get(url) != found, f"the same set again: {response}"
            self._last_set[url] = found
            return
        for resource in response.resources:
            key = (url, resource.name, resource.version)
            self._sent[key] = self._sent.get(key, 0) + 1
            allowed = 1 + self._reasons.get(key[:2], 0)
            assert self._sent[key] <= allowed, f"{key} is sent {self._sent[key]} times for {allowed} reasons"

    def _reason(self, url: str, name: str) -> None:
        self._reasons[url, name] = self._reasons.get((url, name), 0) + 1

    def _apply_set(self, response: Response) -> str | None:
        """Clusters or listeners: all apply but one that is refused, none if that can't be decoded; the error."""
        url, held = response.type_url, self.held[response.type_url]
        bodies = {resource.name: resource.body for resource in response.resources}
        fresh = [name for name, body in bodies.items() if held.get(name) != body]
        bad = fresh[0] if fresh and self.refuse() else None
        gone = set(response.removed) if self.delta else held.keys() - bodies.keys()
        if bad is not None:
            for name in {*bodies, *gone} - {bad} if self.delta else ():
                self._reason(url, name)  # what was beside it is said once more
                for needed in endpoints_of(bodies[name]) if url == CLUSTER and name in bodies else ():
                    self._reason(ENDPOINT, needed)
            self._refusals += 1
            if self._refusals % 2 == 0:
                return f"{bad} can't be decoded"
        for name in gone & held.keys():
            if url == CLUSTER:
                users = [route for route in self._routes() if self._target(route) == name and route in self._known]
                assert not users, f"cluster {name} is withdrawn while {users} use it"
            del held[name]
            self._digests[url].pop(name, None)
            self.usable.discard(name)
            self.warm.discard(name)
        for resource in response.resources:
            if resource.name == bad:
                # Whoever sends it again can't know that; its endpoints come with it.
                for name in endpoints_of(resource.body) if url == CLUSTER else ():
                    self._reason(ENDPOINT, name)
                continue
            if url == CLUSTER and (resource.name in fresh or resource.name not in self.warm):
                waits = endpoints_of(resource.body)
                (self.warm.discard if waits else self.warm.add)(resource.name)
                self.usable |= set() if waits else {resource.name}
                for name in waits:
                    self._reason(ENDPOINT, name)
            held[resource.name] = resource.body
            self._digests[url][resource.name] = resource.digest
        for name in gone:
            self._reason(url, name)
        return f"Error adding/updating resource(s) {bad}" if bad is not None else None

    def _apply_part(self, response: Response) -> str | None:
        """Endpoints or routes; one refused route holds back all."""
        url = response.type_url
        if url == ROUTE and response.resources and self.refuse():
            for resource in response.resources if len(response.resources) > 1 else ():
                self._reason(url, resource.name)
            return "no"
        for name in response.removed:
            self.held[url].pop(name, None)
            self._digests[url].pop(name, None)
            self._reason(url, name)
            if url == ENDPOINT and name in self._asked[url]:  # a cluster without endpoints is one, too
                self.warm.add(name)
                self.usable.add(name)
        for resource in response.resources:
            if resource.name not in self._asked[url]:
                continue  # it was on its way when the client unsubscribed
            if url == ENDPOINT and resource.name in self.held[url] and not _members(resource.body):
                users = [name for name in self._routes() if self._target(name) == resource.name and name in self._known]
                assert not users, f"cluster {resource.name} loses its endpoints while {users} use it"
            self.held[url][resource.name] = resource.body
            self._digests[url][resource.name] = resource.digest
            if url == ENDPOINT:
                self.warm.add(resource.name)
                self.usable.add(resource.name)
            else:
                self._known.add(resource.name)
                target = self._target(resource.name)
                assert target in self.usable, f"route {resource.name} to {target}, which isn't there: {self.usable}"
        return None

    def _acknowledge_clusters(self) -> None:
        if self._late is not None and self.held[CLUSTER].keys() <= self.warm:
            response, error = self._late
            self._late = None
            self._say(CLUSTER, response, error)

    def _routes(self) -> list[str]:
        return [name for name in self.held[ROUTE] if name in self.held[LISTENER]]

    def _target(self, route: str) -> str:
        config = route_pb2.RouteConfiguration.FromString(self.held[ROUTE][route])
        return str(config.virtual_hosts[0].routes[0].route.cluster)

    # What it says.

    def _follow(self) -> None:
        """Ask for the endpoints of the clusters, and the routes of the listeners."""
        for url, parent in _NAMED.items():
            waits = self.held[parent].items()
            wanted = {name for name, body in waits if parent == LISTENER or endpoints_of(body)}
            if wanted != self._asked[url]:
                added, dropped = wanted - self._asked[url], self._asked[url] - wanted
                first = not self._asked[url] and url not in self._nonces
                self._asked[url] = wanted
                for name in dropped:
                    self.held[url].pop(name, None)
                    self._digests[url].pop(name, None)
                for name in added:
                    self._reason(url, name)
                self._say(url, first=first, added=added, dropped=dropped)

    def _say(
        self,
        url: str,
        answer: Response | None = None,
        error: str | None = None,
        *,
        first: bool = False,
        added: set[str] | frozenset[str] = frozenset(),
        dropped: set[str] | frozenset[str] = frozenset(),
    ) -> None:
        if self.delta:
            have: Mapping[str, str] = dict(self._digests[url]) if first else {}
            nonce = answer.nonce if answer is not None else ""
            request = DeltaRequest(url, tuple(sorted(added)), tuple(sorted(dropped)), have, nonce, error)
            self.requests.append(request)
            return
        nonce = answer.nonce if answer is not None else self._nonces.get(url, "left over" if first else "")
        names = tuple(sorted(self._asked.get(url, ())))
        self.requests.append(Request(url, names, "left over", nonce, error))


def _members(assignment: bytes) -> int:
    return len(endpoint_pb2.ClusterLoadAssignment.FromString(assignment).endpoints)
