// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	"kmesh/test/e2e/ask"
)

// The node itself, without Kmesh: what the other tests stand on.
func TestNodeRunsPods(t *testing.T) {
	b := newBed(t)
	pods := b.waitReady(b.create(b.spec("a", nil)), b.create(b.spec("b", nil)))
	got := b.ask(pods[0], ask.Question{URL: "http://" + pods[1].Status.PodIP + ":8080/", N: 3})
	if got.Servers["b"] != 3 || got.Failed() > 0 {
		t.Errorf("a asked b three times: %+v", got)
	}
	b.delete(pods...)
}
