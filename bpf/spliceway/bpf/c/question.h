// SPDX-License-Identifier: GPL-2.0-only
// The agent's question after a change of policy. Never attached: a test run has it behind an Ethernet header.
#pragma once

// Returns enum judgement. Nothing is counted, recorded or changed but what the question says.
int judge(struct __sk_buff *skb)
{
	struct question q;
	struct decision d;
	struct party pod, peer;
	u32 zero = 0;
	struct generation *g = generation.lookup(&zero);
	struct splice_state *st = NULL;
	struct config *cfg = config.lookup(&zero);

	if (!g || bpf_skb_load_bytes(skb, 14, &q, sizeof(q)))
		return NO_QUESTION;
	if (cfg && (cfg->flags & CONFIG_DISABLED) && !(q.note & (NOTE_ENDED | NOTE_WHY)))
		return MAY_GO_ON;
	if (q.note & NOTE_STOP) {
		find_party(&q.key.pod, g->number & 1, &pod);
		if (!q.key.netns_cookie)
			q.key.netns_cookie = pod.netns_cookie;
		st = splices.lookup(&q.key);		// its `end` is END_POD
		if (!st)
			return DENIED;
		// Another connection may have the ports by now: it is judged by what it is.
		q.leg = st->leg;
		q.rule_set = st->rule_set;
		q.port = st->port;
	}
	int allowed = may_go_on(&q.key, q.leg, q.rule_set, q.port, g->number & 1, &pod, &peer, &d);
	if (st)
		return allowed ? MAY_GO_ON : revoke(st) ? DENIED_NOW : DENIED_BEFORE;
	if (!allowed && q.note & NOTE_WHY)
		tell(&q.key, q.leg, &pod, &peer, &d, 0, 0, 1);
	struct splice_counters *t = totals();
	if (t && q.note & NOTE_ENDED)
		t->revoked++;
	return allowed;
}
