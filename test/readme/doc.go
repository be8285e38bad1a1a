// SPDX-License-Identifier: Apache-2.0

// Package readme keeps README.md true: its files are read by the code that reads
// them on a node, its targets, paths, metrics and codes are looked up where they
// are made.
package readme
