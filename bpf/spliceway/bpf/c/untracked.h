// SPDX-License-Identifier: GPL-2.0-only
// What is steered is not tracked by netfilter. So what the proxy answers must not be, either: netfilter would take an answer for the beginning of a
// connection the other way round, keep that for minutes, and call the client's next one from this port invalid, should that go directly.
// But answers that have to be translated back, to a Service that the client dialled, it must know.
#pragma once

#define SO_PRIORITY 12

// A connection that the proxy has accepted is established; nothing but the SYN-ACK has been sent, and that makes no entry.
static __always_inline void leave_untracked(struct bpf_sock_ops *s)
{
	struct ct_key k = { .protocol = PROTO_TCP, .side = SIDE_NETWORK };
	u32 priority = UNTRACKED_PRIORITY;

	sock_tuple(s, &k.remote, &k.local, &k.remote_port, &k.local_port);
	struct ct_value *e = conntrack.lookup(&k);
	if (!e) {
		k.side = SIDE_POD;	// the client is a pod of this node, and dialled the server itself
		e = conntrack.lookup(&k);
	}
	if (e && e->leg == LEG_DOWNSTREAM && !(e->flags & CT_TRANSLATED))
		bpf_setsockopt(s, SOL_SOCKET, SO_PRIORITY, &priority, sizeof(priority));
}
