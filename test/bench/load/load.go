// SPDX-License-Identifier: Apache-2.0

// Package load is what runs inside the benchmark's pods beside wrk: the servers, and the clients that wrk is not (one
// byte to and fro, a stream as fast as it goes, large responses, connect).
//
// Invariant: a client measures with its own system calls on blocking sockets, and says what it counted in one line of
// JSON; what it did not see succeed, it does not count. The servers do as little as a server can, so that what is
// compared is the way between the two.
package load

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Ports of the servers.
const (
	HTTPPort    = 8080 // answers every head with the same response
	EchoPort    = 8081 // sends back what it gets
	SinkPort    = 8082 // reads to the end, then says how much that was
	ConnectPort = 8083 // of Connect's own listener
	SwitchPort  = 8084 // as HTTPPort; behind a router, its requests go to those at SwitchPorts
	PagePort    = 8088 // answers every head with a body of PageSize
)

// SwitchPorts are endpoints between which a router switches. They are as HTTPPort, of the same thread: a request that
// goes to another one than the last costs the server nothing.
var SwitchPorts = [...]uint16{8085, 8086, 8087}

// Ports are those of a server.
func Ports() []uint16 {
	return append([]uint16{HTTPPort, EchoPort, SinkPort, SwitchPort, PagePort}, SwitchPorts[:]...)
}

// Result is what a client saw.
type Result struct {
	Count   uint64  `json:"count"` // exchanges, connections, or bytes of a stream
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50_us,omitempty"`
	P99     float64 `json:"p99_us,omitempty"`
}

// Main is a program of its own: "serve", "echo", "stream", "get" or "connect", with flags.
func Main(args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("load: want serve, echo, stream, get or connect")
	}
	fs := flag.NewFlagSet("load "+args[0], flag.ContinueOnError)
	to := fs.String("to", "", "`address` to connect to")
	at := fs.String("at", "127.0.0.1", "address to serve at")
	d := fs.Duration("duration", time.Second, "how long to measure")
	n := fs.Int("n", 1000, "how many connections to make")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	alone()
	if args[0] == "serve" {
		ip, err := netip.ParseAddr(*at)
		if err != nil {
			return fmt.Errorf("load serve: at: %w", err)
		}
		return Serve(ip)
	}
	addr, err := netip.ParseAddrPort(*to)
	if err != nil {
		return fmt.Errorf("load %s: to: %w", args[0], err)
	}
	var res Result
	switch args[0] {
	case "echo":
		res, err = Echo(addr, *d)
	case "stream":
		res, err = Stream(addr, *d)
	case "get":
		res, err = Get(addr, *d)
	case "connect":
		res, err = Connect(addr, *n)
	default:
		return fmt.Errorf("load: unknown command %q", args[0])
	}
	if err != nil {
		return fmt.Errorf("load %s: %w", args[0], err)
	}
	return json.NewEncoder(out).Encode(res)
}

// warm is the part of a client's time that comes first and is not counted.
const warm = 10

// Echo sends one byte and waits for it, again and again, over one connection.
func Echo(to netip.AddrPort, d time.Duration) (Result, error) {
	fd, err := dial(to)
	if err != nil {
		return Result{}, err
	}
	defer unix.Close(fd)
	b := []byte{'x'}
	took := make([]int64, 0, 1<<20)
	begun := time.Now()
	counted := begun.Add(d / warm)
	end := counted.Add(d)
	var last, from time.Time
	for last = begun; last.Before(end); {
		if err := send(fd, b); err != nil {
			return Result{}, err
		}
		n, err := receive(fd, b)
		if err == nil && n != 1 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return Result{}, err
		}
		now := time.Now()
		if last.After(counted) {
			if from.IsZero() {
				from = last
			}
			took = append(took, now.Sub(last).Nanoseconds())
		}
		last = now
	}
	if len(took) == 0 {
		return Result{}, fmt.Errorf("no exchange in %s", d)
	}
	return result(took, last.Sub(from)), nil
}

// Stream sends as fast as the other end takes it, and counts what that end says to have got.
func Stream(to netip.AddrPort, d time.Duration) (Result, error) {
	fd, err := dial(to)
	if err != nil {
		return Result{}, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 128<<10)
	var sent uint64
	begun := time.Now()
	for time.Since(begun) < d {
		if err := send(fd, buf); err != nil {
			return Result{}, err
		}
		sent += uint64(len(buf))
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return Result{}, err
	}
	var got uint64
	if got, err = receiveCount(fd); err != nil {
		return Result{}, err
	}
	if got != sent {
		return Result{}, fmt.Errorf("sent %d bytes, the other end got %d", sent, got)
	}
	return Result{Count: got, Seconds: time.Since(begun).Seconds()}, nil
}

// Connect times connect(2) alone, to a listener of its own in the same pod; to may be any address that leads there.
// The listener takes each connection between two of them, and a reset ends it: no port waits.
func Connect(to netip.AddrPort, n int) (Result, error) {
	l, err := listen(netip.AddrPortFrom(netip.IPv4Unspecified(), ConnectPort))
	if err != nil {
		return Result{}, err
	}
	defer unix.Close(l)
	took := make([]int64, 0, n)
	sa := sockaddr(to)
	for i := range n + n/warm {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return Result{}, err
		}
		before := time.Now()
		err = connect(fd, sa)
		ns := time.Since(before).Nanoseconds()
		if err != nil {
			return Result{}, fmt.Errorf("connect to %s: %w", to, err)
		}
		other, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if err != nil {
			return Result{}, fmt.Errorf("a connection to %s did not come to this pod: %w", to, err)
		}
		err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		if err := errors.Join(err, unix.Close(fd), unix.Close(other)); err != nil {
			return Result{}, err
		}
		if i >= n/warm {
			took = append(took, ns)
		}
	}
	var sum int64
	for _, ns := range took {
		sum += ns
	}
	return result(took, time.Duration(sum)), nil
}

func result(took []int64, d time.Duration) Result {
	slices.Sort(took)
	at := func(share float64) float64 { return float64(took[int(share*float64(len(took)-1))]) / 1e3 }
	return Result{Count: uint64(len(took)), Seconds: d.Seconds(), P50: at(0.5), P99: at(0.99)}
}
