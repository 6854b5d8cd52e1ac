// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// Counters always count; a record in the ring buffer may be lost, and losses are counted.
#pragma once

struct decision {
	u32 rule;
	u32 rule_set;
	u8 verdict;
	u8 reason;
};

// A reason to drop. With a verdict that passes it is an audit: what a policy in audit mode would have done.
static __always_inline int denies(u32 reason)
{
	return reason >= DEFAULT_DENY;
}

static __always_inline struct splice_counters *totals(void)
{
	u32 zero = 0;
	return splice_totals.lookup(&zero);
}

static __always_inline void count(u32 hook, u32 verdict, u32 reason, u32 length)
{
	u32 i = (hook * VERDICTS + (verdict & 3)) * REASON_SLOTS + (reason & (REASON_SLOTS - 1));
	struct counter *c = reasons.lookup(&i);
	if (c) {
		c->packets++;
		c->bytes += length;
	}
}

struct flow {
	struct tuple t;
	u32 src_identity;
	u32 dst_identity;
	u32 length;
	u32 remote_ifindex;	// veth of the remote end, when it is an endpoint of this node
	u8 protocol;
	u8 leg;
	u8 reply;
	u8 revoked;
	u8 ended;
	u8 audited;		// a known connection whose verdict has just become an audit
	u8 unseen;		// in the middle of a connection that nobody has seen begin
	u8 not_host;		// whatever its address says, its client is not the node itself
	u8 may_defer;		// its client's own hook asks: what dials a Service may be judged behind the translation
	u8 deferred;		// and is
};

static __always_inline void report(u32 hook, const struct flow *f, const struct decision *d)
{
	struct event *e = events.ringbuf_reserve(sizeof(struct event));
	if (!e) {
		struct splice_counters *t = totals();
		if (t)
			t->lost_events++;
		return;
	}
	e->time = bpf_ktime_get_ns();
	e->src = f->t.src;
	e->dst = f->t.dst;
	e->src_identity = f->src_identity;
	e->dst_identity = f->dst_identity;
	e->rule = d->rule;
	e->rule_set = RULE_SET_NUMBER(d->rule_set);
	e->length = f->length;
	e->sport = ntohs(f->t.sport);
	e->dport = ntohs(f->t.dport);
	e->protocol = f->protocol;
	e->hook = hook;
	e->verdict = d->verdict;
	e->reason = d->reason;
	e->leg = f->leg;
	e->reply = f->reply;
	e->revoked = f->revoked;
	e->ended = f->ended;
	events.ringbuf_submit(e, 0);
}
