// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/testutils"

	"kmesh/cni/entry"
)

// primaryPlugin answers as a primary plugin that takes its time, in the version that it is called in. A script starts sooner than this program does
// under the race detector.
const primaryPlugin = `#!/bin/sh
case $CNI_COMMAND in
ADD)
	version=$(sed -n 's/.*"cniVersion":"\([0-9.]*\)".*/\1/p')
	sleep 0.03 # an interface is made, an address found
	echo '{"cniVersion":"'$version'","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"10.7.0.2/24","interface":0}]}'
	;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}' ;;
*) cat >/dev/null ;;
esac
`

// runtime is a container runtime as containerd is one: libcni, the first configuration of the folder, ends with the configuration of the moment.
type runtime struct {
	e   *env
	lib *libcni.CNIConfig
}

func (e *env) runtime() *runtime {
	e.t.Helper()
	other := e.t.TempDir() // the primary's plugins are not ours to count
	if err := os.WriteFile(filepath.Join(other, primaryType), []byte(primaryPlugin), 0o755); err != nil {
		e.t.Fatal(err)
	}
	// Without one libcni makes its own at the first call, which two calls at once must not be.
	exec := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}
	return &runtime{e, libcni.NewCNIConfigWithCacheDir([]string{e.bin, other}, e.cache, exec)}
}

// load reads the configuration; a file that is between two names is read again.
func (r *runtime) load() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(r.e.conf, []string{".conflist"})
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no configuration: %w", err)
	}
	slices.Sort(files)
	return listFrom(files[0])
}

func sandbox(id, netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: id, NetNS: netns, IfName: "eth0", CapabilityArgs: map[string]any{entry.AnnotationsCapability: map[string]string{}},
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", id}, {"K8S_POD_INFRA_CONTAINER_ID", id}, {"K8S_POD_UID", id}},
	}
}

// attach makes one attachment and moves what libcni has cached of it to a path.
func (e *env) attach(to string) {
	e.t.Helper()
	r := e.runtime()
	ns, err := testutils.NewNS()
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = testutils.UnmountNS(ns) })
	l, err := r.load()
	if err != nil {
		e.t.Fatal(err)
	}
	l.Plugins = slices.DeleteFunc(l.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Type == "portmap" })
	if _, err := r.lib.AddNetworkList(e.t.Context(), l, sandbox("a", ns.Path())); err != nil {
		e.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(e.cache, "results", "pods-a-eth0"), to); err != nil {
		e.t.Fatal(err)
	}
}

// load is pods that come and go without pause.
type load struct {
	adds, dels, ours atomic.Int64 // done, and those whose chain had ours in it
	errs             chan error
	stop             context.CancelFunc
	wg               sync.WaitGroup
}

// churn begins it. cached ends attachments as CRI-O does, by the configuration that is cached.
func (r *runtime) churn(workers int, cached bool) *load {
	r.e.t.Helper()
	ctx, cancel := context.WithCancel(r.e.t.Context())
	l := &load{errs: make(chan error, 1000), stop: cancel}
	for w := range workers {
		ns, err := testutils.NewNS()
		if err != nil {
			r.e.t.Fatal(err)
		}
		r.e.t.Cleanup(func() { _ = testutils.UnmountNS(ns) })
		l.wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if err := r.pod(l, sandbox(fmt.Sprintf("w%d-%d", w, i), ns.Path()), cached); err != nil {
					l.errs <- err
				}
			}
		})
	}
	r.e.t.Cleanup(cancel)
	return l
}

// pod is one pod's life.
func (r *runtime) pod(l *load, conf *libcni.RuntimeConf, cached bool) error {
	ctx := context.Background() // a runtime does not give up half of a pod
	list, err := r.load()
	if err != nil {
		return err
	}
	result, err := r.lib.AddNetworkList(ctx, list, conf)
	if err != nil {
		return fmt.Errorf("ADD: %w", err)
	}
	got, err := types100.NewResultFromResult(result)
	if err != nil || len(got.IPs) != 1 {
		return fmt.Errorf("ADD gives %v, %w", result, err)
	}
	l.adds.Add(1)
	if strings.Contains(types(list), entry.Type) {
		l.ours.Add(1)
	}
	if list, err = r.load(); err != nil {
		return err
	}
	if cached {
		data, _, err := r.lib.GetNetworkListCachedConfig(list, conf)
		if err != nil || data == nil {
			return fmt.Errorf("cached configuration: %w", err)
		}
		if list, err = libcni.ConfListFromBytes(data); err != nil {
			return err
		}
	}
	if err := r.lib.DelNetworkList(ctx, list, conf); err != nil {
		return fmt.Errorf("DEL: %w", err)
	}
	l.dels.Add(1)
	return nil
}

// end ends the load and says what went wrong.
func (l *load) end(t testing.TB) {
	t.Helper()
	l.stop()
	l.wg.Wait()
	close(l.errs)
	for err := range l.errs {
		t.Error(err)
	}
}

// nextVersion is a folder of programs with another plugin in it: bytes behind an ELF file are nothing to who runs it.
func (e *env) nextVersion() string {
	e.t.Helper()
	dir := e.t.TempDir()
	for _, name := range []string{entry.Type, StubName} {
		data, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			e.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), append(data, "next"...), 0o755); err != nil {
			e.t.Fatal(err)
		}
	}
	return dir
}

// Pods come and go all the time, and none of them fails: while it is installed, while it is updated, while it is taken away with the real program. Afterwards the node is what it was.
func TestUninstallUnderLoad(t *testing.T) {
	tests := []struct {
		name   string
		mode   Mode
		cached bool
	}{{"in place", InPlace, false}, {"in place, ended by the cache", InPlace, true}, {"drop-in", DropIn, false}, {"drop-in, ended by the cache", DropIn, true}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			e.opts.Mode = tt.mode
			e.put("10-x.conflist", strings.Replace(list, ",\n    {\"type\": \"portmap\", \"capabilities\": {\"portMappings\": true}}", "", 1))
			before := tree(t, e.root)
			l := e.runtime().churn(4, tt.cached)
			waitFor := func(what string, f func() bool) {
				t.Helper()
				poll(t, what, time.Minute, func() error {
					if !f() {
						return fmt.Errorf("%d ADDs, %d DELs, %d with ours", l.adds.Load(), l.dels.Load(), l.ours.Load())
					}
					return nil
				})
			}
			waitFor("pods before", func() bool { return l.dels.Load() > 8 })
			in, stop := e.run()
			poll(t, "installed", 10*time.Second, ready(in))
			waitFor("pods with ours", func() bool { return l.ours.Load() > 20 })
			// The next version takes over: the binary is another one, and nothing else is written.
			next := *e
			next.opts.Source = e.nextVersion()
			later, end := next.run()
			poll(t, "updated", 10*time.Second, func() error {
				same, err := (sums{}).same(filepath.Join(next.opts.Source, entry.Type), filepath.Join(e.bin, entry.Type))
				if err != nil || !same {
					return fmt.Errorf("the old one is still there: %w", err)
				}
				return ready(later)()
			})
			if s := later.Status(); s.ConfWrites != 0 || s.BinaryWrites != 1 {
				t.Errorf("the update wrote %+v", s)
			}
			updated := l.ours.Load()
			waitFor("pods with the next version", func() bool { return l.ours.Load() > updated+10 })
			stop()
			end()
			if err := e.program("uninstall", "--drain", "60s"); err != nil {
				t.Fatal(err)
			}
			ours, adds := l.ours.Load(), l.adds.Load()
			waitFor("pods after", func() bool { return l.adds.Load() > adds+20 })
			l.end(t)
			if l.ours.Load() > ours+4 {
				t.Errorf("%d pods had ours in their chain after the uninstall, which ended with %d", l.ours.Load(), ours)
			}
			if err := os.Remove(filepath.Join(e.cache, "results")); err != nil {
				t.Errorf("libcni's cache is not empty: %v", err)
			}
			sameTree(t, before, tree(t, e.root))
			t.Logf("%d ADDs, %d DELs, %d with ours: none failed", l.adds.Load(), l.dels.Load(), l.ours.Load())
		})
	}
}

// The stub is the plugin of a network: it answers every verb in every version.
func TestStub(t *testing.T) {
	e := newEnv(t)
	for _, name := range []string{"kmesh-cni", StubName} {
		data, err := os.ReadFile(filepath.Join(source, StubName))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(e.bin, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := e.runtime()
	ns, err := testutils.NewNS()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = testutils.UnmountNS(ns) }()
	for _, version := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		l, err := libcni.ConfListFromBytes([]byte(`{"cniVersion":"` + version + `","name":"pods","plugins":[{"type":"` + primaryType + `"},` + string(e.opts.entry("")) + `]}`))
		if err != nil {
			t.Fatal(err)
		}
		// Opted in: the stub lets it through all the same.
		conf := sandbox("a", ns.Path())
		conf.CapabilityArgs[entry.AnnotationsCapability] = map[string]string{"kmesh.net/enroll": "true"}
		result, err := r.lib.AddNetworkList(t.Context(), l, conf)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := types100.NewResultFromResult(result); err != nil || len(got.Interfaces) != 1 || result.Version() != version {
			t.Errorf("%s: result %v, %v", version, result, err)
		}
		err = errors.Join(r.lib.CheckNetworkList(t.Context(), l, conf), r.lib.DelNetworkList(t.Context(), l, conf), r.lib.DelNetworkList(t.Context(), l, conf))
		if version == "1.1.0" {
			err = errors.Join(err, r.lib.GetStatusNetworkList(t.Context(), l), r.lib.GCNetworkList(t.Context(), l, &libcni.GCArgs{}))
		}
		if err != nil {
			t.Errorf("%s: %v", version, err)
		}
	}
}
