// SPDX-License-Identifier: Apache-2.0

// Package kube is the API server as the helper sees it: the pods of this node, the
// namespaces, and events. Whoever runs no API server needs none of it.
//
// What it must be permitted to do, and all that it may be:
//
//	apiGroups: [""]  resources: [pods]        verbs: [list, watch]
//	apiGroups: [""]  resources: [namespaces]  verbs: [list, watch]
//	apiGroups: [""]  resources: [events]      verbs: [create, patch]
//
// Pods are asked for with the field selector spec.nodeName. It writes nothing on pods:
// what became of one is told by events, metrics and kmeshctl.
//
// Invariant: a view is whole. It is nothing until all pods and all namespaces have been
// listed once, and the last good one while the server is away.
package kube

import (
	"context"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"kmesh/cni/optin"
	"kmesh/helper/pods/plan"
)

// Options of a Client. Connect makes them for a real API server.
type Options struct {
	// Pods of this node and all Namespaces; the latter may be metadata only.
	Pods, Namespaces cache.ListerWatcher
	Events           record.EventSink
	// Node is this node's name, which events carry.
	Node string
	// Server is shown to people.
	Server string
	Log    *slog.Logger
}

// Client follows the API server.
type Client struct {
	opts    Options
	changed chan struct{}

	pods, namespaces           cache.Store
	podInformer, spaceInformer cache.Controller
	mu                         sync.Mutex
	recorder                   record.EventRecorder // nil while Run does not
	problems                   map[string]string    // by what is watched, why it is not
	since                      time.Time
	warned                     map[string]string // by namespace, what is wrong with its labels
}

// Status of the connection.
type Status struct {
	Server  string
	Synced  bool   // there is a view
	Problem string // why what is known may be old; empty: it is not
	Since   time.Time
}

// New makes a client; Run makes it work.
func New(opts Options) *Client {
	c := &Client{
		opts: opts, changed: make(chan struct{}, 1),
		problems: make(map[string]string), warned: make(map[string]string), since: time.Now(),
	}
	c.pods, c.podInformer = c.informer("pods", opts.Pods, &corev1.Pod{}, trimPod)
	c.namespaces, c.spaceInformer = c.informer("namespaces", opts.Namespaces, &metav1.PartialObjectMetadata{}, trimNamespace)
	return c
}

// Changed gets a value when there is something new to see.
func (c *Client) Changed() <-chan struct{} { return c.changed }

func (c *Client) notify() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// informer keeps a store. What is stored is trimmed first: a node has room for better.
func (c *Client) informer(what string, lw cache.ListerWatcher, of runtime.Object, trim cache.TransformFunc) (cache.Store, cache.Controller) {
	return cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: newWatched(lw, c, what),
		ObjectType:    of,
		Transform:     trim,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { c.notify() },
			UpdateFunc: func(old, now any) {
				if !same(old, now) {
					c.notify()
				}
			},
			DeleteFunc: func(any) { c.notify() },
		},
	})
}

// Run follows the server until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	klog.SetSlogLogger(c.opts.Log) // of client-go: it has no other
	events := record.NewBroadcaster(record.WithCorrelatorOptions(record.CorrelatorOptions{
		BurstSize: eventBurst, QPS: eventQPS,
	}))
	recording := events.StartRecordingToSink(c.opts.Events)
	c.mu.Lock()
	c.recorder = events.NewRecorder(scheme, corev1.EventSource{Component: component, Host: c.opts.Node})
	c.mu.Unlock()

	var running sync.WaitGroup
	for _, i := range []cache.Controller{c.podInformer, c.spaceInformer} {
		running.Go(func() { i.RunWithContext(ctx) })
	}
	// The stores are whole a moment after the last of their first objects was seen.
	running.Go(func() {
		if cache.WaitForCacheSync(ctx.Done(), c.podInformer.HasSynced, c.spaceInformer.HasSynced) {
			c.notify()
		}
	})
	<-ctx.Done()
	c.mu.Lock()
	c.recorder = nil
	c.mu.Unlock()
	running.Wait()
	events.Shutdown()
	recording.Stop()
	return nil
}

// View is what is known; false: not all of it yet.
func (c *Client) View() (plan.View, bool) {
	if !c.podInformer.HasSynced() || !c.spaceInformer.HasSynced() {
		return plan.View{}, false
	}
	v := plan.View{Namespaces: make(plan.Namespaces)}
	for _, o := range c.namespaces.List() {
		m, err := meta.Accessor(o)
		if err != nil {
			continue
		}
		mode, err := optin.ModeOf(m.GetLabels())
		v.Namespaces[m.GetName()] = mode
		c.warn(m.GetName(), err)
	}
	for _, o := range c.pods.List() {
		if p, ok := o.(*corev1.Pod); ok {
			v.Pods = append(v.Pods, podOf(p))
		}
	}
	return v, true
}

// warn says once what is wrong with a namespace's labels.
func (c *Client) warn(namespace string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		delete(c.warned, namespace)
		return
	}
	if c.warned[namespace] != err.Error() {
		c.warned[namespace] = err.Error()
		c.opts.Log.Warn("label of a namespace means nothing", "namespace", namespace, "err", err)
	}
}

// Status tells how the connection is.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Server: c.opts.Server, Synced: c.podInformer.HasSynced() && c.spaceInformer.HasSynced(), Since: c.since}
	for _, what := range []string{"pods", "namespaces"} {
		if why := c.problems[what]; why != "" && s.Problem == "" {
			s.Problem = what + ": " + why
		}
	}
	return s
}

// problem notes how it went with what is watched; nil: well.
func (c *Client) problem(what string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was, now := c.problems[what], ""
	if err != nil {
		now = err.Error()
	}
	if (was == "") != (now == "") {
		c.since = time.Now()
		if now != "" {
			c.opts.Log.Warn("the API server does not answer; what it said last stays in use", "what", what, "err", err)
		} else {
			c.opts.Log.Info("the API server answers again", "what", what)
		}
	}
	c.problems[what] = now
}

// Event tells of a pod at the API server, if that is there.
func (c *Client) Event(p plan.Pod, warning bool, reason, message string) {
	c.mu.Lock()
	recorder := c.recorder
	c.mu.Unlock()
	if recorder == nil {
		return
	}
	kind := corev1.EventTypeNormal
	if warning {
		kind = corev1.EventTypeWarning
	}
	recorder.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.APIUID),
	}, kind, reason, message)
}
