// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"

	"github.com/containernetworking/plugins/pkg/ns"
)

// Do runs f on a thread inside the network namespace at path. Goroutines that f
// starts are not in it.
func Do(path string, f func() error) error {
	if err := ns.WithNetNSPath(path, func(ns.NetNS) error { return f() }); err != nil {
		return fmt.Errorf("in network namespace %s: %w", path, err)
	}
	return nil
}
