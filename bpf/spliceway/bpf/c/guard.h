// SPDX-License-Identifier: GPL-2.0-only
// sk_lookup in the node's network namespace: runs when a packet for the node finds no connection and looks for a listener.
#pragma once

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
	// What is steered carries its socket. But a proxy's socket in TIME_WAIT hands a new SYN to whoever listens on the port (TCP_TW_SYN in
	// tcp_v4_rcv): a wildcard listener of the node, say. When nobody is found, the kernel acknowledges, the client resets the old socket,
	// and its SYN comes again, to the proxy.
	if (ctx->ingress_ifindex == cfg->delivery)
		return SK_DROP;
	if (ctx->local_port < cfg->first_port || ctx->local_port > cfg->last_port)
		return SK_PASS;
	count(HOOK_SK_LOOKUP, DENY, NOT_FOR_LISTENERS, 0);
	return SK_DROP;
}
