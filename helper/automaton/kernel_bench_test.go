// SPDX-License-Identifier: Apache-2.0

package automaton_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"kmesh/bpf"
	"kmesh/helper/automaton"
	"kmesh/helper/mesh"
)

// What clients send beside target and host.
const (
	shortHead = "User-Agent: wrk/4.2\r\nAccept: */*\r\n\r\n"
	meshHead  = "User-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\nX-Request-Id: 7f3c2f1e-90b1-4d6b-9e0a-6f0f5b9f2a11\r\n" +
		"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nX-User: alice\r\nContent-Type: application/json\r\n\r\n"
	browserHead = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n" +
		"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\nCache-Control: no-cache\r\n" +
		"Cookie: session=1f0e2d3c4b5a69788796a5b4c3d2e1f0; theme=dark; consent=yes\r\nReferer: http://shop.example.com/catalog\r\n" +
		"Sec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nUpgrade-Insecure-Requests: 1\r\n\r\n"
)

func target(i int) mesh.PathMatch {
	return mesh.PathMatch{Kind: mesh.PathExact, Value: fmt.Sprintf("/api/v1/svc%d/res", i)}
}

// BenchmarkKernel runs heads with random targets. The machine begins each head anew;
// all that a head costs is in the time: clearing the state, the candidates.
//
// "one-of-10000" has all the tables of 10,000 routes and asks for one of them only:
// what it takes less than 10,000 is what their tables cost in cache misses, and what
// it takes more than 10 is what more routes cost in work.
func BenchmarkKernel(b *testing.B) {
	for _, rest := range []struct{ name, text string }{{"short", shortHead}, {"mesh", meshHead}, {"browser", browserHead}} {
		for _, size := range []struct {
			name            string
			routes, targets int
		}{{"10", 10, 10}, {"100", 100, 100}, {"1000", 1000, 1000}, {"10000", 10_000, 10_000}, {"one-of-10000", 10_000, 1}} {
			routes := size.routes
			b.Run(rest.name+"/"+size.name, func(b *testing.B) {
				k := newKernel(b)
				// A virtual host has a thousand routes at most here: more are several.
				each := min(routes, 1000)
				var at []uint32
				for v := range routes / each {
					p, err := automaton.Compile(routesOf(each, func(i int) mesh.PathMatch { return target(v*each + i) }), automaton.Budget{})
					if err != nil {
						b.Fatal(err)
					}
					if k.used+len(p.Bytes) > bpf.SlabSize {
						b.Fatalf("%d bytes do not fit after %d", len(p.Bytes), k.used)
					}
					at = append(at, k.load(p))
				}
				r := rand.New(rand.NewPCG(1, 2))
				bytes := 0
				for i := range bpf.MaxPieces {
					n := r.IntN(size.targets)
					head := "GET " + target(n).Value + " HTTP/1.1\r\nHost: catalog.default.svc.cluster.local\r\n" + rest.text
					piece := k.Piece(i)
					piece.Program, piece.First, piece.Fresh, piece.End = at[n/each], 0, 1, uint32(len(head))
					copy(piece.Bytes[:], head)
					bytes += len(head)
				}
				if _, _, err := k.Run(bpf.MaxPieces, bpf.MaxPieces); err != nil {
					b.Fatal(err)
				}
				// Other things run on the machine: the quickest round counts, of many that
				// are long enough to see every head several times.
				best := math.MaxFloat64
				var result *bpf.HeadResult
				for b.Loop() {
					took, res, err := k.Run(bpf.MaxPieces, 4*bpf.MaxPieces)
					if err != nil {
						b.Fatal(err)
					}
					best = min(best, float64(took.Nanoseconds()))
					result = res
				}
				if automaton.Kind(result.Machine.Kind) != automaton.Route || result.Found.Summary == 0 {
					b.Fatalf("kind %d, candidates %d", result.Machine.Kind, result.Found.Summary)
				}
				head := float64(bytes) / bpf.MaxPieces
				b.ReportMetric(best, "ns/head")
				b.ReportMetric(best/head, "ns/byte")
				b.ReportMetric(head, "bytes")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
