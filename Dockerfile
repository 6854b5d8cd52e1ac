# The image of the agent, for amd64 and arm64. The steps are scripts below scripts/image; scripts/image-root runs this file's steps
# without a container engine, and the tests start an agent in what comes of it.
#
#     docker buildx build --platform linux/amd64,linux/arm64 --build-arg REVISION=$(git rev-parse HEAD) -t REGISTRY/spliceway:0.1.0 .
#     docker buildx build … --build-arg PROXY=envoy -t REGISTRY/spliceway:0.1.0-envoy .
#
# Name the base by its digest for a build that can be repeated: --build-arg BASE=debian:12-slim@sha256:…
ARG BASE=debian:12-slim

FROM ${BASE} AS build
# embedded, or envoy: with Envoy beside the embedded proxy.
ARG PROXY=embedded
COPY LICENSE README.md pyproject.toml requirements.lock /src/
COPY agent /src/agent
COPY bpf /src/bpf
COPY policy /src/policy
COPY proxy /src/proxy
COPY xds /src/xds
COPY scripts/image /src/scripts/image
RUN /src/scripts/image/build ${PROXY}

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="spliceway" \
      org.opencontainers.image.description="HTTP-aware network policy without sidecars: the node agent" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY scripts/image/install-packages scripts/image/packages /usr/local/lib/spliceway/
RUN /usr/local/lib/spliceway/install-packages
COPY --from=build /opt/spliceway /opt/spliceway
COPY scripts/image/spliceway-node /usr/local/bin/spliceway-node
ENV PATH=/opt/spliceway/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    LANG=C.UTF-8
# Root: what the agent works on (bpffs, cgroups, namespaces, netlink) is root's, whatever capabilities another user had. The chart takes
# all capabilities away but those that preflight names.
USER 0:0
ENTRYPOINT ["/usr/local/bin/spliceway-node"]
CMD ["--help"]
