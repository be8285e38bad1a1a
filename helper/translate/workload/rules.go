// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"google.golang.org/protobuf/reflect/protoreflect"

	"kmesh/helper/mesh"
)

// rule says what becomes of one field when it is populated.
type rule struct {
	class mesh.Class
	msg   string
	walk  bool // a container; its own fields get the verdicts
	skip  bool // the translation gives the verdict itself
}

var (
	enforced = rule{class: mesh.Enforced}
	harmless = rule{class: mesh.Default}
	inside   = rule{walk: true}
	code     = rule{skip: true}
)

func benign(msg string) rule    { return rule{class: mesh.Default, msg: msg} }
func ignored(msg string) rule   { return rule{class: mesh.UnsupportedAction, msg: msg} }
func condition(msg string) rule { return rule{class: mesh.UnsupportedCondition, msg: msg} }

const (
	msgLabel   = "a label in metrics and logs"
	msgExtra   = "extensions are not known here"
	msgPolicy  = "kept with its policy, whose own verdict says whether it is enforced"
	msgClear   = "mutual TLS is NOT ENFORCED: sent in clear"
	msgPodWay  = "connections to the workload's own address do not pass the waypoint: what it would do is NOT ENFORCED"
	msgGateway = "a gateway takes HBONE only, which is not spoken here: the workload is not chosen"
	msgNoName  = "a workload that has a name only is not chosen: names are not resolved here"
)

// table is the one place that says what is supported. A field that is not listed is not
// supported; so is one that is newer than this build.
var table = map[protoreflect.FullName]map[protoreflect.Name]rule{
	"istio.workload.Service": {
		"name":                 benign(msgLabel),
		"namespace":            enforced,
		"hostname":             enforced,
		"addresses":            inside,
		"ports":                inside,
		"subject_alt_names":    benign("TLS is not originated here: there is no certificate to verify"),
		"waypoint":             code,
		"weighted_waypoints":   code,
		"load_balancing":       inside,
		"ip_families":          enforced,
		"extensions":           ignored(msgExtra),
		"canonical":            benign("names are resolved by DNS"),
		"ingress_use_waypoint": benign("it is about ingress gateways"),
		"visibility":           ignored("clients of other namespaces are not kept away"),
	},
	"istio.workload.NetworkAddress": {
		"network": enforced,
		"address": enforced,
		"length":  enforced,
	},
	"istio.workload.Port": {
		"service_port": enforced,
		"target_port":  enforced,
		"app_protocol": enforced,
	},
	"istio.workload.LoadBalancing": {
		"routing_preference": enforced,
		"mode":               enforced,
		"health_policy":      enforced,
	},
	"istio.workload.Workload": {
		"name":                   benign(msgLabel),
		"namespace":              enforced,
		"addresses":              enforced,
		"network":                enforced,
		"tunnel_protocol":        ignored(msgClear),
		"trust_domain":           enforced,
		"service_account":        enforced,
		"waypoint":               ignored(msgPodWay),
		"node":                   enforced,
		"canonical_name":         benign(msgLabel),
		"canonical_revision":     benign(msgLabel),
		"workload_type":          benign(msgLabel),
		"workload_name":          benign(msgLabel),
		"native_tunnel":          benign("it is about tunnels, and there is none"),
		"authorization_policies": benign(msgPolicy),
		"status":                 enforced,
		"cluster_id":             enforced,
		"network_gateway":        ignored(msgGateway),
		"uid":                    enforced,
		"hostname":               code,
		"services":               inside,
		"application_tunnel":     benign("it is about tunnels, and there is none"),
		"locality":               inside,
		"network_mode":           enforced,
		"extensions":             ignored(msgExtra),
		"capacity":               enforced,
	},
	"istio.workload.PortList": {"ports": inside},
	"istio.workload.Locality": {
		"region":  enforced,
		"zone":    enforced,
		"subzone": enforced,
	},
	"istio.security.Authorization": {
		"name":       harmless,
		"namespace":  benign(msgPolicy),
		"scope":      benign(msgPolicy),
		"action":     benign(msgPolicy),
		"rules":      inside,
		"dry_run":    benign("it is only counted"),
		"extensions": ignored(msgExtra),
	},
	"istio.security.Rule":   {"clauses": inside},
	"istio.security.Clause": {"matches": inside},
	"istio.security.Match": {
		"namespaces":            benign(msgPolicy),
		"not_namespaces":        benign(msgPolicy),
		"principals":            benign(msgPolicy),
		"not_principals":        benign(msgPolicy),
		"source_ips":            benign(msgPolicy),
		"not_source_ips":        benign(msgPolicy),
		"destination_ips":       benign(msgPolicy),
		"not_destination_ips":   benign(msgPolicy),
		"destination_ports":     benign(msgPolicy),
		"not_destination_ports": benign(msgPolicy),
		"service_accounts":      benign(msgPolicy),
		"not_service_accounts":  benign(msgPolicy),
		"extensions":            condition(msgExtra + ": the match never matches"),
	},
}
