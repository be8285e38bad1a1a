// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"

	"kmesh/cni/optin"
	"kmesh/helper/pods/plan"
)

func TestPodOf(t *testing.T) {
	now := metav1.Now()
	base := func(change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u1", Labels: map[string]string{"app": "web"}},
			Spec:       corev1.PodSpec{NodeName: "n1", ServiceAccountName: "shopper", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}}},
		}
		change(p)
		return p
	}
	addrs := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}
	plain := plan.Pod{UID: "u1", APIUID: "u1", Namespace: "shop", Name: "web", Addrs: addrs, Labels: map[string]string{"app": "web"}, ServiceAccount: "shopper"}
	with := func(change func(*plan.Pod)) plan.Pod { p := plain; change(&p); return p }
	tests := []struct {
		name string
		pod  *corev1.Pod
		want plan.Pod
	}{
		{"running", base(func(*corev1.Pod) {}), plain},
		{"asks", base(func(p *corev1.Pod) { p.Annotations = map[string]string{optin.AnnotationEnroll: "true", "other": "x"} }),
			with(func(p *plan.Pod) { p.Annotations = map[string]string{optin.AnnotationEnroll: "true"} })},
		{"being deleted", base(func(p *corev1.Pod) { p.DeletionTimestamp = &now }), with(func(p *plan.Pod) { p.Ending = true })},
		{"done", base(func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }), with(func(p *plan.Pod) { p.Ending = true })},
		{"failed", base(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), with(func(p *plan.Pod) { p.Ending = true })},
		{"node's network", base(func(p *corev1.Pod) { p.Spec.HostNetwork = true }), with(func(p *plan.Pod) { p.HostNetwork = true })},
		{"no sandbox yet", base(func(p *corev1.Pod) { p.Status = corev1.PodStatus{Phase: corev1.PodPending} }), with(func(p *plan.Pod) { p.Addrs = nil })},
		{"static", base(func(p *corev1.Pod) { p.Annotations = map[string]string{annotationMirror: "h", annotationHash: "h"} }),
			with(func(p *plan.Pod) {
				p.UID, p.Annotations = "h", map[string]string{annotationMirror: "h", annotationHash: "h"}
			})},
		{"other labels", base(func(p *corev1.Pod) { p.Labels = map[string]string{"app": "api"} }),
			with(func(p *plan.Pod) { p.Labels = map[string]string{"app": "api"} })},
		{"other account", base(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "b" }), with(func(p *plan.Pod) { p.ServiceAccount = "b" })},
		{"hash without mirror", base(func(p *corev1.Pod) { p.Annotations = map[string]string{annotationHash: "h"} }),
			with(func(p *plan.Pod) { p.Annotations = map[string]string{annotationHash: "h"} })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, err := trimPod(tt.pod)
			if err != nil {
				t.Fatal(err)
			}
			trimmed := o.(*corev1.Pod)
			if got := podOf(trimmed); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%+v\nwant %+v", got, tt.want)
			}
			if trimmed.Spec.Containers != nil {
				t.Error("what nobody reads is kept")
			}
			if again, _ := trimPod(trimmed); !reflect.DeepEqual(again, o) {
				t.Error("trimming twice is not the same as once")
			}
			if !same(trimmed, o) {
				t.Error("the same is not the same")
			}
		})
	}
	one, _ := trimPod(base(func(*corev1.Pod) {}))
	for _, tt := range tests[1:] {
		if other, _ := trimPod(tt.pod); tt.name != "hash without mirror" && same(one, other) {
			t.Errorf("a change to %q is missed", tt.name)
		}
	}
}

// server is an API server of which the pods or the namespaces may be away.
type server struct {
	*fake.Clientset
	noPods, noNamespaces atomic.Bool
}

var errAway = errors.New("connection refused")

func (s *server) lister(away *atomic.Bool, list func(context.Context, metav1.ListOptions) (runtime.Object, error), watches func(context.Context, metav1.ListOptions) (watch.Interface, error)) cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			if away.Load() {
				return nil, errAway
			}
			return list(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if away.Load() {
				return nil, errAway
			}
			return watches(ctx, o)
		},
	}, s.Clientset)
}

// metadataOf is a namespace as a client sees it that asks for metadata.
func metadataOf(n *corev1.Namespace) metav1.PartialObjectMetadata {
	return metav1.PartialObjectMetadata{ObjectMeta: n.ObjectMeta}
}

func (s *server) client(t *testing.T) *Client {
	t.Helper()
	pods, spaces := s.CoreV1().Pods(""), s.CoreV1().Namespaces()
	return New(Options{
		Pods: s.lister(&s.noPods,
			func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return pods.List(ctx, o) },
			func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return pods.Watch(ctx, o) }),
		Namespaces: s.lister(&s.noNamespaces,
			func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				all, err := spaces.List(ctx, o)
				if err != nil {
					return nil, err
				}
				out := &metav1.PartialObjectMetadataList{ListMeta: all.ListMeta}
				for i := range all.Items {
					out.Items = append(out.Items, metadataOf(&all.Items[i]))
				}
				return out, nil
			},
			func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				w, err := spaces.Watch(ctx, o)
				if err != nil {
					return nil, err
				}
				return watch.Filter(w, func(e watch.Event) (watch.Event, bool) {
					if n, ok := e.Object.(*corev1.Namespace); ok {
						m := metadataOf(n)
						e.Object = &m
					}
					return e, true
				}), nil
			}),
		Events: &typedv1.EventSinkImpl{Interface: s.CoreV1().Events("")},
		Node:   "n1", Server: "https://fake", Log: slog.New(slog.DiscardHandler),
	})
}

func run(t *testing.T, c *Client) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
}

// until waits for changes until f is satisfied. It looks from time to time too, for what
// is no change of the view.
func until(t *testing.T, c *Client, what string, f func() error) {
	t.Helper()
	deadline, tick := time.After(20*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-c.Changed():
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// There is no view until both pods and namespaces are known, whichever comes first, and
// the last one stays while the server is away.
func TestViewIsWhole(t *testing.T) {
	for _, late := range []string{"pods", "namespaces"} {
		t.Run(late+" last", func(t *testing.T) {
			s := &server{Clientset: fake.NewClientset(
				&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{optin.LabelMode: "kmesh", "other": "x"}}},
				&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "odd", Labels: map[string]string{optin.LabelEnroll: "yes"}}},
				&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u1"}},
			)}
			away := map[string]*atomic.Bool{"pods": &s.noPods, "namespaces": &s.noNamespaces}[late]
			away.Store(true)
			c := s.client(t)
			if _, ok := c.View(); ok {
				t.Error("there is a view before anything was asked")
			}
			run(t, c)
			until(t, c, "the trouble in the status", func() error {
				if st := c.Status(); st.Synced || st.Problem != late+": "+errAway.Error() {
					return fmt.Errorf("%+v", st)
				}
				return nil
			})
			if v, ok := c.View(); ok {
				t.Errorf("a view of a half: %+v", v)
			}
			away.Store(false)
			want := plan.View{
				Pods:       []plan.Pod{{UID: "u1", APIUID: "u1", Namespace: "shop", Name: "web"}},
				Namespaces: plan.Namespaces{"shop": optin.Enroll, "odd": ""},
			}
			until(t, c, "a view", func() error {
				if v, ok := c.View(); !ok || !reflect.DeepEqual(v, want) {
					return fmt.Errorf("%+v, %t", v, ok)
				}
				return nil
			})
			if st := c.Status(); !st.Synced || st.Problem != "" || st.Server != "https://fake" {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// Events reach the server, repeated ones are counted up, and a storm of them is bounded.
func TestEvents(t *testing.T) {
	s := &server{Clientset: fake.NewClientset()}
	c := s.client(t)
	p := plan.Pod{UID: "h", APIUID: "u1", Namespace: "shop", Name: "web"}
	c.Event(p, false, "TooSoon", "nobody hears it") // and nothing breaks
	run(t, c)
	until(t, c, "the recorder", func() error {
		c.Event(p, true, "EnrollFailed", "again")
		all, err := s.CoreV1().Events("shop").List(t.Context(), metav1.ListOptions{})
		if err == nil && (len(all.Items) != 1 || all.Items[0].Count < 2) {
			err = fmt.Errorf("%d events", len(all.Items))
		}
		return err
	})
	for i := range 200 {
		c.Event(p, false, "Storm", fmt.Sprintf("%d", i))
	}
	var seen int
	until(t, c, "the end of the storm", func() error {
		all, err := s.CoreV1().Events("shop").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range all.Items {
			if e.InvolvedObject.UID != "u1" || e.InvolvedObject.Kind != "Pod" || e.Source.Component != component || e.Source.Host != "n1" || e.Reason == "TooSoon" {
				t.Errorf("event %+v", e)
			}
		}
		if was := seen; was == 0 || was != len(all.Items) {
			seen = len(all.Items)
			return errors.New("they go on coming")
		}
		return nil
	})
	if seen > eventBurst+1 {
		t.Errorf("%d events of one pod at once, want at most %d", seen, eventBurst+1)
	}
}

func TestConnect(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	config := `{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}],
users: [{name: u, user: {token: t}}], contexts: [{name: c, context: {cluster: c, user: u}}]}`
	for path, content := range map[string]string{good: config, bad: "{"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name, kubeconfig, node string
		env                    bool // as in a pod, which has no token here
		want                   string
		none                   bool
	}{
		{"nothing", "", "n1", false, "no API server", true},
		{"a pod without token", "", "n1", true, "no service account token", true},
		{"no such file", filepath.Join(dir, "none"), "n1", false, "--kubeconfig", false},
		{"broken file", bad, "n1", false, "--kubeconfig", false},
		{"no node", good, "", false, "--node-name", false},
		{"good", good, "n1", false, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			t.Setenv("KUBERNETES_SERVICE_PORT", "")
			if tt.env {
				t.Setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
				t.Setenv("KUBERNETES_SERVICE_PORT", "1")
			}
			opts, err := Connect(t.Context(), tt.kubeconfig, tt.node, slog.New(slog.DiscardHandler))
			if errors.Is(err, ErrNone) != tt.none {
				t.Errorf("%v: is ErrNone %t", err, !tt.none)
			}
			if tt.want == "" {
				if err != nil || opts.Server != "https://127.0.0.1:1" || opts.Node != "n1" {
					t.Errorf("%+v, %v", opts, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want it to say %q", err, tt.want)
			}
		})
	}
}
