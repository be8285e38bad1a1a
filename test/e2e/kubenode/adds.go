// SPDX-License-Identifier: Apache-2.0

package kubenode

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
)

// Add is one ADD of the whole chain of plugins, as containerd saw it.
type Add struct {
	PodUID string
	Took   time.Duration
}

// What containerd says of a sandbox that it made; a protobuf message's text may have more spaces or less.
var (
	podUID   = regexp.MustCompile(`\buid: *"([^"]+)"`)
	returned = regexp.MustCompile(`returns sandbox id "([0-9a-f]+)"`)
)

// Adds reads from containerd's log how long each successful ADD took, in the order of their ends.
func (n *Node) Adds() ([]Add, error) {
	f, err := os.Open(n.logPath("containerd"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAdds(f)
}

func readAdds(log io.Reader) ([]Add, error) {
	type sandbox struct {
		began time.Time
		uid   string
	}
	sandboxes := map[string]*sandbox{}
	at := func(id string) *sandbox {
		if sandboxes[id] == nil {
			sandboxes[id] = &sandbox{}
		}
		return sandboxes[id]
	}
	var adds []Add
	var ended []string
	in := bufio.NewScanner(log)
	in.Buffer(nil, 4<<20)
	for in.Scan() {
		var line struct {
			Msg  string    `json:"msg"`
			Time time.Time `json:"time"`
			ID   string    `json:"podsandboxid"`
		}
		if !strings.HasPrefix(in.Text(), "{") {
			continue // not containerd's own words: a shim's
		}
		if err := json.Unmarshal(in.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("reading containerd's log: %w", err)
		}
		switch {
		case strings.HasPrefix(line.Msg, "begin cni setup"):
			at(line.ID).began = line.Time
		case strings.HasPrefix(line.Msg, "cni result"):
			if s := at(line.ID); !s.began.IsZero() {
				adds = append(adds, Add{Took: line.Time.Sub(s.began)})
				ended = append(ended, line.ID)
			}
		case strings.HasPrefix(line.Msg, "RunPodSandbox for") && strings.Contains(line.Msg, "returns sandbox id"):
			m, id := podUID.FindStringSubmatch(line.Msg), returned.FindStringSubmatch(line.Msg)
			if m != nil && id != nil {
				at(id[1]).uid = m[1]
			}
		}
	}
	for i, id := range ended {
		adds[i].PodUID = sandboxes[id].uid
	}
	return adds, in.Err()
}
