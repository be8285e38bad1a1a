// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"encoding/binary"
	"log/slog"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// message is a netlink message of one type, without a body.
func message(kind uint16) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	return b
}

// from is the control message that tells the namespace's id.
func from(id int32) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], uint32(id))
	return b
}

func watcher() *Watcher {
	to := make(chan Hint, 4)
	return &Watcher{C: to, to: to, log: slog.New(slog.DiscardHandler), cookies: map[int32]uint64{3: 77}}
}

func TestHeard(t *testing.T) {
	tests := []struct {
		name     string
		messages []byte
		control  []byte
		want     uint64 // 0: no hint
	}{
		{"a link removed in a pod", message(unix.RTM_DELLINK), from(3), 77},
		{"a filter removed in a pod", message(unix.RTM_DELTFILTER), from(3), 77},
		{"a qdisc removed in a pod", message(unix.RTM_DELQDISC), from(3), 77},
		{"a link made in a pod", message(unix.RTM_NEWLINK), from(3), 77},
		{"the second of two", append(message(unix.RTM_NEWTFILTER), message(unix.RTM_DELTFILTER)...), from(3), 77},
		{"a filter made in a pod", message(unix.RTM_NEWTFILTER), from(3), 0},
		{"a namespace that is no pod's", message(unix.RTM_DELLINK), from(4), 0},
		{"our own namespace", message(unix.RTM_DELLINK), nil, 0},
		{"a namespace without an id", message(unix.RTM_DELLINK), from(-1), 0},
		{"half a message", message(unix.RTM_DELLINK)[:7], from(3), 0},
		{"half a control message", message(unix.RTM_DELLINK), from(3)[:5], 0},
		{"nothing", nil, nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := watcher()
			w.heard(tt.messages, tt.control)
			var got uint64
			select {
			case h := <-w.C:
				got = h.Netns
			default:
			}
			if got != tt.want {
				t.Errorf("hint of namespace %d, want %d", got, tt.want)
			}
		})
	}
}

// A reader that is late costs hints, and never holds up the one who gives them.
func TestGiveDoesNotWait(t *testing.T) {
	w := watcher()
	for range cap(w.to) + 3 {
		w.give(Hint{New: true})
	}
	if len(w.C) != cap(w.to) {
		t.Errorf("%d hints, want %d", len(w.C), cap(w.to))
	}
}

func FuzzHeard(f *testing.F) {
	f.Add(message(unix.RTM_DELLINK), from(3))
	f.Add(message(unix.RTM_NEWLINK)[:5], from(3)[:9])
	f.Add([]byte{}, from(-1))
	f.Add([]byte{1, 0, 0, 0}, []byte{255, 255, 255, 255, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, messages, control []byte) {
		w := watcher()
		w.heard(messages, control)
		if len(w.C) > 1 {
			t.Errorf("%d hints of one datagram", len(w.C))
		}
	})
}
