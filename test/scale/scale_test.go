// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A small mesh: that the command works, and nothing of what it looks at has broken. `make scale` measures a large one.
func TestSmall(t *testing.T) {
	for _, scopes := range []int{1, 3} {
		t.Run(fmt.Sprint(scopes), func(t *testing.T) {
			o := options{services: 100, scopes: scopes, singles: 3, rate: 50, lasting: time.Second}
			if err := o.check(); err != nil {
				t.Fatal(err)
			}
			r := measure(t.Context(), o)
			t.Log(r.text())
			if r.err != nil {
				t.Error(r.err)
			}
		})
	}
}

// More changes than services could not all be looked for at the end.
func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		o    options
		want string
	}{
		{options{services: 100, rate: 98, lasting: time.Second}, ""},
		{options{services: 100, rate: 99, lasting: time.Second}, "-rate and -for"},
		{options{services: 100}, "-rate and -for"},
		{options{services: 2, rate: 1, lasting: time.Second}, "-services is 2"},
		{options{services: 1<<16 + 1, rate: 1, lasting: time.Second}, "-services is 65537"},
	} {
		err := tt.o.check()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: %v, want %q", tt.o, err, tt.want)
		}
	}
}
