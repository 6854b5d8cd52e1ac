// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// From two addresses to a verdict, through the maps of the live slot. The same code runs for the first packet (TC) and for a
// message of a spliced connection after a policy change (sk_msg).
#pragma once

struct party {
	u64 netns_cookie;	// 0: not an endpoint of this node
	u32 ifindex;		// of its veth
	u32 identity;
	u32 policy;
	u32 enforce;		// ENFORCE_*; ENFORCE_READY is always set for others than local endpoints
};

static __always_inline void endpoint_party(const struct endpoint *ep, u32 slot, struct party *p)
{
	p->netns_cookie = ep->netns_cookie;
	p->identity = ep->identity[slot];
	p->policy = ep->policy[slot];
	p->enforce = ep->enforce[slot];
	p->ifindex = 0;
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
	u32 ifindex = v->endpoint;
	if (!ifindex)
		return;
	struct endpoint *ep = endpoints.lookup(&ifindex);
	if (ep)
		endpoint_party(ep, slot, p);
	else
		p->enforce = 0;		// going away
	p->ifindex = ifindex;
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

// The client's egress and the server's ingress policy together: a denial of either denies, HTTP rules of either redirect.
static __always_inline void decide(const struct party *client, const struct party *server, u8 protocol, u16 port, u32 slot,
				   struct decision *d)
{
	struct decision in = { .verdict = ALLOW, .reason = NO_POLICY };

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
	if (in.verdict != DENY && d->verdict == REDIRECT)
		return;
	*d = in;
}
