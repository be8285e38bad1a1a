// SPDX-License-Identifier: Apache-2.0

package readme

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"kmesh/bpf"
	"kmesh/cni/optin"
	"kmesh/helper/mesh"
	"kmesh/helper/snapshot"
	"kmesh/helper/xds"
)

const root = "../.."

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// blocks returns the fenced blocks of one language.
func blocks(t *testing.T, language string) []string {
	t.Helper()
	var out []string
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(readme(t), -1) {
		out = append(out, m[1])
	}
	if len(out) == 0 {
		t.Fatalf("README.md has no %s block", language)
	}
	return out
}

// The two files of the README are a mesh without a single complaint.
func TestMesh(t *testing.T) {
	dir := t.TempDir()
	named := regexp.MustCompile(`^# xds/(\w+\.yaml)\n`)
	for _, block := range blocks(t, "yaml") {
		m := named.FindStringSubmatch(block)
		if m == nil {
			t.Fatalf("a yaml block does not begin with its file's name:\n%s", block)
		}
		if err := os.WriteFile(filepath.Join(dir, m[1]), []byte(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	store := snapshot.New(snapshot.Options{})
	source := xds.NewFiles(xds.FilesOptions{Dir: dir})
	ended := make(chan error, 2)
	go func() { ended <- source.Run(ctx, store) }()
	published := make(chan *mesh.Snapshot, 16)
	go func() {
		ended <- store.Run(ctx, func(_ context.Context, s *mesh.Snapshot) error {
			published <- s
			return nil
		})
	}()
	var snap *mesh.Snapshot
	select {
	case snap = <-published:
	case <-ctx.Done():
		t.Fatalf("no snapshot: %+v, %+v", store.Status(), source.Status())
	}
	status := store.Status()
	cancel()
	for range 2 {
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}

	for _, v := range append(status.Problems, source.Status().Problems...) {
		t.Errorf("a problem: %+v", v)
	}
	for _, r := range status.Resources {
		for _, v := range r.Verdicts {
			if v.Class != mesh.Enforced && v.Class != mesh.Default {
				t.Errorf("%s %s: %s is %s: %s", r.Type, r.Name, v.Field, v.Class, v.Message)
			}
		}
	}
	var got []string
	for _, scope := range snap.Scopes {
		for _, svc := range scope.Services {
			for _, c := range svc.Clusters {
				cluster := scope.Clusters[c.Cluster]
				endpoints := 0
				for _, l := range cluster.Localities {
					endpoints += len(l.Endpoints)
				}
				got = append(got, fmt.Sprintf("%s %v:%d %s %d %s %d", svc.Name, svc.Frontends[0].Prefix, svc.Frontends[0].Port, c.Cluster, c.Weight, cluster.Policy, endpoints))
			}
		}
	}
	want := "echo 10.96.0.10/32:80 echo-v1 80 LEAST_REQUEST 2, echo 10.96.0.10/32:80 echo-v2 20 ROUND_ROBIN 1"
	if strings.Join(got, ", ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, ", "), want)
	}
}

func TestJSONBlocks(t *testing.T) {
	var conflists, sets int
	for _, block := range blocks(t, "json") {
		var content map[string]any
		if err := json.Unmarshal([]byte(block), &content); err != nil {
			t.Errorf("%v in\n%s", err, block)
			continue
		}
		switch {
		case content["plugins"] != nil:
			conflists++
			if !strings.Contains(block, `"type": "kmesh-cni"`) {
				t.Errorf("a conflist without kmesh-cni:\n%s", block)
			}
		case content["namespaces"] != nil:
			sets++
			set, err := optin.Parse([]byte(block))
			if err != nil {
				t.Error(err)
			}
			if set.Namespaces["shop"] != optin.Enroll || set.Namespaces["bank"] != optin.Required {
				t.Errorf("the set reads as %v", set.Namespaces)
			}
		default:
			t.Errorf("unknown block:\n%s", block)
		}
	}
	if conflists != 1 || sets != 1 {
		t.Errorf("%d conflists and %d sets of namespaces, want one of each", conflists, sets)
	}
}

// What the README calls by name exists.
func TestNames(t *testing.T) {
	text := readme(t)
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?m)(?:^    |`)make ([a-z0-9]+)").FindAllStringSubmatch(text, -1) {
		if !strings.Contains(string(makefile), "\n"+m[1]+": ") {
			t.Errorf("make %s: no such target", m[1])
		}
	}
	for _, m := range regexp.MustCompile("`((?:bpf|netns|cni|helper|install|test)/[a-z/]*|\\.ci/run)`").FindAllStringSubmatch(text, -1) {
		if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
			t.Error(err)
		}
	}
	maps := map[string]bool{}
	var source []byte
	for _, file := range []string{"bpf/maps.h", "bpf/maps_http.h"} {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, text...)
	}
	for _, m := range regexp.MustCompile(`} (km_\w+) SEC\("\.maps"\)`).FindAllStringSubmatch(string(source), -1) {
		maps[m[1]] = true
		if !strings.Contains(text, "`"+m[1]+"`") {
			t.Errorf("the map %s is not in the README", m[1])
		}
	}
	for _, m := range regexp.MustCompile("`(km_\\w+)`").FindAllStringSubmatch(text, -1) {
		if !maps[m[1]] {
			t.Errorf("there is no map %s", m[1])
		}
	}
	for reason := bpf.Reason(1); reason.String() != "unknown"; reason++ {
		if !strings.Contains(text, "`"+reason.String()+"`") {
			t.Errorf("the reason %s is not in the README", reason)
		}
	}
	for _, hook := range append(append([]bpf.Hook{}, bpf.CgroupHooks...), bpf.TCHooks...) {
		if !strings.Contains(text, " "+hook.Name+" ") && !strings.Contains(text, " "+hook.Name+"\n") {
			t.Errorf("the hook %s is not in the README", hook.Name)
		}
	}
	for _, dir := range []string{fmt.Sprintf("v%d/maps/", bpf.ABI), bpf.DefaultBPFFS, optin.Path("/var/lib/kmesh"), optin.AnnotationEnroll, optin.AnnotationOnUnready} {
		if !strings.Contains(text, dir) {
			t.Errorf("%s is not in the README", dir)
		}
	}
}

// The flags and commands are those of the programs.
func TestCommandLines(t *testing.T) {
	text := readme(t)
	help := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("go", append([]string{"run"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("go run %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	ctl := help("kmesh/helper/kmeshctl", "--help")
	for _, m := range regexp.MustCompile(`bin/kmeshctl (\w+)`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(ctl, "\n  "+m[1]+" ") {
			t.Errorf("kmeshctl has no command %s:\n%s", m[1], ctl)
		}
	}
	install := help("kmesh/install/kmesh-install", "--help")
	for _, m := range regexp.MustCompile(`bin/kmesh-install (\w+)`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(install, "\n  "+m[1]+" ") {
			t.Errorf("kmesh-install has no command %s:\n%s", m[1], install)
		}
	}
	// Each table of flags says in its head whose they are.
	programs := map[string]string{"run": help("kmesh/helper/kmesh-helper", "run", "--help"), "kmesh-install": install}
	of := ""
	found := map[string]int{}
	for line := range strings.Lines(text) {
		if m := regexp.MustCompile("^\\| flag of `([a-z-]+)`").FindStringSubmatch(line); m != nil {
			of = m[1]
		}
		if !strings.HasPrefix(line, "| `--") {
			continue
		}
		cell, _, _ := strings.Cut(line[1:], "|")
		for _, m := range regexp.MustCompile("`(--[a-z-]+)").FindAllStringSubmatch(cell, -1) {
			found[of]++
			if !strings.Contains(programs[of], m[1]+" ") {
				t.Errorf("%s has no flag %s:\n%s", of, m[1], programs[of])
			}
		}
	}
	if found["run"] == 0 || found["kmesh-install"] == 0 || len(found) != 2 {
		t.Errorf("flags found: %v", found)
	}
}
