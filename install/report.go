// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"log/slog"
)

// Event is something that the node's administrator should see.
type Event struct {
	Warning bool
	// Reason is one word for programs, Message a sentence with the remedy.
	Reason, Message string
}

// Reasons of events.
const (
	ReasonInstalled   = "KmeshInstalled"
	ReasonRepaired    = "KmeshConfRepaired"
	ReasonWaiting     = "KmeshWaitingForNetwork"
	ReasonFailed      = "KmeshInstallFailed"
	ReasonNotLoaded   = "KmeshNotLoaded"
	ReasonRewriteWar  = "KmeshRewriteWar"
	ReasonSuperseded  = "KmeshInstallSuperseded"
	ReasonUninstalled = "KmeshUninstalled"
)

// Reporter tells events to whoever may see them. It must not block for long, and what it cannot tell it logs.
type Reporter interface {
	Report(ctx context.Context, e Event)
}

// LogReporter writes events into the log.
type LogReporter struct{ Log *slog.Logger }

// Report logs an event.
func (r LogReporter) Report(ctx context.Context, e Event) {
	level := slog.LevelInfo
	if e.Warning {
		level = slog.LevelWarn
	}
	r.Log.Log(ctx, level, e.Message, "event", e.Reason)
}

// Reporters tells all of them.
type Reporters []Reporter

// Report tells an event to each.
func (rs Reporters) Report(ctx context.Context, e Event) {
	for _, r := range rs {
		r.Report(ctx, e)
	}
}
