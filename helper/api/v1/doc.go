// SPDX-License-Identifier: Apache-2.0

// Package v1 is the protocol between the helper and whoever asks it: generated
// from kmesh.proto. Within v1 fields are only added; none changes its meaning.
package v1

//go:generate sh -c "cd ../../.. && protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --plugin=protoc-gen-go-grpc=$(go tool -n protoc-gen-go-grpc) --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative helper/api/v1/kmesh.proto"
