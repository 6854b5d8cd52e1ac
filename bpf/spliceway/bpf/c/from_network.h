// SPDX-License-Identifier: GPL-2.0-only
// TC ingress on the uplinks: connections from outside that need the proxy, and answers to those that the proxy has opened to there.
#pragma once

// From outside to a local endpoint. What needs no proxy is left to `to_pod`.
int from_network(struct __sk_buff *skb)
{
	struct work *w = take_work(HOOK_FROM_NETWORK);
	u32 zero = 0;
	struct config *cfg = config.lookup(&zero);
	struct party src, dst;

	if (!w)
		return DROP;
	begin(skb, w);
	if (!cfg)
		return PASS;
	int reason = read_packet(skb, w);
	if (reason == UNSUPPORTED_PROTOCOL || w->p.kind == KIND_NEIGHBOUR)
		return PASS;	// the link's business; it reaches no endpoint by routing
	u32 slot = w->generation & 1;
	find_party(&w->p.outer.dst, slot, &dst);
	find_party(&w->p.outer.src, slot, &src);
	w->f.src_identity = src.identity;
	w->f.dst_identity = dst.identity;
	if (src.netns_cookie || is_host(src.identity))
		return drop(HOOK_FROM_NETWORK, w, SPOOFED_SOURCE);
	skb->tc_index = 0;	// another node's note, where the network is a veth (sender.h)
	if (!dst.netns_cookie)
		return PASS;
	if (reason)
		return drop(HOOK_FROM_NETWORK, w, reason);
	if (w->p.kind == KIND_ICMP_ERROR) {
		make_quoted_key(w, 1, SIDE_NETWORK);
		if (!conntrack.lookup(&w->key))
			return unanswered_error(skb, w, cfg);
		if (!same_addr(&w->p.inner.src, &w->p.outer.dst))
			return drop(HOOK_FROM_NETWORK, w, UNTRACKED);
		return related(skb, HOOK_FROM_NETWORK, w, cfg, NULL, 1, SIDE_NETWORK);
	}
	if (w->p.protocol != PROTO_TCP)
		return PASS;
	if (fragment_ports(w))
		return drop(HOOK_FROM_NETWORK, w, FRAGMENT);
	return inbound(skb, HOOK_FROM_NETWORK, w, cfg);
}
