// SPDX-License-Identifier: Apache-2.0

package resolve

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"kmesh/helper/mesh"
)

// clock stands still unless a test moves it.
type clock struct {
	mu     sync.Mutex
	now    time.Time
	timers map[*timer]bool
}

type timer struct {
	at time.Time
	c  chan time.Time
}

func newClock() *clock {
	return &clock{now: time.Unix(1_000_000, 0), timers: map[*timer]bool{}}
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Timer(d time.Duration) (<-chan time.Time, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &timer{c.now.Add(d), make(chan time.Time, 1)}
	if d <= 0 {
		t.c <- c.now
	} else {
		c.timers[t] = true
	}
	return t.c, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.timers, t)
	}
}

// next waits until a timer is set, and returns how far away it is.
func (c *clock) next(t *testing.T) time.Duration {
	t.Helper()
	var d time.Duration
	eventually(t, "a timer is set", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for one := range c.timers {
			d = one.at.Sub(c.now)
		}
		return len(c.timers) > 0
	})
	return d
}

// forward moves the time.
func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	for t := range c.timers {
		if !t.at.After(c.now) {
			t.c <- c.now
			delete(c.timers, t)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// server is a name server on loopback, by UDP and TCP.
type server struct {
	port uint16
	hold chan struct{}
	mu   sync.Mutex
	// answer makes the answer to a question; nil: silence.
	answer func(q dns.Question, network string) *dns.Msg
	asked  []string // "name type network"
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{}
	udp, tcp := listenBoth(t)
	s.port = udp.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	for _, srv := range []*dns.Server{{PacketConn: udp, Handler: s}, {Listener: tcp, Handler: s}} {
		done := make(chan error, 1)
		up := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		go func() { done <- srv.ActivateAndServe() }()
		<-up
		t.Cleanup(func() {
			if err := srv.Shutdown(); err != nil {
				t.Error(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	return s
}

// listenBoth listens on one port by both protocols.
func listenBoth(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 50 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		if err == nil {
			return udp, tcp
		}
		tcp.Close()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

func (s *server) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	network := w.LocalAddr().Network()
	q := r.Question[0]
	s.mu.Lock()
	s.asked = append(s.asked, q.Name+" "+dns.TypeToString[q.Qtype]+" "+network)
	s.mu.Unlock()
	if s.hold != nil {
		<-s.hold
	}
	s.mu.Lock()
	var m *dns.Msg
	if s.answer != nil {
		m = s.answer(q, network)
	}
	s.mu.Unlock()
	if m != nil {
		m.Id, m.Response = r.Id, true
		if m.Question == nil {
			m.Question = r.Question
		}
		_ = w.WriteMsg(m)
	}
}

// set changes what the server answers.
func (s *server) set(answer func(q dns.Question, network string) *dns.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *server) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// records answers with the records that have the name and type of the question; a name
// that has none is denied.
func records(list ...string) func(dns.Question, string) *dns.Msg {
	return func(q dns.Question, _ string) *dns.Msg {
		m := new(dns.Msg)
		m.Rcode = dns.RcodeNameError
		for _, text := range list {
			rr, err := dns.NewRR(text)
			if err != nil {
				panic(err)
			}
			if strings.EqualFold(rr.Header().Name, q.Name) {
				m.Rcode = dns.RcodeSuccess
			}
			if rr.Header().Rrtype == q.Qtype || rr.Header().Rrtype == dns.TypeCNAME {
				m.Answer = append(m.Answer, rr)
			}
		}
		return m
	}
}

func code(rcode int) func(dns.Question, string) *dns.Msg {
	return func(dns.Question, string) *dns.Msg {
		return &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: rcode}}
	}
}

// bench is a resolver at work.
type bench struct {
	*Resolver
	t     *testing.T
	clock *clock
	conf  string

	mu      sync.Mutex
	answers []string // every one that was delivered: "name: addresses; problem"
}

// run runs a resolver against a server. Its chance is none: nothing is added to a time
// to wait, and nothing is taken from a backoff.
func run(t *testing.T, s *server, conf string, change ...func(*Options)) *bench {
	t.Helper()
	b := &bench{t: t, clock: newClock(), conf: filepath.Join(t.TempDir(), "resolv.conf")}
	if err := os.WriteFile(b.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	opts := Options{Config: b.conf, Port: s.port, Clock: b.clock, Random: func(time.Duration) time.Duration { return 0 }, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&opts)
	}
	b.Resolver = New(opts)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx, b.deliver) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) deliver(answers map[mesh.Lookup]mesh.Answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for l, a := range answers {
		text := l.Name + ":"
		for _, addr := range a.Addrs {
			text += " " + addr.String()
		}
		if a.Problem != "" {
			text += "; " + strings.ReplaceAll(a.Problem, fmt.Sprintf("127.0.0.1:%d", b.opts.Port), "S")
		}
		b.answers = append(b.answers, text)
	}
}

// want waits for the n-th answer, and compares it.
func (b *bench) want(n int, want string) {
	b.t.Helper()
	var got []string
	eventually(b.t, fmt.Sprintf("answer %d: %s", n, want), func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		got = slices.Clone(b.answers)
		return len(got) >= n
	})
	if got[n-1] != want || len(got) > n {
		b.t.Fatalf("answers %q, the last should be %q", got, want)
	}
}

// again waits until the resolver sleeps, checks for how long, and wakes it.
func (b *bench) again(want time.Duration) {
	b.t.Helper()
	if got := b.clock.next(b.t); got != want {
		b.t.Fatalf("asks again in %v, want %v", got, want)
	}
	b.clock.forward(want)
}

const one = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"

func lookup(name string) mesh.Lookup {
	return mesh.Lookup{Name: name, Family: mesh.FamilyV4, Refresh: 5 * time.Second, RespectTTL: true, FailureBase: 2 * time.Second, FailureMax: 20 * time.Second}
}

func TestTTL(t *testing.T) {
	for name, tc := range map[string]struct {
		records []string
		lookup  func(*mesh.Lookup)
		opts    func(*Options)
		want    time.Duration
	}{
		"of the record":              {records: []string{"a. 30 IN A 10.0.0.1"}, want: 30 * time.Second},
		"the shortest":               {records: []string{"a. 30 IN A 10.0.0.1", "a. 20 IN A 10.0.0.2"}, want: 20 * time.Second},
		"of an alias":                {records: []string{"a. 7 IN CNAME b.", "b. 30 IN A 10.0.0.1"}, want: 7 * time.Second},
		"zero is the refresh":        {records: []string{"a. 0 IN A 10.0.0.1"}, want: 5 * time.Second},
		"too long":                   {records: []string{"a. 864000 IN A 10.0.0.1"}, want: time.Hour},
		"too short":                  {records: []string{"a. 2 IN A 10.0.0.1"}, opts: func(o *Options) { o.MinTTL = 3 * time.Second }, want: 3 * time.Second},
		"shorter than the cluster's": {records: []string{"a. 2 IN A 10.0.0.1"}, lookup: func(l *mesh.Lookup) { l.MinTTL = 4 * time.Second }, want: 4 * time.Second},
		"not asked for":              {records: []string{"a. 30 IN A 10.0.0.1"}, lookup: func(l *mesh.Lookup) { l.RespectTTL = false }, want: 5 * time.Second},
		"a refresh of nothing":       {records: []string{"a. 30 IN A 10.0.0.1"}, lookup: func(l *mesh.Lookup) { l.RespectTTL, l.Refresh = false, time.Millisecond }, want: time.Second},
		"with jitter": {records: []string{"a. 30 IN A 10.0.0.1"}, lookup: func(l *mesh.Lookup) { l.Jitter = 4 * time.Second },
			opts: func(o *Options) { o.Random = func(n time.Duration) time.Duration { return n } }, want: 37 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.set(records(tc.records...))
			b := run(t, s, one, func(o *Options) {
				if tc.opts != nil {
					tc.opts(o)
				}
			})
			l := lookup("a")
			if tc.lookup != nil {
				tc.lookup(&l)
			}
			b.Watch([]mesh.Lookup{l})
			b.again(tc.want)
			// It is asked again then, and nothing has changed.
			eventually(t, "a second question", func() bool { return len(s.questions()) == 2 })
			b.again(tc.want)
			b.mu.Lock()
			defer b.mu.Unlock()
			if len(b.answers) != 1 {
				t.Errorf("answers %q, want one", b.answers)
			}
		})
	}
}

func TestFamilies(t *testing.T) {
	both := []string{"a. 30 IN A 10.0.0.1", "a. 30 IN AAAA 2001:db8::1", "a. 30 IN A 10.0.0.2"}
	for name, tc := range map[string]struct {
		family  mesh.Family
		records []string
		want    string
		asked   int
	}{
		"v4":                     {mesh.FamilyV4, both, "a: 10.0.0.1 10.0.0.2", 1},
		"v6":                     {mesh.FamilyV6, both, "a: 2001:db8::1", 1},
		"auto":                   {mesh.FamilyAuto, both, "a: 2001:db8::1", 2},
		"auto without v6":        {mesh.FamilyAuto, both[:1], "a: 10.0.0.1", 2},
		"v4 preferred":           {mesh.FamilyV4Preferred, both, "a: 10.0.0.1 10.0.0.2", 2},
		"v4 preferred but none":  {mesh.FamilyV4Preferred, both[1:2], "a: 2001:db8::1", 2},
		"all":                    {mesh.FamilyAll, both, "a: 10.0.0.1 10.0.0.2 2001:db8::1", 2},
		"not the one asked for":  {mesh.FamilyV6, both[:1], "a:; no address from S", 1},
		"mapped is v4":           {mesh.FamilyV6, []string{"a. 9 IN AAAA ::ffff:10.0.0.9"}, "a: 10.0.0.9", 1},
		"no host has 0.0.0.0":    {mesh.FamilyV4, []string{"a. 30 IN A 0.0.0.0"}, "a:; no address from S", 1},
		"a record that is twice": {mesh.FamilyV4, []string{both[0], both[0]}, "a: 10.0.0.1", 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.set(records(tc.records...))
			b := run(t, s, one)
			l := lookup("a")
			l.Family = tc.family
			b.Watch([]mesh.Lookup{l})
			b.want(1, tc.want)
			if got := s.questions(); len(got) != tc.asked {
				t.Errorf("asked %q, want %d questions", got, tc.asked)
			}
		})
	}
}

// TestFailures: what fails keeps the last known addresses, and is asked again after
// times that double; the first success ends that.
func TestFailures(t *testing.T) {
	good := records("a. 30 IN A 10.0.0.1")
	for name, tc := range map[string]struct {
		answer func(dns.Question, string) *dns.Msg
		why    string
	}{
		"SERVFAIL":         {code(dns.RcodeServerFailure), "SERVFAIL from S"},
		"REFUSED":          {code(dns.RcodeRefused), "REFUSED from S"},
		"an unknown code":  {code(14), "error 14 from S"},
		"silence":          {nil, "no answer in time from S"},
		"another question": {func(dns.Question, string) *dns.Msg { return new(dns.Msg).SetQuestion("b.", dns.TypeA) }, "an answer to another question from S"},
		"endless aliases":  {records("a. 30 IN CNAME b.", "b. 30 IN CNAME a."), "an endless chain of aliases from S"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			s.set(tc.answer)
			b := run(t, s, one)
			b.Watch([]mesh.Lookup{lookup("a")})
			b.want(1, "a:; "+tc.why)
			b.again(2 * time.Second)
			eventually(t, "a second question", func() bool { return len(s.questions()) >= 2 })
			b.again(4 * time.Second) // nothing is delivered: it is the same answer
			b.clock.next(t)          // the third question is answered
			s.set(good)
			b.again(8 * time.Second)
			b.want(2, "a: 10.0.0.1")
			s.set(tc.answer)
			b.again(30 * time.Second)
			b.want(3, "a: 10.0.0.1; "+tc.why+": the last known addresses stay")
			s.set(good)
			b.again(2 * time.Second)
			b.want(4, "a: 10.0.0.1")
		})
	}
}

// TestBackoffEnds: the longest wait is the cluster's.
func TestBackoffEnds(t *testing.T) {
	n := &name{lookup: lookup("a")}
	o := New(Options{Random: func(n time.Duration) time.Duration { return 0 }}).opts
	var got []time.Duration
	for range 6 {
		wait, _ := n.take(found{v4: reply{asked: true, why: "x"}}, &o)
		got = append(got, wait/time.Second)
	}
	if want := []time.Duration{2, 4, 8, 16, 20, 20}; !slices.Equal(got, want) {
		t.Errorf("waits %v, want %v", got, want)
	}
	o.Random = func(n time.Duration) time.Duration { return n }
	if wait, _ := n.take(found{v4: reply{asked: true, why: "x"}}, &o); wait != 10*time.Second {
		t.Errorf("the least wait is %v, want half of 20s", wait)
	}
}

// TestDenied: one denial is not believed, the second is.
func TestDenied(t *testing.T) {
	s := newServer(t)
	s.set(records("a. 30 IN A 10.0.0.1"))
	b := run(t, s, one)
	b.Watch([]mesh.Lookup{lookup("a")})
	b.want(1, "a: 10.0.0.1")
	s.set(records())
	b.again(30 * time.Second)
	b.want(2, "a: 10.0.0.1; NXDOMAIN from S: the last known addresses stay until it is said once more")
	s.set(records("a. 30 IN A 10.0.0.2"))
	b.again(2 * time.Second)
	b.want(3, "a: 10.0.0.2") // it came back: the count begins anew
	s.set(records("a. 30 IN AAAA ::1"))
	b.again(30 * time.Second)
	b.want(4, "a: 10.0.0.2; no address from S: the last known addresses stay until it is said once more")
	b.again(2 * time.Second)
	b.want(5, "a:; no address from S")
	s.set(records("a. 30 IN A 10.0.0.3"))
	b.again(4 * time.Second)
	b.want(6, "a: 10.0.0.3")
}

// TestDeniedAtOnce: a name that never had an address has none.
func TestDeniedAtOnce(t *testing.T) {
	s := newServer(t)
	s.set(records())
	b := run(t, s, one)
	b.Watch([]mesh.Lookup{lookup("a")})
	b.want(1, "a:; NXDOMAIN from S")
}

// TestFailureBetweenDenials: they are no denials in a row.
func TestFailureBetweenDenials(t *testing.T) {
	o := New(Options{}).opts
	denied := found{v4: reply{asked: true, denied: true, why: "NXDOMAIN"}}
	n := &name{lookup: lookup("a")}
	for i, f := range []found{
		{v4: reply{asked: true, addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}},
		denied,
		{v4: reply{asked: true, why: "SERVFAIL"}},
		denied,
	} {
		if n.take(f, &o); len(n.answer.Addrs) != 1 {
			t.Errorf("step %d: %+v", i, n.answer)
		}
	}
	if n.take(denied, &o); len(n.answer.Addrs) != 0 {
		t.Errorf("denied twice in a row: %+v", n.answer)
	}
}

// TestOneFamilyFails: its addresses stay, the other's are the newest.
func TestOneFamilyFails(t *testing.T) {
	s := newServer(t)
	s.set(records("a. 30 IN A 10.0.0.1", "a. 30 IN AAAA 2001:db8::1"))
	b := run(t, s, one)
	l := lookup("a")
	l.Family = mesh.FamilyAll
	b.Watch([]mesh.Lookup{l})
	b.want(1, "a: 10.0.0.1 2001:db8::1")
	s.set(func(q dns.Question, network string) *dns.Msg {
		if q.Qtype == dns.TypeAAAA {
			return code(dns.RcodeServerFailure)(q, network)
		}
		return records("a. 30 IN A 10.0.0.2")(q, network)
	})
	b.again(30 * time.Second)
	b.want(2, "a: 10.0.0.2 2001:db8::1; SERVFAIL from S: the last known addresses of that family stay")
	s.set(records("a. 30 IN A 10.0.0.2"))
	b.again(30 * time.Second)
	b.want(3, "a: 10.0.0.2")
}

// TestTruncated: what does not fit into a datagram comes by TCP.
func TestTruncated(t *testing.T) {
	s := newServer(t)
	var all []string
	for i := range 100 {
		all = append(all, fmt.Sprintf("a. 30 IN A 10.0.1.%d", i))
	}
	s.set(func(q dns.Question, network string) *dns.Msg {
		m := records(all...)(q, network)
		if network == "udp" {
			m.Truncated, m.Answer = true, m.Answer[:3]
		}
		return m
	})
	b := run(t, s, one)
	b.Watch([]mesh.Lookup{lookup("a")})
	var want strings.Builder
	want.WriteString("a:")
	for i := range 100 {
		fmt.Fprintf(&want, " 10.0.1.%d", i)
	}
	b.want(1, want.String())
	if got, want := s.questions(), []string{"a. A udp", "a. A tcp"}; !slices.Equal(got, want) {
		t.Errorf("asked %q, want %q", got, want)
	}
}

func TestTCPOnly(t *testing.T) {
	s := newServer(t)
	s.set(records("a. 30 IN A 10.0.0.1"))
	b := run(t, s, one)
	l := lookup("a")
	l.TCP = true
	b.Watch([]mesh.Lookup{l})
	b.want(1, "a: 10.0.0.1")
	if got := s.questions(); !slices.Equal(got, []string{"a. A tcp"}) {
		t.Errorf("asked %q", got)
	}
}

// TestFlapping: each answer counts, and what is gone from it is gone at once.
func TestFlapping(t *testing.T) {
	s := newServer(t)
	b := run(t, s, one)
	many, few := records("a. 30 IN A 10.0.0.1", "a. 30 IN A 10.0.0.2"), records("a. 30 IN A 10.0.0.2")
	s.set(many)
	b.Watch([]mesh.Lookup{lookup("a")})
	for i := range 6 {
		if i%2 == 0 {
			b.want(i+1, "a: 10.0.0.1 10.0.0.2")
			s.set(few)
		} else {
			b.want(i+1, "a: 10.0.0.2")
			s.set(many)
		}
		b.again(30 * time.Second)
	}
}

// TestSearchList: a short name stands for several, and one that has an address ends the
// search; ndots says which is first, a final dot that there is no search.
func TestSearchList(t *testing.T) {
	conf := "search x.test y.test\noptions ndots:2\n" + one
	for name, tc := range map[string]struct {
		ask     string
		records []string
		want    string
		asked   string
	}{
		"the first suffix":  {"a", []string{"a.x.test. 9 IN A 10.0.0.1"}, "a: 10.0.0.1", "a.x.test."},
		"the second suffix": {"a", []string{"a.y.test. 9 IN A 10.0.0.2"}, "a: 10.0.0.2", "a.x.test. a.y.test."},
		"itself at last":    {"a", []string{"a. 9 IN A 10.0.0.3"}, "a: 10.0.0.3", "a.x.test. a.y.test. a."},
		"itself first":      {"a.b.c", []string{"a.b.c. 9 IN A 10.0.0.4"}, "a.b.c: 10.0.0.4", "a.b.c."},
		"absolute":          {"a.", []string{"a.x.test. 9 IN A 10.0.0.1"}, "a.:; NXDOMAIN from S", "a."},
		"nowhere":           {"a", nil, "a:; NXDOMAIN from S", "a.x.test. a.y.test. a."},
		"in any case":       {"a", []string{"A.X.test. 9 IN A 10.0.0.5"}, "a: 10.0.0.5", "a.x.test."},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.set(records(tc.records...))
			b := run(t, s, conf)
			b.Watch([]mesh.Lookup{lookup(tc.ask)})
			b.want(1, tc.want)
			if got, want := strings.ReplaceAll(strings.Join(s.questions(), " "), " A udp", ""), tc.asked; got != want {
				t.Errorf("asked %q, want %q", got, want)
			}
		})
	}
}

// TestSecondServer: a server that does not answer, or fails, is not the last word.
func TestSecondServer(t *testing.T) {
	s := newServer(t)
	s.set(records("a. 30 IN A 10.0.0.1"))
	// Nobody listens at 127.0.0.2 on that port.
	b := run(t, s, "nameserver 127.0.0.2\n"+one)
	b.Watch([]mesh.Lookup{lookup("a")})
	b.want(1, "a: 10.0.0.1")
}

// TestConfigFollowed: resolv.conf is read again when it changes; what cannot be read
// leaves the last one in force.
func TestConfigFollowed(t *testing.T) {
	s := newServer(t)
	s.set(records("a.x.test. 30 IN A 10.0.0.1", "a.y.test. 30 IN A 10.0.0.2"))
	b := run(t, s, "# no server\n")
	b.Watch([]mesh.Lookup{lookup("a")})
	b.want(1, "a:; name servers: "+b.conf+" has no line that begins with nameserver")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(b.conf+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(b.conf+".new", b.conf); err != nil {
			t.Fatal(err)
		}
	}
	write("search x.test\n" + one)
	b.again(2 * time.Second)
	b.want(2, "a: 10.0.0.1")
	write("search y.test\n" + one)
	b.again(30 * time.Second)
	b.want(3, "a: 10.0.0.2")
	write("# no server\n")
	b.again(30 * time.Second)
	eventually(t, "a fourth round", func() bool { return len(s.questions()) >= 3 })
	if err := os.Remove(b.conf); err != nil {
		t.Fatal(err)
	}
	s.set(records("a.y.test. 30 IN A 10.0.0.3"))
	b.again(30 * time.Second)
	b.want(4, "a: 10.0.0.3")
}

// TestWatch: what is wanted no more is not asked for, and what is wanted again starts
// anew.
func TestWatch(t *testing.T) {
	s := newServer(t)
	s.set(records("a. 30 IN A 10.0.0.1", "b. 40 IN A 10.0.0.2"))
	b := run(t, s, one)
	b.Watch([]mesh.Lookup{lookup("a"), lookup("b")})
	eventually(t, "two answers", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.answers) == 2
	})
	b.Watch([]mesh.Lookup{lookup("b")})
	eventually(t, "only b is waited for", func() bool { return b.clock.next(t) == 40*time.Second })
	b.again(40 * time.Second)
	eventually(t, "b is asked for once more", func() bool { return len(s.questions()) == 3 })
	b.Watch([]mesh.Lookup{lookup("a"), lookup("b")})
	b.want(3, "a: 10.0.0.1")
}

// TestBounded: no more names are asked for at a time than may be, and the others get
// their turn.
func TestBounded(t *testing.T) {
	s := newServer(t)
	b := run(t, s, "nameserver 127.0.0.1\noptions timeout:30\n", func(o *Options) { o.Parallel, o.Timeout = 3, time.Minute })
	var list []mesh.Lookup
	for i := range 20 {
		list = append(list, lookup(fmt.Sprintf("n%d", i)))
	}
	s.set(func(q dns.Question, network string) *dns.Msg {
		return records(q.Name+" 30 IN A 10.0.0.1")(q, network)
	})
	s.hold = make(chan struct{}) // nobody is answered before it is closed
	b.Watch(list)
	eventually(t, "three questions", func() bool { return len(s.questions()) == 3 })
	b.Resolver.mu.Lock()
	left := len(b.queue)
	b.Resolver.mu.Unlock()
	if left != 17 {
		t.Errorf("%d names wait for their turn, want 17", left)
	}
	close(s.hold)
	eventually(t, "twenty answers", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.answers) == 20
	})
}

// TestEnd: the end of the context does not wait for a silent server.
func TestEnd(t *testing.T) {
	s := newServer(t)
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.1\noptions timeout:30\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := New(Options{Config: conf, Port: s.port, Timeout: time.Minute, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, func(map[mesh.Lookup]mesh.Answer) { t.Error("an answer after the end") }) }()
	r.Watch([]mesh.Lookup{lookup("a")})
	eventually(t, "a question", func() bool { return len(s.questions()) > 0 })
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it goes on")
	}
}

// FuzzRead: whatever a server sends, what is read out of it are addresses of the family
// that was asked for, each once, good for a time that is not negative.
func FuzzRead(f *testing.F) {
	for _, list := range [][]string{
		nil,
		{"a. 30 IN A 10.0.0.1", "a. 20 IN A 10.0.0.1"},
		{"a. 7 IN CNAME b.", "b. 30 IN A 10.0.0.1"},
		{"a. 30 IN CNAME b.", "b. 30 IN CNAME a."},
		{"a. 30 IN AAAA 2001:db8::1"},
		{"a. 4294967295 IN A 0.0.0.0", "b. 1 IN A 10.0.0.2"},
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			m := new(dns.Msg).SetQuestion("a.", qtype)
			m.Response = true
			for _, text := range list {
				rr, err := dns.NewRR(text)
				if err != nil {
					f.Fatal(err)
				}
				m.Answer = append(m.Answer, rr)
			}
			data, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data, qtype == dns.TypeAAAA)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, v6 bool) {
		m := new(dns.Msg)
		if m.Unpack(data) != nil {
			return
		}
		qtype := dns.TypeA
		if v6 {
			qtype = dns.TypeAAAA
		}
		addrs, ttl, err := read(m, "a.", qtype)
		if err != nil && (addrs != nil || ttl != 0) {
			t.Errorf("%v, and yet %v for %v", err, addrs, ttl)
		}
		if ttl < 0 {
			t.Errorf("good for %v", ttl)
		}
		seen := map[netip.Addr]bool{}
		for _, a := range addrs {
			if !a.IsValid() || a.IsUnspecified() || a.Is4In6() || !v6 && !a.Is4() || seen[a] {
				t.Errorf("%v among %v", a, addrs)
			}
			seen[a] = true
		}
	})
}
