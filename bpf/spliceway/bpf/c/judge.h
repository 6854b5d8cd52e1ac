// SPDX-License-Identifier: GPL-2.0-only
// May a connection of the proxy's go on under the rows that are live now? One answer for a message (redirect.bpf.c) and for the agent,
// which asks for every connection after a change (sweep.py): there is no second copy of these rules.
#pragma once

// `k->netns_cookie` 0: not known (the end at the pod's place is a host outside, or only conntrack knows the connection).
static __always_inline int may_go_on(const struct splice_key *k, u8 leg, u32 rule_set, u16 port, u32 slot, struct party *pod,
				     struct party *peer, struct decision *d)
{
	u32 number = RULE_SET_NUMBER(rule_set);

	find_party(&k->pod, slot, pod);
	find_party(&k->peer, slot, peer);
	masqueraded(leg == LEG_DOWNSTREAM ? &k->pod : &k->peer, leg == LEG_DOWNSTREAM ? pod : peer);
	if (leg == LEG_DOWNSTREAM)
		decide(pod, peer, PROTO_TCP, k->peer_port, slot, d);
	else
		decide(peer, pod, PROTO_TCP, k->pod_port, slot, d);
	if (d->verdict != REDIRECT || d->rule_set != rule_set)
		return 0;
	if (k->netns_cookie && pod->netns_cookie != k->netns_cookie)
		return 0;
	// A listener enforces its own rule set only, and another one has taken this one's over. None at all is for want of a proxy.
	struct listener *l = port ? listeners.lookup(&number) : NULL;
	return !l || l->port == port;
}

// Counts and records a verdict on a connection in its middle. As client and server, so that the record reads like the connection's first.
static __always_inline void tell(const struct splice_key *k, u8 leg, const struct party *pod, const struct party *peer,
				 struct decision *d, int allowed, u32 size, u8 ended)
{
	struct flow f = { .protocol = PROTO_TCP, .length = size, .leg = leg, .revoked = !allowed, .ended = ended };
	int client_is_pod = leg == LEG_DOWNSTREAM;

	if (!allowed && d->verdict != DENY) {
		d->verdict = DENY;
		d->reason = RULE_SET_CHANGED;
	}
	f.t.src = client_is_pod ? k->pod : k->peer;
	f.t.dst = client_is_pod ? k->peer : k->pod;
	f.t.sport = client_is_pod ? k->pod_port : k->peer_port;
	f.t.dport = client_is_pod ? k->peer_port : k->pod_port;
	f.src_identity = client_is_pod ? pod->identity : peer->identity;
	f.dst_identity = client_is_pod ? peer->identity : pod->identity;
	count(HOOK_SK_MSG, d->verdict, d->reason, size);
	report(HOOK_SK_MSG, &f, d);
}
