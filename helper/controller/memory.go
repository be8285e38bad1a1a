// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"os"
	"runtime/debug"

	"kmesh/helper/publish"
)

// tidyFrom is how many entries of maps are written until it is worth giving memory back: as
// a whole mesh that has come makes them, and changes of one do in a long time.
const tidyFrom = 20_000

// collectAt is how much of what is in use may be garbage, in percent, once a mesh has come.
// The runtime's own value, 100, is right for the start, of which nearly all is garbage; after
// it the helper would keep as much again as it needs, for changes that need little.
const collectAt = 50

// tidy gives memory back that a start (of which the maps may have had all), or a publication
// of much, has left behind. An administrator's GOGC holds.
func (c *Controller) tidy(res publish.Result, first bool) {
	if c.garbage += res.Written + res.Deleted; c.garbage < tidyFrom && !first {
		return
	}
	c.garbage = 0
	go func() {
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(collectAt)
		}
		debug.FreeOSMemory()
	}()
}
