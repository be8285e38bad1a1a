// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The test program plays two more roles: the first process of containerd's namespaces, and a plugin at the end of the
// chain that writes down what the runtime gave.
const (
	initEnv      = "KMESH_TEST_CONTAINERD_INIT"
	recorderName = "recorder"
)

func TestMain(m *testing.M) {
	var err error
	switch {
	case filepath.Base(os.Args[0]) == recorderName:
		err = record()
	case os.Getenv(initEnv) != "":
		err = beInit(os.Getenv(initEnv), os.Args[1:])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// beInit makes this process, the first in new mount and pid namespaces, a machine of its own (an empty /run but for
// the node's folder, a /var/lib that forgets, its own /proc) and keeps argv running: it starts it again when somebody has
// killed it, as an init system does.
func beInit(dir string, argv []string) error {
	if err := os.Unsetenv(initEnv); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making all mounts private: %w", err)
	}
	// What a covered mount is looked up by is its path: this one would be taken for the one that is to come.
	if err := unix.Unmount("/run/netns", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("leaving the machine's /run/netns: %w", err)
	}
	keep, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mounting an empty /run: %w", err)
	}
	// As systemd makes it: containers see the network namespaces that are mounted there later.
	if err := unix.Mount("", "/run", "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("sharing the mounts of /run: %w", err)
	}
	for _, d := range []string{dir, "/run/upper", "/run/work"} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	// libcni's cache is in /var/lib/cni, and containerd has no setting for it.
	if err := unix.Mount("overlay", "/var/lib", "overlay", 0, "lowerdir=/var/lib,upperdir=/run/upper,workdir=/run/work"); err != nil {
		return fmt.Errorf("mounting a /var/lib that may be written to: %w", err)
	}
	// With all below it: the node's bpf file system.
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", keep.Fd()), dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mounting %s again: %w", dir, err)
	}
	keep.Close()
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := unix.Sethostname([]byte("kmesh-test")); err != nil {
		return err
	}
	for {
		killed, err := supervise(argv)
		if !killed {
			return err
		}
	}
}

// supervise runs argv until it ends, and collects all other processes that end meanwhile: orphans are given to the first
// process. killed: by SIGKILL.
func supervise(argv []string) (killed bool, err error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return false, err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, err
		case pid != cmd.Process.Pid:
		case status.Signaled() && status.Signal() == unix.SIGKILL:
			return true, nil
		default:
			return false, fmt.Errorf("%s ended with status %d", argv[0], status.ExitStatus())
		}
	}
}

// called is a line of the recorder: what one call of the plugin brought.
type called struct {
	Command     string                     `json:"command"`
	Args        map[string]string          `json:"args"`
	CapArgs     map[string]json.RawMessage `json:"runtimeConfig"`
	HadPrevious bool                       `json:"hadPrevious"`
}

// record is a CNI plugin that changes nothing.
func record() error {
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	c := called{Command: os.Getenv("CNI_COMMAND"), Args: map[string]string{}}
	if c.Command == "VERSION" {
		fmt.Println(`{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`)
		return nil
	}
	var conf struct {
		Log           string                     `json:"log"`
		RuntimeConfig map[string]json.RawMessage `json:"runtimeConfig"`
		PrevResult    json.RawMessage            `json:"prevResult"`
	}
	if err := json.Unmarshal(in, &conf); err != nil {
		return err
	}
	for kv := range strings.SplitSeq(os.Getenv("CNI_ARGS"), ";") {
		k, v, _ := strings.Cut(kv, "=")
		c.Args[k] = v
	}
	c.CapArgs, c.HadPrevious = conf.RuntimeConfig, conf.PrevResult != nil
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(conf.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	if _, err := log.Write(append(line, '\n')); err != nil {
		return err
	}
	if c.Command == "ADD" {
		_, err = os.Stdout.Write(conf.PrevResult)
	}
	return err
}
