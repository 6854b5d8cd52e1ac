// SPDX-License-Identifier: GPL-2.0-only
// TC egress on the loopback device of a pod with a sidecar: what begins there may be spliced (sidecar.h), and what has left the splice gets its
// payload only when its application has read what was redirected (leave.h). Nothing is judged here and nothing dropped: a pod's loopback is its own.
#pragma once

#define WORK_OF_LOOPBACK (HOOKS + 1)
#define ISTIO_MARK 1337

// Istio's own: nobody's application listens there.
static __always_inline int is_istio_port(u16 port)
{
	return port == 15000 || port == SIDECAR_OUTBOUND || port == 15004 || port == SIDECAR_INBOUND || port == 15008 || port == 15012 ||
	       port == 15017 || port == 15020 || port == 15021 || port == 15053 || port == 15080 || port == 15090;
}

// The addresses from which a sidecar dials its application, as far as they are nobody else's: 127.0.0.6 and ::6.
static __always_inline int is_sidecar_address(const struct addr *a)
{
	return a->w[3] == (is_mapped(a) ? htonl(0x7f000006) : htonl(6)) && (is_mapped(a) || !(a->w[0] | a->w[1] | a->w[2]));
}

// Does the sidecar dial its application? Where it runs as root (TPROXY), so may the application: there the address or the mark must tell.
static __always_inline int dials_application(struct __sk_buff *skb, const struct packet *p, u32 sidecar)
{
	u32 uid = bpf_get_socket_uid(skb);

	return uid == sidecar && !is_istio_port(ntohs(p->outer.dport)) &&
	       (uid || is_sidecar_address(&p->outer.src) || skb->mark == ISTIO_MARK);
}

// A SYN, behind all translations.
static __always_inline void begin_beside_sidecar(struct __sk_buff *skb, struct work *w, struct sock_tag *tag, u16 dialled)
{
	u64 cookie = tag->key.netns_cookie & ~SIDECAR_LEG;
	struct sidecar_pod *pod = sidecar_pods.lookup(&cookie);
	struct splice_key key = {};
	u16 port = ntohs(w->p.outer.dport);

	tag->nonce = 0;
	if (!pod || (w->mode & CONFIG_DISABLED))
		return;
	u32 accepts = port == SIDECAR_OUTBOUND || (port == SIDECAR_INBOUND && bpf_get_socket_uid(skb) != pod->uid);
	if (!accepts && !dials_application(skb, &w->p, pod->uid))
		return;
	w->key.local = accepts ? w->p.outer.src : w->p.outer.dst;
	w->key.remote = accepts ? w->p.outer.dst : w->p.outer.src;
	w->key.local_port = accepts ? w->p.outer.sport : w->p.outer.dport;
	w->key.remote_port = accepts ? w->p.outer.dport : w->p.outer.sport;
	splice_key_of(&w->key, tag->key.netns_cookie, &key);
	u8 why = pod->unspliced ? WHY_OPTED_OUT : is_excluded(pod->ifindex, dialled) ? WHY_EXCLUDED_PORT : 0;
	begin_state(w, &key, LEG_SIDECAR, 0, accepts ? port : 0, why);
	struct splice_state *st = splices.lookup(&key);
	if (!st)
		return;
	tag->nonce = st->nonce;
	tag->key = key;
	tag->key.end = accepts ? END_POD : END_PROXY;
}

static __always_inline int between(struct __sk_buff *skb, struct work *w, const struct sock_tag *tag)
{
	u64 cookie = tag->key.netns_cookie;

	w->key.local = tag->key.pod;
	w->key.remote = tag->key.peer;
	w->key.local_port = tag->key.pod_port;
	w->key.remote_port = tag->key.peer_port;
	if (tag->key.end != END_PROXY) {
		if (w->p.payload)
			may_leave_now(&w->key, cookie);
		return PASS;
	}
	if (is_bare_reset(&w->p))
		make_reset_exact(skb, w, cookie);
	if (!waits_to_leave(w, cookie))
		return PASS;
	note_hole(w, cookie);
	return without_payload(skb, &w->p);
}

int sidecar_lo(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	u32 zero = 0;

	if (!sk)
		return PASS;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return PASS;
	u16 dialled = (u16)sk->dst_port;
	struct sock_tag *tag = sidecar_socks.sk_storage_get(sk, 0, 0);
	if (!tag || !(tag->key.netns_cookie & SIDECAR_LEG))
		return PASS;
	struct work *w = take_work(WORK_OF_LOOPBACK);
	if (!w)
		return PASS;
	begin(skb, w, config.lookup(&zero));
	if (read_packet(skb, w) || w->p.kind != KIND_FLOW || w->p.protocol != PROTO_TCP)
		return PASS;
	if (is_new_syn(&w->p)) {
		begin_beside_sidecar(skb, w, tag, dialled);
		return PASS;
	}
	return tag->nonce ? between(skb, w, tag) : PASS;
}
