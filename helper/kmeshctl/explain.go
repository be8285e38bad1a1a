// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

// decision is what happens to a request, and why.
type decision struct {
	Request string `json:"request"`
	// Listener is empty when no listener has the destination.
	Listener    string   `json:"listener,omitempty"`
	Frontends   []string `json:"frontends,omitempty"`
	VirtualHost string   `json:"virtualHost,omitempty"`
	Domains     []string `json:"domains,omitempty"`
	// Outcomes, in the order in which they are tried: more than one where routes
	// take a fraction.
	Outcomes []outcome `json:"outcomes"`
	// Problems of the configuration.
	Problems []string `json:"problems,omitempty"`
}

// outcome is one route that the request may take.
type outcome struct {
	Share     float64        `json:"share"` // of such requests: 0 to 1
	Route     *int           `json:"route,omitempty"`
	RouteName string         `json:"routeName,omitempty"`
	Action    string         `json:"action"`
	Clusters  []clusterShare `json:"clusters,omitempty"`
	// NotTaken are the routes before it.
	NotTaken []notTaken `json:"notTaken,omitempty"`
}

type notTaken struct {
	Route     int    `json:"route"`
	RouteName string `json:"routeName,omitempty"`
	Condition string `json:"condition"`
	Got       string `json:"got"`
}

type clusterShare struct {
	Cluster   string   `json:"cluster"`
	Weight    uint32   `json:"weight"`
	Share     float64  `json:"share"` // of the outcome
	Kind      string   `json:"kind"`
	Policy    string   `json:"policy,omitempty"`
	Endpoints []string `json:"endpoints,omitempty"`
}

func explainCommand(opts *options, stdout, stderr io.Writer) *cobra.Command {
	var isOffline bool
	var dir, address, unenforceable string
	var headers []string
	cmd := &cobra.Command{
		Use:   "explain POD METHOD URL [-H 'NAME: VALUE']...",
		Short: "Show where a pod's request goes, and why; with --offline, by a directory of xDS files",
		Long: `Show where a request of a pod (NAMESPACE/NAME) goes: which frontend, service,
virtual host, route and clusters it has. The helper follows the tables that are in
the kernel, in the kernel's order, and runs the same compiled conditions.

    kmeshctl explain --offline --config DIR METHOD URL [-H 'NAME: VALUE']...

asks no helper: it reads xDS files as the helper reads them, and says for each
earlier route the first condition that failed.

A host that is a name has no address here, so the listener follows from the port,
and where several have it, from the host; --address says which address the client
connects to.`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case isOffline && len(args) != 2:
				return usageError{fmt.Errorf("explain --offline takes METHOD and URL, %d arguments are given", len(args))}
			case !isOffline && len(args) != 3:
				return usageError{fmt.Errorf("explain takes POD, METHOD and URL, %d arguments are given; with --offline --config DIR no POD", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if isOffline != (dir != "") {
				return usageError{errors.New("to explain by files give --offline --config DIR, both")}
			}
			req, err := newRequest(args[len(args)-2], args[len(args)-1], headers, address)
			if err != nil {
				return usageError{err}
			}
			if !isOffline {
				return explainInstalled(cmd.Context(), opts, stdout, args[0], req)
			}
			cfg, err := load(cmd.Context(), dir, unenforceable)
			if err != nil {
				return err
			}
			d, err := cfg.decide(req)
			if err != nil {
				return err
			}
			for _, p := range cfg.problems {
				d.Problems = append(d.Problems, p.Error())
			}
			if opts.output == "json" {
				enc := json.NewEncoder(stdout)
				enc.SetIndent("", "  ")
				enc.SetEscapeHTML(false)
				return enc.Encode(d)
			}
			for _, p := range d.Problems {
				fmt.Fprintln(stderr, "kmeshctl: to repair:", printable(p))
			}
			return d.print(stdout)
		},
	}
	cmd.Flags().BoolVar(&isOffline, "offline", false, "read files instead of asking the helper")
	unenforceableFlag(cmd, &unenforceable)
	cmd.Flags().StringVar(&dir, "config", "", "the directory of xDS files")
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "a header of the request, NAME: VALUE; may be repeated")
	cmd.Flags().StringVar(&address, "address", "", "the IP address that the client connects to")
	return cmd
}

// decide finds out what happens to the request.
func (o *offline) decide(r *request) (*decision, error) {
	svc, err := o.find(r)
	if err != nil {
		return nil, err
	}
	line, _, _ := strings.Cut(r.head, "\r\n")
	d := &decision{Request: line}
	if svc == nil {
		d.Outcomes = []outcome{{Share: 1, Action: fmt.Sprintf("no listener has port %d of this address: the connection goes where the client meant it", r.port)}}
		return d, nil
	}
	d.Listener = svc.Name
	for _, f := range svc.Frontends {
		port := "*"
		if f.Port != 0 {
			port = strconv.Itoa(int(f.Port))
		}
		d.Frontends = append(d.Frontends, fmt.Sprintf("%s port %s", f.Prefix, port))
	}
	if svc.HTTP == nil {
		d.Outcomes = []outcome{o.connection(svc, "not HTTP: the connection is balanced")}
		return d, nil
	}
	req, out := head.ParseRequest([]byte(r.head))
	switch out.Kind {
	case head.Route:
	case head.Reject:
		d.Outcomes = []outcome{{Share: 1, Action: fmt.Sprintf("answered %d: the head breaks rule %s, at byte %d", out.Status, out.Rule, out.At)}}
		return d, nil
	case head.Pin:
		d.Outcomes = []outcome{o.connection(svc, fmt.Sprintf("not routed by request (%s): the connection is balanced", out.Reason))}
		return d, nil
	default:
		return nil, usageError{errors.New("the method, the URL or a header has a line break: the head does not end")}
	}
	vh := explain.FindVirtualHost(svc.HTTP, req.Authority)
	if vh == nil {
		d.Outcomes = []outcome{{Share: 1, Action: fmt.Sprintf("answered 404: no virtual host has the host %q", req.Authority)}}
		return d, nil
	}
	d.VirtualHost, d.Domains = vh.Name, vh.Domains
	d.Outcomes = o.outcomes(vh, &req)
	return d, nil
}

// outcomes follows the request through the routes, once for each route with a
// fraction that may take it, and once past them all.
func (o *offline) outcomes(vh *mesh.VirtualHost, req *head.Request) []outcome {
	var out []outcome
	left := 1.0
	for taken := 0; ; taken++ {
		var asked []mesh.Fraction
		i, failures := explain.Match(vh, req, func(f mesh.Fraction) bool {
			asked = append(asked, f)
			return len(asked) == taken+1
		})
		one := outcome{Share: left}
		last := len(asked) <= taken
		if !last {
			f := asked[taken]
			p := float64(f.Numerator) / float64(f.Denominator)
			one.Share = left * p
			left *= 1 - p
		}
		for _, f := range failures {
			one.NotTaken = append(one.NotTaken, notTaken{Route: f.Route, RouteName: f.Name, Condition: f.Condition, Got: f.Got})
		}
		if i < 0 {
			one.Action = "answered 404: no route matches"
		} else {
			one.Route, one.RouteName = &i, vh.Routes[i].Name
			o.act(&one, vh.Routes[i], req)
		}
		out = append(out, one)
		if last {
			return out
		}
	}
}

// act says what a route does.
func (o *offline) act(one *outcome, r *mesh.Route, req *head.Request) {
	switch {
	case r.Unsupported:
		one.Action = "answered 503: the route has a condition or an action that cannot be served (see VERDICTS.md, kmeshctl status)"
	case r.Redirect != nil:
		one.Action = fmt.Sprintf("answered %d to %s", r.Redirect.Status, explain.Location(r.Redirect, &r.Match.Path, req))
	case r.Direct != nil:
		one.Action = fmt.Sprintf("answered %d with %d bytes", r.Direct.Status, len(r.Direct.Body))
	default:
		one.Action = "forwarded"
		one.Clusters = o.clusters(r.Clusters)
	}
	if a := r.Abort; a != nil {
		p := 100 * float64(a.Fraction.Numerator) / float64(a.Fraction.Denominator)
		if p >= 100 {
			one.Action, one.Clusters = fmt.Sprintf("answered %d (fault)", a.Status), nil
		} else {
			one.Action = fmt.Sprintf("%s %% answered %d (fault), the others %s", trimmed(p), a.Status, one.Action)
		}
	}
}

// connection is the outcome of a connection that is not routed by request.
func (o *offline) connection(svc *mesh.Service, action string) outcome {
	if len(svc.Clusters) == 0 {
		return outcome{Share: 1, Action: action + ", and there is no cluster for it: refused"}
	}
	return outcome{Share: 1, Action: action, Clusters: o.clusters(svc.Clusters)}
}

func (o *offline) clusters(list []mesh.WeightedCluster) []clusterShare {
	var sum uint64
	for _, wc := range list {
		sum += uint64(wc.Weight)
	}
	var out []clusterShare
	for _, wc := range list {
		c := o.scope.Clusters[wc.Cluster]
		one := clusterShare{Cluster: wc.Cluster, Weight: wc.Weight, Share: float64(wc.Weight) / float64(sum), Kind: c.Kind.String()}
		if c.Kind == mesh.Endpoints {
			one.Policy = c.Policy.String()
			for _, l := range c.Localities {
				for _, e := range l.Endpoints {
					one.Endpoints = append(one.Endpoints, fmt.Sprintf("%s weight %d priority %d %s", e.Addr, e.Weight, l.Priority, e.Health))
				}
			}
		}
		out = append(out, one)
	}
	return out
}

// print writes the decision for people.
func (d *decision) print(w io.Writer) error {
	t := newTable(w)
	t.row("request", d.Request)
	if d.Listener != "" {
		t.row("listener", d.Listener, strings.Join(d.Frontends, ", "))
	}
	if d.VirtualHost != "" {
		t.row("virtual host", d.VirtualHost, strings.Join(d.Domains, " "))
	}
	for _, one := range d.Outcomes {
		if len(d.Outcomes) > 1 {
			t.blank()
			t.row("share", trimmed(100*one.Share)+" % of such requests")
		}
		for _, n := range one.NotTaken {
			t.row("not taken", routeName(n.Route, n.RouteName), n.Condition, "got "+n.Got)
		}
		if one.Route != nil {
			t.row("route", routeName(*one.Route, one.RouteName))
		}
		t.row("action", one.Action)
		for _, c := range one.Clusters {
			t.row("cluster", c.Cluster, trimmed(100*c.Share)+" %", strings.TrimSpace(c.Kind+" "+c.Policy))
			for _, e := range c.Endpoints {
				t.row("endpoint", e)
			}
		}
	}
	return t.flush()
}

func routeName(i int, name string) string {
	if name == "" {
		return "#" + strconv.Itoa(i)
	}
	return "#" + strconv.Itoa(i) + " " + name
}

// trimmed writes a percentage with as many digits as it needs.
func trimmed(p float64) string { return strconv.FormatFloat(p, 'g', 6, 64) }
