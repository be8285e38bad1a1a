// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"kmesh/test/istiod/control"
)

var update = flag.Bool("update", false, "write what istiod sends for the tests' world to "+goldens)

// goldens are what istiod sends, for tests that run without it.
const goldens = "../../helper/snapshot/testdata/istiod"

// What tests without istiod go by is what it sends.
func TestGoldens(t *testing.T) {
	b := newBed(t)
	b.world()
	b.until("istiod sends what tests without it go by", func() error {
		v, err := b.c.View(b.ctx, control.HelperID(), control.HelperMetadata())
		if err != nil {
			return err
		}
		if v.Routes["80"] == nil || len(v.Routes["80"].GetVirtualHosts()) < 5 { // of four services, and of none
			return fmt.Errorf("not all is there: %v", v.Routes["80"])
		}
		for name, got := range map[string]*discoveryv3.DiscoveryResponse{
			"clusters": response(v.Clusters), "listeners": response(v.Listeners), "routes": response(v.Routes), "endpoints": response(v.Endpoints),
		} {
			file := filepath.Join(goldens, name+".textproto")
			written, err := prototext.MarshalOptions{Multiline: true, Indent: " "}.Marshal(got)
			if err == nil && *update {
				err = os.WriteFile(file, written, 0o644)
			}
			if err != nil {
				return err
			}
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			// Both from text: one message may have several encodings.
			got, want := &discoveryv3.DiscoveryResponse{}, &discoveryv3.DiscoveryResponse{}
			if err := errors.Join(prototext.Unmarshal(written, got), prototext.Unmarshal(text, want)); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if !proto.Equal(got, want) {
				return fmt.Errorf("%s is not what istiod sends any more: write it again with -update, and read the difference", file)
			}
		}
		return nil
	})
}

// response is what a server sends of one type, in the order of the names.
func response[M proto.Message](of map[string]M) *discoveryv3.DiscoveryResponse {
	r := &discoveryv3.DiscoveryResponse{}
	for _, name := range slices.Sorted(maps.Keys(of)) {
		packed := &anypb.Any{}
		if err := anypb.MarshalFrom(packed, of[name], proto.MarshalOptions{Deterministic: true}); err != nil {
			panic(err) // it came off the wire
		}
		r.Resources = append(r.Resources, packed)
		r.TypeUrl = packed.GetTypeUrl()
	}
	return r
}
