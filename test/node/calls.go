// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"os/exec"
	"time"
)

// Call is one call of a plugin of the chain, as libcni makes it.
type Call struct {
	Plugin string    // "bridge", "kmesh-cni"
	Verb   string    // "ADD", "DEL" and so on
	Cmd    *exec.Cmd // before it is started, its standard input, environment and attributes may be changed

	// What came of it.
	Stdin, Stdout []byte
	Took          time.Duration // of the whole process
	Err           error
}

// Hook is told of calls. Either function may be nil.
type Hook struct {
	Before func(*Call)
	After  func(*Call)
}

type hookKey struct{}

// WithHook has the hook told of every call of a plugin that is made under the context returned, after those that ctx
// has already. It is called from the goroutine that makes the call.
func WithHook(ctx context.Context, h Hook) context.Context {
	all := hooksOf(ctx)
	return context.WithValue(ctx, hookKey{}, append(all[:len(all):len(all)], h))
}

func hooksOf(ctx context.Context) []Hook {
	all, _ := ctx.Value(hookKey{}).([]Hook)
	return all
}

func (c *Call) tell(hooks []Hook, which func(Hook) func(*Call)) {
	for _, h := range hooks {
		if f := which(h); f != nil {
			f(c)
		}
	}
}
