// SPDX-License-Identifier: Apache-2.0

// Command app is the only program of the end-to-end test's pods: it holds a sandbox, or serves and asks.
//
//	app          holds a pod's namespaces, as the sandbox's program
//	app serve    serves HTTP on :8080 under the pod's name, and does on :9090 what the test asks for
//
// Invariant: what it reports about a connection is what its own sockets said, inside the pod's cgroup and network.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"kmesh/test/e2e/ask"
)

func main() {
	if len(os.Args) < 2 {
		hold()
		return
	}
	switch os.Args[1] {
	case "serve":
		serve()
	default:
		log.Fatalf("app: unknown role %q: want serve, or none", os.Args[1])
	}
}

// hold waits to be told to end, and leaves no zombie where a pod shares its process namespace.
func hold() {
	ch := make(chan os.Signal, 8)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range ch {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, _ := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 {
				break
			}
		}
	}
}

func serve() {
	name, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGTERM)
	go func() {
		<-ends
		os.Exit(0)
	}()
	asked, err := net.Listen("tcp", ":9090")
	if err != nil {
		log.Fatal(err)
	}
	// Last: the pod has started when somebody listens here.
	served, err := net.Listen("tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	go func() { log.Fatal(http.Serve(asked, http.HandlerFunc(obey))) }()
	log.Fatal(http.Serve(served, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(ask.ServerHeader, name)
		fmt.Fprintf(w, "%s %s\n", name, r.URL.Path)
	})))
}

// obey asks what the body says, and answers what came of it.
func obey(w http.ResponseWriter, r *http.Request) {
	var q ask.Question
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_ = json.NewEncoder(w).Encode(q.Ask(r.Context())) // the test sees a short answer
}
