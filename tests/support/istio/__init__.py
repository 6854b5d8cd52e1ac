"""Pods as Istio makes them: its rules in the pod's namespace, Envoy beside the application, mTLS between the pods."""
