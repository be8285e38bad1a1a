// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"testing"

	"kmesh/bpf"
)

func TestForgetRequests(t *testing.T) {
	rt := load(t, nil)
	p := publisher(t, rt)
	ctx := context.Background()
	asked := 0
	forget := func(err error, pods ...uint64) (int, error) {
		return p.ForgetRequests(ctx, func(context.Context) (map[uint64]bool, error) {
			asked++
			alive := make(map[uint64]bool)
			for _, pod := range pods {
				alive[pod] = true
			}
			return alive, err
		})
	}
	if n, err := forget(nil); n != 0 || err != nil || asked != 0 {
		t.Errorf("nothing counted: forgot %d, %v, asked for pods %d times", n, err, asked)
	}
	for _, k := range []bpf.RequestKey{{Pod: 7, Status: 200}, {Pod: 8, Status: 200}, {Pod: 8, Status: 404}} {
		if err := rt.Requests.Put(&k, &bpf.RequestStats{Count: k.Pod}); err != nil {
			t.Fatal(err)
		}
	}
	for _, pod := range []uint64{7, 9, 10} {
		if err := rt.Connections.Put(&bpf.ConnectionsKey{Pod: pod, Cluster: 1}, &bpf.Connections{Open: 1}); err != nil {
			t.Fatal(err)
		}
	}
	broken := errors.New("no pods")
	if n, err := forget(broken); n != 0 || !errors.Is(err, broken) {
		t.Errorf("pods unknown: forgot %d, %v", n, err)
	}
	for _, want := range []int{3, 0} {
		if n, err := forget(nil, 7, 9); n != want || err != nil {
			t.Errorf("forgot %d, %v, want %d", n, err, want)
		}
	}
	var left bpf.RequestStats
	if err := rt.Requests.Lookup(&bpf.RequestKey{Pod: 7, Status: 200}, &left); err != nil || left.Count != 7 {
		t.Errorf("of the pod that lives: %v, %v", left, err)
	}
	for pod, want := range map[uint64]bool{7: true, 9: true, 10: false} {
		var open bpf.Connections
		if err := rt.Connections.Lookup(&bpf.ConnectionsKey{Pod: pod, Cluster: 1}, &open); err == nil != want {
			t.Errorf("connections of pod %d: %v", pod, err)
		}
	}
}
