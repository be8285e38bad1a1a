// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Programs that make many requests.

func load(b *bed) {
	b.each("wrk", []service{b.guessed[v4], b.local[v6]}, wrk)
	b.each("ab", []service{b.guessed[v4]}, func(b *bed, svc service) { ab(b, svc, "-k") })
	b.each("ab-closing", []service{b.local[v4]}, func(b *bed, svc service) { ab(b, svc) })
}

// wrk takes paths of four servers in turn, on 16 connections.
func wrk(b *bed, svc service) {
	args := []string{"wrk", svc.url("/"), "-t", "2", "-c", "16", "--timeout", "10s", "-d", strconv.Itoa(volume(1, 10)) + "s",
		"-s", filepath.Join(b.dir, "wrk.lua"), "--", strconv.Itoa(len(content["small"]))}
	for _, name := range servers {
		args = append(args, "/"+name+"/file/small")
	}
	var said struct {
		Count, Errors, Status, Strange uint64
		Servers                        string
	}
	got := b.counting(func() {
		out := strings.TrimSpace(b.run(args...))
		if err := json.Unmarshal([]byte(out[strings.LastIndexByte(out, '\n')+1:]), &said); err != nil {
			b.Fatalf("%v in %s", err, out)
		}
	})
	if said.Errors+said.Status+said.Strange > 0 || said.Count == 0 {
		b.Errorf("wrk: %+v", said)
	}
	by := strings.Fields(said.Servers)
	slices.Sort(by)
	if by = slices.Compact(by); !slices.Equal(by, []string{"go", "haproxy", "nginx", "node"}) {
		b.Errorf("wrk was answered by %q", by)
	}
	var all uint64
	clusters := got.clusters(svc, 200)
	for _, name := range servers {
		if all += clusters[name]; clusters[name] == 0 {
			b.Errorf("no request for %s: %v", name, clusters)
		}
	}
	// Those that ran when wrk ended are not counted by it.
	if all < said.Count || all > said.Count+16 {
		b.Errorf("the kernel counted %d requests, wrk %d", all, said.Count)
	}
	// Two connections of a thread may take a path twice in a row.
	if got.switches() < all/2 {
		b.Errorf("%d of %d requests switched endpoints", got.switches(), all)
	}
	equal(b, "pins", got.pins(), nil)
	b.Logf("%d requests, %d connections, %d switches to parked legs, %d to new ones, %d held",
		all, got.events["flow"], got.events["switch_parked"], got.events["switch_new"], got.events["held"])
}

var abCount = regexp.MustCompile(`(?m)^(Complete requests|Failed requests|Non-2xx responses|Keep-Alive requests|Write errors|Document Length): +(\d+)`)

// ab has requests drawn by weight between four servers.
func ab(b *bed, svc service, options ...string) {
	n := volume(400, 10_000)
	args := append([]string{"ab", "-q", "-n", strconv.Itoa(n), "-c", "8", "-s", "20"}, options...)
	said := map[string]int{}
	got := b.counting(func() {
		out := b.run(append(args, svc.url("/any/file/small"))...)
		for _, m := range abCount.FindAllStringSubmatch(out, -1) {
			said[m[1]], _ = strconv.Atoi(m[2])
		}
	})
	kept := 0
	if len(options) > 0 {
		kept = n
	}
	if said["Complete requests"] != n || said["Failed requests"]+said["Non-2xx responses"]+said["Write errors"] != 0 ||
		said["Keep-Alive requests"] != kept || said["Document Length"] != len(content["small"]) {
		b.Errorf("ab: %v", said)
	}
	var all uint64
	clusters := got.clusters(svc, 200)
	for _, name := range servers {
		if all += clusters[name]; clusters[name] == 0 {
			b.Errorf("no request for %s: %v", name, clusters)
		}
	}
	if all != uint64(n) {
		b.Errorf("the kernel counted %d requests, want %d", all, n)
	}
	switch flows := got.events["flow"]; {
	case kept == 0 && (flows < uint64(n) || flows > uint64(n)+8): // the last ones are opened in vain
		b.Errorf("%d connections, want %d", flows, n)
	case kept > 0 && (flows > 8+uint64(n)/100 || got.switches() < all/2):
		b.Errorf("%d connections, %d of %d requests switched endpoints", flows, got.switches(), all)
	}
	equal(b, "pins", got.pins(), nil)
	b.Logf("%d requests %v, %d connections, %d switches to parked legs, %d to new ones", all, clusters, got.events["flow"], got.events["switch_parked"], got.events["switch_new"])
}
