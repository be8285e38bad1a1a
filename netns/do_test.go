// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestNamespaceThatIsNotThere: callers pass over a pod that is going, and so must know it from other errors.
func TestNamespaceThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	ran := false
	if err := Do(filepath.Join(dir, "gone"), func() error { ran = true; return nil }); !errors.Is(err, fs.ErrNotExist) || ran {
		t.Errorf("a namespace that is gone: %v, entered: %t", err, ran)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Do(file, func() error { ran = true; return nil }); err == nil || errors.Is(err, fs.ErrNotExist) || ran {
		t.Errorf("a file that is no namespace: %v, entered: %t", err, ran)
	}
	want := errors.New("of the function")
	if err := Do("/proc/self/ns/net", func() error { return want }); !errors.Is(err, want) {
		t.Errorf("an error in a namespace comes out as %v", err)
	}
}
