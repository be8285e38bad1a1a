// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	addressType       = "type.googleapis.com/istio.workload.Address"
	authorizationType = "type.googleapis.com/istio.security.Authorization"
)

// texts is a consumer of types that are not Envoy's: one string in a message.
type texts struct {
	mu   sync.Mutex
	have map[string]string
}

func (c *texts) Apply(_ context.Context, updates ...Update) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var bad Rejected
	for _, u := range updates {
		for _, r := range u.Resources {
			value := r.Message.(*wrapperspb.StringValue).GetValue()
			if strings.HasPrefix(value, "bad") {
				bad = append(bad, r.Verdict("value", "begins with bad"))
				continue
			}
			c.have[short(u.Type)+" "+r.Name] = value
		}
		for _, name := range u.Removed {
			delete(c.have, short(u.Type)+" "+name)
		}
		if u.Complete {
			return fmt.Errorf("complete in delta")
		}
	}
	if len(bad) > 0 {
		return bad
	}
	return nil
}

func (c *texts) Wanted(string) []string  { return nil }
func (c *texts) Absent(string, []string) {}

func (c *texts) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, k := range slices.Sorted(maps.Keys(c.have)) {
		out = append(out, k+"="+c.have[k])
	}
	return strings.Join(out, ", ")
}

// TestOtherTypes: a delta stream of types that this package does not know, which have
// no names inside: subscribed as a whole, removed by name, versioned by the server.
func TestOtherTypes(t *testing.T) {
	st := newStage(t, "")
	decode := Named(func() *wrapperspb.StringValue { return &wrapperspb.StringValue{} })
	s := client(t, Delta, func(o *ServerOptions) {
		o.Types = []Type{{URL: addressType, Decode: decode}, {URL: authorizationType, Decode: decode}}
	}, st.addr)
	c := &texts{have: map[string]string{}}
	run(t, s, c)
	k := enter(t, st.delta)
	for _, want := range []string{addressType, authorizationType} {
		if q := k.next(); q.GetTypeUrl() != want || len(q.GetResourceNamesSubscribe()) != 0 {
			t.Errorf("request %v", q)
		}
	}
	of := func(typ, name, version, value string) *discoveryv3.Resource {
		data, err := proto.Marshal(wrapperspb.String(value))
		if err != nil {
			t.Fatal(err)
		}
		return &discoveryv3.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: typ, Value: data}}
	}
	say := func(typ, nonce string, removed []string, resources ...*discoveryv3.Resource) *discoveryv3.DeltaDiscoveryRequest {
		k.say(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: typ, Nonce: nonce, Resources: resources, RemovedResources: removed})
		q := k.next()
		if q.GetTypeUrl() != typ || q.GetResponseNonce() != nonce {
			t.Errorf("answer %v", q)
		}
		return q
	}
	const pod, service = "Kubernetes//Pod/default/a", "default/a.default.svc.cluster.local"
	if q := say(addressType, "1", nil, of(addressType, pod, "v1", "pod"), of(addressType, service, "v2", "service")); q.ErrorDetail != nil {
		t.Errorf("answer %v", q)
	}
	say(authorizationType, "2", nil, of(authorizationType, "ns/allow", "", "rule")) // versions may be empty
	if got := c.String(); got != "Address "+pod+"=pod, Address "+service+"=service, Authorization ns/allow=rule" {
		t.Errorf("have %s", got)
	}
	// The first is rejected by the consumer, the second cannot be decoded, the third is
	// of another type, the fourth has no name, the fifth is good.
	q := say(addressType, "3", nil, of(addressType, pod, "v3", "bad"), &discoveryv3.Resource{Name: "garbled", Version: "v3", Resource: garbage(addressType)},
		of(authorizationType, "other", "v3", "x"), of(addressType, "", "v3", "x"), of(addressType, service, "v3", "newer"))
	if !contains(q.GetErrorDetail().GetMessage(), `"`+pod+`": value`, `"garbled"`, `"other"`, "has no name") || strings.Contains(q.GetErrorDetail().GetMessage(), service) {
		t.Errorf("detail %s", q.GetErrorDetail().GetMessage())
	}
	say(authorizationType, "4", []string{"ns/allow", "ns/unheard-of"})
	say(addressType, "5", nil, &discoveryv3.Resource{Name: service, Ttl: durationpb.New(1)})
	if got := c.String(); got != "Address "+pod+"=pod, Address "+service+"=newer" {
		t.Errorf("have %s", got)
	}
	k.hang(nil)
	k = enter(t, st.delta)
	if got := k.next().GetInitialResourceVersions(); !maps.Equal(got, map[string]string{pod: unclaimed, service: "v3"}) {
		t.Errorf("initial versions %v", got)
	}
	if got := k.next().GetInitialResourceVersions(); len(got) != 0 {
		t.Errorf("initial versions %v", got)
	}
}

// TestKept: what a server has, and what cannot be used of it, is not what it does not have.
func TestKept(t *testing.T) {
	st := newStage(t, "")
	got := make(chan Update, 10)
	decode := Named(func() *wrapperspb.StringValue { return &wrapperspb.StringValue{} })
	s := client(t, Delta, func(o *ServerOptions) { o.Types = []Type{{URL: addressType, Decode: decode}} }, st.addr)
	run(t, s, applied(func(u Update) { got <- u }))
	k := enter(t, st.delta)
	k.next()
	good := &anypb.Any{TypeUrl: addressType, Value: []byte("\x0a\x01x")}
	k.say(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: addressType, Nonce: "1",
		Resources: []*discoveryv3.Resource{
			{Name: "good", Resource: good}, {Name: "garbled", Resource: garbage(addressType)}, {Name: "alive", Ttl: durationpb.New(1)}, {Resource: garbage(addressType)},
		},
		ResourceErrors: []*discoveryv3.ResourceError{{ResourceName: &discoveryv3.ResourceName{Name: "failed"}}},
	})
	k.next()
	u := <-got
	if slices.Sort(u.Kept); !slices.Equal(u.Kept, []string{"", "alive", "failed", "garbled"}) {
		t.Errorf("kept %q", u.Kept)
	}
	if len(u.Resources) != 1 || u.Resources[0].Name != "good" || string(u.Resources[0].Raw) != string(good.Value) {
		t.Errorf("resources %+v", u.Resources)
	}
}

// applied is a consumer that sees updates.
type applied func(Update)

func (f applied) Apply(_ context.Context, updates ...Update) error {
	for _, u := range updates {
		f(u)
	}
	return nil
}
func (applied) Wanted(string) []string  { return nil }
func (applied) Absent(string, []string) {}

// FuzzResponse: whatever a response holds, in both protocols, it is answered exactly
// once with its nonce, and nothing without a name is used.
func FuzzResponse(f *testing.F) {
	add := func(m proto.Message) {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, true)
		f.Add(data, false)
	}
	one, err := anypb.New(edsCluster("a"))
	if err != nil {
		f.Fatal(err)
	}
	bad, err := anypb.New(broken("b"))
	if err != nil {
		f.Fatal(err)
	}
	wrapped, err := anypb.New(&discoveryv3.Resource{Name: "a", Resource: one})
	if err != nil {
		f.Fatal(err)
	}
	add(&discoveryv3.DiscoveryResponse{TypeUrl: ClusterType, VersionInfo: "1", Nonce: "n", Resources: []*anypb.Any{one, bad, wrapped, garbage(ClusterType), {}}})
	add(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: ClusterType, SystemVersionInfo: "1", Nonce: "n", RemovedResources: []string{"a", "c"},
		Resources: []*discoveryv3.Resource{{Name: "a", Version: "1", Resource: one}, {Name: "b", Resource: bad}, {Resource: wrapped}, {Name: "d"}, {Ttl: durationpb.New(1), Name: "e"}}})
	add(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: AssignmentType, Nonce: "n", RemovedResources: []string{"", "x"},
		ResourceErrors: []*discoveryv3.ResourceError{{ResourceName: &discoveryv3.ResourceName{Name: "y"}}, {}}})
	f.Add(protowire.AppendTag(nil, 2, protowire.BytesType), true)
	f.Fuzz(func(t *testing.T, data []byte, inDelta bool) {
		var resp *response
		var w wire
		protocol := SotW
		if inDelta {
			raw := &discoveryv3.DeltaDiscoveryResponse{}
			if proto.Unmarshal(data, raw) != nil {
				return
			}
			resp, w, protocol = deltaResponse(raw), &delta{}, Delta
		} else {
			raw := &discoveryv3.DiscoveryResponse{}
			if proto.Unmarshal(data, raw) != nil {
				return
			}
			resp, w = sotwResponse(raw), &sotw{}
		}
		s := client(t, protocol, nil, "a:1")
		r := &recorder{wanted: []string{"x", "y"}}
		ss := &session{srv: s, target: "a:1", wire: w, consumer: r, log: quiet(), unsent: make(chan proto.Message, unsentMost), broken: make(chan struct{}),
			subs: map[string]*subscription{}, deadlines: map[named]time.Time{}, refusals: map[string]*refusal{}}
		for url, tab := range s.tables {
			tab.server, ss.subs[url] = ss.target, &subscription{asked: true}
		}
		ss.subs[AssignmentType].names = []string{"x", "y"}
		if err := ss.handle(t.Context(), resp); err != nil {
			t.Fatal(err)
		}
		if n := len(ss.unsent); n != 1 {
			t.Fatalf("%d requests", n)
		}
		type answer interface {
			GetResponseNonce() string
			GetTypeUrl() string
		}
		q := (<-ss.unsent).(answer)
		if q.GetResponseNonce() != resp.nonce || q.GetTypeUrl() != resp.typeURL {
			t.Fatalf("answer %v to %v", q, resp)
		}
		if _, err := proto.Marshal(q.(proto.Message)); err != nil {
			t.Fatalf("the answer cannot be sent: %v", err)
		}
		for _, got := range s.Resources() {
			if got.State == Acked && got.Name == "" || got.State == Nacked && got.LastError == "" {
				t.Fatalf("state %+v", got)
			}
		}
		if len(s.Resources()) > 0 {
			_ = s.Status()
		}
	})
}
