// SPDX-License-Identifier: Apache-2.0

package clients

// Servers that end connections: idle ones soon, and nginx after three requests. No client may see an error of it.

func idle(b *bed) {
	for _, l := range b.libraries() {
		if l.idle == nil {
			continue
		}
		in := l.in[:1]
		if full {
			l.idle, in = servers, []service{b.guessed[v4], b.local[v6]}
		}
		b.these(l.name, in, func(b *bed, svc service) {
			c := b.start(l.args...)
			defer c.end()
			flows := uint64(1)
			for _, server := range l.idle {
				if server == "node" && l.name == "node" {
					continue // Node tells its limit in a header, and its client then ends the connection itself
				}
				got := b.counting(func() { idleServer(c, svc, server) })
				if got.events["flow"] != flows {
					b.Errorf("%s: the client made %d connections, want %d", server, got.events["flow"], flows)
				}
				flows = 0 // it is still the same
				if got.events["hidden_end"] == 0 {
					b.Errorf("%s: no idle connection ended without the client's notice", server)
				}
				want := map[string]uint64{server + "-idle": 4}
				want["go"] += 2
				equal(b, "requests", got.clusters(svc, 200), want)
				equal(b, "pins", got.pins(), nil)
			}
			threeRequests(c, svc)
		})
	}
}

// idleServer has the server end the leg that is in use, and then one that is parked.
func idleServer(c *peer, svc service, server string) {
	c.b.Helper()
	soon := step{"GET", "/" + server + "-idle/file/small", "", server, 200, "small"}
	other := step{"GET", "/go/file/page", "", "go", 200, "page"}
	for _, steps := range [][]step{{soon}, {soon, other}, {soon, soon, other}} {
		c.b.check(steps, c.walk(svc, steps))
		eventually(c.b, "legs that "+server+" has not ended", func() int { return c.b.openLegs(idlePort) }, func(n int) bool { return n == 0 })
	}
}

// threeRequests: with its third response the server says that it ends the connection, and so the client makes another.
func threeRequests(c *peer, svc service) {
	c.b.Helper()
	three := step{"GET", "/nginx-three/file/small", "", "nginx", 200, "small"}
	other := step{"GET", "/go/file/small", "", "go", 200, "small"}
	n := volume(2, 20)
	var steps []step
	for range n {
		steps = append(steps, three, three, three, other, three, other, three, three)
	}
	got := c.b.counting(func() { c.b.check(steps, c.walk(svc, steps)) })
	// The first is there already.
	if want := uint64(2*n - 1); got.events["flow"] != want {
		c.b.Errorf("the client made %d connections, want %d", got.events["flow"], want)
	}
	equal(c.b, "requests", got.clusters(svc, 200), map[string]uint64{"nginx-three": uint64(6 * n), "go": uint64(2 * n)})
	equal(c.b, "pins", got.pins(), nil)
}
