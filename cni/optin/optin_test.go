// SPDX-License-Identifier: Apache-2.0

package optin

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
)

var set = Set{Namespaces: map[string]Mode{"in": Enroll, "must": Required, "istio-system": Required}, ControlPlane: []string{"mesh"}}

func TestDecide(t *testing.T) {
	enroll := func(v string) map[string]string { return map[string]string{AnnotationEnroll: v} }
	with := func(m map[string]string, more ...string) map[string]string {
		m = maps.Clone(m)
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	for _, c := range []struct {
		name, namespace string
		annotations     map[string]string
		enroll, pass    bool
		says            string
		err             string
	}{
		{name: "nothing said", namespace: "x", says: "neither"},
		{name: "no namespace known", namespace: "", says: "neither"},
		{name: "pod yes", namespace: "x", annotations: enroll("true"), enroll: true, says: AnnotationEnroll},
		{name: "pod no", namespace: "x", annotations: enroll("false"), says: AnnotationEnroll},
		{name: "namespace yes", namespace: "in", enroll: true, says: "namespace in opted in"},
		{name: "pod no beats namespace yes", namespace: "in", annotations: enroll("false"), says: AnnotationEnroll},
		{name: "pod yes in namespace yes", namespace: "in", annotations: enroll("true"), enroll: true, says: "pod annotation"},
		{name: "required", namespace: "must", enroll: true, says: "requires"},
		{name: "required beats pod no", namespace: "must", annotations: enroll("false"), enroll: true, says: "requires"},
		{name: "sidecar beats all", namespace: "must", annotations: with(enroll("true"), "sidecar.istio.io/status", ""), says: "sidecar.istio.io/status"},
		{name: "ambient beats all", namespace: "must", annotations: with(enroll("true"), "ambient.istio.io/redirection", "enabled"), says: "ambient.istio.io/redirection"},
		{name: "built-in control plane", namespace: "kube-system", annotations: enroll("true"), says: "control plane"},
		{name: "built-in control plane beats required", namespace: "istio-system", says: "control plane"},
		{name: "control plane by the set", namespace: "mesh", annotations: enroll("true"), says: "control plane"},
		{name: "nonsense", namespace: "x", annotations: enroll("True"), err: `"True": set it to "true" or "false"`},
		{name: "empty value", namespace: "x", annotations: enroll(""), err: `""`},
		{name: "nonsense in required", namespace: "must", annotations: enroll("no"), err: `"no"`},
		{name: "nonsense in the control plane", namespace: "kube-system", annotations: enroll("no"), says: "control plane"},
		{name: "pass", namespace: "x", annotations: with(enroll("true"), AnnotationOnUnready, "pass"), enroll: true, pass: true, says: AnnotationEnroll},
		{name: "pass in required", namespace: "must", annotations: map[string]string{AnnotationOnUnready: "pass"}, enroll: true, pass: true, says: "requires"},
		{name: "wait", namespace: "x", annotations: with(enroll("true"), AnnotationOnUnready, "wait"), enroll: true, says: AnnotationEnroll},
		{name: "on-unready nonsense", namespace: "in", annotations: map[string]string{AnnotationOnUnready: "maybe"}, err: AnnotationOnUnready},
		{name: "on-unready nonsense, not enrolled", namespace: "x", annotations: map[string]string{AnnotationOnUnready: "maybe"}, says: "neither"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := Decide(c.namespace, c.annotations, set)
			if c.err != "" {
				var own *AnnotationError
				if !errors.As(err, &own) || !strings.Contains(err.Error(), c.err) || d.Enroll {
					t.Errorf("got %+v, %v", d, err)
				}
				return
			}
			if err != nil || d.Enroll != c.enroll || d.PassWhenUnready != c.pass || !strings.Contains(d.Reason, c.says) {
				t.Errorf("got %+v, %v", d, err)
			}
		})
	}
}

func TestSetComesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if s, err := Read(dir); err != nil || len(s.Namespaces) != 0 {
		t.Fatalf("a missing set is %+v, %v", s, err)
	}
	for _, want := range []Set{set, {Namespaces: set.Namespaces, Policies: policies}, {Namespaces: map[string]Mode{}}} {
		if err := Write(dir, want); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(dir); err != nil || !reflect.DeepEqual(got, want) || !got.Equal(want) {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	if err := Write(dir, Set{Namespaces: map[string]Mode{"x": "maybe"}}); err == nil {
		t.Error("an unknown mode was written")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("directory has %v, %v", entries, err)
	}
	if err := Write("/proc/nowhere", set); err == nil {
		t.Error("written to nowhere")
	}
}

// A reader sees one whole set or another, never half of one.
func TestWriteIsAtOnce(t *testing.T) {
	dir := t.TempDir()
	big := Set{Namespaces: map[string]Mode{}}
	for i := range 2000 {
		big.Namespaces[strings.Repeat("n", 1+i%200)+string(rune('a'+i%26))] = Enroll
	}
	if err := Write(dir, set); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		defer close(stop)
		for i := range 40 {
			if err := Write(dir, []Set{big, set}[i%2]); err != nil {
				t.Error(err)
			}
		}
	})
	for {
		got, err := Read(dir)
		if n := len(got.Namespaces); err != nil || n != len(set.Namespaces) && n != len(big.Namespaces) {
			t.Fatalf("read %d namespaces, %v", n, err)
		}
		select {
		case <-stop:
			wg.Wait()
			return
		default:
		}
	}
}

func TestBrokenSetOptsNobodyIn(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"empty":      func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"half":       func(p string) error { return os.WriteFile(p, []byte(`{"version":1,"names`), 0o600) },
		"wrong type": func(p string) error { return os.WriteFile(p, []byte(`{"version":1,"namespaces":["in"]}`), 0o600) },
		"no version": func(p string) error { return os.WriteFile(p, []byte(`{"namespaces":{"in":"enroll"}}`), 0o600) },
		"newer": func(p string) error {
			return os.WriteFile(p, []byte(`{"version":2,"namespaces":{"in":"enroll"}}`), 0o600)
		},
		"policies that are none": func(p string) error {
			return os.WriteFile(p, []byte(`{"version":1,"namespaces":{"in":"enroll"},"policies":{"everywhere":"root/lock"}}`), 0o600)
		},
		"directory": func(p string) error { return os.Mkdir(p, 0o700) },
		"pipe":      func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"loop":      func(p string) error { return os.Symlink(p, p) },
		"huge": func(p string) error {
			if err := os.WriteFile(p, nil, 0o600); err != nil {
				return err
			}
			return os.Truncate(p, maxSetSize+2)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := spoil(Path(dir)); err != nil {
				t.Fatal(err)
			}
			s, err := Read(dir)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("error is %v", err)
			}
			if d, err := Decide("in", nil, s); err != nil || d.Enroll {
				t.Errorf("decided %+v, %v", d, err)
			}
			if name != "directory" {
				if err := Write(dir, set); err != nil {
					t.Errorf("it cannot be repaired: %v", err)
				}
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "{}", "null", `{"version":1}`, `{"version":1,"namespaces":{"a":"enroll","b":"required","":"enroll","c":"later"},"controlPlane":["x"]}`, `{"version":1e99}`,
		`{"version":1,"namespaces":{"a":"enroll","b":"enroll"},"policies":{"everywhere":["r/x",""],"namespaces":{"a":["a/x","a/x"],"":["y/y"]},"some":{"a":["a/y"],"b":["b/x"],"c":[]}}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse(data)
		if err != nil {
			if len(s.Namespaces) > 0 {
				t.Errorf("an error beside %+v", s)
			}
			return
		}
		if !json.Valid(data) {
			t.Errorf("%q was taken", data)
		}
		for name, mode := range s.Namespaces {
			if name == "" || mode != Enroll && mode != Required {
				t.Errorf("namespace %q has mode %q", name, mode)
			}
			d, err := Decide(name, nil, s)
			never, kept := controlPlane[name] || s.isControlPlane(name), len(s.Policies.Everywhere)+len(s.Policies.Namespaces[name])+len(s.Policies.Some[name]) > 0
			if err != nil || d.Enroll == (never || kept) || (len(d.Policies) > 0) != (kept && !never) {
				t.Errorf("%q: %+v, %v", name, d, err)
			}
			if d, err := Decide(name, map[string]string{AnnotationEnroll: "false"}, s); err != nil || d.Enroll && mode != Required || len(d.Policies) > 0 && mode != Required {
				t.Errorf("%q, opted out: %+v, %v", name, d, err)
			}
		}
		if p := s.Policies; !reflect.DeepEqual(p, p.Whole()) {
			t.Errorf("policies %+v are not whole", p)
		}
		dir := t.TempDir()
		if err := Write(dir, s); err != nil {
			t.Errorf("%+v: %v", s, err)
		}
		if again, err := Read(dir); err != nil || !again.Equal(s) {
			t.Errorf("%+v came back as %+v, %v", s, again, err)
		}
	})
}

func TestModeOf(t *testing.T) {
	tests := []struct {
		labels map[string]string
		want   Mode
		bad    bool
	}{
		{nil, "", false},
		{map[string]string{"other": "kmesh"}, "", false},
		{map[string]string{LabelMode: "kmesh"}, Enroll, false},
		{map[string]string{LabelMode: "ambient"}, "", false},
		{map[string]string{LabelMode: "none"}, "", false},
		{map[string]string{LabelEnroll: "required"}, Required, false},
		{map[string]string{LabelMode: "kmesh", LabelEnroll: "required"}, Required, false},
		{map[string]string{LabelMode: "none", LabelEnroll: "required"}, Required, false},
		{map[string]string{LabelEnroll: "true"}, "", true},
		{map[string]string{LabelEnroll: ""}, "", true},
		{map[string]string{LabelMode: "kmesh", LabelEnroll: "Required"}, Enroll, true},
	}
	for _, tt := range tests {
		got, err := ModeOf(tt.labels)
		if got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%v: %q, %v; want %q, error %t", tt.labels, got, err, tt.want, tt.bad)
		}
		if err != nil && !strings.Contains(err.Error(), LabelEnroll) {
			t.Errorf("%v: %v does not name the label", tt.labels, err)
		}
	}
}
