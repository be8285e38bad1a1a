// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"kmesh/helper/mesh"
)

// What is not governed at all (connections that pods accept, listeners inside Envoy) is not
// governed in each of its fields: that is said once, or nobody would read it.

const (
	msgInbound    = "inbound traffic is not governed yet: only connections that pods make are"
	msgUnenforced = ": authorization is NOT ENFORCED"
)

func inbound(l *listenerv3.Listener) bool {
	return l.GetTrafficDirection() == corev3.TrafficDirection_INBOUND
}

// unserved tells whether nothing of a listener is ever served.
func unserved(l *listenerv3.Listener) bool { return inbound(l) || l.GetInternalListener() != nil }

// quiet leaves of what is not served the one verdict that says so. What is invalid stays.
func quiet(verdicts []mesh.Verdict) {
	for i := range verdicts {
		v := &verdicts[i]
		if v.Class != mesh.Invalid && v.Field != "traffic_direction" {
			v.Class, v.Message = mesh.Default, "the listener is not governed"
		}
	}
}

func direction(r *report, v protoreflect.Value) rule {
	switch corev3.TrafficDirection(v.Enum()) {
	case corev3.TrafficDirection_UNSPECIFIED:
		return harmless
	case corev3.TrafficDirection_OUTBOUND:
		return enforced
	}
	return condition(msgInbound + r.inbound)
}

// unenforced returns the authorization policies of an inbound listener; "" is one that has no
// name.
func unenforced(l *listenerv3.Listener) policies {
	found := policies{}
	if !inbound(l) {
		return found
	}
	for _, fc := range append(slices.Clone(l.GetFilterChains()), l.GetDefaultFilterChain()) {
		for _, f := range fc.GetFilters() {
			found.filter(f.GetTypedConfig())
		}
	}
	return found
}

// message says that they are not enforced; "" if there are none.
func (p policies) message() string {
	switch names := p.named(); {
	case len(p) == 0:
		return ""
	case len(names) == 0:
		return msgUnenforced
	default:
		return msgUnenforced + " (" + strings.Join(names, ", ") + ")"
	}
}

// named are those that have a name, sorted.
func (p policies) named() []string {
	names := slices.Sorted(maps.Keys(p))
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}

// of are the names of all of them, where they are in a listener.
func (p policies) of(listener string) []string {
	if names := p.named(); len(names) > 0 || len(p) == 0 {
		return names
	}
	return []string{"the authorization of listener " + listener}
}

// policies are the names of authorization policies; "" is one that has none.
type policies map[string]bool

// filter takes in the policies of a filter, and of those in it.
func (p policies) filter(packed *anypb.Any) {
	network, http, manager := &netrbacv3.RBAC{}, &httprbacv3.RBAC{}, &hcmv3.HttpConnectionManager{}
	switch {
	case packed.MessageIs(network):
		p.rules(packed, network, network.GetRules)
	case packed.MessageIs(http):
		p.rules(packed, http, http.GetRules)
	case packed.MessageIs(manager) && packed.UnmarshalTo(manager) == nil:
		for _, f := range manager.GetHttpFilters() {
			p.filter(f.GetTypedConfig())
		}
	}
}

// rules takes in what a filter enforces: one that only has shadow rules enforces nothing.
func (p policies) rules(packed *anypb.Any, into proto.Message, rules func() *rbacv3.RBAC) {
	if packed.UnmarshalTo(into) != nil {
		p[""] = true // what it would enforce is not known
		return
	}
	if rules() == nil {
		return
	}
	p[""] = true
	for name := range rules().GetPolicies() {
		p[policyName(name)] = true
	}
}

// istioPolicy is how Istio names a rule of an AuthorizationPolicy.
var istioPolicy = regexp.MustCompile(`^ns\[(.*)\]-policy\[(.*)\]-rule\[\d+\]$`)

func policyName(rule string) string {
	if m := istioPolicy.FindStringSubmatch(rule); m != nil {
		return m[1] + "/" + m[2]
	}
	return rule
}
