// SPDX-License-Identifier: Apache-2.0

package kubenode

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestReadAdds(t *testing.T) {
	const log = `time="2026-01-01T00:00:00Z" level=debug msg="a shim's words"
{"level":"debug","msg":"begin cni setup","podsandboxid":"aa","time":"2026-01-01T00:00:01.000000000Z"}
{"level":"debug","msg":"begin cni setup","podsandboxid":"bb","time":"2026-01-01T00:00:01.100000000Z"}
{"level":"debug","msg":"begin cni setup","podsandboxid":"cc","time":"2026-01-01T00:00:01.100000000Z"}
{"level":"debug","msg":"cni result: {}","podsandboxid":"bb","time":"2026-01-01T00:00:01.150000000Z"}
{"level":"debug","msg":"cni result: {}","podsandboxid":"aa","time":"2026-01-01T00:00:01.250000000Z"}
{"level":"info","msg":"RunPodSandbox for name:\"a\" uid:\"u-a\" namespace:\"default\" returns sandbox id \"aa\"","time":"2026-01-01T00:00:01.3Z"}
{"level":"info","msg":"RunPodSandbox for name:\"b\"  uid: \"u-b\"  namespace:\"default\" returns sandbox id \"bb\"","time":"2026-01-01T00:00:01.3Z"}
{"level":"error","msg":"RunPodSandbox for name:\"c\" uid:\"u-c\" namespace:\"default\" failed, error","time":"2026-01-01T00:00:01.3Z"}
`
	got, err := readAdds(strings.NewReader(log))
	want := []Add{{"u-b", 50 * time.Millisecond}, {"u-a", 250 * time.Millisecond}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
	if _, err := readAdds(strings.NewReader("{not JSON\n")); err == nil {
		t.Error("a line that is no JSON is no error")
	}
}
