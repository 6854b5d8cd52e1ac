// SPDX-License-Identifier: GPL-2.0-only
// TC ingress on the devices by which packets come from outside: connections that need the proxy, and answers to those that the proxy has opened to there.
#pragma once

#define VLAN_ID 0x0fff

// A frame of a VLAN comes again at the VLAN's own device, if the node has one; here it is nobody's. (VLAN 0 is no VLAN but a priority.)
static __always_inline int is_tagged(const struct __sk_buff *skb)
{
	return skb->vlan_present && (skb->vlan_tci & VLAN_ID);
}

// A bridge that pods are ports of hands up what they send beyond it. Their own devices have judged it.
static __always_inline int is_from_port(const struct __sk_buff *skb, const struct party *src)
{
	u32 ifindex = src->ifindex;
	struct endpoint *ep = endpoints.lookup(&ifindex);

	return ep && ep->bridge && ep->bridge == skb->ifindex;
}

// From outside to a local endpoint. What needs no proxy is left to `to_pod`. `network_at`: as for parse_packet.
static __always_inline int judge_from_network(struct __sk_buff *skb, u32 network_at)
{
	struct work *w = take_work(HOOK_FROM_NETWORK);
	u32 zero = 0;
	struct config *cfg = config.lookup(&zero);
	struct party src, dst;

	if (!w)
		return DROP;
	begin(skb, w);
	if (!cfg || is_tagged(skb))
		return PASS;
	int reason = read_packet_at(skb, w, network_at);
	if (reason == UNSUPPORTED_PROTOCOL || w->p.kind == KIND_NEIGHBOUR)
		return PASS;	// the link's business; it reaches no endpoint by routing
	u32 slot = w->generation & 1;
	find_party(&w->p.outer.dst, slot, &dst);
	find_party(&w->p.outer.src, slot, &src);
	w->f.src_identity = src.identity;
	w->f.dst_identity = dst.identity;
	if (src.netns_cookie && is_from_port(skb, &src))
		return PASS;
	if (src.netns_cookie || is_nodes(src.identity, src.ifindex))
		return drop(HOOK_FROM_NETWORK, w, SPOOFED_SOURCE);
	set_note(skb, 0);	// another node's note, where the network is a veth (sender.h)
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

int from_network(struct __sk_buff *skb)
{
	return judge_from_network(skb, ETH_HEADER);
}

// The same on devices without Ethernet: WireGuard, IPIP, GRE, tun.
int from_network_l3(struct __sk_buff *skb)
{
	return judge_from_network(skb, 0);
}
