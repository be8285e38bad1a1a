// SPDX-License-Identifier: Apache-2.0

package installed

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/automaton"
	"kmesh/helper/mesh"
)

const testRoot = "/sys/fs/bpf"

func TestMain(m *testing.M) {
	if err := bpf.CheckBPFFS(testRoot); err != nil {
		fmt.Fprintln(os.Stderr, "these tests need root and a bpffs:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// bed has tables that are filled by hand, as the publisher would fill them.
type bed struct {
	testing.TB
	*Tables
	dir  string
	pods *apiv1.PodsResponse

	nextID                  uint32
	programs, routes, share uint32 // used so far
	slots                   int
}

func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{
		TB: t, nextID: 1,
		dir: fmt.Sprintf("%s/kmesh_installed_%d_%d", testRoot, os.Getpid(), time.Now().UnixNano()),
		pods: &apiv1.PodsResponse{Pods: []*apiv1.Pod{
			{Namespace: "shop", Name: "web", NetnsCookie: 7},
			{Namespace: "shop", Name: "away", NetnsCookie: 9}, // enrolled, but not in km_pods
		}},
	}
	rt, err := bpf.Load(bpf.LoadOptions{BPFFS: b.dir})
	b.must(err)
	t.Cleanup(func() {
		rt.Close()
		if err := os.RemoveAll(b.dir); err != nil {
			t.Error(err)
		}
	})
	b.Tables, err = New(Options{
		Runtime: rt,
		Pods:    func(context.Context) (*apiv1.PodsResponse, error) { return b.pods, nil },
	})
	b.must(err)
	b.pod(7, 0)
	return b
}

func (b *bed) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bed) pod(cookie uint64, scope uint32) {
	b.Helper()
	pods, err := bpf.OpenPods(b.dir)
	b.must(err)
	defer pods.Close()
	b.must(pods.Put(cookie, bpf.Pod{Scope: scope}))
}

func (b *bed) id() uint32 { b.nextID++; return b.nextID - 1 }

// name makes an id with a name in the default scope.
func (b *bed) name(kind uint8, text string) uint32 {
	b.Helper()
	id := b.id()
	v := bpf.Name{Kind: kind, Len: uint8(len(text))}
	copy(v.Name[:], text)
	b.must(b.rt.Names.Put(id, &v))
	return id
}

// cluster makes a cluster of endpoints, or of the kind.
func (b *bed) cluster(name string, kind uint8, endpoints ...string) uint32 {
	b.Helper()
	id := b.name(bpf.NameCluster, name)
	mem := b.rt.SlotMemory()
	slots := unsafe.Slice((*bpf.Slot)(unsafe.Pointer(&mem[0])), len(mem)/16)
	v := bpf.Cluster{Kind: kind, Policy: bpf.PolicyRandom, V4: bpf.Extent{Offset: uint32(b.slots), N: uint32(len(endpoints))}}
	for _, text := range endpoints {
		addr := netip.MustParseAddrPort(text)
		e := bpf.Endpoint{Cluster: id, Port: bpf.PortWord(addr.Port())}
		e.Addr, e.Family = bpf.AddrWords(addr.Addr())
		slots[b.slots].Endpoint = b.id()
		b.must(b.rt.Endpoints.Put(slots[b.slots].Endpoint, &e))
		b.slots++
	}
	b.must(b.rt.Clusters.Put(id, &v))
	return id
}

// service makes a service at frontends ("10.0.0.1:80", or a prefix "10.0.0.0/8 80").
func (b *bed) service(name string, flags uint32, guess []bpf.Share, frontends ...string) uint32 {
	b.Helper()
	id := b.name(bpf.NameService, name)
	v := bpf.Service{Flags: flags, N: uint32(len(guess))}
	for i, s := range guess {
		v.Shares[i] = s
		v.Total += s.Weight
	}
	b.must(b.rt.Services.Put(id, &v))
	for _, f := range frontends {
		b.frontend(0, f, id)
	}
	return id
}

func (b *bed) frontend(scope uint32, text string, service uint32) {
	b.Helper()
	prefix, port, ok := strings.Cut(text, " ")
	if !ok {
		k := frontendKey(scope, text)
		b.must(b.rt.Frontends.Put(&k, service))
		return
	}
	p := netip.MustParsePrefix(prefix)
	k := bpf.PrefixKey{Prefixlen: uint32(bpf.PrefixFixedBits + p.Bits()), Scope: scope, Proto: protoTCP}
	k.Addr, k.Family = bpf.AddrWords(p.Addr())
	if port != "*" {
		k.Port = bpf.PortWord(netip.MustParseAddrPort("0.0.0.0:" + port).Port())
	}
	b.must(b.rt.Prefixes.Put(&k, service))
}

func frontendKey(scope uint32, text string) bpf.FrontendKey {
	a := netip.MustParseAddrPort(text)
	k := bpf.FrontendKey{Scope: scope, Proto: protoTCP, Port: bpf.PortWord(a.Port())}
	k.Addr, k.Family = bpf.AddrWords(a.Addr())
	return k
}

// http installs the routing of a service; flags beside HTTPIgnorePort. Each route goes
// to the clusters that it names, which are made when they are new.
func (b *bed) http(service uint32, flags uint32, cfg *mesh.HTTP, clusters map[string]uint32) {
	b.Helper()
	h := bpf.HTTP{Flags: flags}
	if cfg.IgnorePort {
		h.Flags |= bpf.HTTPIgnorePort
	}
	for _, vh := range cfg.VirtualHosts {
		id := b.vhost(vh, clusters)
		for _, domain := range vh.Domains {
			kind, name := bpf.HostExact, domain
			switch {
			case domain == "*":
				h.Star = id
				continue
			case domain[0] == '*':
				kind, name = bpf.HostSuffix, domain[1:]
				h.Suffixes[len(name)/64] |= 1 << (len(name) % 64)
			case domain[len(domain)-1] == '*':
				kind, name = bpf.HostPrefix, domain[:len(domain)-1]
				h.Prefixes[len(name)/64] |= 1 << (len(name) % 64)
			}
			if len(name) > bpf.ShortHost {
				k := bpf.LongHostKey{Service: service, Kind: kind, Len: uint16(len(name))}
				copy(k.Name[:], strings.ToLower(name))
				b.must(b.rt.LongHosts.Put(&k, id))
				continue
			}
			k := bpf.HostKey{Service: service, Kind: kind, Len: uint16(len(name))}
			copy(k.Name[:], strings.ToLower(name))
			b.must(b.rt.Hosts.Put(&k, id))
		}
	}
	b.must(b.rt.HTTP.Put(service, &h))
}

func (b *bed) vhost(vh *mesh.VirtualHost, clusters map[string]uint32) uint32 {
	b.Helper()
	p, err := automaton.Compile(vh, automaton.Budget{})
	b.must(err)
	if int(b.programs)+len(p.Bytes) > bpf.SlabSize {
		b.programs = 0 // over those that are no longer needed
	}
	const slab = 1 // not the first one
	copy(b.rt.SlabMemory()[slab*bpf.SlabSize+int(b.programs):], p.Bytes)
	v := bpf.VHost{Slab: slab, Program: b.programs, Generation: 5, N_routes: uint32(len(vh.Routes)), Routes: b.routes}
	b.programs = (b.programs + uint32(len(p.Bytes)) + automaton.Align - 1) / automaton.Align * automaton.Align
	for i, r := range vh.Routes {
		name := r.Name
		if name == "" {
			name = fmt.Sprintf("#%d", i)
		}
		out := bpf.Route{Id: b.name(bpf.NameRoute, vh.Name+"/"+name), Shares: b.share, N_shares: uint32(len(r.Clusters))}
		for _, c := range r.Clusters {
			if clusters[c.Cluster] == 0 {
				clusters[c.Cluster] = b.cluster(c.Cluster, bpf.KindEndpoints, "10.1.0.1:8080")
			}
			b.rt.Shares()[b.share] = bpf.Share{Cluster: clusters[c.Cluster], Weight: c.Weight}
			b.share++
			out.Total += c.Weight
		}
		if f := r.Match.Fraction; f != nil {
			out.Fraction = uint32(uint64(f.Numerator) << 32 / uint64(f.Denominator))
			if f.Numerator == 0 {
				out.Never = 1
			}
		}
		if r.Unsupported {
			out.Kind = bpf.RouteUnsupported
		}
		b.rt.Routes()[b.routes] = out
		b.routes++
	}
	id := b.id()
	b.must(b.rt.VHosts.Put(id, &v))
	return id
}

// reply makes a prepared answer of parts; text is filled in where a part has text.
func (b *bed) reply(status uint16, parts ...any) uint32 {
	b.Helper()
	id := bpf.ReplyFirst + b.id()
	r := bpf.Reply{Status: status, N_parts: uint16(len(parts))}
	used := 0
	for i, p := range parts {
		switch p := p.(type) {
		case string:
			r.Parts[i] = bpf.Part{Kind: bpf.PartText, From: uint16(used), Len: uint16(len(p))}
			used += copy(r.Text[used:], p)
		case bpf.Part:
			r.Parts[i] = p
		}
	}
	b.must(b.rt.Replies.Put(id, &r))
	return id
}

// flow writes an element of km_flows, and says that it is in use.
func (b *bed) flow(slot uint32, f bpf.Flow) bpf.FlowRef {
	b.Helper()
	b.rt.Flows()[slot] = f
	var limits bpf.Limits
	b.must(b.rt.Map("km_limits").Lookup(uint32(0), &limits))
	limits.NextFlow = max(limits.NextFlow, slot+1)
	b.must(b.rt.Map("km_limits").Put(uint32(0), &limits))
	return bpf.FlowRef{Slot: slot, Generation: f.Generation}
}
