// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// From two addresses to a verdict, through the maps of the live slot. The same code runs for the first packet (TC) and for a
// message of a spliced connection after a policy change (sk_msg).
#pragma once

struct party {
	u64 netns_cookie;	// 0: not an endpoint of this node
	u32 ifindex;		// of its veth
	u32 identity;		// as a peer: that of its address
	u32 policy;
	u32 enforce;		// ENFORCE_*, LEADS_ON; ENFORCE_READY is always set for others than local endpoints
};

#define LEADS_ON 0x80u	// an address outside that Services are dialled by

static __always_inline int is_host(u32 identity)
{
	return identity == IDENTITY_HOST || (identity >= FIRST_HOST_VARIANT && identity <= LAST_HOST_VARIANT);
}

// Is this neither a node nor a pod: the world, or a prefix of it that policies name?
static __always_inline int is_outside(u32 identity)
{
	return identity == IDENTITY_WORLD_IPV4 || identity == IDENTITY_WORLD_IPV6 || identity >= FIRST_CIDR_IDENTITY;
}

// Do processes of the node answer by this address?
static __always_inline int is_nodes(u32 identity, u32 ifindex)
{
	return is_host(identity) || ifindex == SERVED_BY_NODE;
}

// A client that has the node's own address and comes from elsewhere was masqueraded, and so was one that came to the proxy, where the node's own
// connections never go. Who it is can't be known any more: so it is nobody that policies know, and not the node, which may do more.
static __always_inline void masqueraded(const struct addr *a, struct party *client)
{
	if (is_host(client->identity))
		client->identity = is_mapped(a) ? IDENTITY_WORLD_IPV4 : IDENTITY_WORLD_IPV6;
}

static __always_inline void endpoint_party(const struct endpoint *ep, u32 slot, struct party *p)
{
	p->netns_cookie = ep->netns_cookie;
	p->identity = ep->identity[slot];
	p->policy = ep->policy[slot];
	p->enforce = ep->enforce[slot];
	p->ifindex = 0;
}

// The endpoint's own address, if the table has it already: policies may tell apart the addresses of one pod.
static __always_inline void peer_identity(const struct addr *a, u32 slot, struct party *p)
{
	struct ipcache_key key = { .prefixlen = 128 };
	key.addr = *a;
	struct ipcache_value *v = ipcache.lookup(&key);
	if (v && v->endpoint[slot] && v->identity[slot])
		p->identity = v->identity[slot];
}

// Multicast, broadcast, or of one link: sockets get such packets without being looked for, so that no hook would judge what a Service made of it.
static __always_inline int reaches_many(const struct addr *a)
{
	u32 first = ntohl(is_mapped(a) ? a->w[3] : a->w[0]);

	if (is_mapped(a))
		return first >> 28 == 0xe || first == 0xffffffff || first >> 16 == 0xa9fe;
	return first >> 24 == 0xff || first >> 22 == 0xfe80 >> 6;
}

static __always_inline void find_party(const struct addr *a, u32 slot, struct party *p)
{
	struct ipcache_key key = { .prefixlen = 128 };
	key.addr = *a;
	p->netns_cookie = 0;
	p->ifindex = 0;
	p->identity = 0;
	p->policy = 0;
	p->enforce = ENFORCE_READY;
	struct ipcache_value *v = ipcache.lookup(&key);
	if (!v)
		return;
	p->identity = v->identity[slot];
	u32 ifindex = v->endpoint[slot];
	if (ifindex == SERVICE_ADDRESS) {
		p->enforce |= is_outside(p->identity) && !reaches_many(a) ? LEADS_ON : 0;
		return;
	}
	p->ifindex = ifindex;
	if (!ifindex || ifindex == SERVED_BY_NODE)
		return;
	struct endpoint *ep = endpoints.lookup(&ifindex);
	u32 identity = p->identity;
	if (ep)
		endpoint_party(ep, slot, p);
	else
		p->enforce = 0;		// going away
	p->ifindex = ifindex;
	p->identity = identity;
}

// Does this client dial a Service, so that the policy for its egress is asked for where that leads, by the hook that the translated packet meets:
// at the server, or where it leaves the node? What netfilter does not translate is as it was when it gets there.
static __always_inline int leads_on(const struct party *client, const struct party *server, u8 protocol)
{
	return (server->enforce & LEADS_ON) && (client->enforce & ENFORCE_READY) && (client->enforce & ENFORCE_EGRESS) && client->identity &&
	       (protocol == PROTO_TCP || protocol == PROTO_UDP);
}

// One endpoint's policy in one direction. The table is resolved, so the longest match is the answer.
static __always_inline void decide_one(u32 policy_id, u32 direction, u32 peer, u8 protocol, u16 port, u32 slot,
				       struct decision *d)
{
	struct class_key ck = { .policy = policy_id, .identity = peer, .direction = direction };
	struct policy_key pk = { .prefixlen = POLICY_PREFIX_PROTOCOL + 16, .policy = policy_id, .direction = direction,
				 .protocol = protocol, .port = port };
	struct class_value *c = classes.lookup(&ck);
	if (c)
		pk.class_id = c->class_id[slot];
	struct policy_value *v = policy.lookup(&pk);
	d->verdict = v ? v->verdict[slot] : VERDICT_NONE;
	if (!v || d->verdict == VERDICT_NONE) {
		d->verdict = DENY;
		d->reason = DEFAULT_DENY;
		d->rule = 0;
		d->rule_set = 0;
		return;
	}
	d->reason = v->reason[slot];
	d->rule = v->rule[slot];
	d->rule_set = v->rule_set[slot];
}

// Two halves that pass: HTTP rules of either redirect, those of both ask for the rule set of the pair. Named is the half in audit, else the
// one that redirects (the client's first), else the one that a policy made (the server's first).
static __always_inline void combine(struct decision *d, const struct decision *in)
{
	struct pair_key key = { .egress = RULE_SET_NUMBER(d->rule_set), .ingress = RULE_SET_NUMBER(in->rule_set) };
	u32 out_redirects = d->verdict == REDIRECT, in_redirects = in->verdict == REDIRECT, rule_set = in->rule_set;
	u32 in_is_named = !denies(d->reason) &&
			  (denies(in->reason) || (!out_redirects && (in_redirects || in->reason != NO_POLICY)));

	if (out_redirects && in_redirects) {
		struct pair_value *both = pairs.lookup(&key);
		rule_set = both ? both->rule_set : 0;
		if (!both) {
			d->verdict = DENY;
			d->reason = NO_LISTENER;
			d->rule_set = 0;
			return;
		}
	}
	if (in_is_named) {
		d->reason = in->reason;
		d->rule = in->rule;
	}
	if (in_redirects) {
		d->verdict = REDIRECT;
		d->rule_set = rule_set;
	}
}

// A verdict of policies in audit alone goes on without the proxy.
static __always_inline void pass_by(struct decision *d)
{
	d->verdict = ALLOW;
	if (d->reason == REDIRECTED)
		d->reason = POLICY_ALLOWED;
}

static __always_inline int only_audited(const struct decision *d)
{
	return d->verdict == REDIRECT && (d->rule_set & RULE_SET_AUDIT);
}

// The client's egress and the server's ingress policy together: a denial of either denies, the client's first.
static __always_inline void decide(const struct party *client, const struct party *server, u8 protocol, u16 port, u32 slot,
				   struct decision *d)
{
	struct decision in = {};

	d->verdict = ALLOW;
	d->reason = NO_POLICY;
	d->rule = 0;
	d->rule_set = 0;
	if (!(client->enforce & server->enforce & ENFORCE_READY)) {
		d->verdict = DENY;
		d->reason = NOT_READY;
		return;
	}
	if (!client->identity || !server->identity) {
		d->verdict = DENY;
		d->reason = NO_IDENTITY;
		return;
	}
	if (client->enforce & ENFORCE_EGRESS) {
		decide_one(client->policy, EGRESS, server->identity, protocol, port, slot, d);
		if (d->verdict == DENY)
			return;
	}
	if (!(server->enforce & ENFORCE_INGRESS))
		return;
	decide_one(server->policy, INGRESS, client->identity, protocol, port, slot, &in);
	if (in.verdict == DENY)
		*d = in;
	else
		combine(d, &in);
}
