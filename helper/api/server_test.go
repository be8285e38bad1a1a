// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	apiv1 "kmesh/helper/api/v1"
)

// callerEnv makes the test binary a client of the socket that it names.
const callerEnv = "KMESH_API_TEST_CALLER"

func TestMain(m *testing.M) {
	if socket := os.Getenv(callerEnv); socket != "" {
		response, err := call(socket)
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println("version:", response.Version)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// call asks for the status, as a client of its own.
func call(socket string) (*apiv1.StatusResponse, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return apiv1.NewKmeshClient(conn).Status(ctx, &apiv1.StatusRequest{})
}

// fake answers what it holds.
type fake struct {
	status *apiv1.StatusResponse
	err    error
}

func (f fake) Status(context.Context) (*apiv1.StatusResponse, error) { return f.status, f.err }
func (f fake) Pods(context.Context) (*apiv1.PodsResponse, error)     { return nil, f.err }
func (f fake) Services(context.Context) (*apiv1.ServicesResponse, error) {
	return &apiv1.ServicesResponse{}, f.err
}
func (f fake) Routes(context.Context, *apiv1.RoutesRequest) (*apiv1.RoutesResponse, error) {
	return nil, f.err
}
func (f fake) Xds(context.Context, *apiv1.XdsRequest) (*apiv1.XdsResponse, error) {
	return nil, f.err
}
func (f fake) Flows(context.Context, *apiv1.FlowsRequest) (*apiv1.FlowsResponse, error) {
	return nil, f.err
}

// start serves source on socket until the test ends, or until stop is called.
func start(t *testing.T, socket string, source Source) (stop func()) {
	t.Helper()
	s, err := Listen(Options{Socket: socket, Source: source})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run did not end")
		}
	}
	t.Cleanup(stop)
	return stop
}

func TestServe(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "helper.sock")
	want := &apiv1.StatusResponse{Version: "v1", Generation: 1 << 60, Xds: &apiv1.Xds{Kind: "directory", Connected: true}}
	stop := start(t, socket, fake{status: want})

	for path, mode := range map[string]os.FileMode{filepath.Dir(socket): 0o700, socket: 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != mode {
			t.Errorf("%s has mode %#o, want %#o", path, got, mode)
		}
	}
	got, err := call(socket)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	stop()
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there after the end: %v", err)
	}
}

func TestAnswerCodes(t *testing.T) {
	tests := []struct {
		name string
		fake fake
		want codes.Code
	}{
		{"good", fake{status: &apiv1.StatusResponse{}}, codes.OK},
		{"nothing", fake{}, codes.Internal},
		{"failure", fake{err: errors.New("maps are gone")}, codes.Internal},
		{"deadline", fake{err: fmt.Errorf("read maps: %w", context.DeadlineExceeded)}, codes.DeadlineExceeded},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			start(t, socket, tt.fake)
			_, err := call(socket)
			if got := status.Code(err); got != tt.want {
				t.Errorf("code %v (%v), want %v", got, err, tt.want)
			}
		})
	}
}

// The end does not wait for a client that keeps its connection, nor for an answer
// that never comes.
func TestEndIsPrompt(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	asked := make(chan struct{})
	stop := start(t, socket, stuck{asked})
	go call(socket)
	<-asked
	began := time.Now()
	stop()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the end took %v", took)
	}
}

// stuck never answers Status.
type stuck struct{ asked chan struct{} }

func (s stuck) Status(ctx context.Context) (*apiv1.StatusResponse, error) {
	close(s.asked)
	<-ctx.Done()
	return nil, ctx.Err()
}
func (stuck) Pods(context.Context) (*apiv1.PodsResponse, error)         { return nil, nil }
func (stuck) Services(context.Context) (*apiv1.ServicesResponse, error) { return nil, nil }
func (stuck) Routes(context.Context, *apiv1.RoutesRequest) (*apiv1.RoutesResponse, error) {
	return nil, nil
}
func (stuck) Xds(context.Context, *apiv1.XdsRequest) (*apiv1.XdsResponse, error) {
	return nil, nil
}

func (stuck) Flows(context.Context, *apiv1.FlowsRequest) (*apiv1.FlowsResponse, error) {
	return nil, nil
}

func TestStaleSocketIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	// What a helper leaves that was killed: a socket that nobody listens on.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	start(t, socket, fake{status: &apiv1.StatusResponse{Version: "new"}})
	got, err := call(socket)
	if err != nil || got.Version != "new" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestTaken(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(t *testing.T, socket string)
		want    string
	}{
		{"by a helper", func(t *testing.T, socket string) {
			start(t, socket, fake{status: &apiv1.StatusResponse{Version: "first"}})
		}, "another helper serves"},
		{"by a helper whose socket was removed", func(t *testing.T, socket string) {
			start(t, socket, fake{status: &apiv1.StatusResponse{Version: "first"}})
			if err := os.Remove(socket); err != nil {
				t.Fatal(err)
			}
		}, "another helper serves"},
		{"by another server", func(t *testing.T, socket string) {
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, "something listens on"},
		{"by a file", func(t *testing.T, socket string) {
			if err := os.WriteFile(socket, []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "is not a socket"},
		{"by a folder's other users", func(t *testing.T, socket string) {
			dir := filepath.Dir(socket)
			for _, name := range []string{"helper.lock", "theirs"} {
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}, "choose a run-dir of the helper's own"},
		{"a path too long", func(t *testing.T, socket string) {}, "choose a shorter run-dir"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			tt.prepare(t, socket)
			if strings.Contains(tt.name, "long") {
				socket += strings.Repeat("s", maxSocketPath)
			}
			before, _ := os.Lstat(socket)
			s, err := Listen(Options{Socket: socket, Source: fake{}})
			if err == nil {
				s.Close()
				t.Fatal("Listen took it")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q, want one with %q", err, tt.want)
			}
			after, _ := os.Lstat(socket)
			if before != nil && (after == nil || !os.SameFile(before, after)) {
				t.Error("what was there is gone")
			}
			if tt.name == "by a helper" {
				if got, err := call(socket); err != nil || got.Version != "first" {
					t.Errorf("the first helper answers %v, %v", got, err)
				}
			}
		})
	}
}

func TestOwnFolderIsClosedToOthers(t *testing.T) {
	for _, content := range []string{"", "pods", "s", "s.lock", "helper.lock", "cni.log.1", "install.ready", ".kmesh-abc.tmp"} {
		t.Run("holds "+content, func(t *testing.T) {
			dir := t.TempDir()
			if content != "" {
				if err := os.Mkdir(filepath.Join(dir, content), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := ownFolder(dir, "s"); err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(dir)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != 0o700 {
				t.Errorf("mode %#o, want 0700", got)
			}
		})
	}
}

// A process of another user is refused by its credentials alone: here the file
// modes would let it in.
func TestOtherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, to start a process of another user: run make test as root")
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("", "kmesh-api")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// The other user must be able to run the caller.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	caller := filepath.Join(dir, "caller")
	copySelf(t, caller)

	socket := filepath.Join(dir, "run", "s")
	start(t, socket, fake{status: &apiv1.StatusResponse{Version: "secret"}})
	for path, mode := range map[string]os.FileMode{filepath.Dir(socket): 0o777, socket: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name string
		uid  uint32
		ok   bool
	}{
		{"root", 0, true},
		{"another user", nobody, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.Command(caller)
			cmd.Env = []string{callerEnv + "=" + socket}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: tt.uid, Gid: tt.uid}}
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatalf("start the caller: %v", err)
			}
			answered := strings.Contains(string(out), "version: secret")
			if answered != tt.ok || (err == nil) != tt.ok {
				t.Errorf("uid %d: %v, output %q; want an answer: %v", tt.uid, err, out, tt.ok)
			}
			if !tt.ok && !strings.Contains(string(out), "error: ") {
				t.Errorf("uid %d: output %q tells no error of the call", tt.uid, out)
			}
		})
	}
}

// copySelf puts a copy of the test binary at path, for everybody to run.
func copySelf(t *testing.T, path string) {
	t.Helper()
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, self); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
