// SPDX-License-Identifier: GPL-2.0-only
// What the TC programs do for splices: they make the state entry when a SYN passes, and let pods' sockets leave.
#pragma once

// A payload or a FIN by TCP from the proxy to a pod, on a proxied leg. The FIN of a connection that is spliced comes after all bytes; that of one that
// has to leave comes after what is held back, and would wait for it in the pod's receive memory, as if something were unread there.
static __always_inline int waits_to_leave(const struct work *w, u64 netns_cookie)
{
	struct splice_key key = {};

	if (!w->p.payload && !(w->p.tcp_flags & TCP_FIN))
		return 0;
	splice_key_of(&w->key, netns_cookie, &key);
	struct splice_state *st = splices.lookup(&key);
	return st && (w->p.payload || st->word != SPLICED) && must_wait(st, &key);
}

static __always_inline int is_bare_reset(const struct packet *p)
{
	return (p->tcp_flags & TCP_RST) && !p->payload;
}

#define BPF_F_PSEUDO_HEADER 0x10
#define TCP_SEQUENCE_AT 4
#define TCP_CHECKSUM_AT 16
#define IPV4_LENGTH_AT (ETH_HEADER + 2)
#define IPV4_CHECKSUM_AT (ETH_HEADER + 10)
#define IPV6_LENGTH_AT (ETH_HEADER + 4)
#define IPV6_HEADER 40

// The payload must wait, what the packet acknowledges need not: it goes on without payload. To the proxy that looks lost, so it comes again. Checksums
// of a node's own packets are completed by the device, or by nobody on a veth: only what is summed already is put right.
static __always_inline int without_payload(struct __sk_buff *skb, const struct packet *p)
{
	u32 header = p->payload_at - p->tcp_at, before = htonl(header + p->payload), after = htonl(header);
	u16 ethertype, length = htons(p->payload_at - ETH_HEADER), old_length;

	// Without its payload a FIN would cut the stream.
	if ((p->tcp_flags & TCP_FIN) || bpf_skb_load_bytes(skb, ETH_HEADER - 2, &ethertype, sizeof(ethertype)) ||
	    bpf_l4_csum_replace(skb, p->tcp_at + TCP_CHECKSUM_AT, before, after, BPF_F_PSEUDO_HEADER | sizeof(after)))
		return TAKEN;
	if (ethertype == htons(ETHERTYPE_IPV4)) {
		if (bpf_skb_load_bytes(skb, IPV4_LENGTH_AT, &old_length, sizeof(old_length)) ||
		    bpf_l3_csum_replace(skb, IPV4_CHECKSUM_AT, old_length, length, sizeof(length)) ||
		    bpf_skb_store_bytes(skb, IPV4_LENGTH_AT, &length, sizeof(length), 0))
			return TAKEN;
	} else if (ethertype == htons(ETHERTYPE_IPV6) && p->tcp_at == ETH_HEADER + IPV6_HEADER) {	// no jumbo option, which would go on telling the old length
		length = htons(p->payload_at - ETH_HEADER - IPV6_HEADER);
		if (bpf_skb_store_bytes(skb, IPV6_LENGTH_AT, &length, sizeof(length), 0))
			return TAKEN;
	} else {
		return TAKEN;
	}
	return bpf_skb_change_tail(skb, p->payload_at, 0) ? TAKEN : PASS;
}

// A payload by TCP from a pod to the proxy.
static __always_inline void may_leave_now(const struct ct_key *k, u64 netns_cookie)
{
	struct splice_key key = {};

	splice_key_of(k, netns_cookie, &key);
	struct splice_state *st = splices.lookup(&key);
	if (st)
		may_leave(st, &key);
}

// Does somebody not want connections to this port of servers spliced?
static __always_inline int is_excluded(u32 ifindex, u16 port)
{
	struct unspliced_key own = { .ifindex = ifindex, .port = port }, all = { .port = port };

	return unspliced.lookup(&own) || unspliced.lookup(&all);
}

// Payload of a proxied leg that does not get through to the pod: it may be that nobody sends it again.
static __always_inline void note_hole(const struct work *w, u64 netns_cookie)
{
	struct splice_key key = {};
	u32 end = ntohl(w->p.seq) + w->p.payload + !!(w->p.tcp_flags & TCP_FIN);

	if (!w->p.payload && !(w->p.tcp_flags & TCP_FIN))
		return;
	splice_key_of(&w->key, netns_cookie, &key);
	struct splice_state *st = splices.lookup(&key);
	if (!st || (st->has_hole && (s32)(end - st->hole) < 0))
		return;
	st->hole = end;
	st->has_hole = 1;
}

// A reset behind a hole ends nothing: the pod answers with a challenge (RFC 5961, 3.2), and nobody is there to answer that. So it gets the
// number that the pod waits for.
static __always_inline void make_reset_exact(struct __sk_buff *skb, const struct work *w, u64 netns_cookie)
{
#ifdef MEASURED
	struct splice_key key = {};
	u32 awaited = 0;

	splice_key_of(&w->key, netns_cookie, &key);
	struct splice_state *st = splices.lookup(&key);
	if (!st || !st->has_hole ||
	    bpf_probe_read_kernel(&awaited, sizeof(awaited), (void *)(st->sock[END_POD].address + SOCK_AWAITED)) ||
	    !is_still(&st->sock[END_POD]) || (s32)(st->hole - awaited) <= 0)
		return;
	awaited = htonl(awaited);
	if (!bpf_l4_csum_replace(skb, w->p.tcp_at + TCP_CHECKSUM_AT, w->p.seq, awaited, sizeof(awaited)))
		bpf_skb_store_bytes(skb, w->p.tcp_at + TCP_SEQUENCE_AT, &awaited, sizeof(awaited), 0);
#endif
}

// The connection that had these ports before ends here. What waits of it still costs, until its reader has read it or has closed its socket.
static __always_inline void keep_remains(struct splice_state *old, const struct splice_key *key)
{
	struct splice_key k = *key;

	if (!counted(old->way[END_POD].charged) && !counted(old->way[END_PROXY].charged)) {
		return_held(old, key->netns_cookie);
		return;
	}
	k.end = remains_end(old->nonce);
	splices.update(&k, old);
}

// The state entry of a connection that may be spliced is made here, when its SYN passes, and nowhere else. A retransmitted SYN (same
// initial sequence number) finds its entry and leaves it alone.
static __always_inline void begin_state(struct work *w, struct splice_key *key, u8 leg, u32 rule_set, u16 port, u8 why)
{
	struct splice_state *s = &w->state;

	struct splice_state *old = splices.lookup(key);
	if (old && old->isn == w->p.seq && old->rule_set == rule_set && old->leg == leg)
		return;
	if (old)
		keep_remains(old, key);
	__builtin_memset(s, 0, sizeof(*s));
	s->nonce = ((u64)bpf_get_prandom_u32() << 32) | bpf_get_prandom_u32() | 1;	// 0: of no connection
	s->generation = w->generation;
	s->born = w->now;
	s->rule_set = rule_set;
	s->isn = w->p.seq;
	s->leg = leg;
	s->port = port;
	s->reason = w->d.reason;
	if (w->p.payload)
		why = WHY_DATA_IN_SYN;
	if (why) {
		s->word = TCP_ONLY;
		count_tcp_only(s, why);
	}
	splices.update(key, s);
}

static __always_inline void begin_splice(const struct endpoint *ep, u32 ifindex, struct work *w, u8 leg, u32 rule_set)
{
	struct splice_key key = {};

	splice_key_of(&w->key, ep->netns_cookie, &key);
	u16 port = leg == LEG_DOWNSTREAM ? key.peer_port : key.pod_port;
	begin_state(w, &key, leg, rule_set, 0, ep->unspliced ? WHY_OPTED_OUT : is_excluded(ifindex, port) ? WHY_EXCLUDED_PORT : 0);
}
