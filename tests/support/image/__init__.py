"""The image's root without a container engine: the Dockerfile's steps in roots that debootstrap makes."""
