"""Keeps the translations of HTTP rules applied as Istio's AuthorizationPolicies (docs/istio-policy.md).

    inventory, `marks` (pods' annotations), Istio's objects → translation → `aims` → `rollout` (policy) → `writer`

The agent that writes the status of policies does it, in its term of office. `objects`, `aims` and `marks` are pure.
"""
