// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/netns/failpoint"
)

// Outcome of an attempt to enrol.
type Outcome string

// The outcomes.
const (
	Enrolled Outcome = "enrolled"
	Passed   Outcome = "passed" // not governed, as the pod's kmesh.net/on-unready annotation asks for
	Failed   Outcome = "failed"
	Refused  Outcome = "refused" // not governed: policies that are not enforced keep it out, or may
)

// Record is what a person wants to know of an attempt. Nothing of ours depends on it.
type Record struct {
	Request
	Outcome Outcome   `json:"outcome"`
	Reason  string    `json:"reason,omitempty"`
	Time    time.Time `json:"time"`
}

func (n *Node) recordsDir() string { return filepath.Join(n.opts.RunDir, "pods") }

func (n *Node) recordPath(a Attachment) (string, error) {
	id, net, ifName, err := a.escaped()
	if err != nil {
		return "", err
	}
	name := id + "@" + net + "@" + ifName + ".json"
	if len(name) > maxName {
		return "", fmt.Errorf("record of %s: names of %d bytes are too long together: shorten the network's name", a, len(name))
	}
	return filepath.Join(n.recordsDir(), name), nil
}

// Record writes the record of an attempt.
func (n *Node) Record(_ context.Context, req Request, outcome Outcome, reason string) error {
	path, err := n.recordPath(req.Attachment)
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(Record{Request: req, Outcome: outcome, Reason: reason, Time: time.Now().UTC()}, "", "  ")
	if err != nil {
		return fmt.Errorf("record of %s: %w", req.Attachment, err)
	}
	if err := os.MkdirAll(n.recordsDir(), 0o700); err != nil {
		return fmt.Errorf("record of %s: %w", req.Attachment, err)
	}
	// Renamed into place, so that a reader never sees half of one. Locked until then, so
	// that a sweep knows one whose writer was killed.
	if err := failpoint.Here("make record"); err != nil {
		return fmt.Errorf("record of %s: %w", req.Attachment, err)
	}
	tmp, err := os.CreateTemp(n.recordsDir(), unfinishedRecord)
	if err != nil {
		return fmt.Errorf("record of %s: %w", req.Attachment, err)
	}
	if err = failpoint.Here("lock record"); err == nil {
		err = unix.Flock(int(tmp.Fd()), unix.LOCK_EX)
	}
	if err == nil {
		err = failpoint.Here("write record")
	}
	if err == nil {
		_, err = tmp.Write(append(data, '\n'))
	}
	if err == nil {
		err = failpoint.Here("rename record")
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	err = errors.Join(err, tmp.Close())
	if err != nil {
		return errors.Join(fmt.Errorf("record of %s: %w", req.Attachment, err), remove(tmp.Name()))
	}
	return nil
}

// unfinishedRecord is the pattern of records that are being written.
const unfinishedRecord = ".record-*"

// justMade is the age under which an unfinished record may not be locked yet.
const justMade = time.Second

// sweepUnfinished removes what writers that were killed left.
func (n *Node) sweepUnfinished() error {
	left, err := filepath.Glob(filepath.Join(n.recordsDir(), unfinishedRecord))
	if err != nil {
		return fmt.Errorf("sweep records: %w", err)
	}
	var errs []error
	for _, path := range left {
		f, err := os.Open(path)
		if err != nil {
			continue // finished meanwhile
		}
		st, err := f.Stat()
		var age time.Duration
		if err == nil {
			age = time.Since(st.ModTime()).Abs() // one of the future was made before the clock was set back
		}
		if age > justMade && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			errs = append(errs, remove(path))
		}
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

func (n *Node) record(a Attachment) (Record, error) {
	path, err := n.recordPath(a)
	if err != nil {
		return Record{}, err
	}
	return readRecord(path)
}

func readRecord(path string) (Record, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Record{}, fmt.Errorf("record: %w", err)
	}
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, fmt.Errorf("record %s: %w", path, err)
	}
	return r, nil
}

// dropRecord removes the record, whatever its outcome.
func (n *Node) dropRecord(a Attachment) error {
	path, err := n.recordPath(a)
	if err != nil {
		return nil // never written
	}
	return remove(path)
}

// Records lists all records: also of pods that passed or failed, which the bpffs knows nothing of. Unreadable ones are left out.
func (n *Node) Records(context.Context) ([]Record, error) {
	files, err := names(n.recordsDir())
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	var out []Record
	for _, f := range files {
		if !strings.HasSuffix(f, ".json") {
			continue
		}
		if r, err := readRecord(filepath.Join(n.recordsDir(), f)); err == nil {
			out = append(out, r)
		}
	}
	return out, nil
}

// sweepRecords removes records whose sandbox is gone and left nothing to govern.
func (n *Node) sweepRecords(ctx context.Context) error {
	records, err := n.Records(ctx)
	if err != nil {
		return err
	}
	if err := n.sweepUnfinished(); err != nil {
		return err
	}
	for _, r := range records {
		dir, err := n.podDir(r.Attachment)
		if err != nil {
			continue
		}
		_, inKernel := os.Stat(dir)
		_, inNode := os.Stat(r.NetnsPath)
		if errors.Is(inKernel, fs.ErrNotExist) && errors.Is(inNode, fs.ErrNotExist) {
			if err := n.dropRecord(r.Attachment); err != nil {
				return err
			}
		}
	}
	return nil
}
