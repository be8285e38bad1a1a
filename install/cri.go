// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"kmesh/cni/entry"
)

// criTimeout is for one question to the runtime.
const criTimeout = 5 * time.Second

// maxCRIAnswer bounds an answer: it holds the runtime's whole configuration.
const maxCRIAnswer = 32 << 20

// RuntimeStatus is what a container runtime says about its network.
type RuntimeStatus struct {
	Name, Version string
	// PluginDirs and ConfDir are empty when it does not say.
	PluginDirs []string
	ConfDir    string
	// Tells is true when it says which networks it has loaded.
	Tells    bool
	Networks []LoadedNetwork
	// LoadError is why the last load failed.
	LoadError string
}

// LoadedNetwork is a network that the runtime uses.
type LoadedNetwork struct {
	Name    string
	Types   []string // of its plugins, in order
	Entries []string // the configurations of kmesh-cni among them
}

// Loaded says whether the runtime has this entry in a network, once, and behind another plugin.
func (s *RuntimeStatus) Loaded(network string, want []byte) bool {
	var a any
	if json.Unmarshal(want, &a) != nil {
		return false
	}
	for _, n := range s.Networks {
		if n.Name != network || len(n.Entries) != 1 || n.Types[0] == entry.Type {
			continue
		}
		// The runtime may have encoded it anew.
		var b any
		if json.Unmarshal([]byte(n.Entries[0]), &b) == nil && reflect.DeepEqual(a, b) {
			return true
		}
	}
	return false
}

// Names says whether any loaded network still has an entry of the owner.
func (s *RuntimeStatus) Names(owner string) bool {
	for _, n := range s.Networks {
		for _, e := range n.Entries {
			if got, err := entry.StampOf([]byte(e)); err == nil && got != nil && got.Owner == owner {
				return true
			}
		}
	}
	return false
}

// askRuntime asks a runtime for its status. A connection for each question: they are rare, and a runtime that was restarted is met as it is.
func askRuntime(ctx context.Context, socket string) (*RuntimeStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, criTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxCRIAnswer)))
	if err != nil {
		return nil, fmt.Errorf("cri-socket %s: %w", socket, err)
	}
	defer conn.Close()
	client := cri.NewRuntimeServiceClient(conn)
	version, err := client.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return nil, fmt.Errorf("cri-socket %s: %w", socket, err)
	}
	answer, err := client.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("cri-socket %s: %w", socket, err)
	}
	s := &RuntimeStatus{Name: version.RuntimeName, Version: version.RuntimeVersion}
	if err := s.read(answer.Info); err != nil {
		return nil, fmt.Errorf("cri-socket %s: status of %s %s: %w", socket, s.Name, s.Version, err)
	}
	return s, nil
}

// unanswered says whether the runtime is there and has only not answered in time. The runtime may have found that, from the deadline that goes with
// the question, a moment before ours has passed here.
func unanswered(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || grpcstatus.Code(err) == codes.DeadlineExceeded
}

// read takes what concerns the network out of the verbose status. The keys are containerd's; a runtime without them says nothing.
func (s *RuntimeStatus) read(info map[string]string) error {
	if raw, ok := info["cniconfig"]; ok && raw != "" {
		var conf struct {
			PluginDirs    []string
			PluginConfDir string
			Networks      []struct {
				Config struct {
					Name    string
					Plugins []struct {
						Network struct{ Type string }
						Source  string
					}
				}
			}
		}
		if err := json.Unmarshal([]byte(raw), &conf); err != nil {
			return fmt.Errorf("key cniconfig: %w", err)
		}
		s.PluginDirs, s.ConfDir, s.Tells = conf.PluginDirs, conf.PluginConfDir, conf.PluginConfDir != ""
		for _, n := range conf.Networks {
			loaded := LoadedNetwork{Name: n.Config.Name}
			for _, p := range n.Config.Plugins {
				loaded.Types = append(loaded.Types, p.Network.Type)
				if p.Network.Type == entry.Type {
					loaded.Entries = append(loaded.Entries, p.Source)
				}
			}
			s.Networks = append(s.Networks, loaded)
		}
	}
	if last, ok := info["lastCNILoadStatus"]; ok && last != "OK" {
		s.LoadError = last
	}
	return nil
}
