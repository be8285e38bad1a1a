// SPDX-License-Identifier: Apache-2.0

package install

import (
	"maps"
	"os"
	"slices"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestChartMountsThePlatforms: what the chart mounts for a platform is where the installer looks on it.
func TestChartMountsThePlatforms(t *testing.T) {
	raw, err := os.ReadFile("../manifests/chart/platforms.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var chart map[string]struct {
		BinDir  string `json:"binDir"`
		ConfDir string `json:"confDir"`
		Socket  string `json:"socket"`
	}
	if err := yaml.UnmarshalStrict(raw, &chart); err != nil {
		t.Fatal(err)
	}
	if have, want := slices.Sorted(maps.Keys(chart)), slices.Sorted(slices.Values(PlatformNames())); !slices.Equal(have, want) {
		t.Errorf("the chart has the platforms %v, the installer %v", have, want)
	}
	for _, p := range platforms {
		c := chart[p.Name]
		if c.BinDir != p.BinDir || c.ConfDir != p.ConfDir {
			t.Errorf("%s: the chart mounts %s and %s, the installer has %s and %s", p.Name, c.BinDir, c.ConfDir, p.BinDir, p.ConfDir)
		}
		if p.Socket != "" && c.Socket != p.Socket || p.Socket == "" && !slices.Contains(usualSockets, c.Socket) {
			t.Errorf("%s: the chart mounts the folder of %s, the installer looks for %q", p.Name, c.Socket, p.Socket)
		}
	}
}
