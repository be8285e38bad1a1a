// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// routesOf is a RouteConfiguration with a virtual host for each path; "" is one that
// Envoy would reject.
func routesOf(name string, paths ...string) *routev3.RouteConfiguration {
	rc := &routev3.RouteConfiguration{Name: name, IgnorePortInHostMatching: true, ValidateClusters: wrapperspb.Bool(true)}
	for i, p := range paths {
		vh := &routev3.VirtualHost{Name: fmt.Sprint("v", i), Domains: []string{fmt.Sprint("h", i)}}
		if p == "" {
			vh.Domains = nil
		}
		vh.Routes = []*routev3.Route{{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: p}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "c"}}}}}
		rc.VirtualHosts = append(rc.VirtualHosts, vh)
	}
	return rc
}

func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// sameDecoded: taken apart or not, a resource is the same, and so is what is wrong with it.
func sameDecoded(t *testing.T, name string, a *anypb.Any) (apart bool) {
	t.Helper()
	got, gotErr := decodeRoutes(name, a)
	want, wantErr := decodeEnvoy(name, a)
	if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
		t.Fatalf("error %v, want %v", gotErr, wantErr)
	}
	if wantErr != nil {
		return false
	}
	if got.Name != want.Name || got.Hash != want.Hash || !reflect.DeepEqual(got.Invalid, want.Invalid) {
		t.Fatalf("got %q %v, want %q %v", got.Name, got.Invalid, want.Name, want.Invalid)
	}
	if len(want.Invalid) > 0 && len(got.Hosts) > 0 {
		t.Fatal("what is wrong was taken apart")
	}
	whole, err := got.Whole()
	if err != nil || !proto.Equal(whole, want.Message) {
		t.Fatalf("%v: got %v\nwant %v", err, whole, want.Message)
	}
	return len(got.Hosts) > 0
}

func TestRoutesApart(t *testing.T) {
	good := routesOf("80", "/a", "/b", "/c")
	wrapped := packed(t, &discoveryv3.Resource{Name: "80", Resource: packed(t, good)})
	empty := packed(t, good)
	empty.Value = append(protowire.AppendTag(nil, HostsField, protowire.VarintType), append([]byte{7}, empty.Value...)...)
	twice := packed(t, good)
	twice.Value = append(twice.Value, packed(t, &routev3.RouteConfiguration{Name: "81", ValidateClusters: wrapperspb.Bool(false)}).Value...)
	for _, tt := range []struct {
		what, name string
		packed     *anypb.Any
		apart      bool
	}{
		{"good", "80", packed(t, good), true},
		{"without an envelope", "", packed(t, good), true},
		{"in an envelope", "80", wrapped, true},
		{"another name outside", "81", packed(t, good), false},
		{"no name", "", packed(t, routesOf("", "/a")), false},
		{"no virtual host", "80", packed(t, routesOf("80")), false},
		{"an invalid virtual host", "80", packed(t, routesOf("80", "/a", "", "/c")), false},
		{"the field as a number", "80", empty, true},
		{"fields twice: the last holds", "81", twice, true},
		{"cut short", "80", &anypb.Any{TypeUrl: RouteType, Value: packed(t, good).Value[:len(packed(t, good).Value)-3]}, false},
		{"an invalid rest", "80", packed(t, func() proto.Message {
			rc := routesOf("80", "/a")
			rc.InternalOnlyHeaders = []string{"a\nb"}
			return rc
		}()), false},
		{"another type", "v", packed(t, good.VirtualHosts[0]), false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			if apart := sameDecoded(t, tt.name, tt.packed); apart != tt.apart {
				t.Errorf("taken apart: %v", apart)
			}
		})
	}
}

// TestRoutesApartRandom breaks bytes.
func TestRoutesApartRandom(t *testing.T) {
	n := 0
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 2))
		a := packed(t, routesOf("80", "/a", "/b"))
		for range r.IntN(3) {
			switch i := r.IntN(len(a.Value)); r.IntN(3) {
			case 0:
				a.Value[i] ^= 1 << r.IntN(8)
			case 1:
				a.Value = append(a.Value[:i:i], a.Value[i+1:]...)
			default:
				a.Value = append(a.Value[:i:i], append([]byte{byte(r.IntN(256))}, a.Value[i:]...)...)
			}
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			if sameDecoded(t, "", a) {
				n++
			}
		})
	}
	if n < 500 {
		t.Errorf("%d were taken apart", n)
	}
}

// TestHostShared: equal bytes are one virtual host as long as somebody holds it.
func TestHostShared(t *testing.T) {
	typ := EnvoyTypes()[3]
	one, err := typ.Unpack("80", "1", "s", packed(t, routesOf("80", "/shared", "/x")))
	if err != nil {
		t.Fatal(err)
	}
	two, err := typ.Unpack("81", "1", "s", packed(t, routesOf("81", "/shared", "/y")))
	if err != nil {
		t.Fatal(err)
	}
	if one.Hosts[0] != two.Hosts[0] || one.Hosts[1] == two.Hosts[1] {
		t.Error("what is equal is not one, or what differs is")
	}
	hash := one.Hosts[0].Hash
	runtime.KeepAlive(one)
	runtime.KeepAlive(two)
	one, two = Resource{}, Resource{}
	runtime.GC()
	runtime.GC()
	if hosts.Get(hash) != nil {
		t.Error("nobody holds it, and it is there")
	}
}
