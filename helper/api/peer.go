// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// peerCredentials lets callers in by the user that the kernel says they are. The
// connection itself stays as it is: it does not leave the machine.
type peerCredentials struct {
	allow   []uint32 // uids
	refused func(uid uint32, pid int32)
}

// Peer is who is calling.
type Peer struct {
	credentials.CommonAuthInfo
	UID uint32
	PID int32
}

// AuthType names the way in.
func (Peer) AuthType() string { return "peercred" }

// ServerHandshake lets conn in, or closes it.
func (p peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	peer, err := peerOf(conn)
	if err == nil && !slices.Contains(p.allow, peer.UID) {
		p.refused(peer.UID, peer.PID)
		err = fmt.Errorf("uid %d may not use this socket", peer.UID)
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, peer, nil
}

// peerOf asks the kernel who connected conn. It is the user at the time of
// connect(2): a descriptor handed on later keeps it.
func peerOf(conn net.Conn) (Peer, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return Peer{}, errors.New("not a unix socket")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, err
	}
	if credErr != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", credErr)
	}
	return Peer{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		UID:            cred.Uid,
		PID:            cred.Pid,
	}, nil
}

// ClientHandshake is not for clients: they need no credentials of their own.
func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials are the server's to check")
}

func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

func (p peerCredentials) Clone() credentials.TransportCredentials { return p }

func (peerCredentials) OverrideServerName(string) error { return nil }
