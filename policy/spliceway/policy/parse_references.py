"""CIDR groups and Secrets: what policies refer to by name, besides Services.

Sources: Kubernetes API reference (Secret v1); Cilium's CRD ciliumcidrgroups.yaml.
"""

from __future__ import annotations

import base64
import binascii

from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.model import CidrGroup, Secret
from spliceway.policy.parse_address import parse_network
from spliceway.policy.parse_metadata import Metadata


def parse_cidr_group(fields: Fields, where: Where) -> CidrGroup:
    """A CiliumCIDRGroup: labels and spec.externalCIDRs."""
    meta = Metadata(fields, where, "CiliumCIDRGroup", namespaced=False)
    where = meta.where
    spec = Fields(fields.need("spec", dict), where.at("spec"))
    listed = spec.where.at("externalCIDRs").items(spec.need("externalCIDRs", list), str)
    cidrs = tuple(parse_network(text, place) for place, text in listed)
    spec.done()
    fields.ignore("status")
    fields.done()
    return CidrGroup(meta.name, tuple(dict.fromkeys(cidrs)), meta.labels, where.file)


def parse_secret(fields: Fields, where: Where) -> Secret:
    """A Secret: data (base64) and stringData, which comes first. No error ever repeats a value."""
    meta = Metadata(fields, where, "Secret")
    where = meta.where
    found: dict[str, bytes] = {}
    for key, value in _mapping(fields, "data", where).items():
        place = where.at("data").at(shown(key))
        try:
            found[key] = base64.b64decode("".join(_text(value, place).split()), validate=True)
        except (binascii.Error, ValueError):
            place.refuse("is not base64")
    for key, value in _mapping(fields, "stringData", where).items():
        place = where.at("stringData").at(shown(key))
        try:
            found[key] = _text(value, place).encode()
        except UnicodeEncodeError:
            place.refuse("is not text")
    return Secret(meta.namespace, meta.name, found, where.file)


def _mapping(fields: Fields, key: str, where: Where) -> dict[str, object]:
    """A mapping whose text an error must not show."""
    value = fields.raw(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        where.at(key).refuse("must be a mapping")
    return value


def _text(value: object, where: Where) -> str:
    """A string that an error must not show. Null is the empty value, as the API server reads it."""
    if value is None:
        return ""
    if not isinstance(value, str):
        where.refuse("must be a string")
    return value
