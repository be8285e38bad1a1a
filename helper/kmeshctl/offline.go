// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"kmesh/helper/mesh"
	"kmesh/helper/snapshot"
	"kmesh/helper/xds"
)

// offline is a directory of xDS files, read as the helper would read it.
type offline struct {
	scope    mesh.Scope
	problems []mesh.Verdict // what the helper would report as to be repaired
}

// unenforceableFlag has files read as by a helper with this flag.
func unenforceableFlag(cmd *cobra.Command, value *string) {
	cmd.Flags().StringVar(value, "unenforceable-actions", "serve", "of the helper that the files are for: serve or refuse")
}

// load reads a directory through the helper's own way: files, translation,
// closure under references. Files with mistakes are problems; it fails only when
// nothing is left.
func load(ctx context.Context, dir, unenforceable string) (*offline, error) {
	if unenforceable != "serve" && unenforceable != "refuse" {
		return nil, usageError{fmt.Errorf("--unenforceable-actions is %q: use serve or refuse, as for the helper", unenforceable)}
	}
	quiet := slog.New(slog.DiscardHandler)
	files := xds.NewFiles(xds.FilesOptions{Dir: dir, Logger: quiet})
	store := snapshot.New(snapshot.Options{RefuseActions: unenforceable == "refuse", Logger: quiet})
	if err := files.Load(ctx, store); err != nil {
		return nil, err
	}
	snap := store.Build()
	out := &offline{problems: append(files.Status().Problems, store.Status().Problems...)}
	if snap == nil {
		if len(out.problems) > 0 {
			return nil, fmt.Errorf("%s: %d problems, the first: %w", dir, len(out.problems), out.problems[0])
		}
		return nil, fmt.Errorf("%s: %s", dir, store.Status().Holding)
	}
	if len(snap.Scopes) == 0 {
		return nil, errors.New("the configuration has no scope")
	}
	out.scope = snap.Scopes[0]
	return out, nil
}
