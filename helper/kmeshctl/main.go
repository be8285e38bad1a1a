// SPDX-License-Identifier: Apache-2.0

// Command kmeshctl shows what the helper of this node knows, and what it would do
// with a directory of files. It has no state, changes nothing, and says with its
// exit code what went wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	apiv1 "kmesh/helper/api/v1"
)

// The exit codes. They are stable: scripts branch on them.
const (
	exitOK          = 0
	exitError       = 1 // the helper answered with an error, or the output failed
	exitUsage       = 2 // the command line is wrong
	exitUnreachable = 3 // no helper answers on the socket
)

// version is set by the build.
var version = "devel"

// timeout is how long one question may take.
const timeout = 10 * time.Second

// maxAnswer bounds one answer: 100,000 endpoints take some 10 MB.
const maxAnswer = 256 << 20

// usageError is a mistake on the command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }

// unreachableError is the absence of a helper.
type unreachableError struct{ msg string }

func (e unreachableError) Error() string { return e.msg }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := command(stdout, stderr)
	cmd.SetArgs(append([]string{}, args...)) // nil would mean the process's own
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errDiffers):
		return exitDiffers
	case errors.Is(err, errFaults):
		return exitError
	}
	fmt.Fprintln(stderr, "kmeshctl:", err)
	var usage usageError
	var trouble troubleError
	var unreachable unreachableError
	switch {
	case errors.As(err, &usage):
		fmt.Fprintln(stderr, "Run 'kmeshctl --help' for usage.")
		return exitUsage
	case errors.As(err, &trouble):
		return exitUsage
	case errors.As(err, &unreachable):
		return exitUnreachable
	default:
		return exitError
	}
}

// options are the flags that every question has.
type options struct {
	socket string
	output string
}

var outputs = []string{"table", "json"}

func command(stdout, stderr io.Writer) *cobra.Command {
	var opts options
	root := &cobra.Command{
		Use:   "kmeshctl",
		Short: "Show what the Kmesh helper of this node knows",
		Long: `Show what the Kmesh helper of this node knows.

Exit codes: 0 success, 1 the helper answered with an error or check found a
fault, 2 wrong usage, 3 no helper answers on the socket. Those of diff are diff(1)'s: 0 nothing
differs, 1 something does, 2 trouble.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if !slices.Contains(outputs, opts.output) {
				return usageError{fmt.Errorf("unknown output %q: use one of %s", opts.output, strings.Join(outputs, ", "))}
			}
			return nil
		},
	}
	root.PersistentFlags().StringVar(&opts.socket, "socket", "/run/kmesh/helper.sock", "the helper's socket")
	root.PersistentFlags().StringVarP(&opts.output, "output", "o", "table", "how to print: table or json")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true

	root.AddCommand(
		question(&opts, stdout, "status", "Show the helper, its source of configuration, and what is not enforced",
			func(ctx context.Context, c apiv1.KmeshClient) (*apiv1.StatusResponse, error) {
				return c.Status(ctx, &apiv1.StatusRequest{}, grpc.MaxCallRecvMsgSize(maxAnswer))
			}, statusTable),
		question(&opts, stdout, "pods", "Show the pods of this node and every program on them, as the kernel has them",
			func(ctx context.Context, c apiv1.KmeshClient) (*apiv1.PodsResponse, error) {
				return c.Pods(ctx, &apiv1.PodsRequest{}, grpc.MaxCallRecvMsgSize(maxAnswer))
			}, podsTable),
		question(&opts, stdout, "services", "Show what pods may reach, with live counters",
			func(ctx context.Context, c apiv1.KmeshClient) (*apiv1.ServicesResponse, error) {
				return c.Services(ctx, &apiv1.ServicesRequest{}, grpc.MaxCallRecvMsgSize(maxAnswer))
			}, servicesTable),
		checkCommand(&opts, stdout),
		xdsCommand(&opts, stdout),
		describeCommand(&opts, stdout),
		flowsCommand(&opts, stdout),
		routesCommand(&opts, stdout),
		traceCommand(&opts, stdout),
		explainCommand(&opts, stdout, stderr),
		diffCommand(&opts, stdout, stderr),
		&cobra.Command{
			Use: "version", Short: "Show the version of this program", Args: noArgs,
			RunE: func(*cobra.Command, []string) error {
				_, err := fmt.Fprintf(stdout, "kmeshctl %s (%s %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
				return err
			},
		},
	)
	return root
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown argument %q for %q", args[0], cmd.CommandPath())}
	}
	return nil
}

// question makes the command that asks the helper one thing and prints the answer.
func question[T proto.Message](
	opts *options, stdout io.Writer, name, short string,
	ask func(context.Context, apiv1.KmeshClient) (T, error),
	table func(io.Writer, T) error,
) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: short, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askHelper(cmd.Context(), opts, stdout, ask, table)
		},
	}
}

// askHelper asks one thing and prints the answer.
func askHelper[T proto.Message](
	ctx context.Context, opts *options, stdout io.Writer,
	ask func(context.Context, apiv1.KmeshClient) (T, error),
	table func(io.Writer, T) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := dial(ctx, opts.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := ask(ctx, apiv1.NewKmeshClient(conn))
	if err != nil {
		return sentence(opts.socket, err)
	}
	if opts.output == "json" {
		return printJSON(stdout, answer)
	}
	return table(stdout, answer)
}

// dial connects to the socket once: a helper that is not there is said at once,
// with what to do.
func dial(ctx context.Context, socket string) (*grpc.ClientConn, error) {
	var dialer net.Dialer
	first, err := dialer.DialContext(ctx, "unix", socket)
	switch {
	case err == nil:
	case errors.Is(err, syscall.ENOENT):
		return nil, unreachableError{fmt.Sprintf("no socket at %s: is kmesh-helper running on this node? Start it, or name its socket with --socket (it is helper.sock in the helper's --run-dir)", socket)}
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, unreachableError{fmt.Sprintf("nobody listens on %s: kmesh-helper has stopped. Pods stay governed; start it again", socket)}
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return nil, unreachableError{fmt.Sprintf("%s is open to root and to the helper's own user only: run kmeshctl as root", socket)}
	default:
		return nil, unreachableError{fmt.Sprintf("cannot connect to %s: %v", socket, err)}
	}
	// grpc gets the connection just made, and may make no other.
	conns := make(chan net.Conn, 1)
	conns <- first
	conn, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-conns:
				return c, nil
			default:
				return nil, errors.New("the helper closed the connection")
			}
		}))
	if err != nil {
		first.Close()
		return nil, err
	}
	return conn, nil
}

// sentence turns an error of a call into one sentence.
func sentence(socket string, err error) error {
	s := status.Convert(err)
	switch s.Code() {
	case codes.Unavailable:
		return unreachableError{fmt.Sprintf("the helper behind %s closed the connection: it is stopping, or you are neither root nor its own user (%s)", socket, s.Message())}
	case codes.DeadlineExceeded:
		return fmt.Errorf("the helper behind %s did not answer within %v", socket, timeout)
	case codes.InvalidArgument:
		return usageError{errors.New(s.Message())}
	case codes.Unimplemented:
		return fmt.Errorf("the helper behind %s does not know this question: it is older than this kmeshctl (%s)", socket, version)
	default:
		return errors.New(s.Message())
	}
}
