// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"kmesh/test/meshfile"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// shop is an HTTP listener on the VIP: /b goes to v2, what has the header x to v1 and v2,
// /old is sent on, and everything else goes to v1.
const shop = `- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: shop
  address: {socket_address: {address: %s, port_value: %d}}
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: shop
        http_filters:
        - name: envoy.filters.http.router
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
        route_config:
          name: shop
          virtual_hosts:
          - name: vh
            domains: ["shop", "*.shop"]
            routes:
            - {name: old, match: {path: /old}, redirect: {path_redirect: /b}}
            - {name: b, match: {prefix: /b}, route: {cluster: v2}}
            - name: both
              match: {prefix: /, headers: [{name: x, present_match: true}]}
              route: {weighted_clusters: {clusters: [{name: v1, weight: 3}, {name: v2, weight: 1}]}}
            - {name: rest, match: {prefix: /a}, route: {cluster: v1}}
`

// web serves HTTP in a pod until the test ends, and says its name.
func (b *bed) web(name string) netip.AddrPort {
	b.Helper()
	p, err := b.node.AddPod(b.ctx, node.PodSpec{Name: name})
	if err != nil {
		b.Fatal(err)
	}
	var l net.Listener
	if err := p.Do(func() (err error) {
		l, err = net.Listen("tcp4", ":8000")
		return err
	}); err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) })}
	go srv.Serve(l)
	b.Cleanup(func() { srv.Close() })
	return netip.AddrPortFrom(p.IP4, 8000)
}

// TestExplainIsWhatHappens: what kmeshctl explains, from the tables that the publisher
// made, is what the programs do with the same request.
func TestExplainIsWhatHappens(t *testing.T) {
	b := newBed(t)
	v1, v2 := b.web("web1"), b.web("web2")
	addr := netip.MustParseAddrPort(vip)
	b.write("mesh.yaml", fmt.Sprintf(shop, addr.Addr(), addr.Port())+meshfile.Cluster("v1", v1)+meshfile.Cluster("v2", v2))
	b.start()
	client := b.client("client")

	for _, tt := range []struct {
		host, path, header string
		route              string // "": none
		clusters           string
		status             int
		by                 []string
	}{
		{"shop", "/a", "", "vh/rest", "v1", 200, []string{"web1"}},
		{"A.Shop", "/b?c", "", "vh/b", "v2", 200, []string{"web2"}},
		{"shop", "/", "X: 1", "vh/both", "v1 v2", 200, []string{"web1", "web2"}},
		{"shop", "/old", "", "vh/old", "", 301, nil},
		{"shop", "/", "", "", "", 404, nil},
		{"x", "/a", "", "", "", 404, nil},
	} {
		t.Run(tt.host+tt.path+tt.header, func(t *testing.T) {
			args := []string{"explain", "-o", "json", client.Namespace + "/" + client.Name, "GET", "http://" + vip + tt.path, "-H", "Host: " + tt.host}
			if tt.header != "" {
				args = append(args, "-H", tt.header)
			}
			out, err := b.node.Kmeshctl(b.ctx, args...)
			if err != nil {
				t.Fatal(err)
			}
			var said struct {
				Service  string
				Outcomes []struct {
					Route, Action string
					Clusters      []struct {
						Name      string
						Endpoints []string
					}
				}
			}
			if err := json.Unmarshal(out, &said); err != nil || len(said.Outcomes) != 1 {
				t.Fatalf("%v in %s", err, out)
			}
			one := said.Outcomes[0]
			var clusters []string
			for _, c := range one.Clusters {
				clusters = append(clusters, c.Name)
				if want := map[string]string{"v1": v1.String(), "v2": v2.String()}[c.Name]; fmt.Sprint(c.Endpoints) != "["+want+"]" {
					t.Errorf("cluster %s has endpoints %v, want %s", c.Name, c.Endpoints, want)
				}
			}
			if said.Service != "shop" || !strings.HasSuffix(one.Route, tt.route) || (one.Route == "") != (tt.route == "") || strings.Join(clusters, " ") != tt.clusters {
				t.Errorf("explained: %s", out)
			}
			if tt.status != 200 && !strings.Contains(one.Action, fmt.Sprintf("answered %d", tt.status)) {
				t.Errorf("explained as %q, want %d", one.Action, tt.status)
			}

			c, res, err := client.Conn(b.ctx, wire.Dial{Network: wire.TCP, Addr: vip})
			if err != nil || c == nil {
				t.Fatalf("%+v, %v", res, err)
			}
			defer c.Close()
			status, by := get(t, c, tt.path, tt.host, tt.header)
			if status != tt.status || tt.by != nil && !strings.Contains(strings.Join(tt.by, " "), by) {
				t.Errorf("answered %d by %q", status, by)
			}
		})
	}
}

func get(t *testing.T, c net.Conn, path, host, header string) (status int, body string) {
	t.Helper()
	if header != "" {
		header += "\r\n"
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", path, host, header); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(text)
}

// TestTracePackets: the programs write the packets that kmeshctl asks for.
func TestTracePackets(t *testing.T) {
	b := newBed(t)
	addr := netip.MustParseAddrPort(vip)
	b.write("mesh.yaml", fmt.Sprintf(shop, addr.Addr(), addr.Port())+meshfile.Cluster("v1", b.web("web1"))+meshfile.Cluster("v2", b.web("web2")))
	b.start()
	client := b.client("client")
	c, res, err := client.Conn(b.ctx, wire.Dial{Network: wire.TCP, Addr: vip})
	if err != nil || c == nil {
		t.Fatalf("%+v, %v", res, err)
	}
	defer c.Close()
	get(t, c, "/a", "shop", "") // the flow is there
	flows := b.ctl("flows")["flows"].([]any)
	if len(flows) != 1 {
		t.Fatalf("flows %v", flows)
	}
	id := flows[0].(map[string]any)["id"].(string)

	type answer struct {
		out []byte
		err error
	}
	ended := make(chan answer, 1)
	go func() {
		out, err := b.node.Kmeshctl(b.ctx, "trace", id, "--count", "4", "-o", "json")
		ended <- answer{out, err}
	}()
	// Requests go on until enough packets were traced.
	deadline := time.Now().Add(20 * time.Second)
	var got answer
	for i := 0; got.out == nil; i++ {
		get(t, c, []string{"/a", "/b"}[i%2], "shop", "")
		select {
		case got = <-ended:
			if got.err != nil {
				t.Fatal(got.err)
			}
		default:
			if time.Now().After(deadline) {
				t.Fatal("no packet was traced in 20 s")
			}
		}
	}
	dec := json.NewDecoder(strings.NewReader(string(got.out)))
	out := 0
	for n := range 4 {
		var p struct {
			Flow, Verdict, State string
			Egress               bool
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatalf("packet %d: %v in %s", n, err, got.out)
		}
		if p.Flow != id || p.State != "open" || p.Verdict == "" {
			t.Errorf("packet %d: %+v", n, p)
		}
		if p.Egress {
			out++
		}
	}
	if out == 0 || out == 4 {
		t.Errorf("%d of 4 packets are the client's, want some of both sides:\n%s", out, got.out)
	}
	if got, err := b.node.Kmeshctl(b.ctx, "trace", "0.4294967295"); err == nil || !strings.Contains(err.Error(), "no open flow") {
		t.Errorf("a flow that is not there: %s, %v", got, err)
	}
}
