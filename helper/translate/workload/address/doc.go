// SPDX-License-Identifier: Apache-2.0

// Package address is the wire form of the workload API (istio.workload): generated
// messages, nothing else. The invariant: names and numbers are those of the protocol,
// whoever speaks it.
package address

//go:generate sh -c "cd ../../../.. && protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --go_out=. --go_opt=paths=source_relative helper/translate/workload/address/address.proto"
