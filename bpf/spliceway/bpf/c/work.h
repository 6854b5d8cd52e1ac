// SPDX-License-Identifier: GPL-2.0-only
// What the TC programs share: one packet at work, its keys, and its end as a pass or a drop.
#pragma once

#define PASS (-1)	// TC_ACT_UNSPEC: other programs on the device (a CNI's) still run
#define DROP 2		// TC_ACT_SHOT
#define TAKEN 4		// TC_ACT_STOLEN: dropped, but its sender counts it as sent (a socket that sees its packets refused gives up soon)

// What the node would have dropped were it not in audit: told once in TOLD_AGAIN for each of these, whatever comes of it.
struct told {
	struct addr src;
	struct addr dst;
	u16 dport;
	u8 protocol;
	u8 reason;
};

#define TOLD_AGAIN 10000000000ull	// ns

BPF_TABLE("lru_hash", struct told, u64, told_lately, 4096);

struct work {
	struct packet p;
	struct ct_key key;
	struct flow f;
	struct decision d;
	u64 generation;
	u64 now;
	u32 mode;			// CONFIG_*
	struct splice_state state;	// one that is being made, see begin_splice(): not cleared for every packet
	struct told told;		// nor this
};

// One for each program and CPU: it would not fit the stack, and no program interrupts itself.
BPF_TABLE("percpu_array", u32, struct work, works, HOOKS + 2);

static __always_inline struct work *take_work(u32 hook)
{
	struct work *w = works.lookup(&hook);

	if (w)
		__builtin_memset(w, 0, __builtin_offsetof(struct work, state));
	return w;
}

// Reasons to drop what the proxy has, or is about to have: passed on, it would break that connection, or go past the proxy.
static __always_inline int is_of_the_proxy(u32 reason)
{
	return (reason >= NOT_STEERED && reason <= TUPLE_CONFLICT) || reason == NOT_FOR_LISTENERS;
}

static __always_inline int is_news(struct work *w)
{
	struct told *t = &w->told;

	t->src = w->f.t.src;
	t->dst = w->f.t.dst;
	t->dport = w->f.t.dport;
	t->protocol = w->f.protocol;
	t->reason = w->d.reason;
	u64 now = bpf_ktime_get_ns(), *last = told_lately.lookup(t);
	if (last && !past(now, *last, TOLD_AGAIN))
		return 0;
	told_lately.update(t, &now);
	return 1;
}

// In audit (of the node, not of a policy) this passes as it would without us, and is told. It gets no entry: it has no verdict.
static __always_inline int only_told(u32 hook, struct work *w)
{
	if (!(w->mode & CONFIG_AUDIT) || w->f.leg != LEG_DIRECT || is_of_the_proxy(w->d.reason))
		return 0;
	w->d.verdict = ALLOW;
	count(hook, ALLOW, w->d.reason, w->f.length);
	if (is_news(w))
		report(hook, &w->f, &w->d);
	return 1;
}

static __always_inline int drop(u32 hook, struct work *w, u32 reason)
{
	if (reason) {
		w->d.verdict = DENY;
		w->d.reason = reason;
	}
	if (only_told(hook, w))
		return PASS;
	count(hook, DENY, w->d.reason, w->f.length);
	report(hook, &w->f, &w->d);
	return DROP;
}

static __always_inline int pass(u32 hook, struct work *w, u32 reason)
{
	count(hook, ALLOW, reason, w->f.length);
	return PASS;
}

// What a packet of a known connection counts as. An audit counts and shows once for a connection, when it gets that verdict: its first packet,
// or the next one after the policy has changed. Of a spliced one, that is a message (redirect.bpf.c), and no packet.
static __always_inline u32 known_reason(u32 hook, struct work *w, u64 netns_cookie)
{
	if (w->f.audited && !(w->f.leg == LEG_DOWNSTREAM && is_spliced(&w->key, netns_cookie))) {
		report(hook, &w->f, &w->d);
		return w->d.reason;
	}
	return w->f.reply || denies(w->d.reason) ? REPLY : w->d.reason;
}

static __always_inline void begin(struct __sk_buff *skb, struct work *w, const struct config *cfg)
{
	u32 zero = 0;
	struct generation *g = generation.lookup(&zero);

	w->generation = g ? g->number : 0;
	w->now = bpf_ktime_get_ns();
	w->f.length = skb->len;
	w->mode = cfg ? cfg->flags : 0;
}

// Reads the packet, whose network header is at `offset`. Returns 0 or the reason to drop it.
static __always_inline int read_packet_at(struct __sk_buff *skb, struct work *w, u32 offset)
{
	int reason = parse_packet(skb, &w->p, offset);

	w->f.t = w->p.outer;
	w->f.protocol = w->p.protocol;
	w->p.bare = !offset;
	return reason;
}

static __always_inline int read_packet(struct __sk_buff *skb, struct work *w)
{
	return read_packet_at(skb, w, ETH_HEADER);
}

static __always_inline void set_key(struct work *w, const struct tuple *t, u8 protocol, u32 out, u8 side)
{
	w->key.local = out ? t->src : t->dst;
	w->key.remote = out ? t->dst : t->src;
	w->key.local_port = out ? t->sport : t->dport;
	w->key.remote_port = out ? t->dport : t->sport;
	w->key.protocol = protocol;
	w->key.side = side;
}

// Conntrack key with `local` = source (out) or destination of the packet.
static __always_inline void make_key(struct work *w, u32 out, u8 side)
{
	set_key(w, &w->p.outer, w->p.protocol, out, side);
}

// Key of the connection that an ICMP error is about. `out`: the error leaves the local end, so the quoted packet came in.
static __always_inline void make_quoted_key(struct work *w, u32 out, u8 side)
{
	set_key(w, &w->p.inner, w->p.inner_protocol, !out, side);
}

static __always_inline int is_own(const struct endpoint *ep, const struct addr *a)
{
	return !is_unspecified(a) && (same_addr(a, &ep->v4) || same_addr(a, &ep->v6));
}

// Ports of a later fragment are those of its first one.
static __always_inline int fragment_ports(struct work *w)
{
	struct fragment_key k = { .id = w->p.fragment_id, .protocol = w->p.protocol };
	struct fragment_value v = {}, *found;

	if (!w->p.first_fragment && !w->p.later_fragment)
		return 0;
	k.src = w->p.outer.src;
	k.dst = w->p.outer.dst;
	if (w->p.first_fragment) {
		v.sport = w->p.outer.sport;
		v.dport = w->p.outer.dport;
		fragments.update(&k, &v);
		return 0;
	}
	found = fragments.lookup(&k);
	if (!found)
		return FRAGMENT;
	w->p.outer.sport = found->sport;
	w->p.outer.dport = found->dport;
	return 0;
}

// Is this an address on the link of an endpoint's bridge: of another endpoint there, or of the node?
static __always_inline int is_on_bridge(const struct endpoint *ep, const struct addr *a, u32 slot)
{
	struct party p;

	if (!ep->bridge)
		return 0;
	find_party(a, slot, &p);
	u32 ifindex = p.ifindex;
	struct endpoint *other = ifindex ? endpoints.lookup(&ifindex) : NULL;
	return is_host(p.identity) || (other && other->bridge == ep->bridge);
}

// The link's own business: ARP and neighbour discovery for the endpoint's own addresses, no router advertisements or redirects.
static __always_inline int neighbour_reason(const struct endpoint *ep, const struct packet *p, u32 slot)
{
	if (p->neighbour_type == 134 || p->neighbour_type == 137)
		return SPOOFED_SOURCE;
	// On a bridge others would believe it.
	if (p->neighbour_type == NEIGHBOUR_ADVERTISEMENT && !is_own(ep, &p->inner.src) && !is_link_local(&p->inner.src))
		return SPOOFED_SOURCE;
	// It stays on its link: a router forwards these like any other packet, past the policy.
	if (p->neighbour_type && !is_link_local(&p->outer.dst) && !is_link_multicast(&p->outer.dst) &&
	    !is_on_bridge(ep, &p->outer.dst, slot))
		return MALFORMED;
	if (is_own(ep, &p->outer.src) || (p->neighbour_type ? is_link_local(&p->outer.src) || is_unspecified(&p->outer.src)
						       : p->outer.src.w[3] == 0))
		return 0;
	return SPOOFED_SOURCE;
}

static __always_inline int source_reason(const struct endpoint *ep, const struct packet *p, u32 slot)
{
	if (p->kind == KIND_NEIGHBOUR)
		return neighbour_reason(ep, p, slot);
	if (!is_own(ep, &p->outer.src))
		return SPOOFED_SOURCE;
	// An error that a pod sends is about a packet that it got, and goes to whoever sent that.
	if (p->kind == KIND_ICMP_ERROR && (!is_own(ep, &p->inner.dst) || !same_addr(&p->inner.src, &p->outer.dst)))
		return SPOOFED_SOURCE;
	return 0;
}
