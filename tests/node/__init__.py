"""A throwaway Debian node under QEMU, and Juju's side of a unit on it.

`image` builds the node's disk once; `machine` boots it and runs commands in it; `snapshot` keeps
booted nodes, so that each test starts from a fresh one in under a second; `pci` plugs a function
that looks like a GPU; `juju` lays a charm out in the node and dispatches its hooks, with Juju's
hook tools (`hooktools`) served from a state file; `standin` makes small Kata release archives;
`sandboxes_at_scale` lays out sandboxes by the thousand, with what Kata (`kata_state`) and
containerd (`pod_records`) write of them.
"""
