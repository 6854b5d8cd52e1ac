// SPDX-License-Identifier: GPL-2.0-only
// L3/L4 policy and steering: from_pod, to_pod and from_network (TC), and the guard of the listeners (sk_lookup).
#include "abi.h"
#include "packet.h"
#include "parse.h"
#include "maps.h"
#include "account.h"
#include "decide.h"
#include "conntrack.h"
#include "steer.h"
#include "work.h"
#include "from_pod.h"
#include "to_pod.h"
#include "from_network.h"

// Runs when a packet for the node finds no connection and looks for a listener. Steered packets carry their socket and never come
// here, so whatever arrives at a listener's port dialled it directly.
int guard(struct bpf_sk_lookup *ctx)
{
	u32 zero = 0;
	struct config *cfg = config.lookup(&zero);

	if (!cfg || ctx->protocol != PROTO_TCP || !(ctx->remote_port | ctx->remote_ip4 | ctx->remote_ip6[3]))
		return SK_PASS;
	if (ctx->local_port < cfg->first_port || ctx->local_port > cfg->last_port)
		return SK_PASS;
	count(HOOK_SK_LOOKUP, DENY, NOT_FOR_LISTENERS, 0);
	return SK_DROP;
}
