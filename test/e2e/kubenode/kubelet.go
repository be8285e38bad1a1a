// SPDX-License-Identifier: Apache-2.0

package kubenode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kmesh/test/plane"
)

func (n *Node) startKubelet(ctx context.Context) error {
	// The fields that are not plain: the kubelet refuses a machine with cgroup v1 by default; its cgroup root is ours in
	// every hierarchy; nothing is reserved or evicted, since the machine's memory and disks are others' too.
	config := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %s
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://%s
cgroupDriver: cgroupfs
cgroupsPerQOS: true
cgroupRoot: /%s
failCgroupV1: false
enforceNodeAllocatable: [none]
failSwapOn: false
localStorageCapacityIsolation: false
makeIPTablesUtilChains: false
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%"}
imageGCHighThresholdPercent: 100
resolvConf: ""
clusterDNS: [%s]
serializeImagePulls: false
nodeStatusUpdateFrequency: 1s
syncFrequency: 10s
shutdownGracePeriod: 0s
`, NodeIP, criSocket, filepath.Base(n.CgroupRoot), ServiceIP) // nobody answers there: no pod of the tests asks for a name
	kubeconfig, err := n.UserConfig(n.kubeletUser())
	if err != nil {
		return err
	}
	dir := filepath.Join(n.Dir, "kubelet")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, content := range map[string][]byte{"config.yaml": []byte(config), "kubeconfig": kubeconfig} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return n.StartKubelet(ctx)
}

// StartKubelet starts the kubelet and waits until the Node is Ready: says so itself, after now.
func (n *Node) StartKubelet(ctx context.Context) error {
	dir := filepath.Join(n.Dir, "kubelet")
	// Heartbeats have whole seconds: one of this second may be the last kubelet's.
	began := time.Now().Truncate(time.Second)
	var err error
	n.boot.kubelet, err = n.startDaemon("kubelet", filepath.Join(n.parts.kubernetes, "kubelet"),
		"--config", filepath.Join(dir, "config.yaml"), "--kubeconfig", filepath.Join(dir, "kubeconfig"),
		"--root-dir", "/var/lib/kubelet", "--hostname-override", n.Name, "--node-ip", NodeIP.String(), "--v", "2")
	if err != nil {
		return err
	}
	err = until(ctx, bootLimit, "the Node was not Ready", func(ctx context.Context) error {
		select {
		case <-n.boot.kubelet.Done():
			return errors.Join(n.boot.kubelet.Wait(), plane.ErrEnded)
		default:
		}
		o, err := n.Client.CoreV1().Nodes().Get(ctx, n.Name, meta.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range o.Status.Conditions {
			if c.Type != core.NodeReady {
				continue
			}
			if c.Status == core.ConditionTrue && c.LastHeartbeatTime.Time.After(began) {
				return nil
			}
			return fmt.Errorf("it says %s at %s: %s", c.Status, c.LastHeartbeatTime, c.Message)
		}
		return errors.New("it has not said whether it is Ready")
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, n.logTail("kubelet", 20))
	}
	return nil
}
