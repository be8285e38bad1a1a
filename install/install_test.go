// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"kmesh/cni/entry"
)

const single = ` {"cniVersion": "0.4.0", "name":"pods", "type":"` + primaryType + `", "mtu": 1.5e3}` + "\n"

// listFrom reads a list, again if a drop-in of it went away between libcni's look at the folder and at the file: a runtime looks again, too, when its
// folder changes.
func listFrom(path string) (l *libcni.NetworkConfigList, err error) {
	for range 10 {
		if l, err = libcni.ConfListFromFile(path); err == nil || !strings.Contains(err.Error(), "no such file") {
			break
		}
	}
	return l, err
}

// loads reads the first configuration of the folder as a runtime does.
func (e *env) loads() *libcni.NetworkConfigList {
	e.t.Helper()
	files, err := libcni.ConfFiles(e.conf, []string{".conf", ".conflist", ".json"})
	if err != nil || len(files) == 0 {
		e.t.Fatalf("no configuration: %v", err)
	}
	slices.Sort(files)
	if strings.HasSuffix(files[0], ".conflist") {
		l, err := listFrom(files[0])
		if err != nil {
			e.t.Fatal(err)
		}
		return l
	}
	//lint:ignore SA1019 the single configurations that runtimes still load are read by nothing else
	c, err := libcni.ConfFromFile(files[0])
	if err != nil {
		e.t.Fatal(err)
	}
	//lint:ignore SA1019 the single configurations that runtimes still load are read by nothing else
	l, err := libcni.ConfListFromConf(c)
	if err != nil {
		e.t.Fatal(err)
	}
	return l
}

func types(l *libcni.NetworkConfigList) string {
	var out []string
	for _, p := range l.Plugins {
		out = append(out, p.Network.Type)
	}
	return strings.Join(out, " ")
}

// The whole way, in each of the forms, and back: nothing else is touched, and nothing is left.
func TestInstallAndUninstall(t *testing.T) {
	tests := []struct {
		name, file, content string
		mode                Mode
		ours                string // the file with the entry
		types, version      string
	}{
		{"list, in place", "10-x.conflist", list, InPlace, "10-x.conflist", primaryType + " portmap kmesh-cni", "1.0.0"},
		{"list, nobody to ask", "10-x.conflist", list, Auto, "10-x.conflist", primaryType + " portmap kmesh-cni", "1.0.0"},
		{"list, drop-in", "10-x.conflist", list, DropIn, "pods/50-kmesh.conf", primaryType + " portmap kmesh-cni", "1.0.0"},
		{"single", "10-x.conf", single, Auto, "10-x-kmesh.conflist", primaryType + " kmesh-cni", "0.4.0"},
		{"single, json", "10-x.json", single, DropIn, "10-x-kmesh.conflist", primaryType + " kmesh-cni", "0.4.0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			e.opts.Mode = tt.mode
			e.put(tt.file, tt.content)
			if err := os.WriteFile(filepath.Join(e.conf, "99-other.conflist"), []byte(list), 0o600); err != nil {
				t.Fatal(err)
			}
			before := tree(t, e.root)
			in, err := e.once()
			if err != nil {
				t.Fatal(err)
			}
			l := e.loads()
			if types(l) != tt.types || l.CNIVersion != tt.version || l.Name != "pods" {
				t.Errorf("a runtime loads %s in version %s, want %s", types(l), l.CNIVersion, tt.types)
			}
			caps := l.Plugins[len(l.Plugins)-1].Network.Capabilities
			if !caps[entry.AnnotationsCapability] || !caps[entry.CgroupCapability] {
				t.Errorf("capabilities are %v", caps)
			}
			s := in.Status()
			if !s.Ready || s.File != filepath.Join(e.conf, tt.ours) || s.Binary != filepath.Join(e.bin, "kmesh-cni") {
				t.Errorf("status is %+v", s)
			}
			if tt.ours != tt.file {
				e.untouched()
			}
			if info, err := os.Stat(e.primary); err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("the primary has mode %v, %v", info.Mode(), err)
			}
			// A second look, and a second process, write nothing.
			installed := tree(t, e.root)
			if _, err := in.pass(t.Context()); err != nil {
				t.Fatal(err)
			}
			sameTree(t, installed, tree(t, e.root))
			if in, err = e.once(); err != nil || in.Status().ConfWrites != 0 || in.Status().BinaryWrites != 0 {
				t.Errorf("installed anew: %v, %+v", err, in.Status())
			}
			if err := e.installer().Uninstall(t.Context(), time.Second); err != nil {
				t.Fatal(err)
			}
			sameTree(t, before, tree(t, e.root))
			// And once more is nothing.
			if err := e.installer().Uninstall(t.Context(), time.Second); err != nil {
				t.Error(err)
			}
			sameTree(t, before, tree(t, e.root))
		})
	}
}

// What is there already is kept as it is or taken over, once.
func TestFormsChange(t *testing.T) {
	e := newEnv(t)
	e.put("10-x.conf", single)
	e.opts.Mode = DropIn
	in, stop := e.run()
	poll(t, "installed", 5*time.Second, ready(in))
	want := func(what, file, chain string) {
		t.Helper()
		poll(t, what, 5*time.Second, func() error {
			files, _ := filepath.Glob(filepath.Join(e.conf, "*"))
			nested, _ := filepath.Glob(filepath.Join(e.conf, "*", "*"))
			if l := e.loads(); types(l) != chain || in.Status().File != filepath.Join(e.conf, file) {
				return fmt.Errorf("chain %s, %+v, files %v, %v", types(l), in.Status(), files, nested)
			}
			return nil
		})
	}
	want("a list of ours", "10-x-kmesh.conflist", primaryType+" kmesh-cni")
	// Its owner goes over to a list: ours must not stand before it any longer.
	if err := os.Remove(e.primary); err != nil {
		t.Fatal(err)
	}
	e.put("10-x.conflist", list)
	want("a drop-in", "pods/50-kmesh.conf", primaryType+" portmap kmesh-cni")
	if _, err := os.Stat(filepath.Join(e.conf, "10-x-kmesh.conflist")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the list of ours is still there: %v", err)
	}
	// The network gets another name.
	e.put("10-x.conflist", strings.Replace(list, `"pods"`, `"others"`, 1))
	want("a drop-in for the other name", "others/50-kmesh.conf", primaryType+" portmap kmesh-cni")
	if _, err := os.Stat(filepath.Join(e.conf, "pods/50-kmesh.conf")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old drop-in is still there: %v", err)
	}
	// Another mode: never twice in one chain.
	stop()
	e.opts.Mode = InPlace
	in, _ = e.run()
	want("inline", "10-x.conflist", primaryType+" portmap kmesh-cni")
	e.noTemps()
}

func TestWaitsForThePrimary(t *testing.T) {
	e := newEnv(t)
	in, _ := e.run()
	poll(t, "waiting", 5*time.Second, func() error {
		if len(e.events.find(ReasonWaiting)) == 0 {
			return errors.New("no event")
		}
		return nil
	})
	if s := in.Status(); s.Ready || !strings.Contains(s.Reason, "no network yet") {
		t.Errorf("status is %+v", s)
	}
	if _, err := os.Stat(filepath.Join(e.bin, "kmesh-cni")); err != nil {
		t.Errorf("the binary waits too: %v", err)
	}
	if _, err := os.Stat(e.opts.ReadyFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("ready file: %v", err)
	}
	e.put("10-x.conflist", list)
	poll(t, "installed", 5*time.Second, ready(in))
	if got := types(e.loads()); got != primaryType+" portmap kmesh-cni" {
		t.Errorf("chain is %s", got)
	}
	if _, err := os.Stat(e.opts.ReadyFile); err != nil {
		t.Error(err)
	}
}

// What others undo comes back: the entry, the file, the binary.
func TestRepairs(t *testing.T) {
	e := newEnv(t)
	e.put("10-x.conflist", list)
	in, stop := e.run()
	poll(t, "installed", 5*time.Second, ready(in))
	// The primary's owner starts anew and writes what it always writes.
	e.put("10-x.conflist", list)
	poll(t, "the entry", 5*time.Second, func() error {
		if got := types(e.loads()); got != primaryType+" portmap kmesh-cni" {
			return errors.New(got)
		}
		return nil
	})
	poll(t, "the event", 5*time.Second, func() error {
		if len(e.events.find(ReasonRepaired)) != 1 {
			return fmt.Errorf("%v", e.events.all())
		}
		return nil
	})
	if err := os.WriteFile(filepath.Join(e.bin, "kmesh-cni"), []byte("half"), 0o755); err != nil {
		t.Fatal(err)
	}
	poll(t, "the binary", 5*time.Second, func() error {
		if same, err := (sums{}).same(filepath.Join(source, "kmesh-cni"), filepath.Join(e.bin, "kmesh-cni")); err != nil || !same {
			return fmt.Errorf("same: %t, %w", same, err)
		}
		return nil
	})
	// The end of the process takes nothing away but its own word.
	stop()
	if got := types(e.loads()); got != primaryType+" portmap kmesh-cni" {
		t.Errorf("after the end the chain is %s", got)
	}
	if _, err := os.Stat(e.opts.ReadyFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("ready file: %v", err)
	}
	e.noTemps()
}

// Somebody else's installation stays.
func TestOnlyTheOwnerUninstalls(t *testing.T) {
	e := newEnv(t)
	e.put("10-x.conflist", list)
	if _, err := e.once(); err != nil {
		t.Fatal(err)
	}
	installed := tree(t, e.root)
	refused := func(what string) {
		t.Helper()
		other := *e
		other.opts.Owner = "late"
		err := other.installer().Uninstall(t.Context(), time.Second)
		if err == nil || !strings.Contains(err.Error(), `"test"`) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("with a record")
	sameTree(t, installed, tree(t, e.root))
	if err := os.RemoveAll(e.state); err != nil {
		t.Fatal(err)
	}
	refused("without a record")
	// The owner finds its own without a record.
	if err := e.installer().Uninstall(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	e.untouched()
	if left, err := os.ReadDir(e.bin); err != nil || len(left) > 0 {
		t.Errorf("left in bin: %v, %v", left, err)
	}
}

// Of two processes the later one writes, and an uninstall beside a running one is final.
func TestTheLaterProcessWrites(t *testing.T) {
	e := newEnv(t)
	e.put("10-x.conflist", list)
	before := tree(t, e.conf)
	first, _ := e.run()
	poll(t, "the first", 5*time.Second, ready(first))
	second, _ := e.run()
	poll(t, "the second", 5*time.Second, ready(second))
	superseded := func(in *Installer, says string) {
		t.Helper()
		poll(t, "superseded", 5*time.Second, func() error {
			if s := in.Status(); s.Ready || !strings.Contains(s.Reason, says) {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
	}
	superseded(first, "has taken over")
	if err := e.installer().Uninstall(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	superseded(second, "uninstalled")
	sameTree(t, before, tree(t, e.conf))
}

// An attachment that was cached with the entry keeps the stub.
func TestTheStubStays(t *testing.T) {
	e := newEnv(t)
	e.put("10-x.conflist", list)
	if _, err := e.once(); err != nil {
		t.Fatal(err)
	}
	before := len(tree(t, e.bin))
	cached := filepath.Join(e.cache, "results", "pods-a-eth0")
	e.attach(cached)
	err := e.installer().Uninstall(t.Context(), 100*time.Millisecond)
	if !errors.Is(err, ErrAttached) || !strings.Contains(err.Error(), "pods-a-eth0") {
		t.Fatalf("uninstall: %v", err)
	}
	e.untouched()
	if same, err := (sums{}).same(filepath.Join(source, StubName), filepath.Join(e.bin, "kmesh-cni")); err != nil || !same {
		t.Errorf("no stub: %v", err)
	}
	if err := os.Remove(cached); err != nil {
		t.Fatal(err)
	}
	if err := e.installer().Uninstall(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	if got := len(tree(t, e.bin)); got != before-1 {
		t.Errorf("%d files in bin", got-1)
	}
}

// What is not to be seen from here is not taken for gone.
func TestUninstallSeesTheNode(t *testing.T) {
	e := newEnv(t)
	e.put("10-x.conflist", list)
	before := tree(t, e.root)
	if _, err := e.once(); err != nil {
		t.Fatal(err)
	}
	for field, dir := range map[string]string{"conf-dir": e.conf, "bin-dir": e.bin, "cache-dir": e.cache} {
		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Fatal(err)
		}
		err := e.installer().Uninstall(t.Context(), time.Second)
		if err == nil || !strings.Contains(err.Error(), field+": ") || !strings.Contains(err.Error(), "mount the node's folder") {
			t.Errorf("without the %s: %v", field, err)
		}
		if err := os.Rename(dir+".away", dir); err != nil {
			t.Fatal(err)
		}
		if _, err := e.once(); err != nil { // some had begun
			t.Fatal(err)
		}
	}
	// A file that somebody has broken still names the plugin once it is corrected.
	edited, err := os.ReadFile(e.primary)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(e.primary, edited[1:], 0o640); err != nil {
		t.Fatal(err)
	}
	if err := e.installer().Uninstall(t.Context(), time.Second); err == nil || !strings.Contains(err.Error(), "cannot be edited") {
		t.Errorf("with a broken file: %v", err)
	}
	if !exists(filepath.Join(e.bin, "kmesh-cni")) {
		t.Error("the plugin is gone")
	}
	if err := os.WriteFile(e.primary, edited, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := e.installer().Uninstall(t.Context(), time.Second); err != nil {
		t.Error(err)
	}
	sameTree(t, before, tree(t, e.root))
}
