"""A real Kubernetes cluster on one Linux machine without a container engine or a registry.

The pieces, in the order in which `python -m tandem_devcluster up` walks through them:

`cli` (arguments) -> `cluster` (the public API) -> `toolchain`, `packages`, `dev_image` (what has to exist first)
-> `keeper` (the process outside, which cleans up) -> `supervisor` (the process inside, which starts the components)
-> `control_plane`, `node` (what is started, in which order) -> `components`, `node_config` (flags and files; pure).

Whatever ends the supervisor ends the cluster: there is one way down and it is the same as `kill -9`.
"""
