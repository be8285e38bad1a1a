// SPDX-License-Identifier: Apache-2.0

// Package ask is what the end-to-end test and the program in its pods say to each other: a question (requests to make)
// and its answer (who served them).
//
// Invariant: an answer counts each request once, as served by somebody or as failed.
package ask

import (
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"
)

// ServerHeader is the response's field that names the server.
const ServerHeader = "Served-By"

// Question is a number of GET requests, one after another.
type Question struct {
	URL    string            `json:"url"`
	Header map[string]string `json:"header,omitempty"`
	N      int               `json:"n"`
	// KeepAlive sends them over one connection, as long as that lives.
	KeepAlive bool          `json:"keepAlive,omitempty"`
	Timeout   time.Duration `json:"timeout,omitempty"` // of each; 0 is 5 s
}

// Answer is what came of it.
type Answer struct {
	Servers     map[string]int `json:"servers,omitempty"` // by ServerHeader; empty for those without
	Statuses    map[int]int    `json:"statuses,omitempty"`
	Peers       map[string]int `json:"peers,omitempty"` // what getpeername said
	Errors      map[string]int `json:"errors,omitempty"`
	Connections int            `json:"connections"`
}

// Failed is the number of requests that got no response.
func (a Answer) Failed() int {
	n := 0
	for _, c := range a.Errors {
		n += c
	}
	return n
}

// Ask makes the requests.
func (q Question) Ask(ctx context.Context) Answer {
	a := Answer{Servers: map[string]int{}, Statuses: map[int]int{}, Peers: map[string]int{}, Errors: map[string]int{}}
	if q.Timeout == 0 {
		q.Timeout = 5 * time.Second
	}
	transport := &http.Transport{DisableKeepAlives: !q.KeepAlive}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport: transport, Timeout: q.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var mu sync.Mutex
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
		mu.Lock()
		defer mu.Unlock()
		a.Peers[c.Conn.RemoteAddr().String()]++
		if !c.Reused {
			a.Connections++
		}
	}})
	for range q.N {
		server, status, err := q.one(ctx, client)
		if err != nil {
			a.Errors[err.Error()]++
			continue
		}
		a.Servers[server]++
		a.Statuses[status]++
	}
	mu.Lock()
	defer mu.Unlock()
	return a
}

func (q Question) one(ctx context.Context, client *http.Client) (server string, status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, q.URL, nil)
	if err != nil {
		return "", 0, err
	}
	for name, value := range q.Header {
		req.Header.Set(name, value)
	}
	if host := q.Header["Host"]; host != "" {
		req.Host = host
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return "", 0, err
	}
	return resp.Header.Get(ServerHeader), resp.StatusCode, nil
}
