// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// recorder is a consumer that remembers what it was told.
type recorder struct {
	mu      sync.Mutex
	applies int
	// names are the resources of each type after the last update, by short type.
	names  map[string][]string
	bad    map[string]string // names that were delivered as invalid, and why
	wanted []string          // assignments
	routes []string          // route configurations that are wanted
	absent []string
	reject error
	onCDS  func(r *recorder, names []string) // sets wanted
}

func (r *recorder) Apply(_ context.Context, updates ...Update) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.applies++
	if r.names == nil {
		r.names, r.bad = map[string][]string{}, map[string]string{}
	}
	for _, u := range updates {
		t := short(u.Type)
		before := r.names[t]
		if u.Complete {
			r.names[t] = nil
		}
		for _, res := range u.Resources {
			if len(res.Invalid) > 0 {
				r.bad[res.Name] = res.Invalid[0].Error()
				if u.Complete && slices.Contains(before, res.Name) {
					r.names[t] = append(r.names[t], res.Name) // the last good version
				}
				continue
			}
			if res.Message == nil || res.Source == "" {
				panic("resource without message or source")
			}
			if !slices.Contains(r.names[t], res.Name) {
				r.names[t] = append(r.names[t], res.Name)
			}
		}
		r.names[t] = slices.DeleteFunc(r.names[t], func(name string) bool { return slices.Contains(u.Removed, name) })
		slices.Sort(r.names[t])
		if u.Type == ClusterType && r.onCDS != nil {
			r.onCDS(r, r.names[t])
		}
	}
	return r.reject
}

func (r *recorder) Wanted(typeURL string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if typeURL == RouteType {
		return r.routes
	}
	return r.wanted
}

func (r *recorder) Absent(typeURL string, names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if typeURL == RouteType {
		for _, n := range names {
			r.absent = append(r.absent, "route "+n)
		}
		return
	}
	r.absent = append(r.absent, names...)
}

func (r *recorder) get(typ string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.names[typ], ",")
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.applies
}

// eventually polls until a condition holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// write puts a file into place with a rename, as a client should.
func write(t *testing.T, dir, name, text string) {
	t.Helper()
	tmp := filepath.Join(dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

// clusterFile is a file with clusters of these names.
func clusterFile(names ...string) string {
	text := "resources:\n"
	for _, n := range names {
		text += fmt.Sprintf("- {'@type': %s, name: %s, type: STATIC}\n", ClusterType, n)
	}
	return text
}

// quiet is a logger for tests.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start runs a source until the test ends.
func start(t *testing.T, s Source, c Consumer) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, c) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("run does not end")
		}
	})
}

// problem returns the source's problems as text.
func problem(s Source) string {
	var out []string
	for _, p := range s.Status().Problems {
		out = append(out, p.Error())
	}
	return strings.Join(out, "\n")
}

func TestFilesFollowsTheDirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", clusterFile("a1", "a2"))
	write(t, dir, "b.json", `{"version_info": "7", "type_url": "`+ClusterType+`", "resources": [{"@type": "`+ClusterType+`", "name": "b", "type": "STATIC"}]}`)
	write(t, dir, "c.txt", "not: looked at")
	write(t, dir, ".d.yaml", "not: looked at")
	if err := os.Mkdir(filepath.Join(dir, "sub.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	f, r := NewFiles(FilesOptions{Dir: dir, Logger: quiet()}), &recorder{}
	start(t, f, r)
	eventually(t, "first delivery", func() bool { return r.get("Cluster") == "a1,a2,b" })
	eventually(t, "connected", func() bool { return f.Status().Connected })

	begin := time.Now()
	write(t, dir, "a.yaml", clusterFile("a1", "a3"))
	eventually(t, "change", func() bool { return r.get("Cluster") == "a1,a3,b" })
	if d := time.Since(begin); d > time.Second {
		t.Errorf("a change took %v", d)
	}
	if err := os.Remove(filepath.Join(dir, "b.json")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "removal", func() bool { return r.get("Cluster") == "a1,a3" })
	write(t, dir, "new.yaml", clusterFile("new"))
	eventually(t, "new file", func() bool { return r.get("Cluster") == "a1,a3,new" })
	if st := f.Status(); len(st.Types) != 4 || st.LastUpdate.IsZero() || len(st.Problems) != 0 {
		t.Errorf("status %+v", st)
	}
}

func TestFilesGathersChanges(t *testing.T) {
	dir := t.TempDir()
	f, r := NewFiles(FilesOptions{Dir: dir, Logger: quiet(), Gather: 300 * time.Millisecond}), &recorder{}
	start(t, f, r)
	eventually(t, "empty directory", func() bool { return r.count() == 1 })
	for i := range 20 {
		write(t, dir, fmt.Sprintf("%02d.yaml", i), clusterFile(fmt.Sprintf("c%02d", i)))
	}
	eventually(t, "all files", func() bool { return strings.Count(r.get("Cluster"), ",") == 19 })
	if n := r.count(); n > 3 {
		t.Errorf("%d deliveries for one burst", n)
	}
	// The same bytes again are no change.
	n := r.count()
	write(t, dir, "00.yaml", clusterFile("c00"))
	write(t, dir, "zz.yaml", clusterFile("last"))
	eventually(t, "marker", func() bool { return strings.Contains(r.get("Cluster"), "last") })
	if r.count() != n+1 {
		t.Errorf("%d deliveries, want %d", r.count(), n+1)
	}
}

func TestFilesConfigMap(t *testing.T) {
	// As kubelet mounts a ConfigMap: files are links through ..data, which is
	// exchanged by a rename.
	dir := t.TempDir()
	version := func(n int, text string) {
		data := filepath.Join(dir, fmt.Sprintf("..v%d", n))
		if err := os.Mkdir(data, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(data, "mesh.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Base(data), filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version(1, clusterFile("one"))
	if err := os.Symlink("..data/mesh.yaml", filepath.Join(dir, "mesh.yaml")); err != nil {
		t.Fatal(err)
	}
	f, r := NewFiles(FilesOptions{Dir: dir, Logger: quiet()}), &recorder{}
	start(t, f, r)
	eventually(t, "first", func() bool { return r.get("Cluster") == "one" })
	version(2, clusterFile("two"))
	eventually(t, "swap", func() bool { return r.get("Cluster") == "two" })
}

func TestFilesExchangedDirectory(t *testing.T) {
	top := t.TempDir()
	for _, n := range []string{"one", "two"} {
		if err := os.Mkdir(filepath.Join(top, n), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(top, n), "x.yaml", clusterFile(n))
	}
	link := filepath.Join(top, "current")
	if err := os.Symlink("one", link); err != nil {
		t.Fatal(err)
	}
	f, r := NewFiles(FilesOptions{Dir: link, Logger: quiet()}), &recorder{}
	start(t, f, r)
	eventually(t, "first", func() bool { return r.get("Cluster") == "one" })
	if err := os.Symlink("two", link+".tmp"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".tmp", link); err != nil {
		t.Fatal(err)
	}
	eventually(t, "exchange", func() bool { return r.get("Cluster") == "two" })
	// The watch has moved along.
	write(t, filepath.Join(top, "two"), "y.yaml", clusterFile("three"))
	eventually(t, "change in the new directory", func() bool { return r.get("Cluster") == "three,two" })
	// A directory that is gone is not an empty one.
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	eventually(t, "report", func() bool { return strings.Contains(problem(f), "last good state stays") })
	if r.get("Cluster") != "three,two" {
		t.Errorf("after the directory has gone: %s", r.get("Cluster"))
	}
}

func TestFilesBadFileKeepsItsLastGood(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", clusterFile("a"))
	write(t, dir, "b.yaml", clusterFile("b"))
	f, r := NewFiles(FilesOptions{Dir: dir, Logger: quiet()}), &recorder{}
	start(t, f, r)
	eventually(t, "first", func() bool { return r.get("Cluster") == "a,b" })
	write(t, dir, "a.yaml", "resources: [")
	write(t, dir, "b.yaml", clusterFile("b", "b2"))
	eventually(t, "the other file applies", func() bool { return r.get("Cluster") == "a,b,b2" })
	eventually(t, "error", func() bool { return strings.Contains(problem(f), filepath.Join(dir, "a.yaml")) })
	if f.Status().Connected {
		t.Error("connected with a bad file")
	}
	write(t, dir, "new.yaml", "x")
	eventually(t, "second error", func() bool { return strings.Contains(problem(f), "new.yaml") })
	if r.get("Cluster") != "a,b,b2" {
		t.Errorf("clusters %s", r.get("Cluster"))
	}
	write(t, dir, "a.yaml", clusterFile("a9"))
	eventually(t, "repair", func() bool { return r.get("Cluster") == "a9,b,b2" })
}

func TestFilesNothingUntilAllAreGood(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", clusterFile("a"))
	write(t, dir, "b.yaml", "resources: [{'@type': nobody}]")
	f, r := NewFiles(FilesOptions{Dir: dir, Logger: quiet()}), &recorder{}
	start(t, f, r)
	eventually(t, "error", func() bool { return strings.Contains(problem(f), "b.yaml") })
	write(t, dir, "c.yaml", clusterFile("c"))
	write(t, dir, "d.yaml", "x: y")
	eventually(t, "another error", func() bool { return strings.Contains(problem(f), "d.yaml") })
	if r.count() != 0 {
		t.Fatal("delivered although a file was never good")
	}
	write(t, dir, "b.yaml", clusterFile("b"))
	if err := os.Remove(filepath.Join(dir, "d.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "delivery", func() bool { return r.get("Cluster") == "a,b,c" })
}

func TestFilesDuplicateNames(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", clusterFile("a", "x"))
	write(t, dir, "b.yaml", clusterFile("b"))
	f, r := NewFiles(FilesOptions{Dir: dir, Logger: quiet()}), &recorder{}
	start(t, f, r)
	eventually(t, "first", func() bool { return r.get("Cluster") == "a,b,x" })
	write(t, dir, "b.yaml", clusterFile("b2", "x"))
	eventually(t, "error", func() bool {
		p := problem(f)
		return strings.Contains(p, filepath.Join(dir, "a.yaml")) && strings.Contains(p, filepath.Join(dir, "b.yaml")) &&
			strings.Contains(p, `Cluster "x"`) && strings.Contains(p, "resources[1]")
	})
	if r.get("Cluster") != "a,b,x" {
		t.Errorf("clusters %s", r.get("Cluster"))
	}
	// The name moves: once the other file lets go of it, b.yaml applies.
	write(t, dir, "a.yaml", clusterFile("a"))
	eventually(t, "moved", func() bool { return r.get("Cluster") == "a,b2,x" })
	if p := problem(f); p != "" {
		t.Errorf("problems: %s", p)
	}
}

func TestFilesAbsentAssignments(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", "resources: [{'@type': "+AssignmentType+", cluster_name: here}]")
	f, r := NewFiles(FilesOptions{Dir: dir, Logger: quiet()}), &recorder{wanted: []string{"gone", "here"}, routes: []string{"80"}}
	start(t, f, r)
	eventually(t, "absence", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.Equal(r.absent, []string{"gone", "route 80"})
	})
}

func TestFilesNoDirectory(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "missing"), file} {
		err := NewFiles(FilesOptions{Dir: path, Logger: quiet()}).Run(context.Background(), &recorder{})
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestChooseStepsBackTogether(t *testing.T) {
	version := func(names ...string) *parsed {
		p := &parsed{}
		for i, n := range names {
			p.resources = append(p.resources, Resource{Name: n, typeURL: ClusterType, Path: fmt.Sprintf("resources[%d]", i)})
		}
		return p
	}
	tests := map[string]struct {
		files []*file
		want  []int // 0 none, 1 good, 2 latest
		whole bool
	}{
		"all new":                {files: []*file{{latest: version("a")}, {latest: version("b")}}, want: []int{2, 2}, whole: true},
		"clash at first":         {files: []*file{{latest: version("a")}, {latest: version("a")}}, want: []int{0, 0}},
		"clash with one as ever": {files: []*file{{latest: version("a"), good: version("b")}, {good: version("a")}}, want: []int{1, 1}, whole: true},
		// x steps back because it is unreadable, so y, which took x's old name, has
		// to step back, so z, which took y's, as well.
		"chain": {files: []*file{
			{good: version("a")},
			{latest: version("a"), good: version("b")},
			{latest: version("b"), good: version("c")},
		}, want: []int{1, 1, 1}, whole: true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			for i, f := range tc.files {
				f.path = fmt.Sprintf("f%d", i)
			}
			chosen, whole := choose(tc.files)
			if whole != tc.whole {
				t.Errorf("whole %v", whole)
			}
			for i, f := range tc.files {
				got := 0
				switch {
				case chosen[i] == nil:
				case chosen[i] == f.latest:
					got = 2
				case chosen[i] == f.good:
					got = 1
				}
				if got != tc.want[i] {
					t.Errorf("file %d: %d, want %d", i, got, tc.want[i])
				}
			}
		})
	}
}
