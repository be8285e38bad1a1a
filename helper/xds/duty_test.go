// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// broken is a cluster that Envoy would reject.
func broken(name string) types.Resource {
	return &clusterv3.Cluster{Name: name, HealthChecks: []*corev3.HealthCheck{{}}}
}

// TestDutyNodeInFirstRequestOnly: and in that of every stream.
func TestDutyNodeInFirstRequestOnly(t *testing.T) {
	t.Run("sotw", func(t *testing.T) {
		st := newStage(t, "")
		run(t, client(t, SotW, nil, st.addr), wantsEach())
		for range 2 {
			k := enter(t, st.sotw)
			first, second := k.next(), k.next()
			k.say(sotwSay(t, ClusterType, "1", edsCluster("a")))
			ack, subscription := k.next(), k.next()
			if first.GetNode().GetId() != nodeID || second.Node != nil || ack.Node != nil || subscription.Node != nil {
				t.Errorf("nodes %v %v %v %v", first.Node, second.Node, ack.Node, subscription.Node)
			}
			k.hang(nil)
		}
	})
	t.Run("delta", func(t *testing.T) {
		st := newStage(t, "")
		run(t, client(t, Delta, nil, st.addr), wantsEach())
		for i := range 2 {
			k := enter(t, st.delta)
			first, second := k.next(), k.next()
			if i == 1 {
				if third := k.next(); third.Node != nil || third.GetTypeUrl() != AssignmentType {
					t.Errorf("third %v", third)
				}
			}
			k.say(deltaSay(t, ClusterType, strconv.Itoa(i), edsCluster("a"), edsCluster("b"+strconv.Itoa(i))))
			ack, subscription := k.next(), k.next()
			if first.GetNode().GetId() != nodeID || second.Node != nil || ack.Node != nil || subscription.Node != nil {
				t.Errorf("nodes %v %v %v %v", first.Node, second.Node, ack.Node, subscription.Node)
			}
			k.hang(nil)
		}
	})
}

// TestDutyAckNack: every response is answered exactly once with its nonce; an ACK in
// SotW has the new version, a NACK the one before; the detail names every bad resource.
func TestDutyAckNack(t *testing.T) {
	t.Run("sotw", func(t *testing.T) {
		st := newStage(t, "")
		s := client(t, SotW, nil, st.addr)
		run(t, s, &recorder{})
		k := enter(t, st.sotw)
		if cds, lds := k.next(), k.next(); cds.GetTypeUrl() != ClusterType || lds.GetTypeUrl() != ListenerType || cds.GetVersionInfo() != "" || len(cds.GetResourceNames()) != 0 {
			t.Fatalf("first requests %v %v", cds, lds)
		}
		k.say(sotwSay(t, ClusterType, "1", edsCluster("a")))
		k.say(sotwSay(t, ClusterType, "2", edsCluster("a"), broken("bad1"), broken("bad2")))
		k.say(sotwSay(t, ListenerType, "7"))
		k.say(sotwSay(t, ClusterType, "3"))
		for _, want := range []struct{ typ, nonce, version string }{
			{ClusterType, "n1", "1"}, {ClusterType, "n2", "1"}, {ListenerType, "n7", "7"}, {ClusterType, "n3", "3"},
		} {
			q := k.next()
			if q.GetTypeUrl() != want.typ || q.GetResponseNonce() != want.nonce || q.GetVersionInfo() != want.version {
				t.Errorf("answer %v, want %v", q, want)
			}
			if bad := want.nonce == "n2"; bad != (q.ErrorDetail != nil) {
				t.Errorf("detail %v", q.ErrorDetail)
			} else if bad && (q.GetErrorDetail().GetCode() != int32(codes.InvalidArgument) || !contains(q.GetErrorDetail().GetMessage(), `"bad1"`, `"bad2"`, "health_checks")) {
				t.Errorf("detail %v", q.GetErrorDetail())
			}
		}
	})
	t.Run("delta", func(t *testing.T) {
		st := newStage(t, "")
		s := client(t, Delta, nil, st.addr)
		run(t, s, &recorder{})
		k := enter(t, st.delta)
		k.next()
		k.next()
		k.say(deltaSay(t, ClusterType, "1", edsCluster("a")))
		k.say(deltaSay(t, ClusterType, "2", edsCluster("a"), broken("bad1"), broken("bad2")))
		k.say(deltaSay(t, ListenerType, "7"))
		k.say(deltaSay(t, ClusterType, "3"))
		for _, want := range []struct{ typ, nonce string }{{ClusterType, "n1"}, {ClusterType, "n2"}, {ListenerType, "n7"}, {ClusterType, "n3"}} {
			q := k.next()
			if q.GetTypeUrl() != want.typ || q.GetResponseNonce() != want.nonce {
				t.Errorf("answer %v, want %v", q, want)
			}
			if bad := want.nonce == "n2"; bad != (q.ErrorDetail != nil) {
				t.Errorf("detail %v", q.ErrorDetail)
			} else if bad && (q.GetErrorDetail().GetCode() != int32(codes.InvalidArgument) || !contains(q.GetErrorDetail().GetMessage(), `"bad1"`, `"bad2"`, "health_checks")) {
				t.Errorf("detail %v", q.GetErrorDetail())
			}
		}
	})
}

// TestDutyNackNamesEveryBadResource: a thousand of them too, and those that only the
// consumer refuses.
func TestDutyNackNamesEveryBadResource(t *testing.T) {
	st := newStage(t, "")
	r := &recorder{reject: fmt.Errorf("apply: %w", Rejected{{Type: "Cluster", Resource: "refused", Field: "lb_policy", Message: "no"}})}
	s := client(t, Delta, nil, st.addr)
	run(t, s, r)
	k := enter(t, st.delta)
	k.next()
	k.next()
	say := deltaSay(t, ClusterType, "1", edsCluster("refused"), edsCluster("good"))
	for i := range 1000 {
		say.Resources = append(say.Resources, &discoveryv3.Resource{Name: fmt.Sprintf("bad-%04d", i), Version: "1", Resource: pack(t, broken(fmt.Sprintf("bad-%04d", i)))})
	}
	say.Resources = append(say.Resources, &discoveryv3.Resource{Name: "garbled", Version: "1", Resource: garbage(ClusterType)})
	k.say(say)
	detail := k.next().GetErrorDetail().GetMessage()
	for i := range 1000 {
		if !strings.Contains(detail, fmt.Sprintf(`"bad-%04d"`, i)) {
			t.Fatalf("bad-%04d is not named", i)
		}
	}
	if !contains(detail, `"garbled"`, `Cluster "refused": lb_policy: no`, "1002 resources") || strings.Contains(detail, `"good"`) {
		t.Errorf("detail begins with %.300s", detail)
	}
	if holds(t, s, "Cluster", "refused", Nacked); state(s, "Cluster", "good").State != Acked {
		t.Error("the good one is not accepted")
	}
}

// TestDutyValidResourcesOfANackedResponse: they are used, and the last good version
// of the bad ones stays.
func TestDutyValidResourcesOfANackedResponse(t *testing.T) {
	st := newStage(t, "")
	s, r := client(t, SotW, nil, st.addr), &recorder{}
	run(t, s, r)
	k := enter(t, st.sotw)
	k.say(sotwSay(t, ClusterType, "1", edsCluster("a"), edsCluster("b")))
	eventually(t, "both", func() bool { return r.get("Cluster") == "a,b" })
	bad := sotwSay(t, ClusterType, "2", edsCluster("c"))
	bad.Resources = append(bad.Resources, garbage(ClusterType))
	k.say(bad)
	// Who the garbled one is nobody knows: nothing is taken away.
	eventually(t, "the new one too", func() bool { return r.get("Cluster") == "a,b,c" })
	k.say(sotwSay(t, ClusterType, "3", broken("a"), edsCluster("c")))
	holds(t, s, "Cluster", "a", Nacked)
	if got := state(s, "Cluster", "a"); got.Version != "1" || got.RejectedVersion != "3" || !contains(got.LastError, "health_checks") {
		t.Errorf("state %+v", got)
	}
	if r.bad["a"] == "" { // delivered with its name, so that it is no removal
		t.Error("the bad one was not delivered as invalid")
	}
}

// TestDutyRejectedVersionIsNotClaimed: else the server skips it for ever.
func TestDutyRejectedVersionIsNotClaimed(t *testing.T) {
	t.Run("sotw", func(t *testing.T) {
		st := newStage(t, "")
		run(t, client(t, SotW, nil, st.addr), &recorder{})
		k := enter(t, st.sotw)
		k.say(sotwSay(t, ClusterType, "1", edsCluster("a")))
		k.say(sotwSay(t, ClusterType, "2", broken("a")))
		for k.next().GetResponseNonce() != "n2" {
		}
		k.hang(nil)
		if q := enter(t, st.sotw).next(); q.GetVersionInfo() != "1" || q.GetResponseNonce() != "" {
			t.Errorf("request %v", q)
		}
	})
	t.Run("delta", func(t *testing.T) {
		st := newStage(t, "")
		run(t, client(t, Delta, nil, st.addr), &recorder{})
		k := enter(t, st.delta)
		k.say(deltaSay(t, ClusterType, "1", edsCluster("good"), edsCluster("worse")))
		k.say(deltaSay(t, ClusterType, "2", broken("worse"), broken("never")))
		for k.next().GetResponseNonce() != "n2" {
		}
		k.hang(nil)
		got := enter(t, st.delta).next().GetInitialResourceVersions()
		// The name is held, in a version that the server cannot have.
		if len(got) != 2 || got["good"] != "1" || got["worse"] != unclaimed {
			t.Errorf("initial versions %v", got)
		}
	})
}

// TestDutyStaleNonce: a server ignores requests with old nonces. What is asked for
// arrives all the same.
func TestDutyStaleNonce(t *testing.T) {
	t.Run("sotw", func(t *testing.T) {
		st := newStage(t, "")
		r := wantsEach()
		run(t, client(t, SotW, nil, st.addr), r)
		k := enter(t, st.sotw)
		k.say(sotwSay(t, ClusterType, "1", edsCluster("a")))
		var q *discoveryv3.DiscoveryRequest
		for q = k.next(); q.GetTypeUrl() != AssignmentType; q = k.next() {
		}
		// The answer to the first subscription crosses a wider one.
		k.say(sotwSay(t, AssignmentType, "e1", assignment("a")))
		k.say(sotwSay(t, AssignmentType, "e2", assignment("a")))
		k.say(sotwSay(t, ClusterType, "2", edsCluster("a"), edsCluster("b")))
		k.say(sotwSay(t, AssignmentType, "e3", assignment("a")))
		// Only what has the newest nonce counts.
		for {
			if q = k.next(); q.GetTypeUrl() == AssignmentType && q.GetResponseNonce() == "ne3" {
				break
			}
		}
		if !slices.Equal(q.GetResourceNames(), []string{"a", "b"}) {
			t.Errorf("the request with the newest nonce names %v", q.GetResourceNames())
		}
	})
	t.Run("delta", func(t *testing.T) {
		st := newStage(t, "")
		r := wantsEach()
		run(t, client(t, Delta, nil, st.addr), r)
		k := enter(t, st.delta)
		for i := range 5 {
			k.say(deltaSay(t, ClusterType, strconv.Itoa(i), edsCluster("c"+strconv.Itoa(i))))
		}
		asked := map[string]bool{}
		for len(asked) < 5 {
			q := k.next()
			for _, n := range q.GetResourceNamesSubscribe() {
				if q.GetResponseNonce() != "" {
					t.Errorf("a subscription with a nonce: %v", q)
				}
				asked[n] = true
			}
		}
	})
}

// TestDutySubscriptionsNeverOnAnAck: they are requests of their own, in both protocols.
func TestDutySubscriptionsNeverOnAnAck(t *testing.T) {
	t.Run("sotw", func(t *testing.T) {
		st := newStage(t, "")
		r := wantsEach()
		run(t, client(t, SotW, nil, st.addr), r)
		k := enter(t, st.sotw)
		k.next()
		k.next()
		k.say(sotwSay(t, ClusterType, "1", edsCluster("a")))
		ack, first := k.next(), k.next()
		if ack.GetTypeUrl() != ClusterType || first.GetTypeUrl() != AssignmentType || first.GetResponseNonce() != "" || !slices.Equal(first.GetResourceNames(), []string{"a"}) {
			t.Fatalf("%v, %v", ack, first)
		}
		r.mu.Lock()
		r.wanted = []string{"a", "b"}
		r.onCDS = nil
		r.mu.Unlock()
		k.say(sotwSay(t, AssignmentType, "1", assignment("a")))
		ack, wider := k.next(), k.next()
		if !slices.Equal(ack.GetResourceNames(), []string{"a"}) || ack.GetResponseNonce() != "n1" || ack.GetVersionInfo() != "1" {
			t.Errorf("ack %v", ack)
		}
		if !slices.Equal(wider.GetResourceNames(), []string{"a", "b"}) || wider.GetResponseNonce() != "n1" || wider.GetVersionInfo() != "1" {
			t.Errorf("subscription %v", wider)
		}
		// And the next ACK repeats all names: fewer would be an unsubscription.
		k.say(sotwSay(t, AssignmentType, "2", assignment("b")))
		if ack := k.next(); !slices.Equal(ack.GetResourceNames(), []string{"a", "b"}) || ack.GetVersionInfo() != "2" {
			t.Errorf("ack %v", ack)
		}
	})
	t.Run("delta", func(t *testing.T) {
		st := newStage(t, "")
		s, r := client(t, Delta, nil, st.addr), wantsEach()
		run(t, s, r)
		k := enter(t, st.delta)
		k.next()
		k.next()
		k.say(deltaSay(t, ClusterType, "1", edsCluster("a"), edsCluster("b")))
		ack, first := k.next(), k.next()
		if ack.GetResponseNonce() != "n1" || len(ack.GetResourceNamesSubscribe())+len(ack.GetResourceNamesUnsubscribe()) != 0 {
			t.Errorf("ack %v", ack)
		}
		if first.GetTypeUrl() != AssignmentType || first.GetResponseNonce() != "" || !slices.Equal(first.GetResourceNamesSubscribe(), []string{"a", "b"}) {
			t.Errorf("subscription %v", first)
		}
		k.say(deltaSay(t, AssignmentType, "1", assignment("a"), assignment("b")))
		k.next()
		say := deltaSay(t, ClusterType, "2", edsCluster("c"))
		say.RemovedResources = []string{"a"}
		k.say(say)
		ack, change := k.next(), k.next()
		if ack.GetTypeUrl() != ClusterType || len(ack.GetResourceNamesSubscribe())+len(ack.GetResourceNamesUnsubscribe()) != 0 {
			t.Errorf("ack %v", ack)
		}
		if change.GetResponseNonce() != "" || !slices.Equal(change.GetResourceNamesSubscribe(), []string{"c"}) || !slices.Equal(change.GetResourceNamesUnsubscribe(), []string{"a"}) || len(change.GetInitialResourceVersions()) != 0 {
			t.Errorf("change %v", change)
		}
		// What is not asked for any more is dropped at once: no response will say so.
		if got := state(s, "ClusterLoadAssignment", "a"); got.State != "" {
			t.Errorf("still known: %+v", got)
		}
	})
}

// TestDutyRemoval is about what absence and removal mean in both protocols.
func TestDutyRemoval(t *testing.T) {
	t.Run("sotw", func(t *testing.T) {
		st := newStage(t, "")
		s, r := client(t, SotW, nil, st.addr), &recorder{wanted: []string{"x", "y"}}
		run(t, s, r)
		k := enter(t, st.sotw)
		k.say(sotwSay(t, ClusterType, "1", edsCluster("a"), edsCluster("b")))
		k.say(sotwSay(t, AssignmentType, "1", assignment("x"), assignment("y")))
		eventually(t, "all", func() bool { return r.get("Cluster") == "a,b" && r.get("ClusterLoadAssignment") == "x,y" })
		k.say(sotwSay(t, ClusterType, "2", edsCluster("b")))
		eventually(t, "absence of a cluster is its removal", func() bool { return r.get("Cluster") == "b" })
		k.say(sotwSay(t, AssignmentType, "2", assignment("y")))
		k.say(sotwSay(t, ClusterType, "3"))
		eventually(t, "an empty response removes all", func() bool { return r.get("Cluster") == "" })
		if got := r.get("ClusterLoadAssignment"); got != "x,y" {
			t.Errorf("absence of an assignment means something: %q", got)
		}
		if state(s, "ClusterLoadAssignment", "x").State != Acked || state(s, "Cluster", "a").State != "" {
			t.Errorf("states %+v", s.Resources())
		}
	})
	t.Run("delta", func(t *testing.T) {
		st := newStage(t, "")
		s, r := client(t, Delta, nil, st.addr), &recorder{wanted: []string{"x", "y"}}
		run(t, s, r)
		k := enter(t, st.delta)
		k.say(deltaSay(t, ClusterType, "1", edsCluster("a"), edsCluster("b")))
		k.say(deltaSay(t, AssignmentType, "1", assignment("x")))
		eventually(t, "all", func() bool { return r.get("Cluster") == "a,b" && r.get("ClusterLoadAssignment") == "x" })
		k.say(deltaSay(t, ClusterType, "2"))
		gone := deltaSay(t, ClusterType, "3")
		gone.RemovedResources = []string{"a", "never heard of it"}
		k.say(gone)
		eventually(t, "removal", func() bool { return r.get("Cluster") == "b" })
		gone = deltaSay(t, AssignmentType, "2")
		gone.RemovedResources = []string{"y", "nor of this"}
		k.say(gone)
		eventually(t, "the consumer hears of what does not exist", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return slices.Equal(r.absent, []string{"y"})
		})
		holds(t, s, "ClusterLoadAssignment", "y", DoesNotExist)
		if state(s, "ClusterLoadAssignment", "nor of this").State != "" || state(s, "Cluster", "a").State != "" {
			t.Errorf("states %+v", s.Resources())
		}
		// It may come into being later.
		k.say(deltaSay(t, AssignmentType, "3", assignment("y")))
		holds(t, s, "ClusterLoadAssignment", "y", Acked)
		if p := problem(s); p != "" {
			t.Errorf("problems %s", p)
		}
	})
}

// TestDutyWildcard: everything is asked for without names, and what is asked for by
// name never without: that would be everything. "*" as a name would be, too.
func TestDutyWildcard(t *testing.T) {
	st := newStage(t, "")
	s, r := client(t, Delta, nil, st.addr), &recorder{}
	run(t, s, r)
	k := enter(t, st.delta)
	for _, want := range []string{ClusterType, ListenerType} {
		if q := k.next(); q.GetTypeUrl() != want || len(q.GetResourceNamesSubscribe())+len(q.GetResourceNamesUnsubscribe()) != 0 {
			t.Errorf("request %v", q)
		}
	}
	k.say(deltaSay(t, ClusterType, "1"))
	k.next()
	r.mu.Lock()
	r.wanted = []string{"*", ""}
	r.mu.Unlock()
	k.say(deltaSay(t, ClusterType, "2"))
	k.next()
	r.mu.Lock()
	r.wanted = []string{"*", "x", "x"}
	r.mu.Unlock()
	k.say(deltaSay(t, ClusterType, "3"))
	k.next()
	if q := k.next(); q.GetTypeUrl() != AssignmentType || !slices.Equal(q.GetResourceNamesSubscribe(), []string{"x"}) {
		t.Errorf("request %v", q)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.absent, "*") {
		t.Errorf("absent %q", r.absent)
	}
}

// TestDutyDoesNotExistTimer: what is asked for and does not come does not exist, as
// long as the stream is up; what is held is not missed after a reconnect.
func TestDutyDoesNotExistTimer(t *testing.T) {
	absent := func(r *recorder) string {
		r.mu.Lock()
		defer r.mu.Unlock()
		return strings.Join(r.absent, ",")
	}
	short := func(o *ServerOptions) { o.AbsentAfter = 50 * time.Millisecond }
	t.Run("sotw", func(t *testing.T) {
		st := newStage(t, "")
		s, r := client(t, SotW, short, st.addr), &recorder{wanted: []string{"x", "y"}, routes: []string{"z"}}
		run(t, s, r)
		k := enter(t, st.sotw)
		k.say(sotwSay(t, AssignmentType, "1", assignment("x")))
		holds(t, s, "ClusterLoadAssignment", "x", Acked)
		holds(t, s, "ClusterLoadAssignment", "y", DoesNotExist)
		holds(t, s, "RouteConfiguration", "z", DoesNotExist)
		eventually(t, "the consumer is told", func() bool { return contains(absent(r), "y", "route z") })
		r.mu.Lock()
		r.absent = nil
		r.mu.Unlock()
		k.hang(nil)
		k = enter(t, st.sotw)
		eventually(t, "again", func() bool { return contains(absent(r), "y", "route z") })
		if state(s, "ClusterLoadAssignment", "x").State != Acked || strings.Contains(absent(r), "x") {
			t.Error("what is held was missed after a reconnect")
		}
		k.say(sotwSay(t, AssignmentType, "2", assignment("x"), assignment("y")))
		holds(t, s, "ClusterLoadAssignment", "y", Acked)
	})
	t.Run("delta", func(t *testing.T) {
		st := newStage(t, "")
		s, r := client(t, Delta, short, st.addr), &recorder{wanted: []string{"x", "y"}}
		run(t, s, r)
		k := enter(t, st.delta)
		k.say(deltaSay(t, AssignmentType, "1", assignment("x")))
		holds(t, s, "ClusterLoadAssignment", "x", Acked)
		holds(t, s, "ClusterLoadAssignment", "y", DoesNotExist)
		r.mu.Lock()
		r.absent = nil
		r.mu.Unlock()
		k.hang(nil)
		enter(t, st.delta)
		eventually(t, "again", func() bool { return contains(absent(r), "y") })
		if state(s, "ClusterLoadAssignment", "x").State != Acked || strings.Contains(absent(r), "x") {
			t.Error("what is held was missed after a reconnect")
		}
	})
	t.Run("no stream", func(t *testing.T) {
		st := newStage(t, "")
		st.grpc.Stop()
		s, r := client(t, Delta, short, st.addr), &recorder{wanted: []string{"x"}}
		run(t, s, r)
		eventually(t, "several attempts", func() bool { return strings.Contains(problem(s), "not connected") })
		time.Sleep(150 * time.Millisecond) // three times the timer: what is shown is that nothing happens
		if got := absent(r); got != "" {
			t.Errorf("absent without a stream: %q", got)
		}
	})
}

// TestDutyResourceErrors: a server may say why it does not give a resource. What is
// held of it stays.
func TestDutyResourceErrors(t *testing.T) {
	failure := func(name string, code codes.Code) *discoveryv3.ResourceError {
		return &discoveryv3.ResourceError{ResourceName: &discoveryv3.ResourceName{Name: name}, ErrorDetail: &status.Status{Code: int32(code), Message: "because"}}
	}
	t.Run("by name", func(t *testing.T) {
		st := newStage(t, "")
		s, r := client(t, Delta, nil, st.addr), &recorder{wanted: []string{"x", "y", "z"}}
		run(t, s, r)
		k := enter(t, st.delta)
		k.say(deltaSay(t, AssignmentType, "1", assignment("x")))
		holds(t, s, "ClusterLoadAssignment", "x", Acked)
		say := deltaSay(t, AssignmentType, "2")
		say.ResourceErrors = []*discoveryv3.ResourceError{failure("x", codes.PermissionDenied), failure("y", codes.Internal), failure("z", codes.NotFound), failure("?", codes.Internal), {}}
		k.say(say)
		x := holds(t, s, "ClusterLoadAssignment", "x", ReceivedError)
		if x.Version != "1" || !contains(x.LastError, "PermissionDenied", "because") {
			t.Errorf("state %+v", x)
		}
		holds(t, s, "ClusterLoadAssignment", "y", ReceivedError)
		holds(t, s, "ClusterLoadAssignment", "z", DoesNotExist)
		if r.get("ClusterLoadAssignment") != "x" || !contains(problem(s), `"y"`, "because") {
			t.Errorf("held %q, problems %s", r.get("ClusterLoadAssignment"), problem(s))
		}
		for q := k.next(); q.GetResponseNonce() != "n2"; q = k.next() {
		}
		// The next stream asks for all of it again, whatever is held.
		k.hang(nil)
		k = enter(t, st.delta)
		k.next()
		k.next()
		if q := k.next(); !slices.Equal(q.GetResourceNamesSubscribe(), []string{"x", "y", "z"}) || len(q.GetInitialResourceVersions()) != 1 || q.GetInitialResourceVersions()["x"] != unclaimed {
			t.Errorf("request %v", q)
		}
		k.say(deltaSay(t, AssignmentType, "3", assignment("x"), assignment("y"), assignment("z")))
		for _, name := range []string{"x", "y", "z"} {
			holds(t, s, "ClusterLoadAssignment", name, Acked)
		}
		if p := problem(s); p != "" {
			t.Errorf("problems %s", p)
		}
	})
	t.Run("all", func(t *testing.T) {
		st := newStage(t, "")
		s, r := client(t, SotW, nil, st.addr), &recorder{}
		run(t, s, r)
		k := enter(t, st.sotw)
		k.say(sotwSay(t, ClusterType, "1", edsCluster("a"), edsCluster("b"), edsCluster("c")))
		say := sotwSay(t, ClusterType, "2", edsCluster("a"))
		say.ResourceErrors = []*discoveryv3.ResourceError{failure("b", codes.Internal)}
		k.say(say)
		holds(t, s, "Cluster", "b", ReceivedError)
		eventually(t, "c is removed, b stays", func() bool { return r.get("Cluster") == "a,b" })
		if state(s, "Cluster", "c").State != "" {
			t.Error("c is still known")
		}
	})
}

// TestDutyUnknownTypesAndFields: no surprise ends the stream.
func TestDutyUnknownTypesAndFields(t *testing.T) {
	st := newStage(t, "")
	s, r := client(t, Delta, nil, st.addr), &recorder{}
	run(t, s, r)
	k := enter(t, st.delta)
	k.next()
	k.next()
	for i := range 3 {
		k.say(deltaSay(t, "type.googleapis.com/made.up.Type"+strconv.Itoa(i), strconv.Itoa(i)))
	}
	k.say(deltaSay(t, RouteType, "r", &routev3.RouteConfiguration{Name: "nobody asked"}))
	for range 4 {
		if q := k.next(); q.GetErrorDetail() == nil || !contains(q.GetErrorDetail().GetMessage(), "was not asked for") || q.GetResponseNonce() == "" {
			t.Errorf("answer %v", q)
		}
	}
	// A field that this build does not know, and an extension.
	m := edsCluster("a").(*clusterv3.Cluster)
	m.ProtoReflect().SetUnknown([]byte{0xfa, 0xff, 0x03, 0x01, 'x'})
	m.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{Name: "new", TypedConfig: &anypb.Any{TypeUrl: "type.googleapis.com/made.up.Extension", Value: []byte{1, 2, 3}}}}
	k.say(deltaSay(t, ClusterType, "1", m))
	if q := k.next(); q.GetErrorDetail() != nil {
		t.Errorf("answer %v", q)
	}
	if r.get("Cluster") != "a" || !contains(problem(s), "was not asked for") {
		t.Errorf("clusters %q, problems %q", r.get("Cluster"), problem(s))
	}
}

// TestDutyInitialResourceVersions: every held resource of every type, by name, on a
// new stream only.
func TestDutyInitialResourceVersions(t *testing.T) {
	st := newStage(t, "")
	s, r := client(t, Delta, nil, st.addr), wantsEach()
	run(t, s, r)
	k := enter(t, st.delta)
	for range 2 {
		if q := k.next(); len(q.GetInitialResourceVersions()) != 0 {
			t.Errorf("first request %v", q)
		}
	}
	k.say(deltaSay(t, ClusterType, "1", edsCluster("a"), edsCluster("b"), edsCluster("old")))
	k.say(deltaSay(t, ClusterType, "2", edsCluster("b")))
	gone := deltaSay(t, ClusterType, "3")
	gone.RemovedResources = []string{"old"}
	k.say(gone)
	k.say(deltaSay(t, ListenerType, "4", listener("l")))
	k.say(deltaSay(t, AssignmentType, "5", assignment("a")))
	for q := k.next(); q.GetResponseNonce() != "n5"; q = k.next() {
	}
	k.hang(nil)
	k = enter(t, st.delta)
	cds, lds, eds := k.next(), k.next(), k.next()
	if got := cds.GetInitialResourceVersions(); cds.GetTypeUrl() != ClusterType || len(got) != 2 || got["a"] != "1" || got["b"] != "2" {
		t.Errorf("%v", cds)
	}
	if got := lds.GetInitialResourceVersions(); lds.GetTypeUrl() != ListenerType || len(got) != 1 || got["l"] != "4" {
		t.Errorf("%v", lds)
	}
	if got := eds.GetInitialResourceVersions(); eds.GetTypeUrl() != AssignmentType || len(got) != 1 || got["a"] != "5" || !slices.Equal(eds.GetResourceNamesSubscribe(), []string{"a", "b"}) {
		t.Errorf("%v", eds)
	}
	// Nothing is sent again: what is held goes on, removals are told.
	say := deltaSay(t, ClusterType, "6")
	say.RemovedResources = []string{"a"}
	k.say(say)
	eventually(t, "removal", func() bool { return r.get("Cluster") == "b" })
	if r.get("Listener") != "l" {
		t.Error("the listener is gone")
	}
}

// TestDutyTransientErrorKeepsEverything: a stream that breaks takes nothing away, and
// names what it was.
func TestDutyTransientErrorKeepsEverything(t *testing.T) {
	for _, protocol := range []Protocol{SotW, Delta} {
		t.Run(string(protocol), func(t *testing.T) {
			st := newStage(t, "")
			s, r := client(t, protocol, nil, st.addr), wantsEach()
			run(t, s, r)
			hang := func(err error) {
				if protocol == SotW {
					k := enter(t, st.sotw)
					k.say(sotwSay(t, ClusterType, "1", edsCluster("a")))
					k.say(sotwSay(t, AssignmentType, "1", assignment("a")))
					k.hang(err)
					return
				}
				k := enter(t, st.delta)
				k.say(deltaSay(t, ClusterType, "1", edsCluster("a")))
				k.say(deltaSay(t, AssignmentType, "1", assignment("a")))
				k.hang(err)
			}
			hang(nil)
			for range 3 {
				hang(grpcstatus.Error(codes.Unavailable, "going away"))
			}
			st.grpc.Stop()
			eventually(t, "the loss is told", func() bool { return !s.Status().Connected && contains(problem(s), "the last good state stays") })
			if r.get("Cluster") != "a" || r.get("ClusterLoadAssignment") != "a" || state(s, "Cluster", "a").State != Acked {
				t.Errorf("clusters %q, assignments %q", r.get("Cluster"), r.get("ClusterLoadAssignment"))
			}
		})
	}
}

// TestDutyBackoff: the waits grow while nothing is answered, are reset by the first
// response, and are longer when the server says that it is overloaded.
func TestDutyBackoff(t *testing.T) {
	p := &peer{wait: backoff{base: 100 * time.Millisecond, max: 10 * time.Second}}
	within := func(what string, got, step time.Duration) {
		t.Helper()
		if got < step/2 || got > step {
			t.Errorf("%s: %v, want %v to %v", what, got, step/2, step)
		}
	}
	lost := errors.New("lost")
	for _, step := range []time.Duration{100, 200, 400, 800} {
		within("growing", p.delay(lost), step*time.Millisecond)
	}
	within("overloaded", p.delay(grpcstatus.Error(codes.ResourceExhausted, "request rate limit exceeded")), 6400*time.Millisecond)
	s := client(t, Delta, nil, "a:1")
	s.up(p)
	within("after a response", p.delay(lost), 100*time.Millisecond)
	// With jitter: a thousand nodes must not come back in step.
	seen := map[time.Duration]bool{}
	for range 20 {
		p.wait.reset()
		seen[p.delay(lost)] = true
	}
	if len(seen) < 10 {
		t.Errorf("%d different waits of 20", len(seen))
	}

	// On the wire: a stream that delivered is followed by another one at once, however
	// often.
	st := newStage(t, "")
	slow := client(t, Delta, func(o *ServerOptions) { o.BackoffMax = time.Hour }, st.addr)
	run(t, slow, &recorder{})
	for i := range 20 { // twenty doublings of 5 ms are an hour and a half
		k := enter(t, st.delta)
		k.say(deltaSay(t, ClusterType, strconv.Itoa(i)))
		k.hang(nil)
	}
}

// TestDutyStates: the words are those of the client status discovery service.
func TestDutyStates(t *testing.T) {
	for _, s := range []State{Requested, Acked, Nacked, DoesNotExist, ReceivedError} {
		if _, ok := adminv3.ClientResourceStatus_value[string(s)]; !ok {
			t.Errorf("%q is none of CSDS", s)
		}
	}
	st := newStage(t, "")
	s, r := client(t, Delta, nil, st.addr), &recorder{wanted: []string{"asked"}}
	run(t, s, r)
	k := enter(t, st.delta)
	k.say(deltaSay(t, ClusterType, "1", edsCluster("a"), edsCluster("b")))
	k.say(deltaSay(t, ClusterType, "2", broken("b"), broken("c")))
	holds(t, s, "Cluster", "c", Nacked)
	var got []string
	for _, r := range s.Resources() {
		got = append(got, fmt.Sprintf("%s/%s %s %q %q %t", r.Type, r.Name, r.State, r.Version, r.RejectedVersion, r.LastError != ""))
	}
	want := []string{
		`Cluster/a ACKED "1" "" false`, `Cluster/b NACKED "1" "2" true`, `Cluster/c NACKED "" "2" true`,
		`ClusterLoadAssignment/asked REQUESTED "" "" false`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	var unsettled []string
	for _, r := range s.Status().Unsettled {
		unsettled = append(unsettled, r.Name+" "+string(r.State))
	}
	if !slices.Equal(unsettled, []string{"b NACKED", "c NACKED", "asked REQUESTED"}) {
		t.Errorf("unsettled %q", unsettled)
	}
	for _, typ := range s.Status().Types {
		if typ.Type == "Cluster" && (typ.States[Acked] != 1 || typ.States[Nacked] != 2 || typ.Resources != 2 || typ.Version != "1" || typ.Rejected != 1 || !contains(typ.LastError, `"b"`, `"c"`)) {
			t.Errorf("status %+v", typ)
		}
	}
	if !contains(problem(s), `Cluster "b"`, `Cluster "c"`, "health_checks") {
		t.Errorf("problems %s", problem(s))
	}
	// Repaired, it is forgotten.
	k.say(deltaSay(t, ClusterType, "3", edsCluster("b"), edsCluster("c")))
	holds(t, s, "Cluster", "c", Acked)
	if problem(s) != "" || state(s, "Cluster", "b").LastError != "" {
		t.Errorf("problems %s", problem(s))
	}
}

// TestStatusWhileRunning: it may be read at any time.
func TestStatusWhileRunning(t *testing.T) {
	st := newStage(t, "")
	s := client(t, Delta, nil, st.addr)
	run(t, s, wantsEach())
	k := enter(t, st.delta)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-stop:
				return
			default:
				_ = s.Status()
				_ = s.Resources()
			}
		}
	}()
	for i := range 50 {
		k.say(deltaSay(t, ClusterType, strconv.Itoa(i), edsCluster("a"+strconv.Itoa(i%7)), broken("b")))
	}
	eventually(t, "all are heard", func() bool {
		list := s.Status().Types
		return len(list) > 0 && list[0].Type == "Cluster" && list[0].Rejected == 50
	})
	close(stop)
	wg.Wait()
}
