// SPDX-License-Identifier: Apache-2.0

package automaton

import "encoding/binary"

// The layout of a Program: bpf/table.h has the same.
const (
	// Align is what the place of a Program has to be a multiple of.
	Align = 128
	magic = 0x314d414b // "KAM1"

	actBit   = 0x8000 // of an entry: the rest is the number of an action
	noDim    = 0xff
	noOffset = 0
)

// Offsets of the header's words.
const (
	hMagic = 4 * iota
	hSize
	hGroups
	hActions
	hFinals
	hDims
	hRecords
	hDense
	hPairs
	hEmits
	hEmitWords
	hPathHits
	hRouteConds
	hConds
	hNumbers // words:16 asked:8 told:8
	hStart   // state:16 class:8 path:8
	hGrammar // host:8 length:8 coding:8 upgrade:8
	hMore    // hit words:8 method:8 has conditions:8 response:8
	hSkip    // state in a value that nobody asks about:16, in such a name:16
	hLine    // state at the beginning of a line:16, action at the end of a path:16
	headerSize
)

// Sizes of records.
const (
	groupSize  = 256 + 8
	actionSize = 32
	dimSize    = 16
	recordSize = 16
	pairSize   = 16
)

// Program is a compiled virtual host, as the kernel reads it. It has no pointers
// and may lie anywhere.
type Program struct {
	Bytes []byte
	Stats Stats
}

// Stats are the sizes of a Program.
type Stats struct {
	States     int // rows of the table
	Dimensions int
	Sets       int
	Actions    int
	Hits       int
	TableBytes int
	Bytes      int
}

// SizeOf returns the length of the Program that b begins with, 0 if it is none.
func SizeOf(b []byte) int {
	if len(b) < headerSize || binary.LittleEndian.Uint32(b[hMagic:]) != magic {
		return 0
	}
	if n := int(binary.LittleEndian.Uint32(b[hSize:])); n <= len(b) {
		return n
	}
	return 0
}

func (p *Program) u32(at int) int { return int(binary.LittleEndian.Uint32(p.Bytes[at:])) }
func (p *Program) u16(at int) int { return int(binary.LittleEndian.Uint16(p.Bytes[at:])) }
func (p *Program) u8(at int) int  { return int(p.Bytes[at]) }
func (p *Program) u64(at int) uint64 {
	return binary.LittleEndian.Uint64(p.Bytes[at:])
}
