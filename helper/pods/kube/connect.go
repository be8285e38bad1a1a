// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// ErrNone: nothing says that there is an API server.
var ErrNone = errors.New("no API server")

// component is who the events are from.
const component = "kmesh-helper"

// Events of one pod: this many at once, then one in two minutes. A repeated one is
// counted up instead of made anew.
const (
	eventBurst = 10
	eventQPS   = 1. / 120
	eventLimit = 10 * time.Second // for one to be written
)

// scheme knows the core group only: all groups would cost the helper megabytes.
var scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	if err := corev1.AddToScheme(s); err != nil {
		panic(err) // of two types with one name
	}
	return s
}()

// ownNamespaceFile is where a pod finds its own namespace.
const ownNamespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// OwnNamespace is that of the helper's own pod; "" when it is none.
func OwnNamespace() string {
	name, err := os.ReadFile(ownNamespaceFile)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(name))
}

// Connect makes the options of a client for the API server that kubeconfig names or, when
// it is "", the one of the cluster in whose pod this process runs. ErrNone: neither. It
// does not wait for the server. ctx ends what is being written at the end.
func Connect(ctx context.Context, kubeconfig, node string, log *slog.Logger) (Options, error) {
	config, err := load(kubeconfig)
	if err != nil {
		return Options{}, err
	}
	if node == "" {
		return Options{}, errors.New("the name of this node is not known, so its pods cannot be asked for: give --node-name, or set NODE_NAME from spec.nodeName")
	}
	config.UserAgent = component
	config.QPS, config.Burst = 20, 50
	opts := Options{Node: node, Server: config.Host, Log: log}

	core := rest.CopyConfig(config)
	core.APIPath, core.GroupVersion = "/api", &corev1.SchemeGroupVersion
	core.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	core.ContentType, core.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
	client, err := rest.RESTClientFor(core)
	if err != nil {
		return Options{}, fmt.Errorf("API server: %w", err)
	}
	opts.Pods = cache.NewListWatchFromClient(client, "pods", metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", node))
	opts.Events = &sink{ctx, client}

	meta, err := metadata.NewForConfig(config)
	if err != nil {
		return Options{}, fmt.Errorf("API server: %w", err)
	}
	spaces := meta.Resource(corev1.SchemeGroupVersion.WithResource("namespaces"))
	opts.Namespaces = &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return spaces.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return spaces.Watch(ctx, o)
		},
	}
	return opts, nil
}

func load(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("kubeconfig (--kubeconfig) %s: %w", kubeconfig, err)
		}
		return config, nil
	}
	config, err := rest.InClusterConfig()
	switch {
	case errors.Is(err, rest.ErrNotInCluster):
		return nil, ErrNone
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%w: this pod has no service account token: %w", ErrNone, err)
	case err != nil:
		return nil, fmt.Errorf("API server of this cluster: %w", err)
	}
	return config, nil
}

// sink writes events. The context is a field because the interface has none.
type sink struct {
	ctx    context.Context
	client rest.Interface
}

func (s *sink) Create(e *corev1.Event) (*corev1.Event, error) {
	return s.do(s.client.Post().Namespace(e.Namespace).Resource("events").Body(e))
}

// Update is not permitted to the helper, nor asked for: repeated events are patched.
func (s *sink) Update(e *corev1.Event) (*corev1.Event, error) { return s.Create(e) }

func (s *sink) Patch(old *corev1.Event, data []byte) (*corev1.Event, error) {
	return s.do(s.client.Patch(types.StrategicMergePatchType).Namespace(old.Namespace).Resource("events").Name(old.Name).Body(data))
}

func (s *sink) do(r *rest.Request) (*corev1.Event, error) {
	ctx, cancel := context.WithTimeout(s.ctx, eventLimit)
	defer cancel()
	out := &corev1.Event{}
	return out, r.Do(ctx).Into(out)
}

// watched is a ListerWatcher that tells the client how it went.
type watched struct {
	cache.ListerWatcherWithContext
	client *Client
	what   string
	plain  bool // knows no watch that lists (a fake)
}

func newWatched(lw cache.ListerWatcher, c *Client, what string) *watched {
	w := &watched{ListerWatcherWithContext: cache.ToListerWatcherWithContext(lw), client: c, what: what}
	if p, ok := lw.(interface{ IsWatchListSemanticsUnSupported() bool }); ok {
		w.plain = p.IsWatchListSemanticsUnSupported()
	}
	return w
}

func (w *watched) IsWatchListSemanticsUnSupported() bool { return w.plain }

func (w *watched) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	out, err := w.ListerWatcherWithContext.ListWithContext(ctx, o)
	w.note(ctx, err)
	return out, err
}

func (w *watched) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	out, err := w.ListerWatcherWithContext.WatchWithContext(ctx, o)
	w.note(ctx, err)
	return out, err
}

func (w *watched) note(ctx context.Context, err error) {
	if ctx.Err() == nil {
		w.client.problem(w.what, err)
	}
}

// List is for those who have no context; nobody here.
func (w *watched) List(o metav1.ListOptions) (runtime.Object, error) {
	return w.ListWithContext(context.Background(), o)
}

// Watch: see List.
func (w *watched) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return w.WatchWithContext(context.Background(), o)
}
