// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"reflect"

	"kmesh/helper/pods/plan"
	"kmesh/helper/scopes"
)

// What Options.Unenforced may be; "" is the first.
const (
	// ReportUnenforced: they are enrolled, and it is told that the policies are not enforced.
	ReportUnenforced = "report"
	// RefuseEnrolment: they are not enrolled while such policies select them.
	RefuseEnrolment = "refuse-enrolment"
)

func (o Options) checkUnenforced() error {
	switch o.Unenforced {
	case "", ReportUnenforced, RefuseEnrolment:
		return nil
	}
	return fmt.Errorf("--policy-unenforced is %q: use %s or %s", o.Unenforced, ReportUnenforced, RefuseEnrolment)
}

// barred tells which policies keep pods out.
func (c *Controller) barred(view plan.View) plan.Policies {
	from := scopes.Sources{One: c.opts.Scopes != ScopePerPods, Inbound: c.scopes.Unenforced}
	if c.workloads != nil {
		from.API, from.Until = c.workloads.store.Selection, c.workloads.until
	}
	return scopes.Barred(view, from)
}

// heardOf is told that the workload API's state has changed, or that it is silent. It passes on
// to the keeper what concerns it, since to compare pods costs more than to compare policies.
func (c *Controller) heardOf() {
	c.scopes.Heard()
	if c.opts.Unenforced != RefuseEnrolment {
		return
	}
	now, heard := c.workloads.store.Selection()
	switch {
	case !heard:
		c.keeper.Poke()
	case c.selected == nil || !reflect.DeepEqual(*c.selected, now):
		c.selected = &now
		c.keeper.Poke()
	}
}
