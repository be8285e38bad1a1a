// SPDX-License-Identifier: Apache-2.0

package lastgood

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"kmesh/helper/shelf"
	"kmesh/helper/xds"
)

// A file is a magic word, the version of what follows, the content, and the SHA-256 of all
// of that. In the content a number is a varint, a string its length and its bytes:
//
//	time of the last update (nanoseconds since 1970)
//	number of types; for each: URL, number of resources; for each: name, version, source, message
const (
	magic  = "kmeshxds"
	schema = 1
	// sealed is how many bytes there are around the content.
	sealed = len(magic) + 4 + sha256.Size
)

// errCut: the content ends before its time.
var errCut = errors.New("the content is cut short")

// content is what a file holds.
type content struct {
	updated time.Time
	types   []held
}

// held is what is held of one type.
type held struct {
	url   string
	items []item
}

// message is what was sent of a resource.
type message struct{ bytes []byte }

// messages are all that anybody holds of shared sources.
var messages shelf.Shelf[[sha256.Size]byte, message]

// item is one resource.
type item struct {
	name, version, source string
	raw                   *message
	// hosts are, of a RouteConfiguration that was taken apart, the virtual hosts, and raw
	// is the rest. They follow it in the file, as if it had not been.
	hosts []*xds.Host
}

// hostTag is before each virtual host in a RouteConfiguration.
var hostTag = protowire.AppendTag(nil, xds.HostsField, protowire.BytesType)

// size is that of the whole message.
func (it item) size() int {
	n := len(it.raw.bytes)
	for _, h := range it.hosts {
		n += len(hostTag) + protowire.SizeBytes(len(h.Raw))
	}
	return n
}

// same tells whether two are the same content. Virtual hosts that are equal are one.
func (it item) same(o item) bool {
	return it.version == o.version && it.source == o.source && (it.raw == o.raw || bytes.Equal(it.raw.bytes, o.raw.bytes)) && slices.Equal(it.hosts, o.hosts)
}

// encode writes a file; it returns its size.
func encode(w io.Writer, c content) (int64, error) {
	sum := sha256.New()
	out := &counter{w: w}
	buf := bufio.NewWriterSize(io.MultiWriter(out, sum), 1<<16)
	number := func(n uint64) { buf.Write(binary.AppendUvarint(buf.AvailableBuffer(), n)) }
	text := func(s string) {
		number(uint64(len(s)))
		buf.WriteString(s)
	}
	buf.WriteString(magic)
	buf.Write(binary.BigEndian.AppendUint32(buf.AvailableBuffer(), schema))
	number(uint64(c.updated.UnixNano()))
	number(uint64(len(c.types)))
	for _, t := range c.types {
		text(t.url)
		number(uint64(len(t.items)))
		for _, it := range t.items {
			text(it.name)
			text(it.version)
			text(it.source)
			number(uint64(it.size()))
			buf.Write(it.raw.bytes)
			for _, h := range it.hosts {
				buf.Write(hostTag)
				number(uint64(len(h.Raw)))
				buf.Write(h.Raw)
			}
		}
	}
	if err := buf.Flush(); err != nil { // the first error of all
		return out.n, err
	}
	_, err := out.Write(sum.Sum(nil))
	return out.n, err
}

// counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// decode reads a file. Nothing of it is used unless all of it is whole.
func decode(data []byte) (content, error) {
	if len(data) < sealed || string(data[:len(magic)]) != magic {
		return content{}, errors.New("it is no such file, or cut short")
	}
	if v := binary.BigEndian.Uint32(data[len(magic):]); v != schema {
		return content{}, fmt.Errorf("its schema version is %d, and this build reads %d", v, schema)
	}
	end := len(data) - sha256.Size
	if sum := sha256.Sum256(data[:end]); !bytes.Equal(sum[:], data[end:]) {
		return content{}, errors.New("its checksum is wrong: it is cut short or was changed")
	}
	r := reader{data[len(magic)+4 : end]}
	at, n := r.number(), r.count(2)
	if at > math.MaxInt64 {
		return content{}, errors.New("its time cannot be read")
	}
	c := content{updated: time.Unix(0, int64(at)).UTC()}
	for range n {
		t := held{url: r.text()}
		items := r.count(4)
		t.items = make([]item, 0, items)
		source := ""
		for range items {
			it := item{name: r.text(), version: r.text()}
			source = r.again(source)
			it.source, it.raw = source, &message{r.bytes()}
			t.items = append(t.items, it)
		}
		c.types = append(c.types, t)
	}
	switch {
	case r.left == nil:
		return content{}, errCut
	case len(r.left) > 0:
		return content{}, fmt.Errorf("%d bytes follow its content", len(r.left))
	}
	return c, nil
}

// reader reads content; after an error nothing is left, and that is nil.
type reader struct{ left []byte }

func (r *reader) number() uint64 {
	n, size := binary.Uvarint(r.left)
	if size <= 0 {
		r.left = nil
		return 0
	}
	r.left = r.left[size:]
	return n
}

// count reads how many things follow that have at least so many bytes each: no more than
// there can be.
func (r *reader) count(least int) int {
	n := r.number()
	if n > uint64(len(r.left)/least) {
		r.left = nil
		return 0
	}
	return int(n)
}

// some reads a length and returns what has it.
func (r *reader) some() []byte {
	n := r.number()
	if r.left == nil || n > uint64(len(r.left)) {
		r.left = nil
		return nil
	}
	out := r.left[:n]
	r.left = r.left[n:]
	return out
}

// bytes returns a copy, as text does: what is kept of a file does not keep all of it.
func (r *reader) bytes() []byte { return append([]byte{}, r.some()...) }

func (r *reader) text() string { return string(r.some()) }

// again is text that is mostly the same as the last time: it is not held twice.
func (r *reader) again(last string) string {
	if s := r.some(); string(s) != last {
		return string(s)
	}
	return last
}
