// SPDX-License-Identifier: Apache-2.0

package lastgood

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"kmesh/helper/mesh"
	"kmesh/helper/xds"
)

const (
	wild   = "type.googleapis.com/test.Wild"
	byName = "type.googleapis.com/test.Named"
)

func kinds() []xds.Type {
	decode := xds.Named(func() *wrapperspb.StringValue { return &wrapperspb.StringValue{} })
	return []xds.Type{{URL: wild, Decode: decode}, {URL: byName, ByName: true, Decode: decode}}
}

// holder is a consumer that keeps the last good version of each resource: one is bad whose
// value begins so.
type holder struct {
	mu     sync.Mutex
	have   map[string]string // type's last letter and name, to value
	froms  map[string]string // to source
	wanted []string
	calls  int
	fail   error
}

func newHolder() *holder { return &holder{have: map[string]string{}, froms: map[string]string{}} }

func short(url, name string) string {
	return strings.TrimPrefix(url, "type.googleapis.com/test.")[:1] + name
}

func (h *holder) Apply(_ context.Context, updates ...xds.Update) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls++
	if h.fail != nil {
		return h.fail
	}
	var bad xds.Rejected
	for _, u := range updates {
		present := map[string]bool{}
		for _, r := range u.Resources {
			key := short(u.Type, r.Name)
			present[key] = true
			if v := r.Message.(*wrapperspb.StringValue).GetValue(); strings.HasPrefix(v, "bad") || len(r.Invalid) > 0 {
				bad = append(bad, r.Verdict("value", "is bad"))
			} else {
				h.have[key], h.froms[key] = v, r.Source
			}
		}
		if u.Type == byName {
			continue
		}
		for _, name := range u.Removed {
			delete(h.have, short(u.Type, name))
		}
		if u.Complete {
			maps.DeleteFunc(h.have, func(key, _ string) bool { return key[0] == 'W' && !present[key] })
		}
	}
	maps.DeleteFunc(h.have, func(key, _ string) bool { return key[0] == 'N' && !slices.Contains(h.wanted, key[1:]) })
	if len(bad) > 0 {
		return bad
	}
	return nil
}

func (h *holder) Wanted(url string) []string {
	if url == byName {
		return h.wanted
	}
	return nil
}
func (h *holder) Absent(string, []string) {}

func (h *holder) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, key := range slices.Sorted(maps.Keys(h.have)) {
		out = append(out, key+"="+h.have[key])
	}
	return strings.Join(out, " ")
}

// said are resources, "name=value".
func said(t testing.TB, url string, pairs ...string) xds.Update {
	t.Helper()
	u := xds.Update{Type: url}
	for _, pair := range pairs {
		name, value, _ := strings.Cut(pair, "=")
		a, err := anypb.New(wrapperspb.String(value))
		if err != nil {
			t.Fatal(err)
		}
		r, err := kinds()[0].Unpack(name, "v"+value, "server", &anypb.Any{TypeUrl: wild, Value: a.Value})
		if err != nil {
			t.Fatal(err)
		}
		u.Resources = append(u.Resources, r)
	}
	return u
}

// keeper keeps what a new holder accepts in a directory.
func keeper(t *testing.T, dir string, change func(*Options)) (*Keeper, *holder) {
	t.Helper()
	h := newHolder()
	o := Options{Dir: dir, Name: "test", Types: kinds(), Every: time.Millisecond, SweepAfter: time.Hour, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	k, err := New(h, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k, h
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func apply(t *testing.T, k *Keeper, updates ...xds.Update) {
	t.Helper()
	if err := k.Apply(t.Context(), updates...); err != nil {
		t.Fatal(err)
	}
}

func TestReplay(t *testing.T) {
	dir := t.TempDir()
	k, h := keeper(t, dir, nil)
	if k.Load(t.Context()) || k.Status().Problem != "" || k.Status().Stale() {
		t.Errorf("without a file: %+v", k.Status())
	}
	h.wanted = []string{"x", "y"}
	apply(t, k, said(t, wild, "a=1", "b=1", "c=1"), said(t, byName, "x=1", "y=1", "z=1"))
	var bad xds.Rejected
	if err := k.Apply(t.Context(), said(t, wild, "a=bad", "b=2", "d=bad")); !errors.As(err, &bad) || len(bad) != 2 {
		t.Errorf("what is rejected is not passed on: %v", err)
	}
	apply(t, k, xds.Update{Type: wild, Removed: []string{"c"}}, xds.Update{Type: byName, Removed: []string{"x"}})
	h.fail = errors.New("nothing is accepted")
	if err := k.Apply(t.Context(), said(t, wild, "a=3")); err != h.fail {
		t.Errorf("error %v", err)
	}
	h.fail = nil
	want := h.String()
	if want != "Nx=1 Ny=1 Wa=1 Wb=2" {
		t.Fatalf("have %s", want)
	}
	k.Close()
	k.Close()

	k, h = keeper(t, dir, nil)
	h.wanted = []string{"x", "y"}
	if !k.Load(t.Context()) {
		t.Fatalf("not loaded: %+v", k.Status())
	}
	st := k.Status()
	if h.String() != want || h.calls != 1 || !strings.HasPrefix(h.froms["Wa"], "last good of 20") || !strings.HasSuffix(h.froms["Wa"], "(server)") {
		t.Errorf("after the replay %s, of %v", h, h.froms)
	}
	if !st.Stale() || len(st.FromDisk) != 2 || st.Resources != 4 || st.Unconfirmed != 0 || st.Loaded.IsZero() || st.Age <= 0 || st.Age > time.Minute || st.Problem != "" {
		t.Errorf("status %+v", st)
	}
	// A part of the mesh takes nothing away, and is used.
	apply(t, k, said(t, wild, "b=3"))
	if st := k.Status(); h.String() != "Nx=1 Ny=1 Wa=1 Wb=3" || st.Unconfirmed != 1 || len(st.FromDisk) != 1 || st.FromDisk[0] != byName {
		t.Errorf("after a part %s, %+v", h, st)
	}
	// All of it does.
	all := said(t, wild, "b=4")
	all.Complete = true
	apply(t, k, all, said(t, byName, "x=2"))
	if st := k.Status(); h.String() != "Nx=2 Ny=1 Wb=4" || st.Unconfirmed != 0 || st.Stale() {
		t.Errorf("after all of it %s, %+v", h, st)
	}
	h.wanted = []string{"x"}
	apply(t, k, said(t, wild, "b=5"))
	k.Close()
	k, h = keeper(t, dir, nil)
	h.wanted = []string{"x", "y"}
	if k.Load(t.Context()); h.String() != "Nx=2 Wb=5" {
		t.Errorf("the second file has %s", h)
	}
}

// TestSweep: what is from disk, and what the source's answers do not have, goes a while after
// the last of them that had some of it; but not what the source has a word of, and nothing
// after an answer that could not be read wholly.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	k, _ := keeper(t, dir, nil)
	apply(t, k, said(t, wild, "a=1", "b=1", "c=1", "d=1", "e=1"))
	k.Close()

	k, h := keeper(t, dir, func(o *Options) { o.SweepAfter = 50 * time.Millisecond })
	k.Load(t.Context())
	first := said(t, wild, "a=1")
	first.Kept = []string{"b"}
	apply(t, k, first)
	if err := k.Apply(t.Context(), said(t, wild, "c=bad")); err == nil {
		t.Error("what is rejected is not passed on")
	}
	if got := h.String(); got != "Wa=1 Wb=1 Wc=1 Wd=1 We=1" {
		t.Errorf("at once %s", got)
	}
	eventually(t, "d and e are gone", func() bool { return h.String() == "Wa=1 Wb=1 Wc=1" })
	if st := k.Status(); st.Unconfirmed != 0 || st.Resources != 3 {
		t.Errorf("status %+v", st)
	}
	k.Close()

	k, h = keeper(t, dir, func(o *Options) { o.SweepAfter = time.Millisecond })
	k.Load(t.Context())
	first = said(t, wild, "a=1")
	first.Kept = []string{""}
	apply(t, k, first)
	apply(t, k, said(t, wild, "f=1"))
	if rec := k.types[wild]; rec.sweep != nil || k.Status().Unconfirmed != 2 || h.String() != "Wa=1 Wb=1 Wc=1 Wf=1" {
		t.Errorf("after an answer that cannot be read %s, %+v", h, k.Status())
	}
}

// TestHistory: whatever has come, what is loaded is what was held.
func TestHistory(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		dir := t.TempDir()
		k, h := keeper(t, dir, nil)
		for range 60 {
			url := []string{wild, byName}[r.IntN(2)]
			if url == wild { // as clusters say which assignments are wanted
				h.wanted = []string{"p", "q"}[:r.IntN(3)]
			}
			names := []string{"p", "q", "r", "s"}
			var u xds.Update
			u.Type, u.Complete = url, r.IntN(5) == 0
			for _, name := range names {
				switch r.IntN(5) {
				case 0:
					u.Removed = append(u.Removed, name)
				case 1:
					u.Resources = append(u.Resources, said(t, url, name+"=bad").Resources...)
				case 2:
					one := said(t, url, fmt.Sprint(name, "=", r.IntN(9))).Resources
					if r.IntN(4) == 0 {
						one[0].Invalid = []mesh.Verdict{{Resource: name, Class: mesh.Invalid}}
					}
					u.Resources = append(u.Resources, one...)
				}
			}
			_ = k.Apply(t.Context(), u) // what is bad is told of
		}
		k.Close()
		again, g := keeper(t, dir, nil)
		g.wanted = h.wanted
		if again.Load(t.Context()); g.String() != h.String() {
			t.Fatalf("seed %d: %s is loaded, and %s was held", seed, g, h)
		}
		again.Close()
	}
}

// TestUnusable: a file that cannot be used is as none, and is replaced.
func TestUnusable(t *testing.T) {
	whole := t.TempDir()
	k, _ := keeper(t, whole, nil)
	apply(t, k, said(t, wild, "a=1"))
	k.Close()
	data, err := os.ReadFile(k.path)
	if err != nil {
		t.Fatal(err)
	}
	write := func(data []byte) func(string) error {
		return func(path string) error { return os.WriteFile(path, data, 0o600) }
	}
	changed := bytes.Clone(data)
	changed[len(changed)/2] ^= 1
	cases := map[string]struct {
		make func(path string) error
		want string
	}{
		"changed":  {write(changed), "checksum is wrong"},
		"other":    {write([]byte(strings.Repeat("not a file of ours ", 10))), "no such file"},
		"too new":  {write(append([]byte(magic+"\x00\x00\x00\x09"), make([]byte, 100)...)), "schema version is 9, and this build reads 1"},
		"link":     {func(path string) error { return os.Symlink(filepath.Join(whole, folder, "test.pb"), path) }, "symbolic link"},
		"folder":   {func(path string) error { return os.Mkdir(path, 0o700) }, "no regular file"},
		"large":    {func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40)) }, "larger than"},
		"empty":    {write(nil), "cut short"},
		"one less": {write(data[:len(data)-1]), "checksum is wrong"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			k, h := keeper(t, dir, nil)
			if err := errors.Join(os.MkdirAll(filepath.Dir(k.path), 0o700), tc.make(k.path)); err != nil {
				t.Fatal(err)
			}
			if k.Load(t.Context()) || h.calls != 0 || h.String() != "" {
				t.Error("it is used")
			}
			if st := k.Status(); !strings.Contains(st.Problem, tc.want) || !strings.Contains(st.Problem, "remove it") || st.Stale() {
				t.Errorf("status %+v, want %q", st, tc.want)
			}
			apply(t, k, said(t, wild, "a=2"))
			k.Close()
			if name == "folder" {
				if st := k.Status(); !strings.Contains(st.WriteError, k.path) {
					t.Errorf("status %+v", st)
				}
				return
			}
			k, h = keeper(t, dir, nil)
			if !k.Load(t.Context()) || h.String() != "Wa=2" {
				t.Errorf("it is not replaced: %+v", k.Status())
			}
		})
	}
}

// TestCut: a file that was cut at any byte is as none.
func TestCut(t *testing.T) {
	dir := t.TempDir()
	k, _ := keeper(t, dir, nil)
	apply(t, k, said(t, wild, "a=1"))
	k.Close()
	data, err := os.ReadFile(k.path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range data {
		if err := os.WriteFile(k.path, data[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if k, h := keeper(t, dir, nil); k.Load(t.Context()) || h.calls != 0 || k.Status().Problem == "" {
			t.Fatalf("cut after %d bytes, it is used", n)
		}
	}
}

// TestCrash: a helper that dies before the file is in its place leaves the last one, and what
// it leaves beside that is in nobody's way.
func TestCrash(t *testing.T) {
	dir := t.TempDir()
	k, _ := keeper(t, dir, nil)
	apply(t, k, said(t, wild, "a=1"))
	k.Close()
	k, h := keeper(t, dir, nil)
	k.rename = func(string, string) error { return errors.New("no room") }
	k.Load(t.Context())
	apply(t, k, said(t, wild, "a=2"))
	eventually(t, "the error is told", func() bool { return strings.Contains(k.Status().WriteError, "no room") })
	if h.String() != "Wa=2" {
		t.Error("a disk that cannot be written is in the way")
	}
	k.Close()
	if err := os.WriteFile(k.path+temporary, []byte("half of"), 0o600); err != nil {
		t.Fatal(err)
	}
	k, h = keeper(t, dir, nil)
	if !k.Load(t.Context()) || h.String() != "Wa=1" {
		t.Errorf("after the crash %s, %+v", h, k.Status())
	}
	apply(t, k, said(t, wild, "a=3"))
	eventually(t, "the next is written", func() bool { return !k.Status().Written.IsZero() })
	if _, err := os.Lstat(k.path + temporary); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was left is still there: %v", err)
	}
	k.Close()
	k, h = keeper(t, dir, nil)
	if k.Load(t.Context()); h.String() != "Wa=3" {
		t.Errorf("then %s", h)
	}
}

// TestGather: a disk that is slow keeps nothing waiting, and what follows is gathered.
func TestGather(t *testing.T) {
	k, h := keeper(t, t.TempDir(), nil)
	writing, free := make(chan struct{}, 100), make(chan struct{})
	k.rename = func(from, to string) error {
		writing <- struct{}{}
		<-free
		return os.Rename(from, to)
	}
	apply(t, k, said(t, wild, "a=0"))
	<-writing
	for i := range 100 {
		apply(t, k, said(t, wild, fmt.Sprint("a=", i)))
	}
	if h.String() != "Wa=99" || len(k.Wanted(byName)) != 0 {
		t.Errorf("have %s", h)
	}
	close(free)
	k.Close()
	if n := len(writing); n != 1 {
		t.Errorf("%d writes after the first, want 1", n)
	}
	k, h = keeper(t, k.opts.Dir, nil)
	if k.Load(t.Context()); h.String() != "Wa=99" {
		t.Errorf("loaded %s", h)
	}
}

func TestSweepFiles(t *testing.T) {
	dir := t.TempDir()
	if err := Sweep(dir, nil); err != nil {
		t.Errorf("without a folder: %v", err)
	}
	for _, name := range []string{"keep.pb", "keep.pb.tmp", "gone.pb", "gone.pb.tmp", "notes.txt"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, folder), 0o700), os.WriteFile(filepath.Join(dir, folder, name), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(dir, []string{"keep"}); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, folder))
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{"keep.pb", "keep.pb.tmp", "notes.txt"}; !slices.Equal(left, want) {
		t.Errorf("left %q, want %q", left, want)
	}
}

func TestOptions(t *testing.T) {
	for name, want := range map[string]string{"": "Name", "../x": "Name", ".x": "Name", "a/b": "Name", strings.Repeat("a", 200): "Name"} {
		if _, err := New(newHolder(), Options{Dir: "/x", Name: name}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := New(newHolder(), Options{Name: "a"}); err == nil || !strings.Contains(err.Error(), "Dir") {
		t.Errorf("no directory: %v", err)
	}
}
