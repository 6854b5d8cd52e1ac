// SPDX-License-Identifier: GPL-2.0-only
// Services for the sockets of pods: who dials a Service's address gets the address of a backend, before there is a packet. Policy, conntrack and
// splicing see the backend alone. getpeername() and recvfrom() give the Service's address back, from what the socket remembers.
//
// Sockets in the node's own network namespace are left alone, whatever cgroup they are in: pods with host networking are the node, for which
// kube-proxy translates in the OUTPUT chain, and so it does for all that is no TCP or UDP.
// So are those of pods in a mesh that takes what they send (Istio's): a sidecar, or ztunnel, goes by the address that the application dialled.
//
// connect() and sendto() fail at once with ECONNREFUSED where a Service has no backend (bpf_set_retval: in connect and sendmsg programs of Linux 6.1
// and newer; recvmsg and getpeername programs can't fail). connect() with AF_UNSPEC comes to no program, and needs none: what the socket
// remembers counts only where its peer is that backend.
#include "abi.h"
#include "lbabi.h"
#include "packet.h"
#include "parse.h"
#include "maps.h"
#include "lbmaps.h"
#include "lb.h"
#include "lbsocket.h"

// A socket's IPv4 address in an IPv6 socket is an IPv4 one. MPTCP dials by its subflows, which are TCP sockets.
static __always_inline void end_v4(struct bpf_sock_addr *ctx, struct lb_key *end)
{
	mapped(&end->addr, ctx->user_ip4);
	end->port = (u16)ctx->user_port;
	end->protocol = (u8)ctx->protocol;
}

static __always_inline void end_v6(struct bpf_sock_addr *ctx, struct lb_key *end)
{
	end->addr.w[0] = ctx->user_ip6[0];
	end->addr.w[1] = ctx->user_ip6[1];
	end->addr.w[2] = ctx->user_ip6[2];
	end->addr.w[3] = ctx->user_ip6[3];
	end->port = (u16)ctx->user_port;
	end->protocol = (u8)ctx->protocol;
}

static __always_inline void set_v4(struct bpf_sock_addr *ctx, const struct addr *addr, u16 port)
{
	ctx->user_ip4 = addr->w[3];
	ctx->user_port = port;
}

static __always_inline void set_v6(struct bpf_sock_addr *ctx, const struct addr *addr, u16 port)
{
	ctx->user_ip6[0] = addr->w[0];
	ctx->user_ip6[1] = addr->w[1];
	ctx->user_ip6[2] = addr->w[2];
	ctx->user_ip6[3] = addr->w[3];
	ctx->user_port = port;
}

// Whose socket is it? 0: nobody's that gets Services from here.
static __always_inline u64 pod_of(struct bpf_sock_addr *ctx)
{
	u32 zero = 0, protocol = ctx->protocol;
	struct config *cfg = config.lookup(&zero);
	u64 cookie = bpf_get_netns_cookie(ctx);

	if (!cfg || cookie == cfg->node_cookie || (protocol != PROTO_TCP && protocol != PROTO_UDP) || lb_untouched.lookup(&cookie))
		return 0;
	return cookie;
}

int lb_connect4(struct bpf_sock_addr *ctx)
{
	struct lb_peer peer = {};
	u64 cookie = pod_of(ctx);

	if (!cookie)
		return 1;
	end_v4(ctx, &peer.frontend);
	enum lb_answer answer = dial(ctx, cookie, &peer);
	if (answer == LB_FOUND)
		set_v4(ctx, &peer.backend.addr, peer.backend.port);
	return answer != LB_NOBODY;
}

int lb_connect6(struct bpf_sock_addr *ctx)
{
	struct lb_peer peer = {};
	u64 cookie = pod_of(ctx);

	if (!cookie)
		return 1;
	end_v6(ctx, &peer.frontend);
	enum lb_answer answer = dial(ctx, cookie, &peer);
	if (answer == LB_FOUND)
		set_v6(ctx, &peer.backend.addr, peer.backend.port);
	return answer != LB_NOBODY;
}

int lb_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct lb_peer peer = {};
	u64 cookie = pod_of(ctx);

	if (!cookie)
		return 1;
	end_v4(ctx, &peer.frontend);
	enum lb_answer answer = say(ctx, cookie, &peer);
	if (answer == LB_FOUND)
		set_v4(ctx, &peer.backend.addr, peer.backend.port);
	return answer != LB_NOBODY;
}

int lb_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct lb_peer peer = {};
	u64 cookie = pod_of(ctx);

	if (!cookie)
		return 1;
	end_v6(ctx, &peer.frontend);
	enum lb_answer answer = say(ctx, cookie, &peer);
	if (answer == LB_FOUND)
		set_v6(ctx, &peer.backend.addr, peer.backend.port);
	return answer != LB_NOBODY;
}

int lb_release(struct bpf_sock *sk)
{
	if (sk->protocol == PROTO_UDP) {
		u64 socket = bpf_get_socket_cookie(sk);
		lb_connected.delete(&socket);
	}
	return 1;
}

int lb_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct lb_key sender = {}, frontend = {};

	end_v4(ctx, &sender);
	if (answers_for(ctx, &sender, &frontend))
		set_v4(ctx, &frontend.addr, frontend.port);
	return 1;
}

int lb_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct lb_key sender = {}, frontend = {};

	end_v6(ctx, &sender);
	if (answers_for(ctx, &sender, &frontend))
		set_v6(ctx, &frontend.addr, frontend.port);
	return 1;
}

int lb_getpeername4(struct bpf_sock_addr *ctx)
{
	struct lb_key peer = {}, frontend = {};

	end_v4(ctx, &peer);
	if (dialled(ctx, &peer, &frontend))
		set_v4(ctx, &frontend.addr, frontend.port);
	return 1;
}

int lb_getpeername6(struct bpf_sock_addr *ctx)
{
	struct lb_key peer = {}, frontend = {};

	end_v6(ctx, &peer);
	if (dialled(ctx, &peer, &frontend))
		set_v6(ctx, &frontend.addr, frontend.port);
	return 1;
}
