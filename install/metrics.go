// SPDX-License-Identifier: Apache-2.0

package install

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics serves how the installation stands.
func (in *Installer) metrics() http.Handler {
	r := prometheus.NewRegistry()
	gauge := func(name, help string, f func(Status) float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "kmesh", Subsystem: "install", Name: name, Help: help},
			func() float64 { return f(in.Status()) }))
	}
	counter := func(name, help string, f func(Status) int) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "kmesh", Subsystem: "install", Name: name, Help: help},
			func() float64 { return float64(f(in.Status())) }))
	}
	gauge("ready", "1 while the plugin is installed and, as far as the runtime tells, loaded.", func(s Status) float64 {
		if s.Ready {
			return 1
		}
		return 0
	})
	counter("conf_writes_total", "Files of network configuration written or removed.", func(s Status) int { return s.ConfWrites })
	counter("binary_writes_total", "Times the plugin's binary was written.", func(s Status) int { return s.BinaryWrites })
	counter("rewrite_wars_total", "Times that writing was stopped because somebody else undid it again and again.", func(s Status) int { return s.Wars })
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}
