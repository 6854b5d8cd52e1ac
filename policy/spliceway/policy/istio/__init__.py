"""Istio's side of policy: HTTP rules as AuthorizationPolicies, and what of the mesh that depends on. Pure."""
