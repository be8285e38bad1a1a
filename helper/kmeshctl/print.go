// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/mesh"
)

// printJSON prints an answer as protobuf's JSON mapping has it, every field
// present. It is re-indented, because protojson varies its spaces on purpose.
func printJSON(w io.Writer, answer proto.Message) error {
	raw, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(answer)
	if err != nil {
		return fmt.Errorf("print as json: %w", err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return fmt.Errorf("print as json: %w", err)
	}
	out.WriteByte('\n')
	_, err = w.Write(out.Bytes())
	return err
}

// table aligns rows of cells in columns.
type table struct {
	to   io.Writer
	text bytes.Buffer
	w    *tabwriter.Writer
}

func newTable(to io.Writer) *table {
	t := &table{to: to}
	t.w = tabwriter.NewWriter(&t.text, 0, 0, 2, ' ', 0)
	return t
}

// row writes one line. What came from outside must not steer the terminal, nor
// break the line.
func (t *table) row(cells ...string) {
	for i, cell := range cells {
		cells[i] = printable(cell)
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
}

// blank writes an empty line, which also begins new columns.
func (t *table) blank() { fmt.Fprintln(t.w) }

// flush prints the rows, without the blanks that pad a line's end.
func (t *table) flush() error {
	t.w.Flush() // into memory: it cannot fail
	for line := range strings.Lines(t.text.String()) {
		if _, err := fmt.Fprintln(t.to, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// orDash shows that there is nothing to show.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func number[N uint32 | uint64](n N) string { return strconv.FormatUint(uint64(n), 10) }

func statusTable(w io.Writer, s *apiv1.StatusResponse) error {
	t := newTable(w)
	t.row("HELPER", fmt.Sprintf("%s, up %v, ABI %d", orDash(s.Version), time.Duration(s.UptimeSeconds)*time.Second, s.Abi))
	t.row("NODE", orDash(s.NodeId))
	t.row("BPFFS", orDash(s.Bpffs))
	phase := s.Phase
	if phase != "live" {
		phase += " (pods are enrolled once it is live)"
	}
	t.row("PHASE", fmt.Sprintf("%s, generation %d", phase, s.Generation))
	if xds := s.GetXds(); xds != nil || len(s.GetScopes()) == 0 {
		t.row("XDS", xdsLine(xds))
		if at := xds.GetLastUpdateUnixSeconds(); at != 0 {
			t.row("LAST UPDATE", unix(at))
		}
	}
	if w := s.GetWorkloads(); w != nil {
		t.row("WORKLOADS", xdsLine(w))
	}
	if why := s.GetScopesRefused(); why != "" {
		t.row("SCOPES", "pods get the helper's own view, since the control plane gives none of theirs: "+why)
	}
	if n := s.GetScopesShared(); n > 0 {
		t.row("SCOPES", fmt.Sprintf("%d are above the cap: their pods share one for each namespace, without labels and service account", n))
	}
	if k := s.GetKubernetes(); k != nil {
		t.row("API SERVER", apiServerLine(k))
	}
	if c := s.GetConfig(); c != nil || len(s.GetScopes()) == 0 {
		t.row("CONFIG", configLine(c))
	}
	if e := s.GetConfig().GetPublishError(); e != "" {
		t.row("NOT PUBLISHED", e)
	}
	pods := s.GetPods()
	line := fmt.Sprintf("%d live, %d severed, %d drift", pods.GetLive(), pods.GetSevered(), pods.GetDrift())
	if n := pods.GetDraining(); n > 0 {
		line += fmt.Sprintf(", %d draining", n)
	}
	t.row("PODS", line)
	t.row("LINKS", fmt.Sprintf("%d live, %d severed", pods.GetLinksLive(), pods.GetLinksSevered()))
	if err := t.flush(); err != nil {
		return err
	}

	if err := scopesTable(w, s.GetScopes()); err != nil {
		return err
	}
	if plans := s.GetKubernetes().GetPlans(); len(plans) > 0 {
		t := newTable(w)
		t.blank()
		t.row("WHAT WILL BECOME OF PODS")
		for _, p := range plans {
			t.row("  "+podName(p.Namespace, p.Name), p.What)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if len(s.Maps) > 0 {
		t := newTable(w)
		t.blank()
		t.row("MAP", "ENTRIES", "CAPACITY", "USED")
		for _, m := range s.Maps {
			used := "-"
			if m.Capacity > 0 {
				used = fmt.Sprintf("%.1f%%", 100*float64(m.Entries)/float64(m.Capacity))
			}
			t.row(m.Name, number(m.Entries), number(m.Capacity), used)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		title    string
		verdicts []*apiv1.Verdict
	}{
		{"TO REPAIR (the last good version stays in use)", s.Problems},
		{"NOT ENFORCED (served without it)", ofClass(s.Verdicts, mesh.UnsupportedAction)},
		{"NOT SERVED (a condition that cannot be tested)", ofClass(s.Verdicts, mesh.UnsupportedCondition)},
	} {
		if len(part.verdicts) == 0 {
			continue
		}
		t := newTable(w)
		t.blank()
		t.row(part.title)
		for _, v := range part.verdicts {
			t.row("  "+orDash(v.Source), orDash(v.Type), orDash(v.Resource), orDash(v.Field), v.Message)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	return nil
}

// apiServerLine says whether what pods and namespaces ask for is known.
func apiServerLine(k *apiv1.Kubernetes) string {
	line := orDash(k.GetServer()) + ": "
	since := ", since " + unix(k.GetSinceUnixSeconds())
	switch {
	case k.GetProblem() == "" && k.GetSynced():
		return line + "connected" + since
	case k.GetSynced():
		return line + "NOT CONNECTED (what it said last stays in use)" + since + ": " + k.GetProblem()
	case k.GetProblem() == "":
		return line + "connecting" + since
	default:
		return line + "NOT CONNECTED (pods are not followed yet)" + since + ": " + k.GetProblem()
	}
}

// configLine says how far the configuration has come: its version, and how many
// resources are in which state.
func configLine(c *apiv1.Config) string {
	if c.GetHolding() != "" {
		return "none yet: " + c.GetHolding()
	}
	count := make(map[string]int)
	for _, r := range c.GetResources() {
		count[r.State]++
	}
	line := fmt.Sprintf("version %d", c.GetVersion())
	if c.GetPublished() != c.GetVersion() {
		line += fmt.Sprintf(" (published: %d)", c.GetPublished())
	}
	separator := "; resources: "
	for _, state := range slices.Sorted(maps.Keys(count)) {
		line += fmt.Sprintf("%s%d %s", separator, count[state], state)
		separator = ", "
	}
	return line
}

func ofClass(verdicts []*apiv1.Verdict, class mesh.Class) []*apiv1.Verdict {
	var out []*apiv1.Verdict
	for _, v := range verdicts {
		if v.Class == class.String() {
			out = append(out, v)
		}
	}
	return out
}

func unix(seconds int64) string { return time.Unix(seconds, 0).UTC().Format(time.RFC3339) }

// podsTable has one row for each link, whole, so that grep finds what it needs.
func podsTable(w io.Writer, r *apiv1.PodsResponse) error {
	t := newTable(w)
	if len(r.Pods) == 0 {
		t.row("no pod of this node is enrolled")
	} else {
		t.row("POD", "CONTAINER", "IF", "IFINDEX", "CGROUP", "POD STATE", "HOOK", "KIND", "LINK", "PROG", "TAG", "STATE")
	}
	for _, p := range r.Pods {
		cells := []string{podName(p.Namespace, p.Name), short(p.ContainerId), p.IfName, number(p.Ifindex), number(p.CgroupInode), orDash(p.State)}
		if len(p.Links) == 0 {
			t.row(append(cells, "-", "-", "-", "-", "-", "-")...)
		}
		for _, l := range p.Links {
			t.row(append(slices.Clone(cells), l.Hook, l.Kind, number(l.LinkId), number(l.ProgId), orDash(l.ProgTag), l.State)...)
		}
	}
	if err := t.flush(); err != nil {
		return err
	}

	t = newTable(w)
	drifted := 0
	for _, p := range r.Pods {
		for _, drift := range p.Drift {
			if drifted++; drifted == 1 {
				t.blank()
				t.row("NOT AS ENROLLED")
			}
			t.row("  "+podName(p.Namespace, p.Name), short(p.ContainerId), drift)
		}
	}
	if err := t.flush(); err != nil {
		return err
	}

	t = newTable(w)
	for i, n := range r.NotEnrolled {
		if i == 0 {
			t.blank()
			t.row("NOT ENROLLED")
		}
		t.row("  "+podName(n.Namespace, n.Name), short(n.ContainerId), n.Outcome, unix(n.UnixSeconds), n.Reason)
	}
	return t.flush()
}

func podName(namespace, name string) string {
	if name == "" {
		return "-"
	}
	return namespace + "/" + name
}

// short is as much of a container's id as people tell apart.
func short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// servicesTable has one row for each cluster of a service, with its counters, and
// below it one for each endpoint.
func servicesTable(w io.Writer, r *apiv1.ServicesResponse) error {
	if len(r.Services) == 0 {
		_, err := fmt.Fprintln(w, "no services: the configuration holds no listener that names an address")
		return err
	}
	t := newTable(w)
	t.row("SERVICE", "FRONTENDS", "CLUSTER / ENDPOINT", "SHARE", "POLICY", "HEALTH", "PRIO", "WEIGHT", "ACTIVE", "OPENED", "CLOSED", "FAILED", "SENT", "RECEIVED", "UDP FLOWS")
	for _, s := range r.Services {
		name := s.Name
		if s.Scope != "" {
			name = s.Scope + " " + name
		}
		var frontends []string
		for _, f := range s.Frontends {
			frontends = append(frontends, frontend(f))
		}
		for i, c := range s.Clusters {
			first, second := "", ""
			if i == 0 {
				first, second = name, strings.Join(frontends, " ")
			}
			n := c.GetCounters()
			policy := c.Policy
			if c.Kind != "endpoints" {
				policy = orDash(c.Kind)
			}
			if c.MaxConnections != nil {
				policy += fmt.Sprintf(", at most %d", *c.MaxConnections)
			}
			t.row(first, second, c.Name, fmt.Sprintf("%.1f%%", 100*c.Share), policy, "", "", number(c.Weight), number(active(c)),
				number(n.GetOpened()), number(n.GetClosed()), number(n.GetFailed()), number(n.GetSentBytes()), number(n.GetReceivedBytes()), number(n.GetUdpFlows()))
			for _, e := range c.Endpoints {
				t.row("", "", "  "+e.Address, "", "", e.Health, number(e.Priority), number(e.Weight), number(e.ActiveConnections),
					"", "", "", "", "", "")
			}
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	notes := newTable(w)
	for _, s := range r.Services {
		for _, reason := range slices.Sorted(maps.Keys(s.Refused)) {
			notes.row(fmt.Sprintf("%s: %d refused: %s", s.Name, s.Refused[reason], reason))
		}
	}
	return notes.flush()
}

// active is the number of open connections to all endpoints of a cluster.
func active(c *apiv1.ServiceCluster) (sum uint64) {
	for _, e := range c.Endpoints {
		sum += e.ActiveConnections
	}
	return sum
}

// frontend writes 10.96.0.10:80/TCP; a prefix that is no host keeps its length, an
// absent port is a star.
func frontend(f *apiv1.Frontend) string {
	address := f.Prefix
	v6 := strings.Contains(address, ":")
	if v6 {
		address = strings.TrimSuffix(address, "/128")
	} else {
		address = strings.TrimSuffix(address, "/32")
	}
	if v6 {
		address = "[" + address + "]"
	}
	port := "*"
	if f.Port != 0 {
		port = number(f.Port)
	}
	return address + ":" + port + "/" + f.Protocol
}
