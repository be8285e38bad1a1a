// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxFile bounds what is read of a file.
const maxFile = 4 << 20

// readSecret reads a regular file of bounded size. Its errors never hold content.
func readSecret(path string) ([]byte, error) {
	info, err := os.Stat(path) // before opening: a FIFO would block
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	fd, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	data, err := io.ReadAll(io.LimitReader(fd, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return data, nil
}

// readRoots reads certificates.
func readRoots(path string) (*x509.CertPool, error) {
	data, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s has no certificate in it: give one or more in PEM", path)
	}
	return pool, nil
}

// errNoToken says what a token is, and not what was found.
var errNoToken = errors.New("holds no token: a token has neither spaces nor control characters, and is ASCII")

// readToken reads a token: the line end is not part of it.
func readToken(path string) (string, error) {
	data, err := readSecret(path)
	if err != nil {
		return "", err
	}
	data = bytes.TrimSpace(data)
	switch {
	case len(data) == 0:
		return "", fmt.Errorf("%s is empty: write the node's token into it", path)
	case !printable(string(data)):
		return "", fmt.Errorf("%s %w", path, errNoToken)
	}
	return string(data), nil
}
