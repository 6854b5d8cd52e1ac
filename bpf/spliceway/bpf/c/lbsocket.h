// SPDX-License-Identifier: GPL-2.0-only
// What sockets remember of Services. The kernel holds the socket's lock while these run.
#pragma once

#define LB_CONNECTED 1		// TCP_ESTABLISHED: the state of a connected UDP socket, too
#define E_NO_MEMORY (-12)
#define E_REFUSED (-111)

static __always_inline void note(struct bpf_sock_addr *ctx, const struct lb_peer *peer)
{
	struct lb_backend_key backend = { .set = peer->set, .number = peer->number };
	u64 socket = bpf_get_socket_cookie(ctx);

	lb_connected.update(&socket, &backend);
}

static __always_inline void forget(struct bpf_sock_addr *ctx)
{
	u64 socket = bpf_get_socket_cookie(ctx);

	lb_connected.delete(&socket);
}

// connect(): what the socket dialled before is forgotten, unless nothing comes of this one.
static __always_inline enum lb_answer dial(struct bpf_sock_addr *ctx, u64 cookie, struct lb_peer *peer)
{
	struct bpf_sock *sk = ctx->sk;
	struct lb_peer *own;

	if (!sk)
		return LB_OTHER;
	enum lb_answer answer = choose(cookie, peer);
	if (answer == LB_OTHER) {
		if (lb_peers.sk_storage_get(sk, 0, 0)) {
			lb_peers.sk_storage_delete(sk);
			forget(ctx);
		}
	} else if (answer == LB_FOUND) {
		own = lb_peers.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (!own) {
			bpf_set_retval(E_NO_MEMORY);
			return LB_NOBODY;
		}
		*own = *peer;
		if (ctx->protocol == PROTO_UDP)
			note(ctx, peer);
	}
	if (answer == LB_NOBODY)
		bpf_set_retval(E_REFUSED);
	return answer;
}

// sendto(): a socket keeps its backend for a frontend as long as that is one.
static __always_inline enum lb_answer say(struct bpf_sock_addr *ctx, u64 cookie, struct lb_peer *peer)
{
	struct bpf_sock *sk = ctx->sk;
	struct lb_frontend *frontend = lb_frontends.lookup(&peer->frontend);
	u32 i;

	if (!frontend || !sk)
		return LB_OTHER;
	u32 set = LB_SET(frontend->word);
	struct lb_peer *own = sk->state == LB_CONNECTED ? lb_peers.sk_storage_get(sk, 0, 0) : NULL;
	if (own) {
		// A dual-stack socket's send() comes here with its peer's address. That is a backend already.
		if (same_addr(&own->backend.addr, &peer->frontend.addr) && own->backend.port == peer->frontend.port)
			return LB_OTHER;
		// A connected socket hears nobody but its peer.
		if (same_frontend(&own->frontend, &peer->frontend)) {
			peer->backend = own->backend;
			return LB_FOUND;
		}
	}
	struct lb_talks *talks = lb_socket_talks.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!talks) {
		bpf_set_retval(E_NO_MEMORY);	// its answers would come from a stranger
		return LB_NOBODY;
	}
	for (i = 0; i < LB_TALKS; i++)
		if (same_frontend(&talks->talk[i].frontend, &peer->frontend))
			break;
	int is_new = i >= LB_TALKS;
	if (!is_new && find_backend(set, talks->talk[i].number, &peer->backend) && same_backend(&peer->backend, &talks->talk[i].backend)) {
		talks->last = i;
		return LB_FOUND;
	}
	enum lb_answer answer = choose(cookie, peer);
	if (answer == LB_NOBODY)
		bpf_set_retval(E_REFUSED);
	if (answer != LB_FOUND)
		return answer;
	u32 at = (is_new ? talks->next++ : i) & (LB_TALKS - 1);
	asm volatile("" : "+r"(at));
	at &= LB_TALKS - 1;
	talks->talk[at] = *peer;
	talks->last = at;
	return LB_FOUND;
}

static __always_inline int is_from(const struct lb_peer *peer, const struct lb_key *sender)
{
	return same_addr(&peer->backend.addr, &sender->addr) && peer->backend.port == sender->port && sender->port;
}

// What did a connected socket dial, if it reached `sender` by that? The entry also outlives the Service.
static __always_inline int dialled(struct bpf_sock_addr *ctx, const struct lb_key *sender, struct lb_key *frontend)
{
	struct bpf_sock *sk = ctx->sk;
	struct lb_peer *own = sk ? lb_peers.sk_storage_get(sk, 0, 0) : NULL;

	if (!own || !is_from(own, sender))
		return 0;
	*frontend = own->frontend;
	return 1;
}

// Whom does a datagram from `sender` answer for? Of two frontends with one backend it is the one that was asked last.
static __always_inline int answers_for(struct bpf_sock_addr *ctx, const struct lb_key *sender, struct lb_key *frontend)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return 0;
	if (sk->state == LB_CONNECTED)
		return dialled(ctx, sender, frontend);
	struct lb_talks *talks = lb_socket_talks.sk_storage_get(sk, 0, 0);
	if (!talks)
		return 0;
	u32 last = talks->last;
	asm volatile("" : "+r"(last));
	last &= LB_TALKS - 1;
	if (is_from(&talks->talk[last], sender)) {
		*frontend = talks->talk[last].frontend;
		return 1;
	}
	for (u32 i = 0; i < LB_TALKS; i++)
		if (is_from(&talks->talk[i], sender)) {
			*frontend = talks->talk[i].frontend;
			return 1;
		}
	return 0;
}
