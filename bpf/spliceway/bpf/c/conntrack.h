// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// Connection tracking in the perspective of one end (see `struct ct_key`). An entry carries its verdict and the generation at which
// it was made: after a policy change the next packet decides again, in either direction.
#pragma once

#define SECOND 1000000000ull
#define TTL_CLOSED (10 * SECOND)
#define TTL_NEW (60 * SECOND)
#define TTL_DATAGRAM (120 * SECOND)
#define TTL_ESTABLISHED (6 * 3600 * SECOND)
#define FIRST_CHOSEN_PORT 32768	// of those that the kernel chooses for clients (net.ipv4.ip_local_port_range)

static __always_inline int is_new_syn(const struct packet *p)
{
	return p->protocol == PROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

static __always_inline int ct_closing(const struct ct_value *e)
{
	return (e->flags & CT_RESET) || (e->flags & (CT_FIN_IN | CT_FIN_OUT)) == (CT_FIN_IN | CT_FIN_OUT);
}

// Another CPU may have seen the connection after this one looked at the clock: that is no time at all, and not all of it.
static __always_inline int past(u64 now, u64 seen, u64 ttl)
{
	return now > seen && now - seen > ttl;
}

static __always_inline int ct_expired(const struct ct_value *e, u8 protocol, u64 now)
{
	u64 ttl = TTL_ESTABLISHED;
	if (!(e->flags & CT_REPLIED))
		ttl = TTL_NEW;
	else if (protocol != PROTO_TCP)
		ttl = TTL_DATAGRAM;
	else if (ct_closing(e))
		ttl = TTL_CLOSED;
	return past(now, e->seen, ttl);
}

// The entry of a pod that dials a Service (leads_on()). It is no verdict on these ends, and stays so whatever becomes of the Service. The reason says
// it, and no flag: those are written without a lock.
static __always_inline int is_deferred(const struct ct_value *e)
{
	return e->reason == SERVICE;
}

// `out`: the packet leaves the local end.
static __always_inline void ct_touch(struct ct_value *e, const struct packet *p, u32 out, u32 length, u64 now)
{
	u8 flags = e->flags;

	if (!out == !!(flags & CT_CLIENT))
		flags |= CT_REPLIED;
	if (p->tcp_flags & TCP_FIN)
		flags |= out ? CT_FIN_OUT : CT_FIN_IN;
	if (p->tcp_flags & TCP_RST)
		flags |= CT_RESET;
	else if (p->payload)
		flags &= ~CT_RESET;	// that reset was not believed
	if (is_new_syn(p))
		flags &= ~(CT_RESET | CT_FIN_OUT | CT_FIN_IN | CT_UNSEEN);
	e->flags = flags;
	e->seen = now;
	e->packets++;
	e->bytes += length;
}

// The port that policy sees: the server's; for ICMP type and code of the request.
static __always_inline u16 policy_port(const struct ct_key *k, u32 local_is_client)
{
	if (k->protocol == PROTO_ICMP)
		return htons(8 << 8);
	if (k->protocol == PROTO_ICMPV6)
		return htons(128 << 8);
	return local_is_client ? k->remote_port : k->local_port;
}

// `ep`: the local end, when it is the endpoint at whose interface this runs (one lookup less), or NULL.
static __always_inline void decide_ends(const struct ct_key *k, const struct endpoint *ep, u32 local_is_client, u16 port,
					u32 slot, struct flow *f, struct decision *d)
{
	struct party local, remote;

	if (ep) {
		endpoint_party(ep, slot, &local);
		peer_identity(&k->local, slot, &local);
	} else {
		find_party(&k->local, slot, &local);
	}
	find_party(&k->remote, slot, &remote);
	if (f->not_host)
		masqueraded(local_is_client ? &k->local : &k->remote, local_is_client ? &local : &remote);
	f->deferred = f->may_defer && local_is_client && leads_on(&local, &remote, k->protocol);
	if (f->deferred)
		*d = (struct decision){ .verdict = ALLOW, .reason = SERVICE };
	else if (local_is_client)
		decide(&local, &remote, k->protocol, port, slot, d);
	else
		decide(&remote, &local, k->protocol, port, slot, d);
	f->remote_ifindex = remote.ifindex;
	int local_is_src = same_addr(&f->t.src, &k->local);
	f->src_identity = local_is_src ? local.identity : remote.identity;
	f->dst_identity = local_is_src ? remote.identity : local.identity;
}

// A segment from the middle of a connection that nobody has seen begin does not tell which end has opened it: were it the sender, the answers of
// a server that speaks first would open the way for its client. So it passes only if either end may have. `other` is the verdict on the
// connection with its ends exchanged. When that denies, ports are believed that only a client has, and no server.
static __always_inline void pass_either_way(const struct ct_key *k, u32 local_is_client, struct decision *d, const struct decision *other)
{
	u16 client = ntohs(local_is_client ? k->local_port : k->remote_port);
	u16 server = ntohs(local_is_client ? k->remote_port : k->local_port);

	if (d->verdict != ALLOW || other->verdict == ALLOW || only_audited(other))
		return;
	if (other->verdict == DENY && client >= FIRST_CHOSEN_PORT && server < FIRST_CHOSEN_PORT)
		return;
	*d = *other;
	d->verdict = DENY;
	if (other->verdict == REDIRECT)
		d->reason = NOT_STEERED;
}

// Decides a connection that has no entry; `middle`: it is in its middle already.
static __always_inline void decide_new(const struct ct_key *k, const struct endpoint *ep, u32 client, u16 port, u32 slot, u32 middle,
				       struct flow *f, struct decision *d)
{
	struct decision other = {};

	if (middle)
		decide_ends(k, ep, !client, policy_port(k, !client), slot, f, &other);
	decide_ends(k, ep, client, port, slot, f, d);
	if (middle)
		pass_either_way(k, client, d, &other);
}

// A connection keeps its leg: what went directly can't be steered in its middle, and a listener enforces its own rule set only.
static __always_inline void keep_leg(u8 leg, u32 rule_set, struct decision *d)
{
	if (d->verdict == DENY)
		return;
	if (leg == LEG_DIRECT && only_audited(d))
		pass_by(d);
	if (leg == LEG_DIRECT ? d->verdict == ALLOW : d->verdict == REDIRECT && d->rule_set == rule_set)
		return;
	d->verdict = DENY;
	d->reason = RULE_SET_CHANGED;
}

// Decides a known connection again if the policy has changed since. Tells the flow when it has just lost its verdict, or got one that
// is an audit.
static __always_inline void ct_revalidate(const struct ct_key *k, const struct endpoint *ep, struct ct_value *e,
					 u64 generation, struct flow *f, struct decision *d)
{
	u64 judged = e->judged;
	u8 was = judged & 3;

	if (is_deferred(e)) {
		u32 ready = !ep || (ep->enforce[generation & 1] & ENFORCE_READY);
		d->verdict = ready ? ALLOW : DENY;
		d->reason = ready ? SERVICE : NOT_READY;
		return;
	}
	if (judged >> 2 != generation) {
		u32 client = e->flags & CT_CLIENT;
		f->not_host |= e->leg != LEG_DIRECT;
		// The policy, or the Service, may be younger than the connection.
		f->may_defer = ep && e->leg == LEG_DIRECT && !(e->flags & CT_UNSEEN);
		decide_ends(k, ep, client, policy_port(k, client), generation & 1, f, d);
		f->may_defer = 0;
		keep_leg(e->leg, e->rule_set, d);
		f->revoked = was != DENY && d->verdict == DENY;
		f->audited = e->leg != LEG_UPSTREAM && d->verdict != DENY && denies(d->reason) &&
			     (was == DENY || e->reason != d->reason || e->rule != d->rule);
		e->reason = d->reason;	// first: whoever sees the verdict must know what it is of
		e->rule = d->rule;
		e->judged = generation << 2 | d->verdict;
		return;
	}
	d->verdict = was;
	d->reason = e->reason;
	d->rule = e->rule;
	d->rule_set = e->rule_set;
}

// An end of a proxied connection that comes again when the entry has expired makes one that is closing: the other end will not come.
static __always_inline void ct_create(const struct ct_key *k, const struct packet *p, u32 client, u32 peer_identity, u64 generation,
				      u64 now, const struct flow *f, const struct decision *d)
{
	struct ct_value v = {};

	v.seen = now;
	v.packets = 1;
	v.bytes = f->length;
	v.judged = generation << 2 | d->verdict;
	v.rule = d->rule;
	v.rule_set = d->rule_set;
	v.peer_identity = peer_identity;
	v.peer_ifindex = f->remote_ifindex;
	v.leg = f->leg;
	v.flags = (client ? CT_CLIENT : 0) | (f->unseen ? CT_UNSEEN : 0) |
		  (f->leg != LEG_DIRECT && (p->tcp_flags & TCP_FIN) ? CT_FIN_IN | CT_FIN_OUT : 0);
	v.reason = d->reason;
	conntrack.update((struct ct_key *)k, &v);
}
