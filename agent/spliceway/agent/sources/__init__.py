"""Where policies and manifests come from. A source emits typed events; it never interprets what it carries.

`events` is what every source emits; `directory` watches a tree of YAML files with inotify; `kubernetes` follows an API
server.
"""
