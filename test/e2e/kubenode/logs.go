// SPDX-License-Identifier: Apache-2.0

package kubenode

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"kmesh/test/plane"
)

func (n *Node) logPath(name string) string { return filepath.Join(n.Dir, "log", name+".log") }

// openLog adds to a component's log: it is one file over all boots.
func (n *Node) openLog(name string) (*os.File, error) {
	return os.OpenFile(n.logPath(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

// logTail is the end of a component's log, without what says only that all is well.
func (n *Node) logTail(name string, lines int) string { return plane.LogTail(n.logPath(name), lines) }

// logTails are the ends of the logs of every component, and of every pod of Kmesh's own.
func (n *Node) logTails(lines int) []string {
	files, _ := filepath.Glob(n.logPath("*"))
	slices.Sort(files)
	var tails []string
	for _, f := range files {
		tails = append(tails, n.logTail(strings.TrimSuffix(filepath.Base(f), ".log"), lines))
	}
	return tails
}

// keepLogs copies all logs to where they outlive the node, in place of those of the same test's last failure.
func (n *Node) keepLogs(test string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	to := filepath.Join(cache, "kmesh", "e2e-logs", strings.ReplaceAll(test, "/", "-"))
	if err := os.RemoveAll(to); err != nil {
		return to, err
	}
	return to, errors.Join(
		os.CopyFS(filepath.Join(to, "node"), os.DirFS(filepath.Join(n.Dir, "log"))),
		os.CopyFS(filepath.Join(to, "pods"), os.DirFS(n.Disk("var/log/pods"))),
	)
}
