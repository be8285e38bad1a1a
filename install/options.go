// SPDX-License-Identifier: Apache-2.0

// Package install puts kmesh-cni onto a node and into the chain of its network, keeps it there, and takes it away again.
//
// Invariant: the node's network is never worse for it. The binary is there before the configuration names it, and goes after nothing names it any more; a
// configuration of somebody else is edited in its chain of plugins and nowhere else, or not at all; its file keeps its name and its version. What is
// written is bounded, even against somebody who writes the same file for ever. Only the owner of an installation takes it away, and only when told to.
package install

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kmesh/cni/entry"
	"kmesh/install/place"
)

// Mode is how the plugin comes into the chain.
type Mode string

// The modes. DropIn writes a file of ours beside the primary's, which only libcni 1.3 and newer reads; InPlace edits the primary's; Auto takes the first
// where the runtime shows that it reads it.
const (
	Auto    Mode = "auto"
	DropIn  Mode = "drop-in"
	InPlace Mode = "in-place"
)

// Modes that Options.Mode may be.
func Modes() []string { return []string{string(Auto), string(DropIn), string(InPlace)} }

// NoCRI is the value of Options.CRISocket for a node whose runtime is not to be asked.
const NoCRI = "none"

// Options of an installation. Each has the default that Defaults gives.
type Options struct {
	// Owner names the installation; only the same owner uninstalls it.
	Owner string
	// Version of this program, for the record.
	Version string
	// Source is the folder of the programs to install: kmesh-cni and kmesh-cni-stub.
	Source string
	// Platform is the row of the table of paths that is used where the runtime says nothing; empty for the first that this node looks like.
	Platform string
	// CRISocket is the runtime's; empty to look for it, NoCRI to do without.
	CRISocket string
	// BinDir and ConfDir override what the runtime says.
	BinDir, ConfDir string
	// CacheDir is where libcni remembers attachments, or NoCache.
	CacheDir string
	Mode     Mode
	// Plugin is what the entry tells the plugin. Its state directory is also where the installation is recorded.
	Plugin entry.Conf
	// ReadyFile is there as long as the plugin is installed and loaded; empty for none.
	ReadyFile string
	Reporter  Reporter
	Log       *slog.Logger

	// Disk is where files are put; tests make it fail.
	Disk place.Disk
	// Timing is for tests: the defaults are right.
	Timing Timing
}

// Timing is how long things take.
type Timing struct {
	Resync  time.Duration // between two looks without an event
	Gather  time.Duration // events within it are one
	Confirm time.Duration // until the runtime must have loaded what was written
	Trial   time.Duration // the same for a drop-in that is only tried: it falls back then
	Poll    time.Duration // between two questions to the runtime
	Settle  time.Duration // how long an ADD that has read the old configuration may run
	War     WarTiming
}

// Defaults are the options of a usual node. The source is the folder of this very program.
func Defaults() Options {
	source := "/usr/local/bin"
	if self, err := os.Executable(); err == nil {
		source = filepath.Dir(self)
	}
	return Options{
		Owner: "kmesh", Version: "devel", Source: source, Mode: Auto,
		CacheDir:  "/var/lib/cni",
		Plugin:    entry.Conf{BPFFS: entry.DefaultBPFFS, RunDir: entry.DefaultRunDir, StateDir: entry.DefaultStateDir},
		ReadyFile: filepath.Join(entry.DefaultRunDir, "install.ready"),
		Timing:    defaultTiming,
	}
}

var defaultTiming = Timing{
	Resync: 30 * time.Second, Gather: 50 * time.Millisecond, Confirm: 10 * time.Second, Trial: 3 * time.Second, Poll: 100 * time.Millisecond, Settle: 5 * time.Second,
	War: WarTiming{Losses: 5, Pause: 500 * time.Millisecond, Calm: time.Minute, Quiet: time.Minute, MaxQuiet: time.Hour},
}

// Validate completes the options and says what is wrong with them, all of it.
func (o *Options) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	if o.Owner == "" || len(o.Owner) > 200 || strings.ContainsFunc(o.Owner, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		bad("owner", "%.60q does not name an installation: use a short name, such as the namespace and the release", o.Owner)
	}
	if o.Mode == "" {
		o.Mode = Auto
	}
	if !slices.Contains(Modes(), string(o.Mode)) {
		bad("mode", "%q is none: use one of %s", o.Mode, strings.Join(Modes(), ", "))
	}
	if o.Platform != "" && !slices.ContainsFunc(platforms, func(p Platform) bool { return p.Name == o.Platform }) {
		bad("platform", "%q is not known: use one of %s, or set bin-dir and conf-dir", o.Platform, strings.Join(PlatformNames(), ", "))
	}
	switch o.Plugin.OnUnready {
	case "", entry.Wait, entry.Pass:
	default:
		bad("on-unready", "%q is none: use %s or %s", o.Plugin.OnUnready, entry.Wait, entry.Pass)
	}
	for _, d := range []struct {
		field, value string
		optional     bool
	}{
		{"source", o.Source, false}, {"bin-dir", o.BinDir, true}, {"conf-dir", o.ConfDir, true}, {"cache-dir", strings.TrimPrefix(o.CacheDir, NoCache), o.CacheDir == NoCache},
		{"bpffs", o.Plugin.BPFFS, false}, {"run-dir", o.Plugin.RunDir, false}, {"state-dir", o.Plugin.StateDir, false},
		{"ready-file", o.ReadyFile, true}, {"cri-socket", strings.TrimPrefix(strings.TrimPrefix(o.CRISocket, "unix://"), NoCRI), true},
	} {
		if d.value == "" && d.optional {
			continue
		}
		if !filepath.IsAbs(d.value) || filepath.Clean(d.value) == "/" || strings.ContainsRune(d.value, 0) {
			bad(d.field, "%q is not an absolute path below /: give the path as it is on the node", d.value)
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Reporter == nil {
		o.Reporter = LogReporter{o.Log}
	}
	if o.Timing == (Timing{}) {
		o.Timing = defaultTiming
	}
	return errors.Join(errs...)
}

// entry is what is put into the chain.
func (o *Options) entry(from string) []byte {
	c := o.Plugin
	for _, d := range []struct {
		key *string
		def string
	}{{&c.BPFFS, entry.DefaultBPFFS}, {&c.RunDir, entry.DefaultRunDir}, {&c.StateDir, entry.DefaultStateDir}} {
		if *d.key == d.def {
			*d.key = ""
		}
	}
	if c.OnUnready == entry.Wait {
		c.OnUnready = ""
	}
	c.Stamp = &entry.Stamp{Owner: o.Owner, From: from}
	return c.Encode()
}
