// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"bufio"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// A connection that is handed over is the pod's: in its network namespace, and made by a process in its cgroup.
func TestConn(t *testing.T) {
	n := node.ForTest(t, node.Options{NoKmesh: true})
	server, client := addPod(t, n, node.PodSpec{Name: "server"}), addPod(t, n, node.PodSpec{Name: "client"})
	at, _, err := server.Listen(testContext(t), wire.Listen{Network: wire.TCP, Addr: ":8080", Name: "server"})
	if err != nil {
		t.Fatal(err)
	}
	to := fmt.Sprintf("%s:%d", server.IP4, at.Port())
	for range 3 {
		c, res, err := client.Conn(testContext(t), wire.Dial{Network: wire.TCP, Addr: to})
		if err != nil || c == nil {
			t.Fatalf("%+v, %v", res, err)
		}
		defer c.Close()
		line, err := bufio.NewReader(c).ReadString('\n')
		if want := "server " + c.LocalAddr().String() + "\n"; err != nil || line != want {
			t.Errorf("the server said %q (%v), want %q", line, err, want)
		}
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var theirs, ours uint64
		if err := raw.Control(func(fd uintptr) { theirs, err = cookie(int(fd)) }); err != nil {
			t.Fatal(err)
		}
		if err := client.Do(func() (err error) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			ours, err = cookie(fd)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if theirs != ours || ours == 0 {
			t.Errorf("the connection lives in network namespace %d, the pod in %d", theirs, ours)
		}
	}
	if c, res, err := client.Conn(testContext(t), wire.Dial{Network: wire.TCP, Addr: server.IP4.String() + ":1"}); err != nil || c != nil || res.Errno != "ECONNREFUSED" {
		t.Errorf("where nobody listens: %v, %+v, %v, want ECONNREFUSED", c, res, err)
	}
	if c, _, err := client.Conn(testContext(t), wire.Dial{Network: wire.UDP, Addr: to}); err == nil {
		t.Errorf("a datagram socket was handed over: %v", c)
	}
}

func cookie(fd int) (uint64, error) {
	v, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return v, os.NewSyscallError("getsockopt", err)
}
