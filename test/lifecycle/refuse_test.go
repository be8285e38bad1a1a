// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"strings"
	"testing"
	"time"
)

// TestUnenforceableActions: what asks for an action that cannot be enforced is served without it, or refused, by the
// helper's flag; and it is served again when it asks for it no more.
func TestUnenforceableActions(t *testing.T) {
	b := newBed(t)
	plain := b.meshOf(1, 0)
	logged := strings.Replace(plain, "  filter_chains:\n", "  access_log: [{name: x}]\n  filter_chains:\n", 1)
	if logged == plain {
		t.Fatal("the listener asks for no log")
	}
	b.write("mesh.yaml", logged)
	h := b.start()
	client := b.client("client")
	b.only(client, "v1", 5)
	if err := h.Stop(b.ctx); err != nil {
		t.Fatal(err)
	}

	h, err := b.node.StartHelper(b.ctx, "--xds-dir", b.xds, "--unenforceable-actions", "refuse")
	if err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		c := b.dialN(client, 5)
		if c.Errnos["connect ECONNREFUSED"] == 5 {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("connections reach %v with errors %v, want them refused", c.Servers, c.Errnos)
		}
	}
	out, err := b.node.Kmeshctl(b.ctx, "status")
	if err != nil || !strings.Contains(string(out), "access_log") || !strings.Contains(string(out), "refused: actions that cannot be enforced are") {
		t.Errorf("kmeshctl status does not say what is refused: %v\n%s", err, out)
	}
	b.write("mesh.yaml", plain)
	b.until(client, "v1")

	if err := h.Stop(b.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := b.node.StartHelper(b.ctx, "--xds-dir", b.xds, "--unenforceable-actions", "maybe"); err == nil || !strings.Contains(err.Error(), "--unenforceable-actions") {
		t.Errorf("a wrong value: %v", err)
	}
}

// TestPolicyUnenforced: what the flag may be, and that to refuse enrolment needs an API server, is said at the start.
func TestPolicyUnenforced(t *testing.T) {
	b := newBed(t)
	b.write("mesh.yaml", b.meshOf(1, 0))
	for value, says := range map[string]string{
		"refuse":           `--policy-unenforced is "refuse": use report or refuse-enrolment`,
		"refuse-enrolment": "--policy-unenforced refuse-enrolment is about pods that the API server tells of: give --kubeconfig, or leave it out",
	} {
		if _, err := b.node.StartHelper(b.ctx, "--xds-dir", b.xds, "--policy-unenforced", value); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", value, err, says)
		}
	}
	h, err := b.node.StartHelper(b.ctx, "--xds-dir", b.xds, "--policy-unenforced", "report")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Stop(b.ctx); err != nil {
		t.Error(err)
	}
}
