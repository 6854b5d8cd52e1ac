// SPDX-License-Identifier: GPL-2.0-only
// The agent's question after a change of policy. Never attached: a test run has it behind an Ethernet header.
#pragma once

// 0: it may not go on, 1: it may, 2: that was no question. Nothing is counted or recorded but what the question says.
int judge(struct __sk_buff *skb)
{
	struct question q;
	struct decision d;
	struct party pod, peer;
	u32 zero = 0;
	struct generation *g = generation.lookup(&zero);

	if (!g || bpf_skb_load_bytes(skb, 14, &q, sizeof(q)))
		return 2;
	int allowed = may_go_on(&q.key, q.leg, q.rule_set, q.port, g->number & 1, &pod, &peer, &d);
	if (!allowed && q.note & NOTE_WHY)
		tell(&q.key, q.leg, &pod, &peer, &d, 0, 0, 1);
	struct splice_counters *t = totals();
	if (t && q.note & NOTE_ENDED)
		t->revoked++;
	return allowed;
}
