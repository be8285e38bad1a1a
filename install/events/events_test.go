// SPDX-License-Identifier: Apache-2.0

package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"kmesh/install"
)

// server takes events as the API server does, and notes what was asked of it.
type server struct {
	mu     sync.Mutex
	asked  []string
	events []core.Event
	status int
	hold   chan struct{}
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.hold != nil {
		<-s.hold
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r.Method+" "+r.URL.Path)
	var e core.Event
	if err := json.NewDecoder(r.Body).Decode(&e); err == nil {
		s.events = append(s.events, e)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(s.status)
	_ = json.NewEncoder(w).Encode(e)
}

func start(t *testing.T, s *server) (*Reporter, *bytes.Buffer) {
	t.Helper()
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	var log bytes.Buffer
	// In JSON: what the server of the test reads.
	r, err := New(&rest.Config{Host: srv.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}, "node-1", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return r, &log
}

func TestEventsAreOfTheNode(t *testing.T) {
	s := &server{status: http.StatusCreated}
	r, log := start(t, s)
	long := strings.Repeat("ä", 1000)
	r.Report(t.Context(), install.Event{Reason: install.ReasonInstalled, Message: "in"})
	r.Report(t.Context(), install.Event{Warning: true, Reason: install.ReasonRewriteWar, Message: long})
	r.Close()
	if fmt.Sprint(s.asked) != "[POST /api/v1/namespaces/default/events POST /api/v1/namespaces/default/events]" {
		t.Errorf("asked: %v", s.asked)
	}
	if log.Len() > 0 {
		t.Errorf("log: %s", log)
	}
	if len(s.events) != 2 {
		t.Fatalf("events %+v", s.events)
	}
	for i, e := range s.events {
		o := e.InvolvedObject
		if o.Kind != "Node" || o.Name != "node-1" || o.UID != "node-1" || o.Namespace != "" || e.GenerateName == "" || e.Source.Host != "node-1" || e.FirstTimestamp.IsZero() || e.Count != 1 {
			t.Errorf("event %+v", e)
		}
		want := []string{"Normal KmeshInstalled", "Warning KmeshRewriteWar"}[i]
		if got := e.Type + " " + e.Reason; got != want {
			t.Errorf("event %s, want %s", got, want)
		}
	}
	if m := s.events[1].Message; len(m) > maxText || !strings.HasSuffix(m, "ä...") || strings.Contains(m, "\ufffd") {
		t.Errorf("a long message has %d bytes and ends in %q", len(m), m[len(m)-10:])
	}
}

// An API server that refuses, or hangs, holds nothing up.
func TestNothingWaits(t *testing.T) {
	refusing := &server{status: http.StatusForbidden}
	r, log := start(t, refusing)
	r.Report(t.Context(), install.Event{Reason: "A", Message: "a"})
	r.Close()
	if !strings.Contains(log.String(), "not told") {
		t.Errorf("log: %s", log)
	}

	hanging := &server{status: http.StatusCreated, hold: make(chan struct{})}
	r, log = start(t, hanging)
	began := time.Now()
	for range waiting + 10 {
		r.Report(t.Context(), install.Event{Reason: "A", Message: "a"})
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("reporting took %s", d)
	}
	if !strings.Contains(log.String(), "dropped") {
		t.Errorf("log: %s", log)
	}
	began = time.Now()
	r.Close()
	if d := time.Since(began); d > ending+2*time.Second {
		t.Errorf("ending took %s", d)
	}
	close(hanging.hold)
}

func TestNotInCluster(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := InCluster("n", slog.New(slog.DiscardHandler)); !errors.Is(err, ErrNotInCluster) {
		t.Errorf("error %v", err)
	}
}
