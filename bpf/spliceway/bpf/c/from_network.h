// SPDX-License-Identifier: GPL-2.0-only
// TC ingress on the devices by which packets come from outside: connections that need the proxy, and answers to those that the proxy has opened to there.
#pragma once

#define VLAN_ID 0x0fff

// A frame of a VLAN comes again at the VLAN's own device, if the node has one; here it is nobody's. (VLAN 0 is no VLAN but a priority.)
static __always_inline int is_tagged(const struct __sk_buff *skb)
{
	return skb->vlan_present && (skb->vlan_tci & VLAN_ID);
}

// A bridge that pods are ports of hands up what they send beyond it. Their own devices have judged it. (A port of it becomes a pod's own in between.)
static __always_inline int is_from_port(const struct __sk_buff *skb, const struct party *src)
{
	u32 ifindex = src->ifindex;
	struct endpoint *ep = endpoints.lookup(&ifindex);

	return ep && (ifindex == skb->ifindex || (ep->bridge && ep->bridge == skb->ifindex));
}

// Is this an answer, of a pod's server outside, that the pod must not get? (A SYN as well: ends that have been refused could meet halfway.) `w->key`
// has the pod and the server. To a Service that the pod has dialled: to_network has judged the connection by these ends. Nobody has, if they are the Service's own: then it comes from a host with that address.
// Returns 0 or the reason to drop it.
static __always_inline int wrong_answer(struct work *w)
{
	w->key.side = SIDE_TRANSLATED;
	struct ct_value *e = conntrack.lookup(&w->key);
	if (e && !is_host(e->peer_identity) && !ct_expired(e, w->key.protocol, w->now)) {	// else it is of a process of the node (guard.h)
		ct_revalidate(&w->key, NULL, e, w->generation, &w->f, &w->d);
		if (w->d.verdict == DENY)
			return w->d.reason;
		e->seen = w->now;
		e->flags |= CT_REPLIED;
		return 0;
	}
	w->key.side = SIDE_POD;
	e = conntrack.lookup(&w->key);
	return e && is_deferred(e) && !ct_expired(e, w->key.protocol, w->now) ? UNTRACKED : 0;
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
	begin(skb, w, cfg);
	if (!cfg || is_tagged(skb))
		return PASS;
	if (w->mode & CONFIG_DISABLED)
		return from_network_disabled(skb, w, cfg, network_at);
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
		make_quoted_key(w, 0, SIDE_TRANSLATED);
		reason = wrong_answer(w);
		if (reason)
			return drop(HOOK_FROM_NETWORK, w, reason);
		make_quoted_key(w, 1, SIDE_NETWORK);
		if (!conntrack.lookup(&w->key))
			return unanswered_error(skb, w, cfg);
		if (!same_addr(&w->p.inner.src, &w->p.outer.dst))
			return drop(HOOK_FROM_NETWORK, w, UNTRACKED);
		return related(skb, HOOK_FROM_NETWORK, w, cfg, NULL, 1, SIDE_NETWORK);
	}
	if (w->p.protocol == PROTO_TCP) {
		if (fragment_ports(w))
			return drop(HOOK_FROM_NETWORK, w, FRAGMENT);
		int action = inbound(skb, HOOK_FROM_NETWORK, w, cfg);
		if (action != PASS)
			return action;
	} else if (w->p.protocol != PROTO_UDP || w->p.later_fragment) {
		return PASS;	// pieces without their first one get nowhere
	}
	make_key(w, 0, SIDE_TRANSLATED);
	reason = wrong_answer(w);
	return reason ? drop(HOOK_FROM_NETWORK, w, reason) : PASS;
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
