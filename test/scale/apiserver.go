// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kmesh/test/node"
)

const (
	// apiAddr is where the API server listens, in the node's network namespace.
	apiAddr = "127.0.0.1:16443"
	// tier is the label that tells the pods' scopes apart.
	tier = "tier"
)

// apiServer is as much of an API server as the helper asks for: a list of the node's pods and of the namespaces, which
// goes on with what is new, and events, which nobody reads.
type apiServer struct {
	http *http.Server

	mu    sync.Mutex
	pods  []corev1.Pod
	grown chan struct{} // closed when there is another pod
}

// serveAPI starts one; in runs a function in the node's network namespace.
func serveAPI(in func(func() error) error) (*apiServer, error) {
	s := &apiServer{grown: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/pods", s.listPods)
	mux.HandleFunc("GET /api/v1/namespaces", s.listNamespaces)
	mux.HandleFunc("/api/v1/namespaces/{namespace}/events", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusCreated, map[string]any{"kind": "Event", "apiVersion": "v1", "metadata": map[string]any{"name": "told"}})
	})
	var l net.Listener
	if err := in(func() (err error) {
		l, err = net.Listen("tcp", apiAddr)
		return err
	}); err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	s.http = &http.Server{Handler: mux}
	go func() { _ = s.http.Serve(l) }()
	return s, nil
}

// kubeconfig writes the file that names it.
func (s *apiServer) kubeconfig(path string) error {
	const text = `{"apiVersion": "v1", "kind": "Config", "current-context": "all",
"clusters": [{"name": "all", "cluster": {"server": "http://%s"}}],
"contexts": [{"name": "all", "context": {"cluster": "all", "user": "all"}}],
"users": [{"name": "all", "user": {}}]}
`
	return os.WriteFile(path, fmt.Appendf(nil, text, apiAddr), 0o600)
}

// add tells of a pod with a value of the label.
func (s *apiServer) add(p *node.Pod, of string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods = append(s.pods, corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID), Annotations: p.Annotations,
			Labels: map[string]string{tier: of}, ResourceVersion: fmt.Sprint(len(s.pods) + 1)},
		Spec:   corev1.PodSpec{NodeName: nodeID},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: p.IP4.String()}, {IP: p.IP6.String()}}},
	})
	close(s.grown)
	s.grown = make(chan struct{})
}

// from returns the pods after the first n, and what tells of another.
func (s *apiServer) from(n int) ([]corev1.Pod, chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pods[min(n, len(s.pods)):len(s.pods):len(s.pods)], s.grown
}

func (s *apiServer) listPods(w http.ResponseWriter, r *http.Request) {
	pods, _ := s.from(0)
	if r.FormValue("watch") == "" {
		answer(w, http.StatusOK, corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"},
			ListMeta: metav1.ListMeta{ResourceVersion: fmt.Sprint(len(pods))}, Items: pods})
		return
	}
	s.watch(w, r, func(p corev1.Pod) any { return p })
}

func (s *apiServer) listNamespaces(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("watch") == "" {
		answer(w, http.StatusOK, metav1.PartialObjectMetadataList{
			TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadataList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"},
			Items: []metav1.PartialObjectMetadata{{
				TypeMeta:   metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"},
				ObjectMeta: metav1.ObjectMeta{Name: "default", ResourceVersion: "1"}}},
		})
		return
	}
	s.watch(w, r, nil)
}

// watch answers with each pod that is new, as event has it; nil: with nothing, as long as the client likes. A watch that
// is to begin with a list is refused, as by servers that do not know such.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, event func(corev1.Pod) any) {
	if r.FormValue("sendInitialEvents") != "" {
		answer(w, http.StatusUnprocessableEntity, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
			Status: metav1.StatusFailure, Reason: metav1.StatusReasonInvalid, Code: http.StatusUnprocessableEntity, Message: "sendInitialEvents is not known here"})
		return
	}
	var seen int
	_, _ = fmt.Sscan(r.FormValue("resourceVersion"), &seen)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	for {
		pods, grown := s.from(seen)
		for _, p := range pods {
			if event == nil {
				continue
			}
			if err := json.NewEncoder(w).Encode(map[string]any{"type": "ADDED", "object": event(p)}); err != nil {
				return
			}
		}
		seen += len(pods)
		if out.Flush() != nil {
			return
		}
		select {
		case <-grown:
		case <-r.Context().Done():
			return
		}
	}
}

func answer(w http.ResponseWriter, status int, what any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(what)
}
