# Every target does the set-up itself. ARGS goes to the command: make test ARGS="-k testbed", make bench ARGS="--rounds 3".
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup chart chart-schema image kernels demo test attack bypass profiles two-nodes services soak rollback revoke rows fuzz edits xds-faults xds-churn proxy-diff torture services-churn kube kube-real life bench-services istio-random lint bench lock clean

BIN := .venv/bin
STAMP := .venv/.setup-stamp
NODE_CLIENT := tests/clients/grpc-js-xds
UV ?= uv
IMAGE_ROOT ?= /var/tmp/spliceway-image
ARGS ?=
OTHER ?=

help:
	@echo "make setup   Debian packages and .venv (as root; nothing is started)"
	@echo "make demo    a virtual node, policies, real requests; KEEP=1 leaves it running"
	@echo "make test    all tests; ARGS=… for pytest"
	@echo "make attack  the attacks and crashes, 60 s each"
	@echo "make two-nodes  connections between two nodes, each with an agent, on every kind of node and with both proxies"
	@echo "make bypass  every way past the proxy that is known, on every kind of node and with both proxies"
	@echo "make services  Services by pods' sockets with HTTP rules and splices, beside kube-proxy, with both proxies"
	@echo "make profiles  the whole table of cases on every kind of node, with real packets"
	@echo "make soak    200,000 connections through each proxy while all is restarted, every byte checked; storms of connections"
	@echo "make rollback OTHER=commit  agents of two releases take a node over from each other, with traffic on it"
	@echo "make revoke  10,000 spliced connections lose their policy, or their listener; upgrades, and agents that die at any step"
	@echo "make rows    the pitfalls of sockmaps by number, with hundreds of tries where a race decides"
	@echo "make fuzz    policy documents that nobody would write, 60 s each way"
	@echo "make edits   a thousand random policies under a packet generator"
	@echo "make xds-churn  a thousand changes of everything that Envoy is told, under load"
	@echo "make xds-faults  clients that misbehave beside others that must not notice, 30 s each way"
	@echo "make torture   HTTP that nobody should send, a thousand ends of connections, and a minute of fuzzing each way"
	@echo "make proxy-diff  10,000 odd requests to the embedded proxy and to Envoy, side by side"
	@echo "make services-churn  endpoints of a Service come and go for a minute while pods dial it, every connection judged"
	@echo "make kube    a hundred rounds of changes in a cluster whose API server is restarted and forgets, an agent beside it"
	@echo "make life    what a node goes through: its API server gone for an hour, ten minutes of churn, and all the rest"
	@echo "make istio-random  random policies as Istio's AuthorizationPolicies in Envoy, against the interpreter; CLUSTERS=400 SEED=0"
	@echo "make kernels  self-test and kernel tests on Debian's 6.1 and 6.12 kernels, emulated side by side (needs qemu-system-x86; an hour or more)"
	@echo "make chart   the Helm chart: rendered, linted, validated for each version of Kubernetes, its alerts tested"
	@echo "make chart-schema  write what the chart's schema says of agent.config anew, from the agent's structs"
	@echo "make image   the image's root by the Dockerfile's steps, and an agent in it with the chart's rights; IMAGE_ROOT=directory"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make bench   compare the data paths; ARGS=… for spliceway bench"
	@echo "make bench-services  Services by socket LB and by kube-proxy's iptables, with 1 to 10,000 of them"
	@echo "make lock    write requirements.lock anew (needs uv)"
	@echo "make clean   remove .venv and all caches"

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock scripts/setup scripts/packages
	scripts/setup
	@touch $@

demo: setup
	$(BIN)/spliceway demo $(if $(KEEP),--keep) $(ARGS)

# Without the packages of the Node.js client its tests try again, and say what is wrong.
test: setup
	-@$(MAKE) --no-print-directory $(NODE_CLIENT)/node_modules/.package-lock.json
	scripts/test $(ARGS)

$(NODE_CLIENT)/node_modules/.package-lock.json: $(NODE_CLIENT)/package.json $(NODE_CLIENT)/package-lock.json
	$(BIN)/python $(NODE_CLIENT)/install.py

# The long versions of what CI runs for seconds.
attack: setup
	SPLICEWAY_ATTACK_SECONDS=60 SPLICEWAY_DOWN_SECONDS=60 $(BIN)/python -m pytest tests/integration -k "attack or crash" --timeout 1800 $(ARGS)

two-nodes: setup
	SPLICEWAY_TWO_NODES=all $(BIN)/python -m pytest tests/integration -k "two_nodes" --timeout 1800 $(ARGS)

bypass: setup
	SPLICEWAY_BYPASS=all $(BIN)/python -m pytest tests/integration/test_bypass.py --timeout 600 $(ARGS)

services: setup
	SPLICEWAY_SERVICES=all $(BIN)/python -m pytest tests/integration/test_services_spliced.py --timeout 600 $(ARGS)

profiles: setup
	SPLICEWAY_PROFILES=all $(BIN)/python -m pytest -s tests/integration/test_cases_profiles.py $(ARGS)

soak: setup
	SPLICEWAY_SOAK_CONNECTIONS=200000 SPLICEWAY_STORM_PORTS=28232 SPLICEWAY_ECHO_CONNECTIONS=10000 \
		$(BIN)/python -m pytest -s tests/integration/test_{soak,ports,splice_echo}.py $(ARGS)

# OTHER: a commit with an older release; it needs the history.
rollback: setup
	SPLICEWAY_OTHER_RELEASE=$(OTHER) $(BIN)/python -m pytest -s tests/integration/test_release_rollback.py $(ARGS)

istio-random: setup
	SPLICEWAY_ISTIO_CLUSTERS=$${CLUSTERS:-400} SPLICEWAY_ISTIO_SEED=$${SEED:-0} \
		$(BIN)/python -m pytest -s tests/integration/test_istio_translate.py -k many --timeout 0 $(ARGS)

revoke: setup
	SPLICEWAY_REVOKED_CONNECTIONS=10000 SPLICEWAY_UPGRADE_CONNECTIONS=1000 SPLICEWAY_UPGRADE_EVERY_STEP=1 \
		$(BIN)/python -m pytest -s tests/integration/test_splice_{revocation,upgrade}.py $(ARGS)

rows: setup
	SPLICEWAY_HALF_CLOSES=500 SPLICEWAY_SPLICE_RACES=5000 SPLICEWAY_PAUSE_SECONDS=12 $(BIN)/python -m pytest tests/integration -k "row_" $(ARGS)

fuzz: setup
	SPLICEWAY_FUZZ_SECONDS=60 $(BIN)/python -m pytest tests/fuzz $(ARGS)

edits: setup
	SPLICEWAY_EDITS=1000 $(BIN)/python -m pytest -s tests/kernel/test_random_edits.py --timeout 1800 $(ARGS)

xds-churn: setup
	SPLICEWAY_CHURN_CHANGES=1000 $(BIN)/python -m pytest -s tests/integration/test_xds_churn.py --timeout 3600 $(ARGS)

xds-faults: setup
	SPLICEWAY_FAULT_SECONDS=30 $(BIN)/python -m pytest -s tests/integration/test_xds_faults.py --timeout 3600 $(ARGS)

torture: setup
	SPLICEWAY_ENDS_ROUNDS=1000 SPLICEWAY_FUZZ_SECONDS=60 $(BIN)/python -m pytest tests/integration tests/fuzz -k "proxy_ends or torture or smuggling or proxy_requests" --timeout 1800 $(ARGS)

proxy-diff: setup
	SPLICEWAY_PROXY_REQUESTS=10000 $(BIN)/python -m pytest -s tests/integration/test_embedded_random.py --timeout 1800 $(ARGS)

services-churn: setup
	SPLICEWAY_SERVICES_CHURN_SECONDS=60 $(BIN)/python -m pytest -s tests/integration/test_services_churn.py $(ARGS)

kube: setup
	SPLICEWAY_KUBE_ROUNDS=100 $(BIN)/python -m pytest -s tests/integration/test_kubernetes_agent.py --timeout 3600 $(ARGS)

# BINARIES: a directory with kube-apiserver and etcd. Slow: each of the unit tests has a server of its own. Tests whose
# virtual nodes choose the uids of their pods make sense with the double alone.
KUBE_REAL := unit/test_policystatus_{writer,election,edits,releases,taint} unit/test_authorization_{writer,troubles} \
	integration/test_{helm_release,cluster_status,cluster_authorization,kubernetes_agent}

kube-real: setup
	[[ -x $(BINARIES)/kube-apiserver && -x $(BINARIES)/etcd ]] || { echo "BINARIES=DIR: where kube-apiserver and etcd are" >&2; exit 2; }
	SPLICEWAY_KUBE_BINARIES=$(abspath $(BINARIES)) SPLICEWAY_KUBE_ROUNDS=$${ROUNDS:-100} \
		$(BIN)/python -m pytest -s $(foreach one,$(KUBE_REAL),tests/$(one).py) --timeout 3600 $(ARGS)

life: setup
	SPLICEWAY_LIFE_AWAY=3600 SPLICEWAY_LIFE_CHURN=600 SPLICEWAY_LIFE_NAMESPACES=20 SPLICEWAY_LIFE_ROLLBACKS=3 \
		$(BIN)/python -m pytest -s tests/integration/test_node_life.py $(ARGS)

kernels: setup
	scripts/kernels $(ARGS)

chart: setup
	$(BIN)/python -m pytest tests/unit/test_chart_*.py tests/unit/test_image_*.py $(ARGS)

chart-schema: setup
	PYTHONPATH=tests $(BIN)/python -m support.chartschema

# Made once: remove the directory for a new one. BIND: further directories that the steps may read, as a local index of packages.
image: setup
	[[ -e $(IMAGE_ROOT) ]] || scripts/image-root $(IMAGE_ROOT) $(addprefix --bind ,$(BIND))
	SPLICEWAY_IMAGE_ROOT=$(IMAGE_ROOT) $(BIN)/python -m pytest -s tests/integration/test_image_root.py $(ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/spliceway bench $(ARGS)

bench-services: setup
	$(BIN)/python tests/bench/bench_services.py $(ARGS)

# glibc 2.36 is that of Debian 12. --upgrade: the newest versions that pyproject.toml's floors permit.
lock:
	$(UV) pip compile pyproject.toml --extra envoy --extra dev --upgrade --generate-hashes \
		--python-version 3.11 --python-platform x86_64-manylinux_2_36 \
		--no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements.lock

clean:
	rm -rf .venv dist build bench-results $(NODE_CLIENT)/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find agent policy bpf xds proxy tests -name __pycache__ -type d -prune -exec rm -rf {} +
