// SPDX-License-Identifier: Apache-2.0

// Command kmesh-install puts kmesh-cni onto a node, keeps it there, and takes it away again. It holds the command line; the rest is package install.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"kmesh/install"
	"kmesh/install/events"
)

// The exit codes. They are stable: scripts branch on them.
const (
	exitOK       = 0
	exitError    = 1
	exitUsage    = 2 // the command line or the environment is wrong
	exitAttached = 3 // uninstalled, but for the stub that something still names
)

// version is set by the build.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// usageError is a mistake in the command line or in the environment.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }

// run is main without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := command(stdout, stderr)
	cmd.SetArgs(append([]string{}, args...))
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "kmesh-install:", err)
	var usage usageError
	switch {
	case errors.As(err, &usage):
		fmt.Fprintln(stderr, "Run 'kmesh-install --help' for usage.")
		return exitUsage
	case errors.Is(err, install.ErrAttached):
		return exitAttached
	}
	return exitError
}

// settings are the options, and what only the command line knows.
type settings struct {
	install.Options
	node, listen string
	drain        time.Duration
}

func command(stdout, stderr io.Writer) *cobra.Command {
	s := &settings{Options: install.Defaults(), drain: time.Minute}
	s.Version = version
	s.Log = slog.New(slog.NewTextHandler(stderr, nil))
	root := &cobra.Command{
		Use:   "kmesh-install",
		Short: "Put kmesh-cni onto this node, keep it there, take it away",
		Long: `Put kmesh-cni onto this node, keep it there, take it away.

Each flag is also a variable: --conf-dir is KMESH_CONF_DIR. The flag wins.
Exit codes: 0 success, 1 it failed, 2 wrong usage, 3 uninstalled but for a stub
that attachments made before still name (uninstall again when their pods are gone).`,
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd, os.LookupEnv); err != nil {
				return usageError{err}
			}
			if s.drain < 0 {
				return usageError{fmt.Errorf("drain: %s is negative: use a time such as 60s", s.drain)}
			}
			if _, _, err := net.SplitHostPort(s.listen); s.listen != "" && err != nil {
				return usageError{fmt.Errorf("listen: %q is no address: use HOST:PORT, or nothing for none", s.listen)}
			}
			o := s.Options // what Validate fills in is not for here
			if err := o.Validate(); err != nil {
				return usageError{err}
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	s.flags(root)
	root.AddCommand(
		&cobra.Command{
			Use: "run", Short: "Install the plugin and keep it installed; SIGTERM ends this and takes nothing away", Args: noArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return s.run(cmd.Context()) },
		},
		&cobra.Command{
			Use: "plugin", Short: "Install the plugin's binary only, and exit: before a helper of the same version is started", Args: noArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return s.with(func(in *install.Installer) error { return in.Once(cmd.Context()) })
			},
		},
		s.uninstall(),
		&cobra.Command{
			Use: "ready", Short: "Exit with 0 if the plugin is installed and loaded: for a probe", Args: noArgs,
			RunE: func(*cobra.Command, []string) error { return install.CheckReady(s.ReadyFile) },
		},
		&cobra.Command{
			Use: "version", Short: "Print the version", Args: noArgs,
			Run: func(*cobra.Command, []string) { fmt.Fprintln(stdout, "kmesh-install", version) },
		},
	)
	return root
}

func (s *settings) uninstall() *cobra.Command {
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Take the plugin out of the chain, wait until nothing names it, remove it", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.with(func(in *install.Installer) error { return in.Uninstall(cmd.Context(), s.drain) })
		},
	}
	cmd.Flags().DurationVar(&s.drain, "drain", s.drain, "how long to wait for attachments that still name the plugin")
	return cmd
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", args[0])}
	}
	return nil
}

// with makes an installer that tells its events, into the log and, in a cluster, to the API server.
func (s *settings) with(f func(*install.Installer) error) error {
	reporters := install.Reporters{install.LogReporter{Log: s.Log}}
	switch r, err := events.InCluster(s.node, s.Log); {
	case err == nil:
		defer r.Close()
		reporters = append(reporters, r)
	case !errors.Is(err, events.ErrNotInCluster):
		s.Log.Warn("no events of the node are made", "error", err)
	}
	s.Reporter = reporters
	in, err := install.New(s.Options)
	if err != nil {
		return usageError{err}
	}
	return f(in)
}

func (s *settings) run(ctx context.Context) error {
	return s.with(func(in *install.Installer) error {
		if s.listen != "" {
			l, err := net.Listen("tcp", s.listen)
			if err != nil {
				return fmt.Errorf("listen: %w: choose another address", err)
			}
			server := &http.Server{Handler: in.Handler(), ReadHeaderTimeout: 5 * time.Second}
			defer server.Close()
			go func() {
				if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
					s.Log.Error("probes and metrics are not served any more", "error", err)
				}
			}()
		}
		return in.Run(ctx)
	})
}
