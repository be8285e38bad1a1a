// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	apiv1 "kmesh/helper/api/v1"
)

func describeCommand(opts *options, stdout io.Writer) *cobra.Command {
	cmd := &cobra.Command{
		Use: "describe", Short: "Show all that is known about one thing", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use: "pod NAMESPACE/NAME", Short: "Show whether and how a pod is governed, its view of the mesh, and what is not enforced for it",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || strings.Count(args[0], "/") != 1 || strings.HasPrefix(args[0], "/") || strings.HasSuffix(args[0], "/") {
				return usageError{fmt.Errorf("name one pod: NAMESPACE/NAME, as kmeshctl pods has it")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			namespace, name, _ := strings.Cut(args[0], "/")
			return describePod(cmd.Context(), opts, stdout, namespace, name)
		},
	})
	return cmd
}

// described is a pod with what concerns it.
type described struct {
	pods        []*apiv1.Pod // its attachments
	notEnrolled []*apiv1.NotEnrolled
	plans       []*apiv1.PodPlan
	scope       *apiv1.Scope // nil: the default one
	policies    []*apiv1.Verdict
}

func describePod(ctx context.Context, opts *options, stdout io.Writer, namespace, name string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := dial(ctx, opts.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	c := apiv1.NewKmeshClient(conn)
	pods, err := c.Pods(ctx, &apiv1.PodsRequest{}, grpc.MaxCallRecvMsgSize(maxAnswer))
	if err != nil {
		return sentence(opts.socket, err)
	}
	s, err := c.Status(ctx, &apiv1.StatusRequest{}, grpc.MaxCallRecvMsgSize(maxAnswer))
	if err != nil {
		return sentence(opts.socket, err)
	}
	d := describe(pods, s, namespace, name)
	if len(d.pods)+len(d.notEnrolled)+len(d.plans) == 0 {
		return fmt.Errorf("no pod %s/%s is governed on this node, and none asked to be: kmeshctl pods lists those that are", namespace, name)
	}
	if opts.output == "json" {
		return printJSON(stdout, &apiv1.PodsResponse{Pods: d.pods, NotEnrolled: d.notEnrolled})
	}
	return podTable(stdout, podName(namespace, name), d)
}

// describe finds what concerns a pod.
func describe(pods *apiv1.PodsResponse, s *apiv1.StatusResponse, namespace, name string) described {
	var d described
	for _, p := range pods.GetPods() {
		if p.GetNamespace() == namespace && p.GetName() == name {
			d.pods = append(d.pods, p)
		}
	}
	for _, p := range pods.GetNotEnrolled() {
		if p.GetNamespace() == namespace && p.GetName() == name {
			d.notEnrolled = append(d.notEnrolled, p)
		}
	}
	for _, p := range s.GetKubernetes().GetPlans() {
		if p.GetNamespace() == namespace && p.GetName() == name {
			d.plans = append(d.plans, p)
		}
	}
	for _, sc := range s.GetScopes() {
		if len(d.pods) > 0 && sc.GetName() == d.pods[0].GetScope() {
			d.scope = sc
		}
	}
	for _, v := range s.GetVerdicts() {
		if isPolicy(v) && strings.Contains(v.GetMessage(), namespace+"/"+name) {
			d.policies = append(d.policies, v)
		}
	}
	return d
}

func podTable(w io.Writer, name string, d described) error {
	t := newTable(w)
	t.row("POD", name)
	for _, p := range d.pods {
		state := p.GetState()
		if len(p.GetDrift()) > 0 {
			state += ": " + strings.Join(p.GetDrift(), "; ")
		}
		t.row("GOVERNED", fmt.Sprintf("%s on %s of network %s, %d programs", state, p.GetIfName(), orDash(p.GetNetwork()), len(p.GetLinks())))
		t.row("CONTAINER", p.GetContainerId())
		t.row("CGROUP", fmt.Sprintf("%s (inode %d)", orDash(p.GetCgroupPath()), p.GetCgroupInode()))
		t.row("NETNS", fmt.Sprintf("%s (cookie %d)", orDash(p.GetNetnsPath()), p.GetNetnsCookie()))
		if at := p.GetEnrolledUnixSeconds(); at != 0 {
			t.row("ENROLLED", unix(at))
		}
	}
	for _, p := range d.notEnrolled {
		t.row("NOT GOVERNED", fmt.Sprintf("%s, %s: %s", p.GetOutcome(), unix(p.GetUnixSeconds()), p.GetReason()))
	}
	for _, p := range d.plans {
		t.row("PLAN", p.GetWhat())
	}
	if len(d.pods) > 0 {
		scope := "the default one"
		if s := d.scope; s != nil {
			scope = fmt.Sprintf("%s, which %d pods of this node have", s.GetName(), s.GetPods())
			if !s.GetXds().GetConnected() {
				scope += "; its source does not answer, the last good one stays in use"
			}
		}
		t.row("SCOPE", scope)
	}
	for _, v := range d.policies {
		t.row("NOT ENFORCED", verdictLine(v))
	}
	return t.flush()
}
