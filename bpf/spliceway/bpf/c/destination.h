// SPDX-License-Identifier: GPL-2.0-only
// Where a connection that the proxy has accepted wanted to go. Envoy asks netfilter (SO_ORIGINAL_DST), and that knows something else: what is steered
// is not tracked, but its answers are. Once one has left, netfilter has taken it for the first packet of a connection, and the client for where
// that goes. Of a connection that was translated before it was steered it names the Service. What was judged is the socket's own address.
#pragma once

#define SOL_IP 0
#define SOL_IPV6 41
#define SO_ORIGINAL_DST 80	// IP6T_SO_ORIGINAL_DST as well
#define SOCKADDR_IN 16
#define SOCKADDR_IN6 28

// Returns the length of what was written, 0: it is not for us to answer.
static __always_inline u32 tell_destination(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
	u32 *out = ctx->optval;

	if (ctx->level == SOL_IP && sk->family == 2 && (void *)(out + SOCKADDR_IN / 4) <= ctx->optval_end) {
		out[0] = 2 | (u32)htons(sk->src_port) << 16;
		out[1] = sk->src_ip4;
		out[2] = out[3] = 0;
		return SOCKADDR_IN;
	}
	if (ctx->level == SOL_IPV6 && sk->family == 10 && (void *)(out + SOCKADDR_IN6 / 4) <= ctx->optval_end) {
		out[0] = 10 | (u32)htons(sk->src_port) << 16;
		out[1] = 0;	// flow
		out[2] = sk->src_ip6[0];
		out[3] = sk->src_ip6[1];
		out[4] = sk->src_ip6[2];
		out[5] = sk->src_ip6[3];
		out[6] = 0;	// scope
		return SOCKADDR_IN6;
	}
	return 0;
}
