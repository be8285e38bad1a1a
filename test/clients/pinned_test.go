// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"kmesh/helper/mesh"
)

// What is not HTTP/1, or no longer: it works, on one endpoint, at ports that are declared to be HTTP.

// opaque makes services whose routes lead to the Go server, and all else to a server that does not speak HTTP/1.
func (b *bed) opaque() {
	for _, v6 := range []bool{v4, v6} {
		web := route("/go/", b.cluster("go", v6, b.at("go", mainPort, v6)))
		for name, endpoints := range map[string][]netip.AddrPort{
			"h2c":   {b.at("go", h2cPort, v6)},
			"grpc":  {b.at("go", grpcPort, v6)},
			"tls":   {b.at("go", tlsPort, v6), b.at("nginx", tlsPort, v6)},
			"redis": {b.at("redis", redisPort, v6)},
			"smtp":  {b.at("go", smtpPort, v6)},
		} {
			own := b.cluster(name, v6, endpoints...)
			b.other[name+family(v6)] = b.listen(name, v6, name, web, &mesh.Route{Name: "rest", Clusters: []mesh.WeightedCluster{own}})
		}
	}
}

func family(v6 bool) string {
	if v6 {
		return "6"
	}
	return ""
}

// wasPinned fails unless so many connections were pinned, for these reasons, and no request was routed.
func (b *bed) wasPinned(got counts, n uint64, reasons ...string) {
	b.Helper()
	var all uint64
	for reason, n := range got.pins() {
		all += n
		if !slices.Contains(reasons, reason) {
			b.Errorf("%d connections were pinned: %s", n, reason)
		}
	}
	if flows := got.events["flow"]; all != n || flows != n {
		b.Errorf("%d connections, %d of them pinned, want %d", flows, all, n)
	}
	if len(got.requests) > 0 || got.switches() > 0 {
		b.Errorf("requests were routed: %v", got)
	}
}

func pinned(b *bed) {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	for _, v6 := range []bool{v4, v6} {
		if v6 && !full {
			break
		}
		for _, part := range []struct {
			name string
			run  func(b *bed, svc service, self string)
		}{{"h2c", h2c}, {"grpc", grpcCalls}, {"tls", tlsRequests}, {"redis", redis}, {"smtp", smtp}} {
			svc := b.other[part.name+family(v6)]
			b.Run(svc.name, func(t *testing.T) { part.run(b.with(t), svc, self) })
		}
	}
	b.each("websocket", []service{b.guessed[v4], b.local[v6]}, func(b *bed, svc service) { webSocket(b, svc, self) })
}

// webSocket: through a server, and through HAProxy in front of one.
func webSocket(b *bed, svc service, self string) {
	for _, server := range []string{"go", "haproxy"} {
		got := b.counting(func() {
			c := b.start(self, "websocket")
			defer c.end()
			var steps []step
			for range volume(3, 100) {
				for _, name := range []string{"small", "page", "big"} {
					steps = append(steps, step{"-", "/" + server + "/websocket", name, "-", 101, name})
				}
			}
			b.check(steps, c.walk(svc, steps))
			to := []string{}
			for _, f := range b.rt.LiveFlows() {
				if f.PinName() == "upgraded" {
					to = append(to, strings.TrimSuffix(b.nameOf(f.Legs[f.Leg].Cluster), "6"))
				}
			}
			if !slices.Equal(to, []string{server}) {
				b.Errorf("connections that stay because they were upgraded lead to %q, want %q", to, server)
			}
		})
		equal(b, "pins", got.pins(), map[string]uint64{"upgraded": 1})
		if got.events["flow"] != 1 {
			b.Errorf("%d connections", got.events["flow"])
		}
	}
}

// h2c: HTTP/2 with prior knowledge. The paths are those of routes that lead elsewhere.
func h2c(b *bed, svc service, self string) {
	steps := []step{
		{"GET", "/go/file/page", "", "go", 200, "page"},
		{"POST", "/x/echo", "big", "go", 200, "big"},
		{"POST", "/go/echo", "small", "go", 200, "small"},
	}
	got := b.counting(func() {
		for _, s := range steps { // one by one: this curl cannot use such a connection again, also directly
			answers, _ := b.curl(svc, []step{s}, "--http2-prior-knowledge")
			b.check([]step{s}, answers)
		}
	})
	b.wasPinned(got, 3, "h2")
	for i := range steps {
		steps[i].server = "go/HTTP/2.0"
	}
	got = b.counting(func() {
		c := b.start(self, "h2c")
		b.check(steps, c.walk(svc, steps))
		c.end()
	})
	b.wasPinned(got, 1, "h2")
}

func grpcCalls(b *bed, svc service, self string) {
	var steps []step
	for range volume(2, 100) {
		for _, method := range []string{"Once", "Stream"} {
			for _, name := range []string{"small", "page", "big"} {
				steps = append(steps, step{method, "/", name, "-", 200, name})
			}
		}
	}
	got := b.counting(func() {
		c := b.start(self, "grpc")
		b.check(steps, c.walk(svc, steps))
		c.end()
	})
	// This server does not wait for the client's first bytes.
	b.wasPinned(got, 1, "h2", "server_first")
}

// tlsRequests: HTTPS, in HTTP/1.1 and HTTP/2, at two servers in turn, each for a connection.
func tlsRequests(b *bed, svc service, _ string) {
	by := map[string]int{}
	const n = 4
	got := b.counting(func() {
		for i := range n {
			version := []string{"--http1.1", "--http2"}[i/2]
			out := filepath.Join(b.dir, "tls")
			url := "https://" + svc.at.String() + "/x/file/big"
			said := b.run("curl", "-sSk", "-m", "60", version, "-w", `%{http_code} %header{x-server} %{http_version}\n`, "-o", out, url, "-o", out, url)
			body, err := os.ReadFile(out)
			if err != nil {
				b.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(said), "\n")
			f := strings.Fields(lines[0])
			if len(lines) != 2 || lines[0] != lines[1] || len(f) != 3 || f[0] != "200" || f[2] != []string{"1.1", "2"}[i/2] || sha256.Sum256(body) != sha256.Sum256(content["big"]) {
				b.Errorf("curl: %q, %d bytes", lines, len(body))
				continue
			}
			by[f[1]]++
		}
	})
	if by["go"] != n/2 || by["nginx"] != n/2 {
		b.Errorf("answered by %v, want both in turn", by)
	}
	b.wasPinned(got, n, "tls")
}

func redis(b *bed, svc service, _ string) {
	cli := []string{"redis-cli", "-h", svc.at.Addr().String(), "-p", strconv.Itoa(int(svc.at.Port()))}
	got := b.counting(func() {
		for _, c := range []struct {
			args []string
			want string
		}{
			{[]string{"SET", "GET /go/file/small HTTP/1.1", "a value"}, "OK"},
			{[]string{"GET", "GET /go/file/small HTTP/1.1"}, "a value"},
		} {
			if out := strings.TrimSpace(b.run(append(cli, c.args...)...)); out != c.want {
				b.Errorf("redis-cli %q: %q, want %q", c.args, out, c.want)
			}
		}
	})
	b.wasPinned(got, 2, "opaque")
	n := volume(2000, 100_000)
	got = b.counting(func() {
		out := b.run("redis-benchmark", "-h", svc.at.Addr().String(), "-p", strconv.Itoa(int(svc.at.Port())), "-n", strconv.Itoa(n),
			"-c", "8", "-P", "4", "-d", "1000", "-t", "set,get", "--csv")
		if m := regexp.MustCompile(`(?m)^"(SET|GET)","[1-9]`).FindAllString(out, -1); len(m) != 2 || strings.Contains(out, "rror") {
			b.Errorf("redis-benchmark: %s", out)
		}
	})
	if pins := got.pins(); pins["opaque"] < 8 || len(pins) != 1 || pins["opaque"] != got.events["flow"] {
		b.Errorf("%d connections, pins %v", got.events["flow"], pins)
	}
	got = b.counting(func() {
		if out := strings.TrimSpace(b.run(append(cli, "GET", "key:__rand_int__")...)); len(out) != 1000 {
			b.Errorf("what the benchmark wrote has %d bytes", len(out))
		}
	})
	b.wasPinned(got, 1, "opaque")
}

// smtp: the server speaks first.
func smtp(b *bed, svc service, _ string) {
	var mail strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&mail, "GET /go/file/small HTTP/1.1, line %d\r\n", i)
	}
	b.write("mail", []byte(mail.String()))
	got := b.counting(func() {
		out := b.run("curl", "-sSv", "--stderr", "-", "-m", "60", "smtp://"+svc.at.String(), "--mail-from", "a@mail.test", "--mail-rcpt", "b@mail.test", "-T", filepath.Join(b.dir, "mail"))
		if want := fmt.Sprintf("250 got %x", sha256.Sum256([]byte(mail.String()))); !strings.Contains(out, want) {
			b.Errorf("curl: %s, want %s", out, want)
		}
		b.run(python, "-c", `
import smtplib, sys
s = smtplib.SMTP(sys.argv[1], int(sys.argv[2]), timeout=60)
s.sendmail("a@mail.test", ["b@mail.test"], open(sys.argv[3], "rb").read())
s.quit()
`, svc.at.Addr().String(), strconv.Itoa(int(svc.at.Port())), filepath.Join(b.dir, "mail"))
	})
	b.wasPinned(got, 2, "server_first")
}
