"""What the API server itself says of a policy, where what is written about it says more than was seen."""

from __future__ import annotations

import msgspec

from spliceway.agent.manifests import Key
from spliceway.agent.policystatus.ledger import Written
from spliceway.agent.policystatus.naming import path_of
from spliceway.agent.sources.kubernetes.connection import ApiFailure, Connection
from spliceway.agent.sources.kubernetes.resources import RESOURCES

_BY_KIND = {one.kind: one for one in RESOURCES}


class _Metadata(msgspec.Struct):
    uid: str = ""
    generation: int = 0


class _Item(msgspec.Struct):
    metadata: _Metadata


class _List(msgspec.Struct):
    items: list[_Item] = []


_LIST = msgspec.json.Decoder(_List)


async def is_newest(connection: Connection, key: Key, policy: Written) -> bool:
    """Whether there is no later generation of it. A list of one: nobody has the right to get it. Raises ApiFailure."""
    kind, path = key
    namespace, _, name = path.rpartition("/")
    version = policy.api_version.rpartition("/")[2]
    resource = msgspec.structs.replace(_BY_KIND[kind], versions=(version,))
    answer = await connection.get(path_of(resource, namespace), {"fieldSelector": f"metadata.name={name}"})
    try:
        found = _LIST.decode(answer).items
    except msgspec.MsgspecError as error:
        raise ApiFailure(0, "", f"{kind}: not what an API server answers: {error}") from error
    mine = policy.version
    return all(one.metadata.uid == mine.uid and one.metadata.generation <= mine.generation for one in found)
