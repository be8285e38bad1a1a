// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"kmesh/bpf"
	"kmesh/test/node"
)

// adds is what CNI ADD of the plugin alone takes, in milliseconds: from before the fork to the plugin's end, as its
// caller sees it. Start is the same program asked for its version: what any plugin costs before it does anything.
type adds struct {
	N        int     `json:"n"`
	Start    latency `json:"start_ms"`
	Plain    latency `json:"not_enrolled_ms"`
	Enrolled latency `json:"enrolled_ms"`
	// OverStart is not enrolled's less the median of Start.
	OverStart latency `json:"not_enrolled_over_start_ms"`
}

type latency struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func latencyOf(ms []float64) latency {
	slices.Sort(ms)
	return latency{quantile(ms, 0.5), quantile(ms, 0.99), ms[len(ms)-1]}
}

// plugin calls the real kmesh-cni for a pod that the primary plugin has made, as libcni does.
type plugin struct {
	n    *node.Node
	path string
	pod  *node.Pod
}

// stdin is the plugin's configuration, from the node's own.
func (p *plugin) stdin(enrolled bool) ([]byte, error) {
	var list struct {
		CNIVersion, Name string
		Plugins          []map[string]any
	}
	if err := json.Unmarshal(p.n.Conflist(), &list); err != nil {
		return nil, err
	}
	conf := list.Plugins[len(list.Plugins)-1]
	conf["cniVersion"], conf["name"], conf["prevResult"] = list.CNIVersion, list.Name, json.RawMessage(p.pod.Result)
	delete(conf, "capabilities")
	runtime := map[string]any{"cgroupPath": p.pod.CgroupParent}
	if enrolled {
		runtime["io.kubernetes.cri.pod-annotations"] = node.Enrolled()
	}
	conf["runtimeConfig"] = runtime
	return json.Marshal(conf)
}

func (p *plugin) call(ctx context.Context, command string, stdin []byte) (ms float64, err error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, p.path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &out
	cmd.Env = []string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + p.pod.ContainerID, "CNI_NETNS=" + p.pod.NetnsPath,
		"CNI_IFNAME=" + node.IfName, "CNI_PATH=" + filepath.Dir(p.path),
		"CNI_ARGS=" + strings.Join([]string{
			"IgnoreUnknown=1", "K8S_POD_NAMESPACE=" + p.pod.Namespace, "K8S_POD_NAME=" + p.pod.Name,
			"K8S_POD_INFRA_CONTAINER_ID=" + p.pod.ContainerID, "K8S_POD_UID=" + p.pod.UID,
		}, ";"),
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt does not cut short what then has to be cleaned
	err = p.n.Do(func() error {
		began := time.Now()
		err := cmd.Run()
		ms = float64(time.Since(began).Nanoseconds()) / 1e6
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("kmesh-cni %s: %w: %s", command, err, out.Bytes())
	}
	return ms, nil
}

// measureAdds takes the three in turn, n times, on one pod, whose enrolment is taken back each time.
func measureAdds(ctx context.Context, n *node.Node, bin string, count int) (adds, error) {
	pod, err := n.AddPod(ctx, node.PodSpec{Name: "adds"})
	if err != nil {
		return adds{}, err
	}
	p := &plugin{n, filepath.Join(bin, "kmesh-cni"), pod}
	plain, err := p.stdin(false)
	if err != nil {
		return adds{}, err
	}
	enrolled, err := p.stdin(true)
	if err != nil {
		return adds{}, err
	}
	var start, not, in []float64
	const warmUp = 3
	for i := range count + warmUp {
		var took [3]float64
		for j, c := range []struct {
			command string
			stdin   []byte
		}{{"VERSION", plain}, {"ADD", plain}, {"ADD", enrolled}} {
			if took[j], err = p.call(ctx, c.command, c.stdin); err != nil {
				return adds{}, err
			}
			// It is what was said to be measured.
			want := 0
			if j == 2 {
				want = len(bpf.CgroupHooks)
			}
			got, err := node.Attached(pod.CgroupPath)
			if err != nil {
				return adds{}, err
			}
			if len(got) != want {
				return adds{}, fmt.Errorf("after kmesh-cni %s the pod has programs at %d hooks, want %d", c.command, len(got), want)
			}
		}
		if _, err := p.call(ctx, "DEL", enrolled); err != nil {
			return adds{}, err
		}
		if i >= warmUp {
			start, not, in = append(start, took[0]), append(not, took[1]), append(in, took[2])
		}
	}
	res := adds{N: count, Start: latencyOf(start), Plain: latencyOf(not), Enrolled: latencyOf(in)}
	res.OverStart = latency{res.Plain.P50 - res.Start.P50, res.Plain.P99 - res.Start.P50, res.Plain.Max - res.Start.P50}
	return res, n.DelPod(ctx, pod)
}
