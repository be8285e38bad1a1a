// SPDX-License-Identifier: Apache-2.0

// Command kmesh-cni is the chained CNI plugin. It holds nothing but the call of package cni.
package main

import (
	"os"

	"kmesh/cni"
)

func main() { os.Exit(cni.Main(os.Stdout)) }
