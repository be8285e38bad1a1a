// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kmesh/cni/entry"
	"kmesh/install"
)

func (s *settings) flags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&s.Owner, "owner", s.Owner, "name of this installation; only the same owner uninstalls it")
	f.StringVar(&s.Source, "source", s.Source, "folder of kmesh-cni and kmesh-cni-stub")
	f.StringVar((*string)(&s.Mode), "mode", string(s.Mode), "how to come into the chain: "+strings.Join(install.Modes(), ", "))
	f.StringVar(&s.Platform, "platform", s.Platform, "use this platform's folders instead of what the runtime says: "+strings.Join(install.PlatformNames(), ", "))
	f.StringVar(&s.CRISocket, "cri-socket", s.CRISocket, "the container runtime's socket (default: looked for), or "+install.NoCRI)
	f.StringVar(&s.BinDir, "bin-dir", s.BinDir, "where the runtime has its plugins (default: what it says)")
	f.StringVar(&s.ConfDir, "conf-dir", s.ConfDir, "where the runtime has its networks (default: what it says)")
	f.StringVar(&s.CacheDir, "cache-dir", s.CacheDir, "where libcni remembers attachments, or "+install.NoCache)
	f.StringVar(&s.Plugin.BPFFS, "bpffs", s.Plugin.BPFFS, "as the helper's")
	f.StringVar(&s.Plugin.RunDir, "run-dir", s.Plugin.RunDir, "as the helper's")
	f.StringVar(&s.Plugin.StateDir, "state-dir", s.Plugin.StateDir, "as the helper's; the installation is recorded there")
	f.StringVar(&s.Plugin.OnUnready, "on-unready", entry.Wait, "what an opted-in pod does while the mesh is not ready: "+entry.Wait+", or "+entry.Pass+" (it starts ungoverned)")
	f.StringVar(&s.ReadyFile, "ready-file", s.ReadyFile, "file that is there while the plugin is installed and loaded")
	f.StringVar(&s.listen, "listen", s.listen, "HOST:PORT of /healthz, /readyz and /metrics (default: none)")
	f.StringVar(&s.node, "node", s.node, "the node's name, for its events")
}

// prefix of the variables.
const prefix = "KMESH_"

// fromEnvironment sets each flag that was not given from its variable.
func fromEnvironment(cmd *cobra.Command, lookup func(string) (string, bool)) error {
	var errs []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		name := prefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := lookup(name)
		if f.Changed || !ok || f.Name == "help" {
			return
		}
		if err := f.Value.Set(value); err != nil {
			errs = append(errs, fmt.Errorf("%s: the variable %s: %w", f.Name, name, err))
		}
	})
	return errors.Join(errs...)
}
