// SPDX-License-Identifier: GPL-2.0-only
// sk_lookup in the node's network namespace: runs when a packet for the node finds no connection and looks for a listener.
#pragma once

// Is this the tuple of a connection that is steered? A proxy's socket in TIME_WAIT hands a new SYN to whoever listens on the port
// (TCP_TW_SYN in tcp_v4_rcv): a wildcard listener of the node, say. When nobody is found, the kernel acknowledges, the client
// resets the old socket, and its SYN comes again, to the proxy.
static __always_inline int is_steered(struct bpf_sk_lookup *ctx)
{
	struct ct_key key = { .protocol = PROTO_TCP };
	u32 r0 = ctx->remote_ip6[0], r1 = ctx->remote_ip6[1], r2 = ctx->remote_ip6[2], r3 = ctx->remote_ip6[3];
	u32 l0 = ctx->local_ip6[0], l1 = ctx->local_ip6[1], l2 = ctx->local_ip6[2], l3 = ctx->local_ip6[3];
	u32 r4 = ctx->remote_ip4, l4 = ctx->local_ip4;

	if (ctx->family == 2) {
		mapped(&key.local, r4);
		mapped(&key.remote, l4);
	} else {
		key.local = (struct addr){ { r0, r1, r2, r3 } };
		key.remote = (struct addr){ { l0, l1, l2, l3 } };
	}
	key.local_port = (u16)ctx->remote_port;
	key.remote_port = htons((u16)ctx->local_port);
	u32 device = ctx->ingress_ifindex;
	// The proxy's own SYN to a server on the node has a pod's address too, and comes by no pod's device.
	key.side = endpoints.lookup(&device) ? SIDE_POD : SIDE_NETWORK;
	struct ct_value *e = conntrack.lookup(&key);
	if (e)
		return e->leg == LEG_DOWNSTREAM;
	// A pod's address on the loopback device: an answer that was turned round to the proxy (upstream.h), whose socket is gone.
	struct party pod;
	if (device != LOOPBACK_IFINDEX)
		return 0;
	u32 zero = 0;
	struct generation *g = generation.lookup(&zero);
	find_party(&key.remote, g ? g->number & 1 : 0, &pod);
	return pod.netns_cookie != 0;
}

// Our lookup of a listener (steer.h) asks as «from nowhere», which no packet can be.
static __always_inline int is_own_lookup(struct bpf_sk_lookup *ctx)
{
	return !(ctx->remote_port | ctx->remote_ip4 | ctx->remote_ip6[0] | ctx->remote_ip6[1] | ctx->remote_ip6[2] |
		 ctx->remote_ip6[3]);
}

// Steered packets carry their socket and never come here, so whatever arrives at a listener's port dialled it directly.
int guard(struct bpf_sk_lookup *ctx)
{
	u32 zero = 0;
	struct config *cfg = config.lookup(&zero);

	if (!cfg || ctx->protocol != PROTO_TCP || is_own_lookup(ctx))
		return SK_PASS;
	if (is_steered(ctx))
		return SK_DROP;
	if (ctx->local_port < cfg->first_port || ctx->local_port > cfg->last_port)
		return SK_PASS;
	count(HOOK_SK_LOOKUP, DENY, NOT_FOR_LISTENERS, 0);
	return SK_DROP;
}
