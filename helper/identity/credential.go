// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// minHold is how long a certificate is kept before another is asked for, however soon
// it ends: a CA that gives moments must not be asked without pause.
const minHold = time.Second

// Credential is the certificate of one namespace: of one of its accounts that have a
// pod on this node. Which one does not matter to the control plane, which compares the
// namespace. While there are such accounts it is there or being asked for, and it is
// exchanged at half of its life.
type Credential struct {
	issuer    *Issuer
	namespace string
	log       *slog.Logger
	cancel    context.CancelFunc
	done      chan struct{} // closed when run has ended
	wake      chan struct{} // tells run that there may be something to do

	mu       sync.Mutex
	closed   bool
	accounts []string         // the first is asked for next
	held     *tls.Certificate // nil: none
	of       string           // the account of held
	next     time.Time        // when to ask
	failures int              // in a row
	problem  error            // of the last request; nil if it was answered
	asking   string           // the account that is being asked for; empty: none
	stop     context.CancelFunc
	change   chan struct{} // closed, and made anew, when something has changed
}

// Status is how the certificate of a namespace is, for people.
type Status struct {
	Namespace string
	// Account is whose certificate is held, and NotAfter when it ends; zero if none is.
	Account  string
	NotAfter time.Time
	// Problem says why there is none though there are accounts, or why the one that is
	// held is not exchanged, and what to do; empty if all is well.
	Problem string
	// Refused: there is none because the CA does not let this node ask for it.
	Refused bool
}

// SetAccounts tells which service accounts have pods of the namespace on this node. A
// certificate of another one is forgotten at once, with its key. What is no name of an
// account is left out, and is what the error tells of.
func (c *Credential) SetAccounts(accounts []string) error {
	var bad error
	var want []string
	for _, a := range slices.Compact(slices.Sorted(slices.Values(accounts))) {
		if isSubdomain(a) {
			want = append(want, a)
		} else {
			bad = errors.Join(bad, fmt.Errorf("identity: namespace %s: %q is no name of a service account: give a DNS subdomain", c.namespace, a))
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("identity: namespace %s: %w", c.namespace, ErrClosed)
	}
	has := func(a string) bool { return slices.Contains(want, a) }
	kept := slices.DeleteFunc(slices.Clone(c.accounts), func(a string) bool { return !has(a) })
	added := slices.DeleteFunc(slices.Clone(want), func(a string) bool { return slices.Contains(c.accounts, a) })
	if len(added) == 0 && len(kept) == len(c.accounts) {
		return bad
	}
	if c.asking != "" && !has(c.asking) {
		c.stop()
	}
	dropped := c.held != nil && !has(c.of)
	if dropped {
		c.log.Info("the account has no pod here any more, its certificate is forgotten", "account", c.of)
		c.held, c.of = nil, ""
	}
	if c.current(time.Now()) == nil && (dropped || len(added) > 0) {
		// Who is new has not been refused yet.
		c.accounts, c.next, c.failures = append(added, kept...), time.Now(), 0
	} else {
		c.accounts = append(kept, added...)
	}
	if len(c.accounts) == 0 {
		c.problem = nil
	}
	c.changed()
	return bad
}

// Certificate returns the newest certificate, or says why there is none. It must not be
// changed.
func (c *Credential) Certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.certificate()
}

// GetClientCertificate is Certificate, for a tls.Config.
func (c *Credential) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return c.Certificate()
}

// certificate does so; mu is held.
func (c *Credential) certificate() (*tls.Certificate, error) {
	if cert := c.current(time.Now()); cert != nil {
		return cert, nil
	}
	var why error
	switch {
	case c.closed:
		why = ErrClosed
	case len(c.accounts) == 0:
		why = errors.New("no service account of it has a pod on this node")
	case c.problem != nil:
		why = c.problem
	default:
		why = errors.New("it is being asked for")
	}
	return nil, fmt.Errorf("identity: namespace %s has no certificate: %w", c.namespace, why)
}

// current returns what is held and has not expired; mu is held.
func (c *Credential) current(now time.Time) *tls.Certificate {
	if c.held == nil || now.After(c.held.Leaf.NotAfter) {
		return nil
	}
	return c.held
}

// Wait returns when there is a certificate. When ctx ends before, or the credential is
// closed, the error says why there is none.
func (c *Credential) Wait(ctx context.Context) error {
	for {
		c.mu.Lock()
		_, err := c.certificate()
		change, closed := c.change, c.closed
		c.mu.Unlock()
		if err == nil || closed {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-change:
		}
	}
}

// Status says how the certificate is.
func (c *Credential) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := Status{Namespace: c.namespace}
	if cert := c.current(time.Now()); cert != nil {
		out.Account, out.NotAfter = c.of, cert.Leaf.NotAfter
		if c.problem != nil {
			out.Problem = "the certificate is not exchanged: " + c.problem.Error()
		}
	} else if len(c.accounts) > 0 {
		_, err := c.certificate()
		var a *answer
		out.Problem, out.Refused = err.Error(), errors.As(err, &a) && a.trust
	}
	return out
}

// Close forgets the certificate and its key, and ends what is under way.
func (c *Credential) Close() {
	c.issuer.forget(c)
	c.mu.Lock()
	if !c.closed {
		c.closed, c.accounts, c.held, c.of, c.problem = true, nil, nil, "", nil
		c.changed()
	}
	c.mu.Unlock()
	c.cancel()
	<-c.done
}

// changed tells who waits; mu is held.
func (c *Credential) changed() {
	close(c.change)
	c.change = make(chan struct{})
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run asks whenever it is time, until ctx ends.
func (c *Credential) run(ctx context.Context) {
	defer close(c.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(c.due())
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
			c.renew(ctx)
		}
	}
}

// due returns how long there is nothing to do.
func (c *Credential) due() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.accounts) == 0 {
		return time.Hour
	}
	return max(time.Until(c.next), 0)
}

// renew asks for a certificate of the account whose turn it is.
func (c *Credential) renew(parent context.Context) {
	ctx, stop := context.WithCancel(parent)
	defer stop()
	c.mu.Lock()
	if len(c.accounts) == 0 || time.Now().Before(c.next) {
		c.mu.Unlock()
		return
	}
	account := c.accounts[0]
	c.asking, c.stop = account, stop
	c.mu.Unlock()

	cert, err := c.issuer.ask(ctx, c.namespace, account)

	c.mu.Lock()
	defer c.mu.Unlock()
	c.asking, c.stop = "", nil
	if ctx.Err() != nil { // closed, or the account has gone meanwhile: what came is not held
		return
	}
	if err != nil {
		c.refused(account, err)
	} else {
		c.take(account, cert)
	}
	c.changed()
}

// refused records that there was no certificate, and gives the turn to the next
// account; mu is held.
func (c *Credential) refused(account string, err error) {
	known := c.problem != nil && errors.Unwrap(c.problem).Error() == err.Error()
	c.problem = fmt.Errorf("account %s: %w", account, err)
	delay := backoff(c.failures)
	c.failures++
	c.next = time.Now().Add(delay)
	c.accounts = append(without(c.accounts, account), account)
	level := slog.LevelWarn
	if known { // once is enough
		level = slog.LevelDebug
	}
	c.log.Log(context.Background(), level, "no certificate", "account", account, "err", err, "next", c.accounts[0], "in", delay.Round(time.Millisecond))
}

// take records the certificate of an account; mu is held.
func (c *Credential) take(account string, cert *tls.Certificate) {
	c.held, c.of, c.problem, c.failures = cert, account, nil, 0
	// Half of what is left, give or take a twentieth: the nodes of a mesh that began
	// together must not ask together.
	left := max(time.Until(cert.Leaf.NotAfter), 0)
	hold := max(left*9/20+rand.N(left/10+1), minHold)
	c.next = time.Now().Add(hold)
	c.accounts = append([]string{account}, without(c.accounts, account)...)
	c.log.Info("certificate", "account", account, "until", cert.Leaf.NotAfter, "next", hold.Round(time.Millisecond))
}

// without returns the other accounts.
func without(accounts []string, account string) []string {
	return slices.DeleteFunc(slices.Clone(accounts), func(a string) bool { return a == account })
}

// backoff returns how long to wait after so many failures before this one: between half
// and all of a step that doubles.
func backoff(failures int) time.Duration {
	step := backoffMax
	if failures < 16 {
		step = min(backoffBase<<failures, backoffMax)
	}
	return step/2 + rand.N(step/2+1)
}
