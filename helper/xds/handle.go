// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"

	"kmesh/helper/mesh"
)

// handle applies one response, and answers it exactly once.
func (ss *session) handle(ctx context.Context, resp *response) error {
	t, sub := ss.srv.tables[resp.typeURL], ss.subs[resp.typeURL]
	if t == nil || !sub.asked {
		return ss.unasked(ctx, resp)
	}
	sub.nonce = resp.nonce
	update, bad := ss.read(t, resp)
	failed, missing := ss.failures(t, resp)
	update.Kept = append(update.Kept, failed...)
	if update.Complete && len(failed) > 0 {
		// What the server has an error about is not absent: its last good version
		// stays. So tell what is absent one by one.
		update.Complete = false
		update.Removed = t.others(update, failed)
	}
	bad.consumer(ss.consumer.Apply(ctx, update))
	if t.typ.ByName && len(failed)+len(missing) > 0 {
		ss.consumer.Absent(resp.typeURL, slices.Concat(failed, missing))
	}
	if absent := ss.record(t, sub, resp, update, bad); len(absent) > 0 {
		ss.consumer.Absent(resp.typeURL, absent)
	}
	detail := ""
	if !bad.none() {
		detail = bad.String()
		ss.log.Error("response rejected, its valid resources are used", "type", short(resp.typeURL), "version", resp.version, "err", trim(detail, maxReason*8))
	}
	if err := ss.answer(ctx, resp.typeURL, resp.version, ss.wire.answer(t, sub, resp, detail), detail != ""); err != nil {
		return err
	}
	return ss.subscribe(ctx)
}

// unasked refuses a response of a type that this stream has not asked for.
func (ss *session) unasked(ctx context.Context, resp *response) error {
	detail := trim(fmt.Sprintf("type %q was not asked for", trim(resp.typeURL, maxReason)), maxReason*2)
	ss.log.Error("response rejected", "err", detail)
	ss.srv.locked(func() {
		ss.srv.unasked = []mesh.Verdict{{Source: ss.target, Class: mesh.Invalid, Message: "response rejected: " + detail}}
	})
	// One key for all of them: a server may make up as many as it likes.
	return ss.answer(ctx, "", "", ss.wire.answer(nil, &subscription{}, resp, detail), true)
}

// read decodes a response. What cannot be decoded is blamed, and keeps absence from
// meaning removal: nobody knows which resource it was.
func (ss *session) read(t *table, resp *response) (Update, *blame) {
	u := Update{Type: t.typ.URL, Complete: resp.full && !t.typ.ByName}
	bad := newBlame()
	removed := map[string]bool{}
	for _, name := range resp.removed {
		removed[name] = true
	}
	first := map[string]int{}
	for i, it := range resp.items {
		if it.heartbeat {
			first[it.name], u.Complete = -1, false
			u.Kept = append(u.Kept, it.name)
			continue
		}
		at := "resources[" + strconv.Itoa(i) + "]"
		res, err := ss.decode(t, it)
		if err != nil {
			u.Complete, u.Kept = false, append(u.Kept, it.name)
			bad.add(ss.verdict(t.typ.URL, it.name, at, clean(err)))
			continue
		}
		refuse := func(field, msg string) {
			res.Invalid = append(res.Invalid, ss.verdict(t.typ.URL, res.Name, field, msg))
		}
		if removed[res.Name] {
			refuse("name", "is in resources and in removed_resources of one response")
		}
		if j, dup := first[res.Name]; dup && j >= 0 {
			refuse("name", "duplicate name in one response")
			u.Resources[j].Invalid = append(u.Resources[j].Invalid, res.Invalid...)
			continue
		}
		first[res.Name] = len(u.Resources)
		u.Resources = append(u.Resources, res)
	}
	for _, r := range u.Resources {
		for _, v := range r.Invalid {
			bad.add(v)
		}
	}
	for name := range removed {
		if _, given := first[name]; !given {
			u.Removed = append(u.Removed, name)
		}
	}
	slices.Sort(u.Removed)
	slices.SortFunc(u.Resources, func(a, b Resource) int { return strings.Compare(a.Name, b.Name) })
	return u, bad
}

// decode unpacks one resource.
func (ss *session) decode(t *table, it item) (Resource, error) {
	if it.err != nil {
		return Resource{}, it.err
	}
	return t.typ.Unpack(it.name, it.version, ss.target, it.packed)
}

// typePrefix is that of every type's URL.
const typePrefix = "type.googleapis.com/"

// failures records what the server says about resources that it does not give: the
// names of those with an error, and of those that do not exist.
func (ss *session) failures(t *table, resp *response) (failed, missing []string) {
	for _, e := range resp.errors {
		name := e.GetResourceName().GetName()
		if name == "" || t.typ.ByName && !ss.wants(t, name) {
			continue
		}
		delete(ss.deadlines, named{t.typ.URL, name})
		code := codes.Code(uint32(e.GetErrorDetail().GetCode()))
		if code == codes.NotFound {
			missing = append(missing, name)
			if t.typ.ByName {
				ss.srv.locked(func() { t.lack(name) })
			}
			continue
		}
		failed = append(failed, name)
		msg := trim(fmt.Sprintf("the server does not give it: %s: %s", code, e.GetErrorDetail().GetMessage()), maxReason)
		ss.srv.locked(func() { t.fail(name, msg, ss.verdict(t.typ.URL, name, "", msg)) })
	}
	return failed, missing
}

// wants tells whether this stream has asked for a name.
func (ss *session) wants(t *table, name string) bool {
	_, ok := slices.BinarySearch(ss.subs[t.typ.URL].names, name)
	return ok
}

// record takes what became of a response into the table. It returns the names that
// were asked for and that the server has said it does not have.
func (ss *session) record(t *table, sub *subscription, resp *response, u Update, bad *blame) (absent []string) {
	ss.srv.mu.Lock()
	defer ss.srv.mu.Unlock()
	ours := func(name string) bool { return !t.typ.ByName || ss.wants(t, name) }
	reject := func(name, version, why string) {
		if ours(name) {
			t.reject(name, version, why, bad.own[name])
			delete(ss.deadlines, named{t.typ.URL, name})
		}
	}
	if t.versionFrom != t.server {
		t.version, t.versionFrom = "", t.server
	}
	present := map[string]bool{}
	for _, r := range u.Resources {
		present[r.Name] = true
		if list := bad.named[r.Name]; len(list) > 0 {
			reject(r.Name, r.Version, reason(list))
		} else if bad.whole != "" {
			reject(r.Name, r.Version, trim(bad.whole, maxReason))
		} else if ours(r.Name) {
			t.accept(r.Name, r.Version)
			delete(ss.deadlines, named{t.typ.URL, r.Name})
		}
	}
	for name, list := range bad.named { // what could not be decoded
		if !present[name] {
			reject(name, versionOf(resp, name), reason(list))
		}
	}
	for _, name := range u.Removed {
		if !t.typ.ByName {
			delete(t.entries, name)
		} else if ours(name) {
			t.lack(name)
			delete(ss.deadlines, named{t.typ.URL, name})
			absent = append(absent, name)
		}
	}
	if u.Complete {
		for name := range t.entries {
			if !present[name] {
				delete(t.entries, name)
			}
		}
	}
	t.nameless = bad.nameless
	if bad.whole != "" {
		t.nameless = append(t.nameless, ss.verdict(t.typ.URL, "", "", "response rejected: "+trim(bad.whole, maxReason)))
	}
	ss.srv.heard()
	if bad.none() {
		t.version, t.lastError = resp.version, ""
		t.accepted++
	} else {
		t.lastError = trim(bad.String(), maxReason*8)
		t.rejected++
	}
	return absent
}

// versionOf is the version with which a resource was sent.
func versionOf(resp *response, name string) string {
	for _, it := range resp.items {
		if it.name == name {
			return it.version
		}
	}
	return resp.version
}
