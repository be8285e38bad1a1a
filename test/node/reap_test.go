// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"kmesh/test/node"
)

func strayProcess(t *testing.T, cgroup string) *exec.Cmd {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func addVeth(t *testing.T, n *node.Node, name string) {
	t.Helper()
	if err := n.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"})
	}); err != nil {
		t.Fatal(err)
	}
}

const childEnv = "KMESH_TEST_NODE_CHILD"

// TestMain: with childEnv, be a program that makes a node with a pod and a process, says so, and waits to be killed.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	t := &childT{}
	n := node.ForTest(t, node.Options{NoKmesh: true})
	p, err := n.AddPod(t.Context(), node.PodSpec{Name: "p"})
	if err == nil {
		_, err = p.Start(t.Context(), "/bin/sleep", "1000")
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
	os.Stdout.WriteString(n.Name + " " + n.CgroupRoot + "\n")
	select {}
}

func TestNewReapsAfterAKilledTest(t *testing.T) {
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childEnv+"=1")
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	name, cgroup, _ := strings.Cut(strings.TrimSpace(line), " ")
	dir := filepath.Join(node.Base, name)

	// While it lives, its node is left alone.
	node.ForTest(t, node.Options{NoKmesh: true})
	for _, p := range []string{filepath.Join(dir, "netns", "node"), cgroup} {
		if _, err := os.Stat(p); err != nil {
			t.Errorf("a living test's: %v", err)
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // "signal: killed"
	node.ForTest(t, node.Options{NoKmesh: true})
	for _, p := range []string{dir, cgroup} {
		if _, err := os.Stat(p); !os.IsNotExist(err) {
			t.Errorf("%s: %v, want that it was removed", p, err)
		}
	}
}

// childT is as much of a testing.T as the child needs.
type childT struct{}

func (*childT) Helper()                        {}
func (*childT) Cleanup(func())                 {}
func (*childT) Logf(string, ...any)            {}
func (*childT) Errorf(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
func (*childT) Context() context.Context       { return context.Background() }
func (c *childT) Fatalf(format string, a ...any) {
	c.Errorf(format, a...)
	os.Exit(1)
}
