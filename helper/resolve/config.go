// SPDX-License-Identifier: Apache-2.0

package resolve

import (
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/miekg/dns"
)

// config follows a resolv.conf: it is read again when it has changed. While it cannot
// be read, or names no server, what it said last goes on.
type config struct {
	path string

	mu    sync.Mutex
	stamp fs.FileInfo
	good  *dns.ClientConfig
	err   error
}

// read returns the newest good configuration.
func (c *config) read() (*dns.ClientConfig, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info, err := os.Stat(c.path)
	if err != nil {
		c.stamp, c.err = nil, fmt.Errorf("name servers: %w", err)
	} else if c.stamp == nil || !os.SameFile(c.stamp, info) || !c.stamp.ModTime().Equal(info.ModTime()) || c.stamp.Size() != info.Size() {
		c.stamp = info
		conf, err := dns.ClientConfigFromFile(c.path)
		switch {
		case err != nil:
			c.stamp, c.err = nil, fmt.Errorf("name servers: %w", err)
		case len(conf.Servers) == 0:
			c.err = fmt.Errorf("name servers: %s has no line that begins with nameserver", c.path)
		default:
			c.good, c.err = conf, nil
		}
	}
	if c.good != nil {
		return c.good, nil
	}
	return nil, c.err
}
