// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	metafake "k8s.io/client-go/metadata/fake"
	"k8s.io/client-go/tools/cache"

	"kmesh/bpf"
	"kmesh/helper/mesh"
	"kmesh/helper/pods"
	"kmesh/helper/pods/kube"
	"kmesh/helper/publish"
	"kmesh/netns"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

const (
	nodeName = "node-1"
	// The services; no interface has these addresses, so who is not governed gets an error.
	echoVIP = "10.96.0.1:80" // by connection
	webVIP  = "10.96.0.2:80" // by request
	udpVIP  = "10.96.0.3:53"
)

var namespaces = corev1.SchemeGroupVersion.WithResource("namespaces")

// bed is a node with programs that serve two services, and an API server.
type bed struct {
	*testing.T
	ctx   context.Context
	node  *node.Node
	rt    *bpf.Runtime
	netns *netns.Node
	api   *fake.Clientset
	meta  *metafake.FakeMetadataClient
	log   *journal

	mu      sync.Mutex
	counted map[string]int
}

func newBed(t *testing.T, opts node.Options) *bed {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	b := &bed{T: t, ctx: ctx, node: node.ForTest(t, opts), log: &journal{}, counted: make(map[string]int)}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("the keeper's log:\n" + b.log.String())
		}
	})
	var err error
	if b.rt, err = bpf.Load(bpf.LoadOptions{BPFFS: b.node.BPFFS}); err != nil {
		t.Fatal(err)
	}
	b.rt.EachNetns = b.node.EachNetns
	b.netns = netns.New(netns.Options{BPFFS: b.node.BPFFS, RunDir: b.node.RunDir})
	t.Cleanup(func() {
		for _, p := range b.node.Pods() {
			if err := b.node.DelPod(context.Background(), p); err != nil {
				t.Error(err)
			}
		}
		b.rt.Close()
		if err := os.RemoveAll(b.node.BPFFS); err != nil {
			t.Error(err)
		}
	})
	b.api = fake.NewClientset()
	scheme := metafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	b.meta = metafake.NewSimpleMetadataClient(scheme)
	b.namespace("default", nil)
	b.publish()
	return b
}

// publish makes the services, with a server each, in pods that are not enrolled.
func (b *bed) publish() {
	b.Helper()
	echo, web := b.plainPod("echo"), b.plainPod("web")
	at, _, err := echo.Listen(b.ctx, wire.Listen{Network: wire.TCP, Addr: ":8080", Name: "echo"})
	if err != nil {
		b.Fatal(err)
	}
	udp, _, err := echo.Listen(b.ctx, wire.Listen{Network: wire.UDP, Addr: ":8053", Name: "echo"})
	if err != nil {
		b.Fatal(err)
	}
	var l net.Listener
	if err := web.Do(func() (err error) { l, err = net.Listen("tcp4", ":8080"); return err }); err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) })}
	go srv.Serve(l)
	b.Cleanup(func() { srv.Close() })

	share := []mesh.WeightedCluster{{Cluster: "echo", Weight: 1}}
	webShare := []mesh.WeightedCluster{{Cluster: "web", Weight: 1}}
	scope := mesh.Scope{
		Clusters: map[string]*mesh.Cluster{
			"echo": cluster("echo", netip.AddrPortFrom(echo.IP4, at.Port())),
			"udp":  cluster("udp", netip.AddrPortFrom(echo.IP4, udp.Port())),
			"web":  cluster("web", netip.AddrPortFrom(web.IP4, 8080)),
		},
		Services: []*mesh.Service{
			{Name: "echo", Frontends: frontend(echoVIP, mesh.TCP), Clusters: share},
			{Name: "udp", Frontends: frontend(udpVIP, mesh.UDP), Clusters: []mesh.WeightedCluster{{Cluster: "udp", Weight: 1}}},
		},
		HTTP: []*mesh.Service{{Name: "web", Frontends: frontend(webVIP, mesh.TCP), Clusters: webShare, HTTP: &mesh.HTTP{
			VirtualHosts: []*mesh.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []*mesh.Route{
				{Name: "all", Match: mesh.RouteMatch{Path: mesh.PathMatch{Value: "/"}}, Clusters: webShare},
			}}},
		}}},
	}
	pub, err := publish.New(b.rt, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := pub.Publish(b.ctx, &mesh.Snapshot{Scopes: []mesh.Scope{scope}}); err != nil {
		b.Fatal(err)
	}
}

func cluster(name string, at netip.AddrPort) *mesh.Cluster {
	return &mesh.Cluster{Name: name, Policy: mesh.RoundRobin, Localities: []mesh.Locality{{Endpoints: []mesh.Endpoint{{Addr: at, Weight: 1}}}}}
}

func frontend(at string, proto mesh.Protocol) []mesh.Frontend {
	a := netip.MustParseAddrPort(at)
	return []mesh.Frontend{{Prefix: netip.PrefixFrom(a.Addr(), 32), Port: a.Port(), Protocol: proto}}
}

func (b *bed) plainPod(name string) *node.Pod {
	b.Helper()
	return b.pod(node.PodSpec{Name: name})
}

func (b *bed) pod(spec node.PodSpec) *node.Pod {
	b.Helper()
	p, err := b.node.AddPod(b.ctx, spec)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// namespace makes or changes a namespace at the API server.
func (b *bed) namespace(name string, labels map[string]string) {
	b.Helper()
	o := &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
	}
	c := b.meta.Resource(namespaces).(metafake.MetadataClient)
	_, err := c.UpdateFake(o, metav1.UpdateOptions{})
	if err != nil {
		_, err = c.CreateFake(o, metav1.CreateOptions{})
	}
	if err != nil {
		b.Fatal(err)
	}
}

// apiPod is what the API server has of a pod.
func apiPod(p *node.Pod, annotations map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID), Annotations: annotations},
		Spec:       corev1.PodSpec{NodeName: nodeName},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: p.IP4.String()}, {IP: p.IP6.String()}}},
	}
}

// tell makes or changes a pod at the API server.
func (b *bed) tell(o *corev1.Pod) {
	b.Helper()
	_, err := b.api.CoreV1().Pods(o.Namespace).Update(b.ctx, o, metav1.UpdateOptions{})
	if err != nil {
		_, err = b.api.CoreV1().Pods(o.Namespace).Create(b.ctx, o, metav1.CreateOptions{})
	}
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bed) forget(p *node.Pod) {
	b.Helper()
	if err := b.api.CoreV1().Pods(p.Namespace).Delete(b.ctx, p.Name, metav1.DeleteOptions{}); err != nil {
		b.Fatal(err)
	}
}

// keeper is a keeper at work.
type keeper struct {
	*pods.Keeper
	kube *kube.Client
	stop func()
}

// start runs a keeper as the helper does, until the test ends, and looks for what it
// leaves running. change may take the API server away (Cluster).
func (b *bed) start(change ...func(*pods.Options)) *keeper {
	b.Helper()
	listed := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (k8sruntime.Object, error) {
			return b.api.CoreV1().Pods("").List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return b.api.CoreV1().Pods("").Watch(ctx, o)
		},
	}
	spaces := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (k8sruntime.Object, error) {
			return b.meta.Resource(namespaces).List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return b.meta.Resource(namespaces).Watch(ctx, o)
		},
	}
	log := slog.New(slog.NewTextHandler(b.log, nil))
	client := kube.New(kube.Options{
		Pods:       cache.ToListWatcherWithWatchListSemantics(listed, b.api),
		Namespaces: cache.ToListWatcherWithWatchListSemantics(spaces, b.api),
		Events:     &typedv1.EventSinkImpl{Interface: b.api.CoreV1().Events("")},
		Node:       nodeName, Log: log,
	})
	opts := pods.Options{
		Node: b.netns, Runtime: b.rt, Every: time.Hour, // by events alone, unless a test says otherwise
		StateDir: b.node.StateDir, CacheDir: b.node.Dir + "/cni", Cluster: client, Log: log,
		Counted: func(what string, n int) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.counted[what] += n
		},
	}
	looked := make(chan struct{})
	first := sync.OnceFunc(func() { close(looked) })
	opts.Swept = func(string, int) { first() }
	for _, c := range change {
		c(&opts)
	}
	k := &keeper{Keeper: pods.New(opts), kube: client}
	ctx, cancel := context.WithCancel(b.ctx)
	var running sync.WaitGroup
	run := func(f func(context.Context) error) {
		running.Go(func() {
			// The helper lives in the node's network namespace.
			if err := b.node.Do(func() error { return f(ctx) }); err != nil {
				b.Errorf("the keeper ended: %v", err)
			}
		})
	}
	run(k.Run)
	if opts.Cluster != nil {
		run(client.Run)
	}
	k.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		b.eventually("goroutines of a keeper that has ended", func() error {
			stacks := make([]byte, 4<<20)
			stacks = stacks[:runtime.Stack(stacks, true)]
			for g := range strings.SplitSeq(string(stacks), "\n\n") {
				if strings.Contains(g, "k8s.io/client-go") || strings.Contains(g, "kmesh/helper/pods") && !strings.Contains(g, "runtime.Stack") {
					return errors.New(g)
				}
			}
			return nil
		})
	})
	b.Cleanup(k.stop)
	select {
	case <-looked: // the first round's end
	case <-b.ctx.Done():
		b.Fatal("the keeper's first round does not end")
	}
	return k
}

// eventually polls until f is satisfied, and says how long that took.
func (b *bed) eventually(what string, f func() error) time.Duration {
	b.Helper()
	began := time.Now()
	for {
		err := f()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > 15*time.Second {
			b.Fatalf("%s: %v", what, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// reaches asks a pod whether a new connection to the service gets to its server.
func (b *bed) reaches(p *node.Pod) bool {
	b.Helper()
	res, err := p.Dial(b.ctx, wire.Dial{Network: wire.TCP, Addr: echoVIP, Timeout: time.Second})
	if err != nil {
		b.Fatal(err)
	}
	return res.Server == "echo"
}

func (b *bed) governed(p *node.Pod, want bool) time.Duration {
	b.Helper()
	return b.eventually(fmt.Sprintf("pod %s governed: want %t", p.Name, want), func() error {
		if b.reaches(p) != want {
			return fmt.Errorf("it is %t", !want)
		}
		return nil
	})
}

// links counts what is attached to a pod's cgroup, by the kernel's word.
func (b *bed) links(p *node.Pod) int {
	b.Helper()
	at, err := node.Attached(p.CgroupPath)
	if err != nil {
		b.Fatal(err)
	}
	return len(at)
}

// event waits for an event about a pod, and returns it.
func (b *bed) event(p *node.Pod, reason pods.Reason) corev1.Event {
	b.Helper()
	var found corev1.Event
	b.eventually(fmt.Sprintf("event %s of pod %s", reason, p.Name), func() error {
		var seen []string
		for _, e := range b.events(p) {
			seen = append(seen, e.Reason+": "+e.Message)
			if e.Reason == string(reason) {
				found = e
				return nil
			}
		}
		return fmt.Errorf("there are %q", seen)
	})
	if string(found.InvolvedObject.UID) != p.UID || found.Source.Host != nodeName {
		b.Errorf("event %+v: want it about %s, from %s", found, p.UID, nodeName)
	}
	return found
}

func (b *bed) events(p *node.Pod) []corev1.Event {
	b.Helper()
	all, err := b.api.CoreV1().Events(p.Namespace).List(b.ctx, metav1.ListOptions{})
	if err != nil {
		b.Fatal(err)
	}
	var out []corev1.Event
	for _, e := range all.Items {
		if e.InvolvedObject.Name == p.Name {
			out = append(out, e)
		}
	}
	return out
}

// planned waits for what will become of a pod.
func (b *bed) planned(k *keeper, p *node.Pod, want string) {
	b.Helper()
	b.eventually("plan for pod "+p.Name, func() error {
		all := k.Plans()
		for _, plan := range all {
			if plan.Namespace == p.Namespace && plan.Name == p.Name && strings.Contains(plan.What, want) {
				return nil
			}
		}
		return fmt.Errorf("%q is not among %+v", want, all)
	})
}

// journal is a log that may be read while it is written.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

var errNotYet = errors.New("not yet")
