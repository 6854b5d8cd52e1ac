// SPDX-License-Identifier: GPL-2.0-only
// Who has sent a packet that netfilter gave other ends behind from_pod. A masqueraded one has lost its pod's address. So from_pod notes in `tc_index`
// whose it is, and whether its pod is the client: that goes with a packet through bridge, routing and netfilter, also with pieces that it is cut
// into, and not beyond the node. A pod can write it in its own namespace: from_pod sets it first of all.
#pragma once

#define SENDER_BITS 0x3fffu	// of the interface index
#define SENT_BY_CLIENT 0x8000u
#define LED_ON 0x4000u		// it has dialled a Service: nobody has judged yet where that leads
#define HAS_LEFT LED_ON		// alone: to_network has let it go, here or at a device above

// The interface whose index has these bits: the one that opened a connection last, for indexes that need more.
BPF_TABLE("array", u32, u32, senders, SENDER_BITS + 1);

// In `tc_classid`, too: where a TCX program behind ours accepts the packet, the kernel writes `tc_index` from there (tcx_action_code).
static __always_inline void set_note(struct __sk_buff *skb, u32 note)
{
	skb->tc_index = note;
	skb->tc_classid = note;
}

static __always_inline void sent_by(struct __sk_buff *skb)
{
	set_note(skb, skb->ifindex & SENDER_BITS);
}

static __always_inline void sent_by_client(struct __sk_buff *skb, u32 deferred)
{
	u32 ifindex = skb->ifindex, bits = ifindex & SENDER_BITS;
	u32 *last = senders.lookup(&bits);

	if (last && *last != ifindex)
		*last = ifindex;
	set_note(skb, bits | SENT_BY_CLIENT | (deferred ? LED_ON : 0));
}

static __always_inline int is_led_on(struct __sk_buff *skb)
{
	u32 both = SENT_BY_CLIENT | LED_ON;

	return (skb->tc_index & both) == both;
}

// By an entry of SIDE_POD: does its end know itself to be the client? A server must not be taken for one: its answers are not judged.
static __always_inline int is_client(u8 flags)
{
	return (flags & (CT_CLIENT | CT_UNSEEN)) == CT_CLIENT;
}

static __always_inline int is_sender(struct __sk_buff *skb, u32 ifindex)
{
	u32 tag = skb->tc_index & SENDER_BITS;

	return tag && tag == (ifindex & SENDER_BITS);
}

// The endpoint's interface that a client's packet came in by, or 0: the packet says it, too, unless a bridge, or what else there is between the
// pod and the node's own end, has given it another one.
static __always_inline u32 find_sender(struct __sk_buff *skb)
{
	u32 in = skb->ingress_ifindex, bits = skb->tc_index & SENDER_BITS;

	if (in && is_sender(skb, in) && endpoints.lookup(&in))
		return in;
	u32 *last = senders.lookup(&bits);
	u32 ifindex = last && *last ? *last : bits;
	return endpoints.lookup(&ifindex) ? ifindex : 0;
}

// Is there something in the note's place that nobody of ours has written? Behind a TCX program of others that accepts at a bridge's ingress the kernel
// fills it from what the bridge has left in the packet. Where there may be such ones nothing is left to be judged by it (notes.py).
static __always_inline int is_no_note(struct __sk_buff *skb, const struct work *w)
{
	return (skb->tc_index & SENT_BY_CLIENT) && !(w->mode & CONFIG_NOTES_STAY) && !find_sender(skb);
}

static __always_inline u16 server_port(const struct packet *p)
{
	return p->icmp ? htons(p->icmp) : p->outer.dport;
}

// The client's half of the verdict for a packet that has lost its address, by the server that it goes to now. Returns 0 or the reason to drop it.
// Rules for HTTP can't be asked any more: the proxy would not know whose.
static __always_inline int judge_sender(struct __sk_buff *skb, struct work *w)
{
	u32 ifindex = find_sender(skb), slot = w->generation & 1;
	struct endpoint *ep = endpoints.lookup(&ifindex);
	struct party server;

	if (!ep)
		return NO_ENDPOINT;
	find_party(&w->p.outer.dst, slot, &server);
	w->f.src_identity = ep->identity[slot];
	w->f.dst_identity = server.identity;
	w->f.remote_ifindex = ifindex;
	w->d.verdict = ALLOW;
	w->d.reason = NO_POLICY;
	if (!(ep->enforce[slot] & ENFORCE_READY))
		return NOT_READY;
	if (!(ep->enforce[slot] & ENFORCE_EGRESS))
		return 0;
	if (!server.identity)
		return NO_IDENTITY;
	decide_one(ep->policy[slot], EGRESS, server.identity, w->p.protocol, server_port(&w->p), slot, &w->d);
	if (w->d.verdict == DENY)
		return w->d.reason;
	if (only_audited(&w->d))
		pass_by(&w->d);
	return w->d.verdict == REDIRECT ? NOT_STEERED : 0;
}

// At a pod: the egress policy of a pod of this node that is the client under another address. The server's own policy comes after this.
static __always_inline int masqueraded_sender(struct __sk_buff *skb, struct work *w, u32 known)
{
	struct party client;

	if (!(skb->tc_index & SENT_BY_CLIENT))
		return 0;
	find_party(&w->p.outer.src, w->generation & 1, &client);
	if (client.ifindex || is_no_note(skb, w))
		return 0;
	int reason = judge_sender(skb, w);
	w->f.remote_ifindex = 0;
	if (!reason && !known && is_led_on(skb))	// else from_pod has
		report(HOOK_TO_POD, &w->f, &w->d);
	if (!reason)
		w->d = (struct decision){};
	return reason;
}

// The proxy has dialled `real`, which led elsewhere: has it asked other rules than those for where that is? What it asked was said by the verdict
// on what it dialled.
static __always_inline int asked_others(const struct work *w, const struct tuple *real)
{
	const struct tuple *t = &w->p.outer;
	u32 slot = w->generation & 1;
	struct decision asked = {}, wanted = {};
	struct party client, server;

	if (same_addr(&real->dst, &t->dst) && real->dport == t->dport)
		return 0;
	find_party(&real->src, slot, &client);
	masqueraded(&real->src, &client);
	find_party(&real->dst, slot, &server);
	decide(&client, &server, PROTO_TCP, real->dport, slot, &asked);
	find_party(&t->dst, slot, &server);
	decide(&client, &server, PROTO_TCP, t->dport, slot, &wanted);
	if (wanted.verdict == REDIRECT)
		return asked.verdict != REDIRECT || asked.rule_set != wanted.rule_set;
	return wanted.verdict != ALLOW;
}

#define PORT_VXLAN 4789
#define PORT_VXLAN_LINUX 8472	// Linux's default, flannel's and Cilium's
#define PORT_VXLAN_GPE 4790
#define PORT_GENEVE 6081
#define PORT_ESP_IN_UDP 4500

static __always_inline int is_tunnel_port(u8 protocol, u16 dport)
{
	u16 port = ntohs(dport);

	return protocol == PROTO_UDP && (port == PORT_VXLAN || port == PORT_VXLAN_LINUX || port == PORT_VXLAN_GPE || port == PORT_GENEVE);
}

static __always_inline int is_tunnel_packet(const struct packet *p)
{
	if (p->protocol == PROTO_UDP)
		return is_tunnel_port(p->protocol, p->outer.dport);
	return p->protocol == PROTO_IPIP || p->protocol == PROTO_IPV6 || p->protocol == PROTO_GRE || p->protocol == PROTO_ETHERIP ||
	       p->protocol == PROTO_MPLS;
}

// An address by which the node may be meant whatever its identity is: multicast, broadcast, link-local.
static __always_inline int is_of_the_link(const struct addr *a)
{
	return reaches_many(a) || (is_mapped(a) && ntohl(a->w[3]) >= 0xf0000000);	// 240.0.0.0/4: nobody's, or a broadcast's
}

// A tunnel from a pod to a node: its end would take what is inside for another node's. Pods may have tunnels among themselves, and to the world.
static __always_inline int is_tunnel(const struct work *w)
{
	struct party node;

	if (w->p.kind != KIND_FLOW || !is_tunnel_packet(&w->p))
		return 0;
	find_party(&w->p.outer.dst, w->generation & 1, &node);
	return !node.identity || is_nodes(node.identity, node.ifindex) || node.identity == IDENTITY_REMOTE_NODE ||
	       node.identity == IDENTITY_UNMANAGED || is_of_the_link(&w->p.outer.dst);
}
