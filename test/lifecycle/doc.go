// SPDX-License-Identifier: Apache-2.0

// Package lifecycle tests the real kmesh-helper over its life: start, change, bad
// input, kill, restart, upgrade, uninstall, each under traffic of real pods. The
// rule that every test holds it to: running traffic does not notice.
package lifecycle
