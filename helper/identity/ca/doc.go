// SPDX-License-Identifier: Apache-2.0

// Package ca is the wire form of Istio's certificate service (istio.v1.auth):
// generated, nothing else. The invariant: names and numbers are those of the
// protocol, whoever speaks it.
package ca

//go:generate sh -c "cd ../../.. && protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --plugin=protoc-gen-go-grpc=$(go tool -n protoc-gen-go-grpc) --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative helper/identity/ca/ca.proto"
