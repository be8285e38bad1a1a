// SPDX-License-Identifier: Apache-2.0

// Package events tells what happens to an installation as events of the node, through the API server.
//
// Invariant: it creates events and does nothing else there (the right to create events is all that it needs), and nothing waits for it: what the API
// server does not take in time is dropped, and logged.
package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"kmesh/install"
)

const (
	component = "kmesh-install"
	namespace = meta.NamespaceDefault // where events of objects without a namespace are
	timeout   = 5 * time.Second
	waiting   = 16 // events that may wait to be told
	ending    = 3 * time.Second
	maxText   = 1024 // bytes of a message, by the API's own rule
)

// ErrNotInCluster: this process is not a pod with a service account.
var ErrNotInCluster = rest.ErrNotInCluster

// Reporter is an install.Reporter.
type Reporter struct {
	client typed.EventsGetter
	node   string
	log    *slog.Logger
	queue  chan *core.Event
	ctx    context.Context // of everything that is asked
	cancel context.CancelFunc
	done   chan struct{}
}

// InCluster returns a reporter that speaks as the pod that this process is in.
func InCluster(node string, log *slog.Logger) (*Reporter, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, err
	}
	if node == "" {
		return nil, errors.New("node: the node's name is not known: set it from spec.nodeName, or events cannot be made")
	}
	return New(config, node, log)
}

// New returns a reporter for an API server. Close it.
func New(config *rest.Config, node string, log *slog.Logger) (*Reporter, error) {
	config = rest.CopyConfig(config)
	config.Timeout, config.UserAgent = timeout, component
	client, err := typed.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	r := &Reporter{client: client, node: node, log: log, queue: make(chan *core.Event, waiting), done: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	go r.send()
	return r, nil
}

// Report queues an event. It never blocks.
func (r *Reporter) Report(_ context.Context, e install.Event) {
	event := r.event(e, time.Now())
	select {
	case r.queue <- event:
	default:
		r.log.Warn("event dropped: too many wait", "event", e.Reason)
	}
}

// Close tells what is queued, as far as there is time, and ends. Nothing may be reported after it.
func (r *Reporter) Close() {
	defer r.cancel()
	defer time.AfterFunc(ending, r.cancel).Stop()
	close(r.queue)
	<-r.done
}

func (r *Reporter) send() {
	defer close(r.done)
	for event := range r.queue {
		ctx, cancel := context.WithTimeout(r.ctx, timeout)
		if _, err := r.client.Events(namespace).Create(ctx, event, meta.CreateOptions{}); err != nil {
			r.log.Warn("event not told to the API server", "event", event.Reason, "error", err)
		}
		cancel()
	}
}

// event is about the node, as the kubelet's own are: by name, and with the name for the UID, by which kubectl describe finds it.
func (r *Reporter) event(e install.Event, now time.Time) *core.Event {
	kind := core.EventTypeNormal
	if e.Warning {
		kind = core.EventTypeWarning
	}
	message := e.Message
	if len(message) > maxText {
		message = strings.ToValidUTF8(message[:maxText-3], "") + "..."
	}
	return &core.Event{
		ObjectMeta:     meta.ObjectMeta{GenerateName: component + "-", Namespace: namespace},
		InvolvedObject: core.ObjectReference{Kind: "Node", APIVersion: "v1", Name: r.node, UID: types.UID(r.node)},
		Reason:         e.Reason, Message: message, Type: kind,
		Source:         core.EventSource{Component: component, Host: r.node},
		FirstTimestamp: meta.NewTime(now), LastTimestamp: meta.NewTime(now), Count: 1,
		ReportingController: component, ReportingInstance: r.node,
	}
}
