// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"kmesh/install/place"
)

// criServer plays a runtime's part of CRI with libcni behind it, and can be made to do what a real one does not do when told. What real ones do is
// tested in test/containerd.
type criServer struct {
	cri.UnimplementedRuntimeServiceServer
	socket string
	conf   string
	bins   []string

	mu      sync.Mutex
	dropIns bool   // it reads them
	deaf    bool   // it goes on with what it has
	late    bool   // it says that the deadline has passed before the client can know
	chokes  string // a plugin with which it does not load
	tells   bool
	last    map[string]string
	failure string
	server  *grpc.Server
}

func (e *env) runtimeServer() *criServer {
	e.t.Helper()
	s := &criServer{socket: filepath.Join(e.t.TempDir(), "s"), conf: e.conf, bins: []string{e.bin}, dropIns: true, tells: true}
	e.opts.CRISocket, e.opts.ConfDir, e.opts.BinDir = s.socket, "", ""
	s.start(e.t)
	e.t.Cleanup(s.stop)
	return s
}

func (s *criServer) start(t testing.TB) {
	t.Helper()
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	s.server = grpc.NewServer()
	cri.RegisterRuntimeServiceServer(s.server, s)
	go func() { _ = s.server.Serve(l) }()
	poll(t, "the played runtime", 5*time.Second, func() error { _, err := askRuntime(t.Context(), s.socket); return err })
}

func (s *criServer) stop() { s.server.Stop() }

// set changes what it does.
func (s *criServer) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *criServer) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "played", RuntimeVersion: "1"}, nil
}

func (s *criServer) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.late {
		return nil, grpcstatus.Error(codes.DeadlineExceeded, "context deadline exceeded")
	}
	if !s.tells {
		return &cri.StatusResponse{Info: map[string]string{"config": "{}"}}, nil
	}
	if !s.deaf {
		if types, err := s.load(); err != nil {
			s.failure = err.Error()
		} else {
			s.failure, s.last = "", types
		}
	}
	info := map[string]string{"lastCNILoadStatus": "OK", "cniconfig": s.last["cniconfig"]}
	if s.last == nil {
		data, _ := json.Marshal(map[string]any{"PluginDirs": s.bins, "PluginConfDir": s.conf})
		info["cniconfig"] = string(data)
	}
	if s.failure != "" {
		info["lastCNILoadStatus"] = s.failure
	}
	return &cri.StatusResponse{Info: info}, nil
}

func (s *criServer) load() (map[string]string, error) {
	files, err := libcni.ConfFiles(s.conf, []string{".conflist"})
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no network config found: %w", err)
	}
	slices.Sort(files)
	read := libcni.NetworkConfFromFile
	if !s.dropIns {
		read = func(path string) (*libcni.NetworkConfigList, error) {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			return libcni.NetworkConfFromBytes(data)
		}
	}
	l, err := read(files[0])
	if err != nil {
		return nil, err
	}
	var plugins []string
	for _, p := range l.Plugins {
		if p.Network.Type == s.chokes {
			return nil, fmt.Errorf("cni config load failed: %s", s.chokes)
		}
		plugins = append(plugins, string(p.Bytes))
	}
	info := status(s.conf, plugins...)
	info["cniconfig"] = strings.Replace(info["cniconfig"], `["/opt/cni/bin"]`, fmt.Sprintf("[%q]", s.bins[0]), 1)
	return info, nil
}

func TestDropInOnlyWhereItIsRead(t *testing.T) {
	for _, reads := range []bool{true, false} {
		t.Run(fmt.Sprint(reads), func(t *testing.T) {
			e := newEnv(t)
			s := e.runtimeServer()
			s.dropIns = reads
			e.put("10-x.conflist", list)
			before := tree(t, e.root)
			in, err := e.once()
			if err != nil {
				t.Fatal(err)
			}
			st := in.Status()
			if want := map[bool]Mode{true: DropIn, false: InPlace}[reads]; st.Mode != want || st.Loaded != "yes" || st.Runtime != "played 1" {
				t.Errorf("status %+v, want mode %s", st, want)
			}
			if reads {
				e.untouched()
			} else if _, err := os.Stat(filepath.Join(e.conf, "pods")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the tried drop-in's folder is left: %v", err)
			}
			if err := e.installer().Uninstall(t.Context(), time.Second); err != nil {
				t.Fatal(err)
			}
			sameTree(t, before, tree(t, e.root))
		})
	}
}

// A network that must not have drop-ins, or cannot, gets the entry inline.
func TestNoDropInPossible(t *testing.T) {
	for name, content := range map[string]string{
		"only inlined": strings.Replace(list, `"name":`, `"loadOnlyInlinedPlugins": true, "name":`, 1),
		"odd name":     strings.Replace(list, `"pods"`, `"a/../../pods"`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			e.opts.Mode = DropIn
			e.put("10-x.conflist", content)
			if _, err := e.once(); !errors.Is(err, errDropIn) || !strings.Contains(err.Error(), "use mode in-place") {
				t.Errorf("insisting: %v", err)
			}
			e.untouched()
			e.opts.Mode = Auto
			if _, err := e.once(); err != nil || types(e.loads()) != primaryType+" portmap kmesh-cni" {
				t.Errorf("chain %s, %v", types(e.loads()), err)
			}
		})
	}
}

// What a runtime cannot load is taken back, and not tried again at once.
func TestLoadFails(t *testing.T) {
	e := newEnv(t)
	s := e.runtimeServer()
	s.dropIns, s.chokes = false, "kmesh-cni"
	e.put("10-x.conflist", list)
	in, err := e.once()
	if !errors.Is(err, errNotLoaded) || !strings.Contains(err.Error(), "taken back") {
		t.Errorf("error %v", err)
	}
	e.untouched()
	writes := in.Status().ConfWrites
	for range 3 {
		if _, err := in.pass(t.Context()); !errors.Is(err, errNotLoaded) {
			t.Errorf("error %v", err)
		}
	}
	if now := in.Status().ConfWrites; now != writes {
		t.Errorf("%d writes more", now-writes)
	}
	e.untouched()
	// Another primary is another attempt.
	s.set(func() { s.chokes = "" })
	e.put("10-x.conflist", strings.Replace(list, "1500", "1400", 1))
	if _, err := in.pass(t.Context()); err != nil {
		t.Error(err)
	}
}

// A runtime that does not look: it is told, and the entry stays for when it does.
func TestRuntimeDoesNotLook(t *testing.T) {
	e := newEnv(t)
	e.opts.Mode = InPlace
	s := e.runtimeServer()
	e.put("10-x.conflist", list)
	if _, err := askRuntime(t.Context(), s.socket); err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.deaf = true })
	in, err := e.once()
	if !errors.Is(err, errNotLoaded) || !strings.Contains(err.Error(), "look at the runtime's log") {
		t.Errorf("error %v", err)
	}
	if types(e.loads()) != primaryType+" portmap kmesh-cni" {
		t.Errorf("chain %s", types(e.loads()))
	}
	s.set(func() { s.deaf = false })
	if _, err := in.pass(t.Context()); err != nil {
		t.Error(err)
	}
	// And at the uninstall: the plugin stays for as long as it is used, or may be.
	for _, set := range []func(){func() { s.deaf = true }, func() { s.late = true }} {
		s.set(set)
		if err := e.installer().Uninstall(t.Context(), time.Second); err == nil || !strings.Contains(err.Error(), "restart the runtime") {
			t.Errorf("uninstall: %v", err)
		}
		if same, err := (sums{}).same(filepath.Join(source, "kmesh-cni"), filepath.Join(e.bin, "kmesh-cni")); err != nil || !same {
			t.Errorf("the plugin is %t, %v", same, err)
		}
	}
	s.set(func() { s.deaf, s.late = false, false })
	if err := e.installer().Uninstall(t.Context(), time.Second); err != nil {
		t.Error(err)
	}
	e.untouched()
}

// A runtime that is being started is waited for, one that is restarted is believed meanwhile, one that never tells is not asked to confirm.
func TestSilentRuntime(t *testing.T) {
	e := newEnv(t)
	s := e.runtimeServer()
	e.put("10-x.conflist", list)
	s.stop()
	if err := os.WriteFile(s.socket, nil, 0o600); err != nil { // of the one before
		t.Fatal(err)
	}
	in, err := e.once()
	if err == nil || !strings.Contains(err.Error(), "does not answer yet") {
		t.Errorf("error %v", err)
	}
	e.untouched()
	if err := os.Remove(s.socket); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	if _, err := in.pass(t.Context()); err != nil || in.Status().Mode != DropIn {
		t.Errorf("%v, %+v", err, in.Status())
	}
	s.stop()
	if err := os.WriteFile(s.socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := in.pass(t.Context()); err != nil || in.Status().Mode != DropIn || !in.Status().Ready || !strings.Contains(in.Status().Reason, "does not answer") {
		t.Errorf("%v, %+v", err, in.Status())
	}
	if err := os.Remove(s.socket); err != nil {
		t.Fatal(err)
	}
	s.start(t)

	mute := newEnv(t)
	m := mute.runtimeServer()
	m.tells = false
	mute.opts.ConfDir, mute.opts.BinDir = mute.conf, mute.bin
	mute.put("10-x.conflist", list)
	in, err = mute.once()
	if st := in.Status(); err != nil || st.Mode != InPlace || st.Loaded != "unknown" || !strings.Contains(st.Reason, "does not tell") {
		t.Errorf("%v, %+v", err, st)
	}
}

// A process is killed at any moment: what is there is the old or the new, an uninstall finds all of it.
func TestKilled(t *testing.T) {
	for _, mode := range []Mode{InPlace, DropIn} {
		t.Run(string(mode), func(t *testing.T) {
			e := newEnv(t)
			e.opts.Mode, e.opts.Log = mode, nil
			e.put("10-x.conflist", list)
			before := tree(t, e.root)
			killed := errors.New("killed")
			seen := map[bool]int{}
			for n := range 60 {
				steps := 0
				e.opts.Disk = place.Disk{Fail: func(place.Step, string) error {
					if steps++; steps > n {
						panic(killed) // nothing of ours runs any more
					}
					return nil
				}}
				died := func() (died bool) {
					defer func() {
						if r := recover(); r != nil {
							if r != any(killed) {
								panic(r)
							}
							died = true
						}
					}()
					in := e.installer()
					if err := in.start(t.Context()); err != nil {
						t.Fatal(err)
					}
					if _, err := in.pass(t.Context()); err != nil {
						t.Fatal(err)
					}
					return false
				}()
				e.opts.Disk = place.Disk{}
				l := types(e.loads())
				if l != primaryType+" portmap" && l != primaryType+" portmap kmesh-cni" {
					t.Fatalf("killed at step %d the chain is %s", n, l)
				}
				seen[strings.HasSuffix(l, "kmesh-cni")]++
				if strings.HasSuffix(l, "kmesh-cni") {
					if _, err := os.Stat(filepath.Join(e.bin, "kmesh-cni")); err != nil {
						t.Fatalf("killed at step %d the chain names a plugin that is not there: %v", n, err)
					}
				}
				if exists(statePath(e.state)) {
					if err := e.installer().Uninstall(t.Context(), time.Second); err != nil {
						t.Fatalf("killed at step %d: uninstall: %v", n, err)
					}
				} else if err := os.RemoveAll(filepath.Dir(e.state)); err != nil { // made, and nothing written into it yet
					t.Fatal(err)
				}
				sameTree(t, before, tree(t, e.root))
				if t.Failed() {
					t.Fatalf("killed at step %d", n)
				}
				if !died {
					t.Logf("%s: killed at each of %d steps; the entry was there after %d of them", mode, n, seen[true]-1)
					return
				}
			}
			t.Error("more steps than expected")
		})
	}
}

// The program needs no capability, where the files are root's.
func TestWithoutCapabilities(t *testing.T) {
	e := newEnv(t)
	e.put("10-x.conflist", list)
	before := tree(t, e.root)
	e.without("all", ReasonInstalled, "run")
	if types(e.loads()) != primaryType+" portmap kmesh-cni" {
		t.Fatalf("chain %s", types(e.loads()))
	}
	e.without("all", ReasonUninstalled, "uninstall", "--drain", "0s")
	sameTree(t, before, tree(t, e.root))
}
