// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// screen prints: in colour and with a line of progress on a terminal, plain elsewhere. It counts what was claimed and
// what of it was not true.
type screen struct {
	w      io.Writer
	colour bool
	live   bool   // a terminal: progress may be written over
	busy   string // the line of progress that is on it
	begun  time.Time
	ok     int
	wrong  []string
}

func newScreen(f *os.File, noColor string, term string) *screen {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	tty := err == nil && term != "dumb"
	return &screen{w: f, live: tty, colour: tty && noColor == ""}
}

const (
	bold  = "1"
	faint = "2"
	green = "32"
	red   = "1;31"
	cyan  = "1;36"
)

func (s *screen) paint(code, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// clear takes the line of progress away.
func (s *screen) clear() {
	if s.live && s.busy != "" {
		fmt.Fprint(s.w, "\r\x1b[K")
	}
	s.busy = ""
}

// working says what goes on, until the next line; on a terminal only.
func (s *screen) working(format string, args ...any) {
	s.clear()
	s.begun = time.Now()
	s.busy = fmt.Sprintf(format, args...)
	if s.live {
		fmt.Fprint(s.w, s.paint(faint, "  ... "+s.busy))
	}
}

func (s *screen) printf(format string, args ...any) {
	s.clear()
	fmt.Fprintf(s.w, format+"\n", args...)
}

func (s *screen) title(format string, args ...any) {
	s.printf("\n%s", s.paint(cyan, fmt.Sprintf(format, args...)))
}

// claim prints a sentence and whether it was found true.
func (s *screen) claim(is bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if is {
		s.ok++
		s.printf("  %s  %s", s.paint(green, "ok"), text)
		return
	}
	s.wrong = append(s.wrong, text)
	s.printf("  %s  %s", s.paint(red, "WRONG"), text)
}

// table prints rows in columns; the first is the heading.
func (s *screen) table(rows ...[]string) {
	s.clear()
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 3, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(w, "  "+strings.Join(r, "\t"))
	}
	w.Flush()
	for i, line := range strings.Split(strings.TrimRight(text.String(), "\n"), "\n") {
		if line = strings.TrimRight(line, " "); i == 0 {
			line = s.paint(bold, line)
		}
		fmt.Fprintln(s.w, line)
	}
}

// bar is a share of a whole, of so many columns.
func bar(share float64, columns int) string {
	full := int(share*float64(columns) + 0.5)
	return strings.Repeat("█", full) + strings.Repeat("░", columns-full)
}

// spark is a line of shares, one column each; a blank where there is none (NaN).
func spark(shares []float64) string {
	levels := []rune("▁▂▃▄▅▆▇█")
	var line strings.Builder
	for _, share := range shares {
		if math.IsNaN(share) {
			line.WriteByte(' ')
			continue
		}
		line.WriteRune(levels[int(share*float64(len(levels)-1)+0.5)])
	}
	return line.String()
}

// verdict is the error of a demo that showed something untrue.
func (s *screen) verdict() error {
	if len(s.wrong) == 0 {
		return nil
	}
	return errors.New("not true: " + strings.Join(s.wrong, "; "))
}
