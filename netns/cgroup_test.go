// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	uid       = "0b1e2f3a-4c5d-6e7f-8091-a2b3c4d5e6f7"
	uidSystem = "0b1e2f3a_4c5d_6e7f_8091_a2b3c4d5e6f7"
	staticUID = "d41d8cd98f00b204e9800998ecf8427e"
	otherUID  = "ffffffff-4c5d-6e7f-8091-a2b3c4d5e6f7"
)

func TestCgroup2MountIsFoundByType(t *testing.T) {
	for _, c := range []struct{ name, info, want, err string }{
		{"unified", "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup", ""},
		{"hybrid", "25 24 0:22 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n26 25 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n27 25 0:24 / /sys/fs/cgroup/unified rw shared:9 master:2 - cgroup2 cgroup rw\n", "/sys/fs/cgroup/unified", ""},
		{"part before whole", "30 24 0:26 /kubelet /mnt/part rw - cgroup2 cgroup2 rw\n31 24 0:26 / /host/cgroup rw - cgroup2 cgroup2 rw\n", "/host/cgroup", ""},
		{"only a part", "30 24 0:26 /../.. /mnt/part rw - cgroup2 cgroup2 rw\n", "/mnt/part", ""},
		{"blank in the path", `30 24 0:26 / /mnt/a\040b\134c rw - cgroup2 cgroup2 rw` + "\n", `/mnt/a b\c`, ""},
		{"name of the source says nothing", "30 24 0:26 / /mnt/x rw - tmpfs cgroup2 rw\n", "", "not mounted"},
		{"version 1", "26 25 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", "", "not mounted"},
		{"garbage", " - cgroup2\n- -\n\x00\n", "", "not mounted"},
		{"empty", "", "", "not mounted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := cgroup2Mount(strings.NewReader(c.info))
			if got != c.want || (err == nil) != (c.err == "") || err != nil && (!strings.Contains(err.Error(), c.err) || CodeOf(err) != CodeUnsupported) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// mkdirs makes cgroups below the test's subtree.
func (n *node) mkcgroups(rel ...string) {
	for _, r := range rel {
		n.mkcgroup(r)
	}
}

func TestCgroupOfTheCapability(t *testing.T) {
	n := newNode(t)
	burst := "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uidSystem + ".slice"
	kind := "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + uidSystem + ".slice"
	n.mkcgroups(burst, kind, "/kubepods/pod"+uid, "/kubepods/besteffort/pod"+staticUID, "/kubepods/podrke2.server", "/kubepods/pod"+otherUID, "/pod"+uid,
		"/kubepods/pod"+uid+"/container", "/kubepods/pod"+uid+"0", "/kubepods/xpod"+uid, "/kubepods.slice/kubepods-podx"+uidSystem+".slice")
	outside := t.TempDir()
	if err := os.MkdirAll(outside+"/kubepods/pod"+uid, 0o700); err != nil {
		t.Fatal(err)
	}
	linked := t.TempDir()
	if err := os.Symlink(n.cgroups+"/kubepods", linked+"/kubepods"); err != nil {
		t.Fatal(err)
	}
	deep := t.TempDir()
	if err := os.Mkdir(deep+"/kubepods", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(n.cgroups+"/kubepods/pod"+uid, deep+"/kubepods/pod"+uid); err != nil {
		t.Fatal(err)
	}
	self := filepath.Join(t.TempDir(), "self")
	if err := os.WriteFile(self, []byte("8:pids:/\n0::/kubepods/pod"+uid+"/cri-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		finder cgroupFinder
		path   string
		uid    string
		want   string // path below the subtree
		says   string // or the error
	}{
		{name: "systemd", path: burst, uid: uid, want: burst},
		{name: "cgroupfs guaranteed", path: "/kubepods/pod" + uid, uid: uid, want: "/kubepods/pod" + uid},
		{name: "trailing slash", path: "/kubepods/pod" + uid + "/", uid: uid, want: "/kubepods/pod" + uid},
		{name: "CRI-O base name", path: filepath.Base(burst), uid: uid, want: burst},
		{name: "CRI-O base name in kind", path: filepath.Base(kind), uid: uid, want: kind},
		{name: "static pod", path: "/kubepods/besteffort/pod" + staticUID, uid: staticUID, want: "/kubepods/besteffort/pod" + staticUID},
		{name: "UID of another form", path: "/kubepods/podrke2.server", uid: "rke2.server", want: "/kubepods/podrke2.server"},
		{name: "root", path: "/", uid: uid, says: "root cgroup"},
		{name: "root twice", path: "//", uid: uid, says: "root cgroup"},
		{name: "dot dot", path: "/kubepods/../kubepods/pod" + uid, uid: uid, says: `".."`},
		{name: "dot dot alone", path: "/..", uid: uid, says: `".."`},
		{name: "dot dot at the end", path: "/kubepods/pod" + uid + "/..", uid: uid, says: `".."`},
		{name: "double slash", path: "/kubepods//pod" + uid, uid: uid, says: "empty"},
		{name: "relative", path: "kubepods/pod" + uid, uid: uid, says: "relative"},
		{name: "a name, no slice", path: "pod" + uid, uid: uid, says: "neither absolute"},
		{name: "a slice of nothing", path: ".slice", uid: uid, says: "neither absolute"},
		{name: "top level", path: "/pod" + uid, uid: uid, says: "two levels"},
		{name: "other pod's", path: "/kubepods/pod" + otherUID, uid: uid, says: "does not name pod UID"},
		{name: "other pod's, UID is its beginning", path: "/kubepods/pod" + uid + "0", uid: uid, says: "does not name"},
		{name: "other pod's, UID is its end", path: "/kubepods/xpod" + uid, uid: uid, says: "does not name"},
		{name: "other pod's slice, UID is its end", path: "/kubepods.slice/kubepods-podx" + uidSystem + ".slice", uid: uid, says: "does not name"},
		{name: "QoS level", path: "/kubepods.slice/kubepods-burstable.slice", uid: uid, says: "does not name"},
		{name: "container", path: "/kubepods/pod" + uid + "/container", uid: uid, says: "does not name"},
		{name: "missing", path: "/kubepods/besteffort/pod" + uid, uid: uid, says: "is not in the cgroup2 hierarchy"},
		{name: "no UID", path: "/kubepods/pod" + uid, uid: "", says: "K8S_POD_UID"},
		{name: "UID is a path", path: "/kubepods/pod/" + uid, uid: "/" + uid, says: "character"},
		{name: "NUL", path: "/kubepods/pod" + uid + "\x00", uid: uid, says: "NUL"},
		{name: "our own", finder: cgroupFinder{self: self}, path: "/kubepods/pod" + uid, uid: uid, says: "this very process"},
		{name: "symlink on the way", finder: cgroupFinder{root: linked}, path: "/kubepods/pod" + uid, uid: uid, says: "symbolic link"},
		{name: "symlink at the end", finder: cgroupFinder{root: deep}, path: "/kubepods/pod" + uid, uid: uid, says: "symbolic link"},
		{name: "not a cgroup2 file system", finder: cgroupFinder{root: outside}, path: "/kubepods/pod" + uid, uid: uid, says: "not on a cgroup2"},
		{name: "no such root", finder: cgroupFinder{root: outside + "/x"}, path: "/kubepods/pod" + uid, uid: uid, says: "mount cgroup2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := c.finder
			if f.root == "" {
				f.root = n.cgroups
			}
			got, err := f.find(c.path, c.uid)
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) || len(err.Error()) > maxMessage {
					t.Fatalf("error is %v, want %q in at most %d bytes", err, c.says, maxMessage)
				}
				if code := CodeOf(err); code != CodeCgroup && c.name != "no such root" {
					t.Errorf("code is %d", code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			want, err := os.Stat(n.cgroups + c.want)
			if err != nil {
				t.Fatal(err)
			}
			if is, err := got.Stat(); err != nil || !os.SameFile(is, want) || got.path != c.want {
				t.Errorf("got %s, %v", got.path, err)
			}
			again, err := f.openInode(got.inode)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if is, err := again.Stat(); err != nil || !os.SameFile(is, want) {
				t.Errorf("opened by inode it is another one: %v", err)
			}
		})
	}
}

// Without a capability the pod's UID decides, whatever the driver, the QoS class and kubelet's root.
func TestCgroupByUID(t *testing.T) {
	for _, c := range []struct {
		name, uid, want string
		more            []string
		says            string
		code            Code
	}{
		{name: "cgroupfs guaranteed", uid: uid, want: "/kubepods/pod" + uid},
		{name: "cgroupfs burstable", uid: uid, want: "/kubepods/burstable/pod" + uid},
		{name: "cgroupfs besteffort", uid: uid, want: "/kubepods/besteffort/pod" + uid},
		{name: "systemd guaranteed", uid: uid, want: "/kubepods.slice/kubepods-pod" + uidSystem + ".slice"},
		{name: "systemd burstable", uid: uid, want: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uidSystem + ".slice"},
		{name: "systemd besteffort", uid: uid, want: "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + uidSystem + ".slice"},
		{name: "kind", uid: uid, want: "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + uidSystem + ".slice"},
		{name: "nested cgroupfs", uid: uid, want: "/kubelet/kubepods/pod" + uid},
		{name: "third level", uid: uid, want: "/docker/node1/kubepods/pod" + uid},
		{name: "static pod", uid: staticUID, want: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + staticUID + ".slice"},
		{name: "UID of another form", uid: "my-etcd", want: "/kubepods/burstable/podmy-etcd"},
		{name: "other pods beside", uid: uid, want: "/kubepods/pod" + uid, more: []string{"/kubepods/pod" + otherUID, "/kubepods/pod" + uid + "0", "/system/pod" + uid}},
		{name: "two", uid: uid, want: "", more: []string{"/kubepods/pod" + uid, "/kubepods/burstable/pod" + uid}, says: "2 cgroups", code: CodeAmbiguous},
		{name: "two drivers", uid: uid, want: "", more: []string{"/kubepods/pod" + uid, "/kubepods.slice/kubepods-pod" + uidSystem + ".slice"}, says: "2 cgroups", code: CodeAmbiguous},
		{name: "none", uid: uid, want: "", more: []string{"/kubepods/burstable", "/pod" + uid}, says: "no cgroup2 directory", code: CodeCgroup},
		{name: "no UID", uid: "", want: "", says: "K8S_POD_UID", code: CodeCgroup},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			n.mkcgroups(c.more...)
			if c.want != "" {
				n.mkcgroup(c.want)
			}
			got, err := cgroupFinder{root: n.cgroups}.find("", c.uid)
			if c.want == "" {
				if CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) || len(err.Error()) > maxMessage {
					t.Errorf("error is %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			if got.path != c.want {
				t.Errorf("found %s, want %s", got.path, c.want)
			}
		})
	}
}

// The real hierarchy, found by type: the subtree of the test is one of kubelet's roots in it.
func TestCgroupByUIDOnTheNode(t *testing.T) {
	n := newNode(t)
	r := n.pod("c1")
	path := r.CgroupPath
	r.CgroupPath = ""
	p := n.enroll(r)
	if p.Cgroup != n.inode(Request{CgroupPath: path}) {
		t.Errorf("cgroup is %d", p.Cgroup)
	}
}

func TestExpandSlice(t *testing.T) {
	for in, want := range map[string]string{
		"a.slice":     "/a.slice",
		"a-b-c.slice": "/a.slice/a-b.slice/a-b-c.slice",
		"-a.slice":    "", "a-.slice": "", "a--b.slice": "", ".slice": "", "a": "", "-.slice": "",
	} {
		got, err := expandSlice(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v", in, got, err)
		}
	}
}

func FuzzCgroupPath(f *testing.F) {
	for _, s := range []string{"", "/", "//", "..", "/..", "/a/../b", "a.slice", "kubepods-burstable-podx.slice", "/kubepods/podx", "a-", "/a/b/", "\x00", "/a//b", "--.slice"} {
		f.Add(s, uid)
	}
	f.Fuzz(func(t *testing.T, path, uid string) {
		full, parts, err := podCgroupPath(path)
		if err != nil {
			if CodeOf(err) != CodeCgroup || len(err.Error()) > maxMessage {
				t.Errorf("%q: %v", path, err)
			}
			return
		}
		if len(parts) < 2 || !strings.HasPrefix(full, "/") || filepath.Clean(full) != full || slices.Contains(parts, "..") {
			t.Errorf("%q became %q", path, full)
		}
		if leaf := parts[len(parts)-1]; leafNames(leaf, uid) && checkUID(uid) == nil && !strings.Contains(leaf, "pod"+uid) && !strings.Contains(leaf, "pod"+systemdName(uid)) {
			t.Errorf("%q names %q", leaf, uid)
		}
	})
}

func FuzzMountinfo(f *testing.F) {
	f.Add("30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n")
	f.Add(`1 2 3 / /a\04 rw - cgroup2 x y`)
	f.Fuzz(func(t *testing.T, info string) {
		if got, err := cgroup2Mount(strings.NewReader(info)); err == nil && got == "" {
			t.Errorf("%q gave an empty mount point", info)
		}
	})
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", "..", ".", "%2e", "a/b", "é", "\x00", "eth0.100", "br@x", "ready", "cgroup=1", strings.Repeat(".", 90)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := escape(s)
		if err == nil {
			if strings.ContainsAny(name, "./\x00@=") || len(name) > maxName || name == "" {
				t.Errorf("%q became %q", s, name)
			}
			if back, err := unescape(name); err != nil || back != s {
				t.Errorf("%q came back as %q, %v", s, back, err)
			}
		} else if s != "" && len(s) <= maxName/3 {
			t.Errorf("%q: %v", s, err)
		}
		// Whatever can be unescaped is what escape makes: no two names for one thing.
		if back, err := unescape(s); err == nil {
			if again, err := escape(back); err != nil || again != s {
				t.Errorf("%q unescapes to %q, which escapes to %q, %v", s, back, again, err)
			}
		}
	})
}
