// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/mesh"
)

// errFaults says that check found what has to be done something about: it has been
// printed, and is exit code 1.
var errFaults = errors.New("there are faults")

// The levels of a finding. A fault makes check fail; a warning does not.
const (
	levelFault   = "FAULT"
	levelWarning = "WARNING"
)

// fullAt is the share of a map from which it is worth a warning.
const fullAt = 0.9

// finding is one thing that is not as it should be, and what to do.
type finding struct {
	Level  string `json:"level"`
	What   string `json:"what"`
	Remedy string `json:"remedy"`
}

func checkCommand(opts *options, stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Tell what is wrong with this node's mesh, and what to do; exit code 1 if anything is", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			conn, err := dial(ctx, opts.socket)
			if err != nil {
				return err
			}
			defer conn.Close()
			s, err := apiv1.NewKmeshClient(conn).Status(ctx, &apiv1.StatusRequest{}, grpc.MaxCallRecvMsgSize(maxAnswer))
			if err != nil {
				return sentence(opts.socket, err)
			}
			return printFindings(stdout, opts.output, check(s))
		},
	}
}

func printFindings(w io.Writer, output string, all []finding) error {
	if output == "json" {
		text, err := json.MarshalIndent(append([]finding{}, all...), "", "  ")
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(w, string(text)); err != nil {
			return err
		}
	} else {
		t := newTable(w)
		for _, f := range all {
			t.row(f.Level, f.What)
			t.row("", "-> "+f.Remedy)
		}
		if len(all) == 0 {
			t.row("All is well.")
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	for _, f := range all {
		if f.Level == levelFault {
			return errFaults
		}
	}
	return nil
}

// check finds what is not as it should be: faults before warnings, the gravest first.
func check(s *apiv1.StatusResponse) []finding {
	var c checker
	c.serving(s)
	c.policies(s)
	c.pods(s)
	c.configuration(s)
	c.sources(s)
	c.room(s)
	return append(c.faults, c.warnings...)
}

type checker struct{ faults, warnings []finding }

func (c *checker) fault(what, remedy string) {
	c.faults = append(c.faults, finding{levelFault, what, remedy})
}

func (c *checker) warn(what, remedy string) {
	c.warnings = append(c.warnings, finding{levelWarning, what, remedy})
}

// serving: whether pods can be enrolled, and get what was configured last.
func (c *checker) serving(s *apiv1.StatusResponse) {
	if s.GetPhase() != "live" {
		why := s.GetConfig().GetHolding()
		if why == "" {
			why = "no configuration has been written yet"
		}
		c.fault("opted-in pods cannot start: the mesh is not live on this node: "+why, "see to the source of configuration (below, and kmeshctl status)")
	}
	for _, one := range configs(s) {
		if e := one.config.GetPublishError(); e != "" {
			c.fault(one.name+" is not written to the kernel, the one before stays: "+e, "narrow the configuration, or raise what is too small")
		}
	}
}

// named is a configuration and whose it is.
type named struct {
	name   string
	config *apiv1.Config
	xds    *apiv1.Xds
}

func configs(s *apiv1.StatusResponse) []named {
	var out []named
	if s.GetConfig() != nil || s.GetXds() != nil {
		out = append(out, named{"the configuration", s.GetConfig(), s.GetXds()})
	}
	for _, sc := range s.GetScopes() {
		out = append(out, named{"the configuration of scope " + sc.GetName(), sc.GetConfig(), sc.GetXds()})
	}
	return out
}

// policies: what somebody relies on for security, and is not done.
func (c *checker) policies(s *apiv1.StatusResponse) {
	remedy := "do not rely on it: take the pods out of the mesh (kmesh.net/enroll: \"false\"; policy.unenforced: refuse-enrolment does) and give them a sidecar, or enforce it by a NetworkPolicy"
	if s.GetRefusesEnrolment() {
		remedy = "the pods that it selects are let go (policy.unenforced: refuse-enrolment) when nothing of them is open any more; to have that at once, make them anew"
	}
	for _, v := range s.GetVerdicts() {
		if isPolicy(v) {
			c.fault(verdictLine(v), remedy)
		}
	}
}

// isPolicy says whether a verdict is about who may connect, and that nobody sees to it. An
// inbound listener's is about a condition, since none of it is served.
func isPolicy(v *apiv1.Verdict) bool {
	switch v.GetClass() {
	case mesh.UnsupportedAction.String(), mesh.UnsupportedCondition.String():
		return v.GetType() == "Authorization" || strings.Contains(v.GetMessage(), "authorization is NOT ENFORCED")
	}
	return false
}

// pods that are not governed as they should be.
func (c *checker) pods(s *apiv1.StatusResponse) {
	p := s.GetPods()
	if n := p.GetSevered() + p.GetDrift(); n > 0 {
		c.fault(fmt.Sprintf("%d pods are not governed as they were enrolled", n), "kmeshctl pods says which; the helper repairs what can be, and says in its log what cannot: make the pod anew")
	}
	for _, plan := range s.GetKubernetes().GetPlans() {
		what := "pod " + podName(plan.GetNamespace(), plan.GetName()) + " " + plan.GetWhat()
		if len(plan.GetPolicies()) > 0 {
			c.warn(what, "take these policies away, or leave the pod to a sidecar, which enforces them; policy.unenforced: report enrols it and only says so")
			continue
		}
		c.warn(what, "nothing, if that is as wanted; else change the annotation or label that asks for it")
	}
}

// configuration that is wrong, or asks for what is not served.
func (c *checker) configuration(s *apiv1.StatusResponse) {
	for _, v := range s.GetProblems() {
		c.fault(verdictLine(v), "repair it; the last good version stays in use until then")
	}
	conditions, actions := newGroups(), newGroups()
	for _, v := range s.GetVerdicts() {
		switch {
		case isPolicy(v): // see policies
		case v.GetClass() == mesh.UnsupportedCondition.String():
			conditions.add(v)
		case v.GetClass() == mesh.UnsupportedAction.String():
			actions.add(v)
		}
	}
	conditions.each(func(what string) {
		c.warn(what, "requests or connections that it is about are refused: take the condition away, or send them through a waypoint")
	})
	actions.each(func(what string) {
		c.warn(what, "it is served without; --unenforceable-actions refuse refuses it instead")
	})
}

// groups are verdicts of which many say the same: a control plane asks for access logs of
// every listener.
type groups struct {
	first []*apiv1.Verdict
	count map[[2]string]int
}

func newGroups() *groups { return &groups{count: make(map[[2]string]int)} }

func (g *groups) add(v *apiv1.Verdict) {
	key := [2]string{v.GetType(), v.GetMessage()}
	if g.count[key]++; g.count[key] == 1 {
		g.first = append(g.first, v)
	}
}

func (g *groups) each(f func(what string)) {
	for _, v := range g.first {
		what := verdictLine(v)
		if n := g.count[[2]string{v.GetType(), v.GetMessage()}]; n > 1 {
			what += fmt.Sprintf(" (and %d more say so)", n-1)
		}
		f(what)
	}
}

// sources that do not answer.
func (c *checker) sources(s *apiv1.StatusResponse) {
	tell := func(name string, x *apiv1.Xds) {
		switch {
		case x == nil:
		case x.GetFromDiskUnixSeconds() != 0:
			c.fault(fmt.Sprintf("%s is what is on disk, of %s: %s has not said it since", name, unix(x.GetFromDiskUnixSeconds()), x.GetAddress()), "see that the control plane answers this node")
		case !x.GetConnected():
			c.warn(fmt.Sprintf("%s does not follow %s, which does not answer; the last good one stays in use", name, x.GetAddress()), "see that the control plane answers this node")
		}
		if why := x.GetDiskProblem(); why != "" {
			c.warn(name+" is not on disk as it should be: "+why, "see to the helper's state directory; a reboot without the control plane would have an older one, or none")
		}
	}
	for _, one := range configs(s) {
		tell(one.name, one.xds)
	}
	tell("what the workload API says", s.GetWorkloads())
	for _, sc := range s.GetScopes() {
		if !sc.GetLive() && sc.GetPods() > 0 {
			c.warn(fmt.Sprintf("%d pods wait for scope %s and have the default one meanwhile", sc.GetPods(), sc.GetName()), "kmeshctl status says what it waits for")
		}
	}
	if why := s.GetScopesRefused(); why != "" {
		c.fault("pods get the helper's own view of the mesh, in which rules by source are missing: "+why, "set CA_TRUSTED_NODE_ACCOUNTS of istiod to include the helper's service account")
	}
	if n := s.GetScopesShared(); n > 0 {
		c.warn(fmt.Sprintf("%d scopes are above the cap: their pods share one for each namespace", n), "raise --max-scopes")
	}
	if k := s.GetKubernetes(); k.GetProblem() != "" {
		c.warn("the API server at "+k.GetServer()+" does not answer: "+k.GetProblem(), "see that it answers this node; pods that opt in or out while they run are not followed until then")
	}
}

// room that is left in the maps.
func (c *checker) room(s *apiv1.StatusResponse) {
	for _, m := range s.GetMaps() {
		if m.GetCapacity() > 0 && float64(m.GetEntries()) >= fullAt*float64(m.GetCapacity()) {
			c.warn(fmt.Sprintf("map %s has %d of %d entries", m.GetName(), m.GetEntries(), m.GetCapacity()), "what does not fit will be refused: fewer of what it holds, or a larger map")
		}
	}
}

// verdictLine is a verdict in one line.
func verdictLine(v *apiv1.Verdict) string {
	return mesh.Verdict{Source: v.GetSource(), Type: v.GetType(), Resource: v.GetResource(), Field: v.GetField(), Message: v.GetMessage()}.Error()
}
