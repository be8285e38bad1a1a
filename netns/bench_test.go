// SPDX-License-Identifier: Apache-2.0

package netns

import "testing"

func BenchmarkEnroll(b *testing.B) {
	n := newNode(b)
	n.enroll(n.pod("first"))
	r := n.pod("c1")
	for b.Loop() {
		n.enroll(r)
		b.StopTimer()
		if err := n.Release(ctx, r.Attachment); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
