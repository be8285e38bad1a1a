// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"kmesh/helper/mesh"
)

// servers that have paths of their own, and a share of what is below /any.
var servers = []string{"nginx", "haproxy", "go", "node"}

// web makes the services of the HTTP servers: of both families, and for both ways to begin a connection.
func (b *bed) web() {
	for _, v6 := range []bool{v4, v6} {
		var routes []*mesh.Route
		mixed := route("/any/")
		for _, name := range servers {
			own := b.cluster(name, v6, b.at(name, mainPort, v6))
			mixed.Clusters = append(mixed.Clusters, own)
			routes = append(routes, route("/"+name+"/", own), route("/"+name+"-idle/", b.cluster(name+"-idle", v6, b.at(name, idlePort, v6))))
		}
		routes = append(routes, mixed, route("/nginx-three/", b.cluster("nginx-three", v6, b.at("nginx", threePort, v6))))
		b.guessed[v6] = b.listen("guessed", v6, "go", routes...)
		b.local[v6] = b.listen("local", v6, "", routes...)
	}
}

// volume is few in a short test and many in a full one.
func volume(few, many int) int {
	if full {
		return many
	}
	return few
}

func TestClients(t *testing.T) {
	b := newBed(t)
	for _, part := range []struct {
		name string
		run  func(b *bed)
	}{
		{"library", libraries},
		{"curl", curl},
		{"idle", idle},
		{"load", load},
		{"pinned", pinned},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(b.with(t)) })
	}
	b.wantIdle()
}

// each runs a subtest with every service that is asked for, or with all in a full run.
func (b *bed) each(name string, in []service, run func(b *bed, svc service)) {
	if full {
		in = []service{b.guessed[v4], b.local[v4], b.guessed[v6], b.local[v6]}
	}
	b.these(name, in, run)
}

// these runs a subtest with each of these services.
func (b *bed) these(name string, in []service, run func(b *bed, svc service)) {
	for _, svc := range in {
		b.Run(name+"/"+svc.name, func(t *testing.T) { run(b.with(t), svc) })
	}
}

// library is a program that makes requests by a language's HTTP client.
type library struct {
	name string
	args []string
	in   []service
	idle []string // servers that end its idle connections, in a short run
}

func (b *bed) libraries() []library {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(b.dir, name) }
	java := []string{"java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-cp", b.dir, "Client"}
	return []library{
		{"go", []string{self, "client"}, []service{b.guessed[v4], b.local[v6]}, servers},
		{"node", []string{"node", file("client.mjs")}, []service{b.guessed[v4]}, []string{"go"}},
		{"python", []string{python, file("client.py"), "keep"}, []service{b.local[v4]}, []string{"haproxy"}},
		{"java", append(java, "HTTP_1_1"), []service{b.guessed[v6]}, []string{"nginx"}},
		// What it does unless it is told otherwise: the first request offers an upgrade, which no server takes.
		{"java-offering-h2", append(java, "HTTP_2"), []service{b.local[v4]}, nil},
	}
}

// python is Debian's.
const python = "/usr/bin/python3"

// libraries: one connection, each request to another server.
func libraries(b *bed) {
	for _, l := range b.libraries() {
		b.each(l.name, l.in, func(b *bed, svc service) {
			steps := laps(l.name+svc.name, volume(2, 20))
			began := time.Now()
			got := b.counting(func() {
				c := b.start(l.args...)
				b.check(steps, c.walk(svc, steps))
				c.end()
			})
			b.routed(svc, got, steps)
			b.Logf("%d requests in %s: %v", len(steps), time.Since(began).Round(time.Millisecond), got)
		})
	}
	b.each("python-urllib", []service{b.guessed[v4]}, func(b *bed, svc service) {
		steps := laps("urllib"+svc.name, volume(1, 20))
		got := b.counting(func() {
			c := b.start(python, filepath.Join(b.dir, "client.py"), "urllib")
			b.check(steps, c.walk(svc, steps))
			c.end()
		})
		b.routed(svc, got, single(steps)...) // it never keeps a connection
	})
}

// single is a connection for each step.
func single(steps []step) (out [][]step) {
	for i := range steps {
		out = append(out, steps[i:i+1])
	}
	return out
}

// curl takes steps in one invocation with these options, and returns what it got and how often it connected.
func (b *bed) curl(svc service, steps []step, options ...string) (answers []string, connects int) {
	b.Helper()
	args := []string{"curl"}
	out := func(i int) string { return filepath.Join(b.dir, "curl-"+strconv.Itoa(i)) }
	for i, s := range steps {
		if i > 0 {
			args = append(args, "--next")
		}
		args = append(args, "-sS", "-m", "60", "-o", out(i), "-w", `%{http_code} %header{x-server} %{num_connects}\n`)
		switch s.method {
		case "POST":
			args = append(args, "--data-binary", "@"+b.file(s.upload))
		case "PUT":
			args = append(args, "-T", b.file(s.upload))
		}
		args = append(append(args, options...), svc.url(s.path))
	}
	lines := strings.Split(strings.TrimSpace(b.run(args...)), "\n")
	for i, line := range lines {
		f := strings.Fields(line)
		if len(f) != 3 {
			b.Fatalf("curl printed %q", lines)
		}
		n, err := strconv.Atoi(f[2])
		if err != nil {
			b.Fatal(err)
		}
		connects += n
		body, err := os.ReadFile(out(i))
		if err != nil && !os.IsNotExist(err) { // an empty body makes no file
			b.Fatal(err)
		}
		_ = os.Remove(out(i))
		answers = append(answers, fmt.Sprintf("%s %s %x", f[0], f[1], sha256.Sum256(body)))
	}
	return answers, connects
}

func curl(b *bed) {
	kept := func(name string, in []service, n int, options ...string) {
		b.each(name, in, func(b *bed, svc service) {
			steps := laps(name+svc.name, n)
			got := b.counting(func() {
				answers, connects := b.curl(svc, steps, options...)
				b.check(steps, answers)
				if connects != 1 {
					b.Errorf("curl connected %d times", connects)
				}
			})
			b.routed(svc, got, steps)
		})
	}
	all := []service{b.guessed[v4], b.local[v4], b.guessed[v6], b.local[v6]}
	kept("kept", all, volume(1, 20))
	kept("expect", []service{b.guessed[v4], b.local[v6]}, 1, "-H", "Expect: 100-continue")
	kept("offering-h2c", []service{b.guessed[v4]}, 1, "--http2")

	b.each("refused-expectation", []service{b.guessed[v4]}, func(b *bed, svc service) {
		// The server answers at once, without the body, and ends the connection.
		got := b.counting(func() {
			out := b.run("curl", "-sS", "-m", "60", "-H", "Expect: 100-continue", "--data-binary", "@"+b.file("big"),
				"-w", " %{http_code} %{size_upload}", svc.url("/go/refuse"))
			if out != "not wanted\n 403 0" {
				b.Errorf("curl: %q", out)
			}
		})
		equal(b, "refused requests", got.clusters(svc, 403), map[string]uint64{"go": 1})
		equal(b, "pins", got.pins(), nil)
	})

	b.each("http1.0", []service{b.guessed[v4], b.local[v4]}, func(b *bed, svc service) {
		steps := lap("http10" + svc.name)
		got := b.counting(func() {
			answers, connects := b.curl(svc, steps, "--http1.0")
			b.check(steps, answers)
			if connects != len(steps) {
				b.Errorf("curl connected %d times, want %d", connects, len(steps))
			}
		})
		want, counted := map[string]uint64{}, map[string]uint64{}
		for _, s := range steps {
			want[s.server]++
		}
		for _, status := range []uint16{200, 201} {
			for name, n := range got.clusters(svc, status) {
				counted[name] += n
			}
		}
		// A response without a length ends with its connection.
		pins := got.pins()
		equal(b, "requests", counted, want)
		if pins["until_close"] == 0 || len(pins) > 1 || got.events["flow"] != uint64(len(steps)) {
			b.Errorf("%d connections, pins %v", got.events["flow"], pins)
		}
	})
	b.each("http1.0-kept", []service{b.guessed[v4], b.local[v6]}, func(b *bed, svc service) {
		var steps []step
		for _, name := range []string{"nginx", "haproxy", "go", "node", "go", "nginx", "node", "haproxy"} {
			steps = append(steps, step{"GET", "/" + name + "/file/page", "", name, 200, "page"})
		}
		got := b.counting(func() {
			answers, connects := b.curl(svc, steps, "--http1.0", "-H", "Connection: keep-alive")
			b.check(steps, answers)
			if connects != 1 {
				b.Errorf("curl connected %d times", connects)
			}
		})
		b.routed(svc, got, steps)
	})
}
