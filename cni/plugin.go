// SPDX-License-Identifier: Apache-2.0

// Package cni is the chained plugin: ADD, DEL, CHECK, STATUS, GC, VERSION.
//
// Invariant: a pod that did not opt in gets the raw bytes of prevResult back, without a single bpf(2) call, and nothing of ours can make it fail. The
// plugin talks to nobody: what it needs is on stdin, on the bpffs, and in the namespace set on disk.
package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"kmesh/cni/entry"
	"kmesh/cni/optin"
	"kmesh/netns"
)

// Versions of the specification that the plugin speaks. A runtime drops a network whose plugin does not list the network's version.
var Versions = version.PluginSupports(entry.Versions()...)

// CodeAnnotation: a pod annotation of ours has a value that cannot be obeyed. The codes from 110 are package netns's.
const CodeAnnotation = 115

// Bounds of our share of a sandbox's creation and removal. The runtime's own are minutes, shared by all plugins. An ADD takes milliseconds beside the two
// TCX attachments, each of which waits for an RCU grace period (10 to 30 ms) under the kernel's one RTNL lock: a node that starts a hundred pods at once
// queues there for seconds, and giving up would only bring the pods back to the end of the queue.
const (
	addTimeout = 10 * time.Second
	delTimeout = 2 * time.Second
	gcTimeout  = 30 * time.Second
)

// Main runs the verb that the environment names and returns the exit status. It writes to stdout once: the result or the error, never both.
func Main(stdout io.Writer) int {
	p := plugin{version: "1.1.0"}
	funcs := skel.CNIFuncs{
		Add:    guard(p.add),
		Del:    guard(p.del),
		Check:  guard(p.check),
		GC:     guard(p.gc),
		Status: guard(func(*skel.CmdArgs) error { return nil }),
	}
	if e := skel.PluginMainFuncsWithError(funcs, Versions, "Kmesh CNI plugin, chained behind a primary plugin"); e != nil {
		if _, err := stdout.Write(p.errorJSON(e)); err != nil {
			return 2
		}
		return 1
	}
	if _, err := stdout.Write(p.result); err != nil {
		return 2
	}
	return 0
}

// errorJSON is an error in the version of the call, as far as that was understood.
func (p *plugin) errorJSON(e *types.Error) []byte {
	data, err := json.MarshalIndent(struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{p.version, e}, "", "    ")
	if err != nil {
		return []byte(`{"cniVersion":"1.1.0","code":999,"msg":"error cannot be encoded"}`)
	}
	return append(data, '\n')
}

// plugin is one call. The result waits until skel has had its last say.
type plugin struct {
	version string
	result  []byte
}

// guard turns a panic, and every error that is not one of CNI's, into one.
func guard(verb func(*skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) (err error) {
		defer func() {
			if r := recover(); r != nil {
				stack := debug.Stack()
				err = types.NewError(types.ErrInternal, fmt.Sprintf("kmesh-cni panicked: %v: please report it", r), string(stack[:min(len(stack), 2000)]))
			}
		}()
		return cniError(verb(args))
	}
}

func cniError(err error) error {
	if err == nil {
		return nil
	}
	var own *types.Error
	if errors.As(err, &own) {
		return own
	}
	var annotation *optin.AnnotationError
	if errors.As(err, &annotation) {
		return types.NewError(CodeAnnotation, annotation.Error(), "")
	}
	var e *netns.Error
	if errors.As(err, &e) {
		details := ""
		if cause := errors.Unwrap(e); cause != nil {
			details = cause.Error()
		}
		return types.NewError(uint(e.Code), e.Msg, details)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return types.NewError(types.ErrTryAgainLater, sentence("kmesh-cni ran out of time: ", err), err.Error())
	}
	return types.NewError(types.ErrIOFailure, sentence("", err), err.Error())
}

// sentence is an error as kubelet shows it in an event: one line of at most 200 bytes. The whole of it goes into the details.
func sentence(prefix string, err error) string {
	s := strings.ToValidUTF8(prefix+strings.ReplaceAll(err.Error(), "\n", "; "), "?")
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:197], "") + "..."
	}
	return s
}

// call is what the verbs have in common, parsed.
type call struct {
	*conf
	args netns.Attachment
	pod  podArgs
	rt   capabilities
}

func (p *plugin) parse(args *skel.CmdArgs) (*call, error) {
	c, err := parseConf(args.StdinData)
	if err != nil {
		return nil, err
	}
	p.version = c.CNIVersion
	return &call{conf: c, args: netns.Attachment{ContainerID: args.ContainerID, Network: c.Name, IfName: args.IfName}}, nil
}

// decide reads what opt-in depends on. What goes wrong beside the pod's own annotations is a warning.
func (c *call) decide(args *skel.CmdArgs) (d optin.Decision, warnings []error, err error) {
	if c.rt, err = c.runtimeConfig(); err != nil {
		return d, nil, err
	}
	var argsErr error
	if c.pod, argsErr = parseArgs(args.Args); argsErr != nil {
		warnings = append(warnings, argsErr)
	}
	var set optin.Set
	stateDir, err := c.stateDir()
	if err == nil {
		set, err = optin.Read(stateDir)
	}
	if err != nil {
		warnings = append(warnings, err)
	}
	d, err = optin.Decide(string(c.pod.K8S_POD_NAMESPACE), c.rt.annotations, set)
	if err == nil && d.Enroll && argsErr != nil {
		return d, warnings, argsErr
	}
	return d, warnings, err
}

func (c *call) request(args *skel.CmdArgs) netns.Request {
	return netns.Request{
		Attachment: c.args,
		Namespace:  string(c.pod.K8S_POD_NAMESPACE),
		Name:       string(c.pod.K8S_POD_NAME),
		UID:        string(c.pod.K8S_POD_UID),
		NetnsPath:  args.Netns,
		CgroupPath: c.rt.cgroupPath,
	}
}

func (p *plugin) add(args *skel.CmdArgs) error {
	c, err := p.parse(args)
	if err != nil {
		return err
	}
	if len(c.PrevResult) == 0 || bytes.Equal(c.PrevResult, []byte("null")) {
		return types.NewError(types.ErrInvalidNetworkConfig, "kmesh-cni got no prevResult: put it behind the primary plugin in the conflist", "")
	}
	if _, err := version.NewResult(c.CNIVersion, c.PrevResult); err != nil {
		return types.NewError(types.ErrDecodingFailure, "prevResult cannot be decoded: check the plugin before kmesh-cni in the conflist", err.Error())
	}
	decision, warnings, err := c.decide(args)
	if err == nil && decision.Enroll {
		err = c.enroll(args, decision)
	} else if err != nil || len(warnings) > 0 {
		c.log("ADD", append(warnings, err)...)
	}
	if err == nil && len(decision.Policies) > 0 {
		c.refuse(args, decision)
	}
	if err != nil {
		return err
	}
	p.result = c.PrevResult
	return nil
}

func (c *call) enroll(args *skel.CmdArgs, decision optin.Decision) error {
	d, err := c.dirs()
	if err != nil {
		return err
	}
	pass, err := c.passUnready(decision)
	if err != nil {
		return err
	}
	if c.rt.cgroupErr != nil {
		return c.rt.cgroupErr
	}
	ctx, cancel := context.WithTimeout(context.Background(), addTimeout)
	defer cancel()
	node := netns.New(netns.Options{BPFFS: d.bpffs, RunDir: d.run})
	req := c.request(args)
	log := openLog(d.run).With("verb", "ADD", "containerID", req.ContainerID, "namespace", req.Namespace, "pod", req.Name)
	_, err = node.Enroll(ctx, req)
	outcome := netns.Enrolled
	switch {
	case err == nil:
		log.Info("pod enrolled", "reason", decision.Reason)
		return nil // Enroll has recorded it
	case pass && netns.CodeOf(err) == netns.CodeNotReady:
		outcome = netns.Passed
		log.Warn("pod starts ungoverned, as "+optin.AnnotationOnUnready+" or the conflist's onUnready asks for", "error", err)
	default:
		outcome = netns.Failed
		log.Error("pod not enrolled", "error", err)
	}
	if recErr := node.Record(ctx, req, outcome, err.Error()); recErr != nil {
		log.Warn("no record", "error", recErr)
	}
	if outcome == netns.Passed {
		return nil
	}
	return err
}

// refuse notes that a pod starts as one that did not opt in, since policies keep it out, or may. It is for people: nothing of it can fail the pod.
func (c *call) refuse(args *skel.CmdArgs, decision optin.Decision) {
	d, err := c.dirs()
	if err != nil {
		return
	}
	req := c.request(args)
	log := openLog(d.run).With("verb", "ADD", "containerID", req.ContainerID, "namespace", req.Namespace, "pod", req.Name)
	log.Warn("pod starts ungoverned, as policy.unenforced: refuse-enrolment asks for", "reason", decision.Reason)
	err = netns.New(netns.Options{BPFFS: d.bpffs, RunDir: d.run}).Record(context.Background(), req, netns.Refused, decision.Reason)
	if err != nil {
		log.Warn("no record", "error", err)
	}
}

func (p *plugin) del(args *skel.CmdArgs) error {
	c, err := p.parse(args)
	if err != nil {
		return err
	}
	d, err := c.dirs()
	if err != nil {
		return nil // no ADD ever succeeded with it, and DEL must not hold a pod back
	}
	ctx, cancel := context.WithTimeout(context.Background(), delTimeout)
	defer cancel()
	node := netns.New(netns.Options{BPFFS: d.bpffs, RunDir: d.run})
	if err := node.ReleaseIn(ctx, c.args, args.Netns); err != nil {
		openLog(d.run).Error("pod not released", "verb", "DEL", "containerID", c.args.ContainerID, "error", err)
		return err
	}
	return nil
}

func (p *plugin) check(args *skel.CmdArgs) error {
	c, err := p.parse(args)
	if err != nil {
		return err
	}
	d, err := c.dirs()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), addTimeout)
	defer cancel()
	err = netns.New(netns.Options{BPFFS: d.bpffs, RunDir: d.run}).Verify(ctx, c.args)
	if !errors.Is(err, netns.ErrNotEnrolled) {
		return err
	}
	// Not one of ours, unless the pod itself asked for it: a namespace may have opted in after the pod was made.
	decision, _, err := c.decide(args)
	if err != nil || !decision.Enroll {
		return nil
	}
	if pass, err := c.passUnready(decision); err != nil || pass || c.rt.annotations[optin.AnnotationEnroll] != "true" {
		return nil
	}
	return types.NewError(uint(netns.CodeNotReady), "the pod asks for enrolment and is not enrolled: recreate it, or let kmesh-helper enrol it", "")
}

func (p *plugin) gc(args *skel.CmdArgs) error {
	c, err := p.parse(args)
	if err != nil {
		return err
	}
	keep, known, err := c.valid()
	if err != nil || !known {
		return err
	}
	d, err := c.dirs()
	if err != nil {
		return err
	}
	valid := make([]netns.Attachment, len(keep))
	for i, k := range keep {
		valid[i] = netns.Attachment{ContainerID: k.ContainerID, Network: c.Name, IfName: k.IfName}
	}
	ctx, cancel := context.WithTimeout(context.Background(), gcTimeout)
	defer cancel()
	gone, err := netns.New(netns.Options{BPFFS: d.bpffs, RunDir: d.run}).Retain(ctx, c.Name, valid)
	if len(gone) > 0 || err != nil {
		openLog(d.run).Info("attachments collected", "verb", "GC", "network", c.Name, "removed", len(gone), "error", err)
	}
	return err
}

// log notes what went wrong with a pod that is not enrolled.
func (c *call) log(verb string, problems ...error) {
	err := errors.Join(problems...)
	d, dirErr := c.dirs()
	if err == nil || dirErr != nil {
		return
	}
	openLog(d.run).Warn("pod not enrolled", "verb", verb, "containerID", c.args.ContainerID, "namespace", string(c.pod.K8S_POD_NAMESPACE), slog.Any("error", err))
}
