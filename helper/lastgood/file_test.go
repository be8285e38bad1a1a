// SPDX-License-Identifier: Apache-2.0

package lastgood

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// sample is a small file's content.
func sample() content {
	return content{
		updated: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		types: []held{
			{"type.googleapis.com/a.B", []item{{"one", "v1", "server:1", &message{[]byte("bytes")}, nil}, {"two", "", "server:1", &message{[]byte{}}, nil}}},
			{"type.googleapis.com/c.D", []item{}},
		},
	}
}

func encoded(t testing.TB, c content) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := encode(&b, c)
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("%d of %d bytes: %v", n, b.Len(), err)
	}
	return b.Bytes()
}

// seal makes a file of any content.
func seal(body []byte) []byte {
	data := append(binary.BigEndian.AppendUint32([]byte(magic), schema), body...)
	sum := sha256.Sum256(data)
	return append(data, sum[:]...)
}

func TestFile(t *testing.T) {
	data := encoded(t, sample())
	got, err := decode(data)
	if err != nil || !reflect.DeepEqual(got, sample()) {
		t.Errorf("%+v, %v", got, err)
	}
	// Cut anywhere, or with any bit changed, it is not used.
	for n := range data {
		if _, err := decode(data[:n]); err == nil {
			t.Errorf("cut after %d bytes, it is read", n)
		}
		for bit := range 8 {
			other := bytes.Clone(data)
			other[n] ^= 1 << bit
			if _, err := decode(other); err == nil {
				t.Errorf("with bit %d of byte %d changed, it is read", bit, n)
			}
		}
	}
	if _, err := decode(append(data, 0)); err == nil {
		t.Error("with one byte more it is read")
	}
	// And neither is what has a right checksum and is wrong inside.
	body := data[len(magic)+4 : len(data)-sha256.Size]
	for n := range body {
		if _, err := decode(seal(body[:n])); err == nil {
			t.Errorf("with %d bytes of content it is read", n)
		}
	}
	for text, file := range map[string][]byte{
		"bytes follow": seal(append(bytes.Clone(body), 0)),
		"cut short":    seal(append(binary.AppendUvarint(nil, 1), binary.AppendUvarint(nil, 1<<60)...)),
		"its time":     seal(append(binary.AppendUvarint(nil, 1<<63), 0)),
		"schema version is 2": func() []byte {
			other := bytes.Clone(data[:len(data)-sha256.Size])
			other[len(magic)+3] = 2
			sum := sha256.Sum256(other)
			return append(other, sum[:]...)
		}(),
	} {
		if _, err := decode(file); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %q", err, text)
		}
	}
}

// FuzzDecode: no file makes the decoder fail otherwise than with an error, and what it reads
// is read again when it is written.
func FuzzDecode(f *testing.F) {
	data := encoded(f, sample())
	f.Add(data[len(magic)+4:len(data)-sha256.Size], true)
	f.Add(data, false)
	f.Add([]byte{}, true)
	f.Fuzz(func(t *testing.T, body []byte, sealed bool) {
		if sealed {
			body = seal(body)
		}
		c, err := decode(body)
		if err != nil {
			return
		}
		again, err := decode(encoded(t, c))
		if err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%+v became %+v: %v", c, again, err)
		}
	})
}

// BenchmarkFile writes and reads a mesh of 10,000 services and 100,000 workloads.
func BenchmarkFile(b *testing.B) {
	c := content{updated: time.Now(), types: []held{{url: "type.googleapis.com/istio.workload.Address"}}}
	for i := range 110_000 {
		c.types[0].items = append(c.types[0].items, item{fmt.Sprintf("Kubernetes//Pod/default/workload-%d", i), "0123456789abcdef", "istiod.istio-system.svc:15010", &message{make([]byte, 300)}, nil})
	}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			b.SetBytes(int64(len(encoded(b, c))))
		}
	})
	b.Run("write", func(b *testing.B) { // with the disk
		path := filepath.Join(b.TempDir(), folder, "x"+suffix)
		for b.Loop() {
			n, err := write(path, c, os.Rename)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(n)
		}
	})
	b.Run("collect", func(b *testing.B) { // what Apply may have to wait for
		k := &Keeper{opts: Options{Types: kinds()[:1]}, wake: make(chan struct{}, 1), types: map[string]*record{wild: {heard: true, items: map[string]item{}}}}
		for _, it := range c.types[0].items {
			k.types[wild].items[it.name] = it
		}
		for b.Loop() {
			k.dirty = true
			if got, _ := k.collect(); len(got.types[0].items) != len(c.types[0].items) {
				b.Fatal("something is missing")
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		data := encoded(b, c)
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := decode(data); err != nil {
				b.Fatal(err)
			}
		}
	})
}
