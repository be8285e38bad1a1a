// SPDX-License-Identifier: Apache-2.0

// Command kmesh-helper is the node's helper: it loads the kernel half, follows the
// control plane, and serves monitoring and operations. Traffic and the enrolment of
// pods need it only to have run once.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"kmesh/bpf"
	"kmesh/helper/controller"
	"kmesh/helper/pods/cached"
	"kmesh/helper/scopes"
	"kmesh/netns"
)

// version is set by the build.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "kmesh-helper:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	opts := controller.Options{
		Version: version,
		Ready:   os.Stdout,
		Log:     slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	cmd := &cobra.Command{
		Use:           "kmesh-helper",
		Short:         "Keep the kernel's mesh of one node up to date",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&opts.BPFFS, "bpffs", bpf.DefaultBPFFS, "directory on a bpf filesystem for maps, programs and links")
	flags.StringVar(&opts.RunDir, "run-dir", "/run/kmesh", "directory for the socket and the records of pods")
	flags.StringVar(&opts.StateDir, "state-dir", "/var/lib/kmesh", "directory for what survives a reboot")

	run := &cobra.Command{
		Use:   "run (--xds-dir DIR | --xds-server HOST:PORT[,HOST:PORT...])",
		Short: "Run the helper",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := netns.RelinquishAdmin(); err != nil {
				return err
			}
			return controller.Run(cmd.Context(), opts)
		},
	}
	host, _ := os.Hostname()
	run.Flags().StringVar(&opts.XDSDir, "xds-dir", "", "directory of xDS resources (*.yaml, *.json), watched")
	run.Flags().StringSliceVar(&opts.XDSServers, "xds-server", nil, "HOST:PORT of an ADS server; give several for the next ones to take the place of those that do not answer")
	run.Flags().StringVar(&opts.Server.Protocol, "xds-protocol", "delta", "how ADS is spoken: delta, or sotw (state of the world) for servers that know no delta")
	run.Flags().StringVar(&opts.Server.Roots, "xds-roots", "", "PEM file with the certificates that the server's must lead to, read for every connection; without it the connection is plain text")
	run.Flags().StringVar(&opts.Server.ServerName, "xds-server-name", "", "name in the server's certificate (default: the host of --xds-server)")
	run.Flags().StringVar(&opts.Server.Cert, "xds-cert", "", "PEM file with the client's certificate, read for every connection")
	run.Flags().StringVar(&opts.Server.Key, "xds-key", "", "PEM file with the key of --xds-cert")
	run.Flags().StringVar(&opts.Server.Token, "xds-token", "", "file with a bearer token for the server, read for every stream; needs --xds-roots")
	run.Flags().StringVar(&opts.Server.ClusterID, "xds-cluster-id", "", "what the server knows this cluster as, for the check of the token")
	run.Flags().StringVar(&opts.NodeID, "node-id", host, "id announced to the server")
	run.Flags().StringToStringVar(&opts.NodeMetadata, "node-metadata", nil, "metadata announced to the server beside the id: KEY=VALUE,...")
	run.Flags().StringVar((*string)(&opts.Scopes), "xds-scopes", string(controller.OneScope), "whose view of the mesh pods get: that of --node-id ("+string(controller.OneScope)+"), or one for each namespace, labels and service account of this node's pods ("+string(controller.ScopePerPods)+")")
	run.Flags().IntVar(&opts.MaxScopes, "max-scopes", scopes.DefaultMost, "most views with --xds-scopes pods; the pods of further ones share one for each namespace")
	run.Flags().BoolVar(&opts.WorkloadAPI, "workload-api", false, "follow Istio's workload API at the servers too: services, endpoints and policies for the whole node (always, with --xds-scopes pods)")
	run.Flags().StringVar(&opts.Network, "network", "", "name of the network that this node is in, as the workload API has it")
	run.Flags().StringVar(&opts.CA, "ca-server", "", "HOST:PORT of the Istio CA that gives certificates for pods' accounts, for --xds-scopes pods with --xds-token (default: the first --xds-server)")
	run.Flags().StringVar(&opts.TrustDomain, "trust-domain", "cluster.local", "the mesh's trust domain")
	run.Flags().StringVar(&opts.NodeIP, "node-ip", os.Getenv("NODE_IP"), "address of this node, announced for scopes")
	run.Flags().DurationVar(&opts.SweepEvery, "sweep-every", 15*time.Second, "time between two looks for what pods that are gone left, and what an update left")
	run.Flags().StringVar(&opts.Unenforceable, "unenforceable-actions", controller.ServeUnenforceable, "what asks for an action that cannot be enforced is served without it ("+controller.ServeUnenforceable+"), or refused ("+controller.RefuseUnenforceable+"): routes with 503, connections to listeners and clusters")
	run.Flags().StringVar(&opts.Unenforced, "policy-unenforced", controller.ReportUnenforced, "pods that authorization policies select which are not enforced are enrolled, and it is told ("+controller.ReportUnenforced+"), or not enrolled while they do ("+controller.RefuseEnrolment+")")
	run.Flags().Uint32Var(&opts.FlowsPerPod, "flows-per-pod", 0, fmt.Sprintf("most connections of one pod that are routed by request at a time; 0: as it was set last, at first %d", bpf.DefaultFlowsPerPod))
	run.Flags().StringVar(&opts.Kubeconfig, "kubeconfig", "", "file that names the API server (default: that of the cluster in whose pod this runs; none elsewhere)")
	run.Flags().StringVar(&opts.NodeName, "node-name", os.Getenv("NODE_NAME"), "name of this node at the API server")
	run.Flags().StringVar(&opts.CNICache, "cni-cache", cached.DefaultDir, "directory in which the container runtime remembers sandboxes' networks")
	run.Flags().StringVar(&opts.Metrics, "metrics", "127.0.0.1:15020", "address of /metrics, /healthz and /readyz")

	uninstall := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove everything of Kmesh from this node: pods are ungoverned from then on",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return controller.Uninstall(cmd.Context(), opts.BPFFS, opts.RunDir, opts.StateDir)
		},
	}
	ver := &cobra.Command{
		Use:   "version",
		Short: "Print the version and the ABI of the pinned maps",
		Args:  cobra.NoArgs,
		Run: func(*cobra.Command, []string) {
			goVersion := ""
			if info, ok := debug.ReadBuildInfo(); ok {
				goVersion = info.GoVersion
			}
			fmt.Println("kmesh-helper", version, "abi", bpf.ABI, goVersion)
		},
	}
	cmd.AddCommand(run, uninstall, ver)
	return cmd
}
