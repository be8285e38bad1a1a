// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"kmesh/install/place"
)

// Status is how the installation stands.
type Status struct {
	Ready  bool   `json:"ready"`
	Reason string `json:"reason"`

	Runtime string `json:"runtime,omitempty"`
	// Loaded: the runtime says so (yes, no), or does not tell (unknown).
	Loaded  string `json:"loaded,omitempty"`
	Binary  string `json:"binary,omitempty"`
	Mode    Mode   `json:"mode,omitempty"`
	Network string `json:"network,omitempty"`
	File    string `json:"file,omitempty"`
	// Writes to configurations since the start, and of the binary.
	ConfWrites   int `json:"confWrites"`
	BinaryWrites int `json:"binaryWrites"`
	Wars         int `json:"rewriteWars"`
}

// errSuperseded: another process has claimed the node.
var errSuperseded = errors.New("this process no longer keeps the installation")

// Installer keeps one node's installation.
type Installer struct {
	opts     Options
	claim    string
	sums     sums
	confWar  war
	binWar   war
	seen     map[string]*witness // by folder, since something there was undone
	dropIn   map[string]bool     // whether a runtime loaded one
	rejected rejection
	told     map[string]string
	last     placement      // what was put in place last
	lastSaid *RuntimeStatus // by the runtime
	dirs     dirs

	mu     sync.Mutex
	status Status
}

// New checks the options and returns an installer.
func New(opts Options) (*Installer, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	in := &Installer{
		opts: opts, claim: newClaim(), sums: sums{},
		confWar: war{WarTiming: opts.Timing.War}, binWar: war{WarTiming: opts.Timing.War},
		dropIn: map[string]bool{}, told: map[string]string{}, seen: map[string]*witness{},
		status: Status{Reason: "not looked yet"},
	}
	return in, nil
}

// Status is how it stands.
func (in *Installer) Status() Status {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.status
}

// report tells an event once, until another of its kind says something else.
func (in *Installer) report(ctx context.Context, warning bool, reason, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if in.told[reason] == message {
		return
	}
	in.told[reason] = message
	in.opts.Reporter.Report(ctx, Event{Warning: warning, Reason: reason, Message: message})
}

// tell tells an event each time: those of what is bounded anyway.
func (in *Installer) tell(ctx context.Context, warning bool, reason, format string, args ...any) {
	delete(in.told, reason)
	in.report(ctx, warning, reason, format, args...)
}

// start claims the node: whoever did before stops writing.
func (in *Installer) start(ctx context.Context) error {
	dir := in.opts.Plugin.StateDir
	made, err := makeDir(dir, 0o700)
	if err != nil {
		return fmt.Errorf("state-dir: %w: mount the node's folder there", err)
	}
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return fmt.Errorf("state-dir: %w", err)
	}
	defer unlock()
	if err := place.Sweep(dir); err != nil {
		return fmt.Errorf("state-dir: %w", err)
	}
	r, old, err := readRecord(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r, old = &record{Made: made}, nil
	case err != nil:
		return fmt.Errorf("state-dir: %w", err)
	}
	if r.Owner != "" && r.Owner != in.opts.Owner {
		in.report(ctx, true, ReasonSuperseded, "installation %q takes over from %q: uninstall that one, or give both the same owner", in.opts.Owner, r.Owner)
	}
	r.Owner, r.Claim, r.Installer, r.Uninstalling = in.opts.Owner, in.claim, in.opts.Version, false
	_, err = r.write(in.opts.Disk, dir, old)
	return err
}

// pass is one look at the node, and what it takes to make it right. again is when to look at the latest.
func (in *Installer) pass(ctx context.Context) (again time.Duration, err error) {
	unlock, err := lockDir(ctx, in.opts.Plugin.StateDir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = errSuperseded
		}
		return 0, err
	}
	defer unlock()
	r, old, err := readRecord(in.opts.Plugin.StateDir)
	if err != nil || r.Claim != in.claim {
		by := "it was uninstalled"
		if err == nil && !r.Uninstalling {
			by = fmt.Sprintf("%s of owner %q has taken over", r.Installer, r.Owner)
		} else if err == nil {
			by = "it is being uninstalled"
		}
		return 0, fmt.Errorf("%w: %s", errSuperseded, by)
	}

	st, criErr := in.ask(ctx)
	d, err := in.folders(st, criErr)
	if err != nil {
		return time.Second, err
	}
	st = in.lastSaid // of now, or what it said before it was restarted
	note(&r.ConfDirs, d.conf)
	note(&r.Binaries, binaryPlace(d.bins))
	keep := func() (err error) {
		old, err = r.write(in.opts.Disk, in.opts.Plugin.StateDir, old)
		return err
	}
	if err := keep(); err != nil {
		return in.opts.Timing.Resync, err
	}
	if again, err = in.binary(ctx, d); err != nil {
		return again, err
	}
	pl, again, err := in.chain(ctx, d, st, r, keep)
	if err != nil {
		return again, errors.Join(err, keep())
	}
	r.Mode, r.Network, r.File = pl.mode, pl.network, pl.path
	if err := keep(); err != nil {
		return in.opts.Timing.Resync, err
	}
	in.settle(ctx, st, criErr, d, pl)
	return in.opts.Timing.Resync, nil
}

// folders are where the runtime says they are. One that is there and does not answer is being started: where its folders are is not guessed then.
func (in *Installer) folders(st *RuntimeStatus, criErr error) (dirs, error) {
	if st == nil {
		st = in.lastSaid
	}
	if st == nil && in.opts.socket() != "" && (in.opts.BinDir == "" || in.opts.ConfDir == "") {
		return dirs{}, fmt.Errorf("the runtime does not answer yet: %w: start it, or set bin-dir and conf-dir", criErr)
	}
	d, err := in.opts.directories(st)
	if err == nil && in.dirs.conf == "" {
		for _, dir := range append(d.bins, d.conf) {
			if err := place.Sweep(dir); err != nil {
				in.opts.Log.Warn("temporary files of a killed installer stay", "error", err)
			}
		}
	}
	if err == nil {
		in.dirs = d
	}
	return d, err
}

// ask asks the runtime, where there is one to ask. Its silence is no reason to stop.
func (in *Installer) ask(ctx context.Context) (*RuntimeStatus, error) {
	socket := in.opts.socket()
	if socket == "" {
		return nil, errors.New("no runtime to ask")
	}
	st, err := askRuntime(ctx, socket)
	if err == nil {
		in.lastSaid = st
	}
	return st, err
}

// settle notes that all is in place.
func (in *Installer) settle(ctx context.Context, st *RuntimeStatus, criErr error, d dirs, pl *placement) {
	s := Status{Ready: true, Mode: pl.mode, Network: pl.network, File: pl.path, Binary: binaryPlace(d.bins), Loaded: "unknown"}
	switch {
	case st == nil:
		s.Reason = "installed; the runtime cannot be asked: " + criErr.Error()
	case !st.Tells:
		s.Reason = "installed; the runtime does not tell which networks it has loaded"
	case !d.watched:
		s.Reason = "installed; the runtime itself does not read " + d.conf
	default:
		s.Reason, s.Loaded = "installed, and loaded by the runtime", "yes"
		if criErr != nil {
			s.Reason += ", which does not answer at the moment"
		}
	}
	if st != nil {
		s.Runtime = strings.TrimSpace(st.Name + " " + st.Version)
	}
	in.set(s)
	in.report(ctx, false, ReasonInstalled, "kmesh-cni is in the chain of network %s (%s, %s): %s", pl.network, pl.mode, pl.path, s.Reason)
	for _, reason := range []string{ReasonFailed, ReasonNotLoaded, ReasonWaiting} {
		delete(in.told, reason)
	}
}

// count changes what is counted.
func (in *Installer) count(f func(*Status)) {
	in.mu.Lock()
	defer in.mu.Unlock()
	f(&in.status)
}

// set replaces the status and keeps what is counted, and the ready file with it: who asks for the status is told nothing that the file does not say yet.
func (in *Installer) set(s Status) {
	in.mu.Lock()
	defer in.mu.Unlock()
	s.ConfWrites, s.BinaryWrites, s.Wars = in.status.ConfWrites, in.status.BinaryWrites, in.status.Wars
	in.status = s
	if err := writeReady(in.opts.ReadyFile, s); err != nil {
		in.opts.Log.Warn("ready-file cannot be written", "error", err)
	}
}
