// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	apiv1 "kmesh/helper/api/v1"
)

// xdsLine is how a source is.
func xdsLine(x *apiv1.Xds) string {
	connected := "connected"
	if !x.GetConnected() {
		connected = "NOT CONNECTED (the last good configuration stays in use)"
	}
	since := ""
	if at := x.GetSinceUnixSeconds(); at != 0 {
		since = ", since " + unix(at)
	}
	line := fmt.Sprintf("%s %s: %s%s", orDash(x.GetKind()), orDash(x.GetAddress()), connected, since)
	if at := x.GetFromDiskUnixSeconds(); at != 0 {
		line += "; serves what is on disk, of " + unix(at)
	}
	if why := x.GetDiskProblem(); why != "" {
		line += "; on disk: " + why
	}
	return line
}

// scopesTable lists the views of the mesh.
func scopesTable(w io.Writer, scopes []*apiv1.Scope) error {
	if len(scopes) == 0 {
		return nil
	}
	t := newTable(w)
	t.blank()
	t.row("SCOPE", "SERVICE ACCOUNT", "LABELS", "PODS", "STATE")
	for _, s := range scopes {
		state := "live"
		switch {
		case s.GetProblem() != "":
			state = "not followed, trying again: " + s.GetProblem()
		case !s.GetLive() && s.GetConfig().GetHolding() != "":
			state = "waiting: " + s.GetConfig().GetHolding()
		case !s.GetLive():
			state = "waiting to be written"
		case s.GetXds().GetFromDiskUnixSeconds() != 0:
			state = "live from disk, of " + unix(s.GetXds().GetFromDiskUnixSeconds())
		case !s.GetXds().GetConnected():
			state = "live, NOT CONNECTED (the last good configuration stays in use)"
		}
		t.row(s.GetNamespace(), orDash(s.GetServiceAccount()), orDash(s.GetLabels()), number(s.GetPods()), state)
	}
	return t.flush()
}
