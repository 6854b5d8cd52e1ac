// SPDX-License-Identifier: GPL-2.0-only
// The way from the hooks to the proxy: out by one end of a veth pair of our own, in by the other, where `steered` assigns the socket. So
// neither the bridge that the pod's device is a port of, nor what netfilter does by that device, meets a steered packet; and its mark and
// the frame's addresses (which no network sees) say what was decided.
#pragma once

// The Ethernet addresses of a frame on the pair. The first is that of the receiving end (node.py gives it), else the frame would be another station's.
struct handover {
	u8 to[6];
	u8 local;	// 2: locally administered
	u8 decided;	// hook << 4 | leg
	u32 rule_set;
} __attribute__((packed));

#define STEERED_STATION { 0x02, 0x53, 0x57, 0x00, 0x00, 0x01 }

// A packet of a device without Ethernet gets a header for the pair. What its network header is does not change, so that it may be of any size
// (GSO), too; __bpf_redirect() wants the header in front of it.
static __always_inline long make_frame(struct __sk_buff *skb)
{
	u16 type = skb->protocol;

	return bpf_skb_change_head(skb, ETH_HEADER, 0) ?: bpf_skb_store_bytes(skb, ETH_HEADER - sizeof(type), &type, sizeof(type), 0);
}

// The last step of a hook, after everything that looks at the packet.
static __always_inline int hand_over(struct __sk_buff *skb, u32 hook, struct work *w, const struct config *cfg, u32 rule_set, u8 leg)
{
	struct handover h = { .to = STEERED_STATION, .local = 2, .decided = hook << 4 | leg, .rule_set = rule_set };

	if (!cfg->steering || (w->p.bare && make_frame(skb)) || bpf_skb_store_bytes(skb, 0, &h, sizeof(h), 0))
		return drop(hook, w, ASSIGN_FAILED);
	skb->mark = (skb->mark & ~cfg->mark_mask) | cfg->mark;
	return bpf_redirect(cfg->steering, 0);
}

// An ICMP error about a known connection follows it; a proxy's socket gets it by the mark.
static __always_inline int related(struct __sk_buff *skb, u32 hook, struct work *w, const struct config *cfg,
				   const struct endpoint *ep, u32 out, u8 side)
{
	make_quoted_key(w, out, side);
	struct ct_value *e = conntrack.lookup(&w->key);
	if (!e || ct_expired(e, w->key.protocol, w->now))
		return drop(hook, w, UNTRACKED);
	ct_revalidate(&w->key, ep, e, w->generation, &w->f, &w->d);
	if (w->d.verdict == DENY)
		return drop(hook, w, 0);
	int next = pass(hook, w, RELATED);
	if (hook != HOOK_TO_POD && e->leg != LEG_DIRECT)
		return hand_over(skb, hook, w, cfg, 0, e->leg);
	return next;
}

// clsact ingress of the pair's receiving end. Nobody but the hooks sends here with the mark; what else comes (the kernel's own multicast) goes.
int steered(struct __sk_buff *skb)
{
	struct work *w = take_work(HOOKS);
	u32 zero = 0;
	struct config *cfg = config.lookup(&zero);
	struct handover h;

	if (!w || !cfg || (skb->mark & cfg->mark_mask) != cfg->mark || bpf_skb_load_bytes(skb, 0, &h, sizeof(h)))
		return DROP;
	u32 hook = h.decided >> 4;
	if (hook > HOOK_FROM_NETWORK && hook != HOOK_TO_NETWORK)
		return DROP;
	begin(skb, w, cfg);
	w->f.leg = h.decided & 15;
	int reason = read_packet(skb, w);
	if (reason)
		return drop(hook, w, reason);
	if (w->p.protocol != PROTO_TCP || w->p.kind != KIND_FLOW)
		return PASS;	// an ICMP error about a connection of the proxy: the kernel finds its socket
	reason = steer(skb, &w->p, h.rule_set, w->f.leg, 1);
	return reason ? drop(hook, w, reason) : PASS;
}
