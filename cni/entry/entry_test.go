// SPDX-License-Identifier: Apache-2.0

package entry

import (
	"strings"
	"testing"
)

func TestStamp(t *testing.T) {
	with := Conf{RunDir: "/r", Stamp: &Stamp{Owner: "a", From: "10-x.conf"}}.Encode()
	if s, err := StampOf(with); err != nil || s == nil || *s != (Stamp{Owner: "a", From: "10-x.conf"}) {
		t.Errorf("%s has stamp %+v, %v", with, s, err)
	}
	if s, err := StampOf([]byte(`{"type":"kmesh-cni"}`)); err != nil || s != nil {
		t.Errorf("an entry by hand has stamp %+v, %v", s, err)
	}
	for _, bad := range []string{"", "[]", `{"type":"bridge"}`, `{"type":"kmesh-cni","installedBy":"me"}`} {
		if s, err := StampOf([]byte(bad)); err == nil {
			t.Errorf("%s has stamp %+v", bad, s)
		}
	}
	if got := string(Conf{}.Encode()); strings.Contains(got, "bpffs") || !strings.Contains(got, AnnotationsCapability) || !strings.Contains(got, CgroupCapability) {
		t.Errorf("the least entry is %s", got)
	}
}

func FuzzStamp(f *testing.F) {
	f.Add(Conf{Stamp: &Stamp{Owner: "a"}}.Encode())
	f.Add([]byte(`{"type":"kmesh-cni","capabilities":null,"installedBy":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := StampOf(data)
		if err != nil || s == nil {
			return
		}
		if again, err := StampOf(Conf{Stamp: s}.Encode()); err != nil || *again != *s {
			t.Errorf("stamp %+v becomes %+v, %v", s, again, err)
		}
	})
}
