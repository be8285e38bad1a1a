// SPDX-License-Identifier: Apache-2.0

// Command kmesh-cni-stub takes kmesh-cni's place while it is being uninstalled: whatever still names the plugin gets every pod passed through, byte for
// byte, and every removal succeeds. It reads nothing but what it is given and attaches nothing.
package main

import (
	"bytes"
	"encoding/json"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"kmesh/cni/entry"
)

func main() { os.Exit(run()) }

func run() int {
	var result []byte
	nothing := func(*skel.CmdArgs) error { return nil }
	funcs := skel.CNIFuncs{
		Add: func(args *skel.CmdArgs) (err error) {
			result, err = previous(args.StdinData)
			return err
		},
		Del: nothing, Check: nothing, GC: nothing, Status: nothing,
	}
	if e := skel.PluginMainFuncsWithError(funcs, version.PluginSupports(entry.Versions()...), "Kmesh CNI plugin, uninstalled: passes everything through"); e != nil {
		_ = e.Print() // the exit status says the same
		return 1
	}
	if _, err := os.Stdout.Write(result); err != nil {
		return 2
	}
	return 0
}

// previous is the result of the plugin before, as it came.
func previous(stdin []byte) ([]byte, error) {
	var conf struct {
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "network configuration cannot be decoded: correct the conflist", err.Error())
	}
	if len(conf.PrevResult) == 0 || bytes.Equal(conf.PrevResult, []byte("null")) {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "kmesh-cni got no prevResult: put it behind the primary plugin in the conflist", "")
	}
	return conf.PrevResult, nil
}
