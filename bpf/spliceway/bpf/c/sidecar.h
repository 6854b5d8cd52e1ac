// SPDX-License-Identifier: GPL-2.0-only
// Connections inside a pod, between its application and its sidecar (Istio's). They are spliced by the same machine as those between pods and the
// node's proxy: END_POD is the application, END_PROXY the sidecar.
//
// The two ends have tuples that don't mirror each other: netfilter gives the application's packets another destination, and where two of its
// connections share a port, another source port, too. So the opening socket is known by what it is, not by its tuple: when it dials it gets a
// storage entry; sidecar_lo (sidecar_lo.h) sees its SYN behind the translation, makes the state entry under the ends that the accepting socket
// will have, and notes that in the opening socket. The accepting end belongs to it only if both initial sequence numbers are the same: 64 bits
// that nobody in the pod chooses.
#pragma once

#define SO_KEEPALIVE 9

// A pod's socket dials; what it was an end of before (connect() with AF_UNSPEC) it is no more.
static __always_inline void dials_beside_sidecar(struct bpf_sock *sk, u64 cookie)
{
	struct sidecar_pod *pod = sidecar_pods.lookup(&cookie);
	struct sock_tag none = {}, *tag;

	tag = sidecar_socks.sk_storage_get(sk, &none, pod ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (!tag)
		return;
	tag->nonce = 0;
	tag->key.netns_cookie = pod ? cookie | SIDECAR_LEG : 0;
}

// Is this socket the sidecar's? By its owner, as netfilter's rules know it.
static __always_inline int is_of_uid(const struct splice_end *s, u32 uid)
{
#ifdef MEASURED
	u32 owner = 0;

	return !bpf_probe_read_kernel(&owner, sizeof(owner), (void *)(s->address + SOCK_UID)) && owner == uid;
#else
	return 0;
#endif
}

// Nothing of this connection is spliced, as if a byte had been quicker.
static __always_inline void not_this_one(struct splice_state *st, const struct splice_key *key, u8 why)
{
	struct splice_key opener = *key;

	if (!swap(st, UNDECIDED, TCP_ONLY) && !swap(st, ACTIVE_IN, TCP_ONLY))
		return;
	count_tcp_only(st, why);
	opener.end = st->port ? END_POD : END_PROXY;
	take_out(st, &opener);
}

// Netfilter sees nothing of spliced bytes, and forgets a translation that has had no packet for long (five days): the end of the connection would go
// to where the application had dialled, untranslated. So the sidecar's kernel asks now and then whether its peer is there, as often as it is set to.
static __always_inline void keep_translated(struct bpf_sock_ops *s)
{
	u32 on = 1;

	bpf_setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

// An accepted socket of a pod with a sidecar: is it the other end of something that begins inside of the pod?
static __always_inline int accepts_beside_sidecar(struct bpf_sock_ops *s, u64 cookie, struct splice_key *key)
{
	struct sidecar_pod *pod = sidecar_pods.lookup(&cookie);
	struct sock_tag none = {}, *tag;
	struct bpf_sock *sk = s->sk;
	struct addr local, remote;
	u16 local_port, remote_port;

	if (!pod || !sk)
		return 0;
	sock_tuple(s, &local, &remote, &local_port, &remote_port);
	u32 sidecar = local_port == htons(SIDECAR_OUTBOUND) || local_port == htons(SIDECAR_INBOUND);
	key->netns_cookie = cookie | SIDECAR_LEG;
	key->pod = sidecar ? remote : local;
	key->peer = sidecar ? local : remote;
	key->pod_port = sidecar ? remote_port : local_port;
	key->peer_port = sidecar ? local_port : remote_port;
	key->end = sidecar ? END_PROXY : END_POD;
	struct splice_state *st = state_of(key);
	if (!st)
		return 0;
	if (ntohl(st->isn) + 1 != s->rcv_nxt || st->answer != s->snd_nxt) {
		not_this_one(st, key, WHY_OTHER_SOCKET);
		return 0;
	}
	st->sock[key->end & 1].address = (u64)(unsigned long)sk;
	asm volatile("" ::: "memory");		// a pointer's field can't be read like that, an address from a map can
	if (is_of_uid(&st->sock[key->end & 1], pod->uid) != !!sidecar && !(pod->uid == 0 && !sidecar)) {
		not_this_one(st, key, WHY_NOT_SIDECAR);
		return 0;
	}
	tag = sidecar_socks.sk_storage_get(sk, &none, BPF_SK_STORAGE_GET_F_CREATE);
	if (!tag) {
		not_this_one(st, key, WHY_MAP_ERROR);
		return 0;
	}
	tag->nonce = st->nonce;
	tag->key = *key;
	if (sidecar)
		keep_translated(s);
	return 1;
}

// Is this socket an end of such a connection? Then `key` is its.
static __always_inline int is_sidecar_leg(struct bpf_sock_ops *s, u64 cookie, struct splice_key *key)
{
	struct bpf_sock *sk = s->sk;

	if (s->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return accepts_beside_sidecar(s, cookie, key);
	struct sock_tag *tag = sk ? sidecar_socks.sk_storage_get(sk, 0, 0) : NULL;
	if (!tag || !tag->nonce)
		return 0;
	*key = tag->key;
	struct splice_state *st = state_of(key);
	if (!st || st->nonce != tag->nonce)
		return 0;
	if (s->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		st->answer = s->rcv_nxt;
	return 1;
}
