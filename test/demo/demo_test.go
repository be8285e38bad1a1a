// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// demoProgram builds the demo.
func demoProgram(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("building the demo: %v\n%s", err, out)
	}
	return bin
}

var nodeDir = regexp.MustCompile(`/run/kmesh-test/([0-9a-f]+)`)

// checkGone looks for the node that the demo said it made.
func checkGone(t *testing.T, output string) {
	t.Helper()
	found := nodeDir.FindStringSubmatch(output)
	if found == nil {
		t.Fatalf("the demo did not say where its node is:\n%s", output)
	}
	left, err := filepath.Glob("/sys/fs/cgroup/*/kmesh-test-" + found[1])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(found[0]); err == nil {
		left = append(left, found[0])
	}
	if len(left) > 0 {
		t.Errorf("the demo left %v behind", left)
	}
}

func TestDemoPlain(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second) // the demo's promise
	defer cancel()
	cmd := exec.CommandContext(ctx, demoProgram(t))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the demo: %v\n%s", err, out)
	}
	text := string(out)
	t.Log(text)
	if strings.ContainsAny(text, "\x1b\r") || strings.Contains(text, "...") {
		t.Error("colour or progress where there is no terminal")
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, "nothing was left behind") {
		t.Errorf("the last line is %q", last)
	}
	checkGone(t, text)
}

func TestDemoInterrupted(t *testing.T) {
	bin := demoProgram(t)
	for _, c := range []struct {
		name, at string // what its output says when it is interrupted
		sig      syscall.Signal
		noColor  bool
	}{
		{"Ctrl-C in its traffic, on a terminal", "connections to", syscall.SIGINT, false},
		{"Ctrl-C in its HTTP load, on a terminal", "restarting v1-b", syscall.SIGINT, false},
		{"SIGTERM with the helper dead, on a terminal that wants no colour", "is dead", syscall.SIGTERM, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			master, slave := openTerminal(t)
			cmd := exec.Command(bin)
			cmd.Stdout, cmd.Stderr = slave, slave
			cmd.Env = append(os.Environ(), "TERM=xterm", "NO_COLOR=")
			if c.noColor {
				cmd.Env = append(cmd.Env, "NO_COLOR=1")
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			slave.Close()
			stuck := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
			defer stuck.Stop()
			var seen strings.Builder
			signalled := false
			in := bufio.NewReader(master)
			for {
				b, err := in.ReadByte() // EIO when the other end is closed
				if err != nil {
					break
				}
				seen.WriteByte(b)
				if !signalled && strings.HasSuffix(seen.String(), c.at) {
					signalled = true
					if err := cmd.Process.Signal(c.sig); err != nil {
						t.Fatal(err)
					}
				}
			}
			err := cmd.Wait()
			if !signalled {
				t.Fatalf("the demo never said %q (%v):\n%s", c.at, err, seen.String())
			}
			if cmd.ProcessState.ExitCode() != 130 || !strings.Contains(seen.String(), "interrupted; nothing was left behind") {
				t.Errorf("the demo ended with %v:\n%s", err, seen.String())
			}
			if coloured := strings.Contains(seen.String(), "\x1b["+green+"m"); coloured == c.noColor {
				t.Errorf("in colour: %t, want %t", coloured, !c.noColor)
			}
			checkGone(t, seen.String())
		})
	}
}

// openTerminal makes a pseudo-terminal.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// A reader that goes away (make demo | head) must not leave a node behind.
func TestDemoWithoutReader(t *testing.T) {
	cmd := exec.Command(demoProgram(t))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	in := bufio.NewReader(out)
	for !nodeDir.MatchString(seen.String()) {
		line, err := in.ReadString('\n')
		if err == io.EOF {
			t.Fatalf("the demo ended: %v\n%s", cmd.Wait(), seen.String())
		}
		seen.WriteString(line)
	}
	out.Close()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("the demo ended with %v", err)
	}
	checkGone(t, seen.String())
}

func TestScreenWithoutTerminal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := newScreen(w, "", "xterm")
	s.working("busy")
	s.claim(true, "one")
	s.claim(false, "two")
	s.table([]string{"A", "B"}, []string{"aa", "b"})
	w.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	want := "  ok  one\n  WRONG  two\n  A    B\n  aa   b\n"
	if string(got) != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	if err := s.verdict(); err == nil || !strings.Contains(err.Error(), "two") {
		t.Errorf("the verdict is %v, want the false claim", err)
	}
}

func TestDrawn(t *testing.T) {
	if got := bar(0.9, 10); got != "█████████░" {
		t.Errorf("a bar of 0.9 is %q", got)
	}
	if got := spark([]float64{0, 0.5, math.NaN(), 1}); got != "▁▅ █" {
		t.Errorf("a line of 0, 0.5, nothing, 1 is %q", got)
	}
}

func TestShares(t *testing.T) {
	l := &load{ended: 40, samples: []sample{{0, 1, "v1-a"}, {5, 1, "v2-a"}, {10, 1, "v2-a"}, {30, 1, "v2-b"}, {39, 1, "v1-b"}}}
	shares, after, stray := l.shares("v2", 4, 10)
	if fmt.Sprint(shares) != "[0.5 1 NaN 0.5]" || after != 2 || stray != 1 {
		t.Errorf("the shares are %v, after the moment %d, of them elsewhere %d", shares, after, stray)
	}
	if n := l.between("v2-a", 0, 10); n != 1 {
		t.Errorf("%d of v2-a in between, want 1", n)
	}
}

func TestProcAddr(t *testing.T) {
	want := netip.MustParseAddrPort("10.77.0.2:8000")
	number := binary.NativeEndian.Uint32(want.Addr().AsSlice())
	if got, err := procAddr(fmt.Sprintf("%08X:%04X", number, want.Port())); err != nil || got != want {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "0:", "XX:0050"} {
		if got, err := procAddr(bad); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
}
