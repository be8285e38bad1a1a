// SPDX-License-Identifier: Apache-2.0

package resolve

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"kmesh/helper/mesh"
)

// maxAliases bounds a chain of CNAMEs, as other resolvers do.
const maxAliases = 16

// udpSize is the longest datagram that is read: some servers send more than they may.
const udpSize = 4096

// ask asks for a name: for each of the names that it may stand for by the search list,
// until one has an address.
func (r *Resolver) ask(ctx context.Context, lookup mesh.Lookup) found {
	ctx, cancel := context.WithTimeout(ctx, r.opts.Timeout)
	defer cancel()
	v4, v6 := lookup.Family != mesh.FamilyV6, lookup.Family != mesh.FamilyV4
	// Where no candidate can be asked for, no server needs to deny the name.
	const never = "it is too long for a name"
	whole := found{v4: unknown(v4, true, never), v6: unknown(v6, true, never)}
	conf, err := r.config.read()
	if err != nil {
		return found{v4: unknown(v4, false, err.Error()), v6: unknown(v6, false, err.Error())}
	}
	q := query{conf: conf, port: strconv.Itoa(int(r.opts.Port)), tcp: lookup.TCP}
	for _, candidate := range conf.NameList(lookup.Name) {
		if _, ok := dns.IsDomainName(candidate); !ok {
			continue // too long with this suffix
		}
		var one found
		var wg sync.WaitGroup
		if v4 {
			wg.Go(func() { one.v4 = q.ask(ctx, candidate, dns.TypeA) })
		}
		if v6 {
			wg.Go(func() { one.v6 = q.ask(ctx, candidate, dns.TypeAAAA) })
		}
		wg.Wait()
		if one.some() {
			return one
		}
		whole.v4.worse(one.v4)
		whole.v6.worse(one.v6)
		if ctx.Err() != nil {
			break
		}
	}
	return whole
}

// unknown is the reply about a family without an address, if it was asked for.
func unknown(asked, denied bool, why string) reply {
	if !asked {
		return reply{}
	}
	return reply{asked: true, denied: denied, why: why}
}

// worse takes in the reply for another candidate without an address. Where one of them
// is not known, nothing is known.
func (r *reply) worse(other reply) {
	if !r.asked || r.why != "" && !r.denied {
		return
	}
	r.denied, r.why = other.denied, other.why
}

// query asks the servers of a configuration.
type query struct {
	conf *dns.ClientConfig
	port string
	tcp  bool
}

// ask asks one question of one server after the other until one knows.
func (q query) ask(ctx context.Context, name string, qtype uint16) reply {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	last := reply{asked: true, why: "no answer"}
	for range max(q.conf.Attempts, 1) {
		silent := false
		for _, host := range q.conf.Servers {
			server := net.JoinHostPort(host, q.port)
			in, err := q.exchange(ctx, server, m)
			switch {
			case err != nil:
				silent = true
				last.why = from(server, reason(err))
			case in.Rcode == dns.RcodeNameError:
				return reply{asked: true, denied: true, why: from(server, "NXDOMAIN")}
			case in.Rcode != dns.RcodeSuccess:
				last.why = from(server, dns.RcodeToString[in.Rcode])
				if dns.RcodeToString[in.Rcode] == "" {
					last.why = from(server, "error "+strconv.Itoa(in.Rcode))
				}
			default:
				addrs, ttl, err := read(in, name, qtype)
				if err != nil {
					last.why = from(server, err.Error())
					continue
				}
				if len(addrs) == 0 {
					return reply{asked: true, denied: true, why: from(server, "no address")}
				}
				return reply{asked: true, addrs: addrs, ttl: ttl}
			}
			if ctx.Err() != nil {
				return last
			}
		}
		if !silent {
			break // all have answered, and would say the same again
		}
	}
	return last
}

// exchange asks by UDP, and by TCP what does not fit or cannot be read.
func (q query) exchange(ctx context.Context, server string, m *dns.Msg) (*dns.Msg, error) {
	m = m.Copy()
	m.Id = dns.Id()
	if !q.tcp {
		in, err := q.over(ctx, "udp", server, m)
		var silent net.Error
		if errors.As(err, &silent) || err == nil && !in.Truncated {
			return in, err
		}
	}
	return q.over(ctx, "tcp", server, m)
}

// over asks by one protocol.
func (q query) over(ctx context.Context, network, server string, m *dns.Msg) (*dns.Msg, error) {
	client := &dns.Client{Net: network, Timeout: time.Duration(max(q.conf.Timeout, 1)) * time.Second, UDPSize: udpSize}
	conn, err := client.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// The library heeds the context's deadline; this is for its end.
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	in, _, err := client.ExchangeWithConnContext(ctx, m, conn)
	if err != nil {
		return nil, err
	}
	return in, nil
}

// What is wrong with an answer.
var (
	errOther   = errors.New("an answer to another question")
	errAliases = errors.New("an endless chain of aliases")
)

// read reads the addresses of a name out of an answer, and how long they are good for:
// those at the end of its chain of aliases, in their order. What else the answer holds
// was not asked for.
func read(in *dns.Msg, name string, qtype uint16) ([]netip.Addr, time.Duration, error) {
	if !in.Response || len(in.Question) != 1 || in.Question[0].Qtype != qtype || !strings.EqualFold(in.Question[0].Name, name) {
		return nil, 0, errOther
	}
	ttl := uint32(1<<31 - 1)
	shorter := func(h *dns.RR_Header) {
		t := h.Ttl
		if t > 1<<31-1 {
			t = 0 // RFC 2181, section 8
		}
		ttl = min(ttl, t)
	}
	for range maxAliases {
		var addrs []netip.Addr
		alias := ""
		for _, rr := range in.Answer {
			h := rr.Header()
			if h.Class != dns.ClassINET || !strings.EqualFold(h.Name, name) {
				continue
			}
			var ip net.IP
			switch rr := rr.(type) {
			case *dns.A:
				ip = rr.A.To4()
			case *dns.AAAA:
				ip = rr.AAAA
			case *dns.CNAME:
				if alias == "" {
					alias = rr.Target
					shorter(h)
				}
				continue
			}
			addr, ok := netip.AddrFromSlice(ip)
			if h.Rrtype != qtype || !ok || addr.Unmap().IsUnspecified() {
				continue
			}
			shorter(h)
			if addr = addr.Unmap(); !slices.Contains(addrs, addr) {
				addrs = append(addrs, addr)
			}
		}
		if len(addrs) > 0 || alias == "" {
			return addrs, time.Duration(ttl) * time.Second, nil
		}
		name = alias
	}
	return nil, 0, errAliases
}

// reason says what went wrong, the same way each time: without the port that was used.
func reason(err error) string {
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded), errors.Is(err, net.ErrClosed):
		return "no answer in time"
	}
	return err.Error()
}
