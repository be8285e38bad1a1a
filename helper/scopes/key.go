// SPDX-License-Identifier: Apache-2.0

package scopes

import (
	"maps"
	"slices"
	"strings"

	"kmesh/helper/mesh"
)

// volatile are the labels that controllers put on pods to tell them apart: no rule selects
// by them, and with them every pod, or every roll-out, would be a scope of its own.
var volatile = map[string]bool{
	"pod-template-hash":                        true,
	"pod-template-generation":                  true,
	"controller-revision-hash":                 true,
	"statefulset.kubernetes.io/pod-name":       true,
	"apps.kubernetes.io/pod-index":             true,
	"controller-uid":                           true,
	"job-name":                                 true,
	"batch.kubernetes.io/controller-uid":       true,
	"batch.kubernetes.io/job-name":             true,
	"batch.kubernetes.io/job-completion-index": true,
}

// KeyOf returns the scope of a pod.
func KeyOf(namespace, serviceAccount string, labels map[string]string) mesh.ScopeKey {
	if serviceAccount == "" {
		serviceAccount = "default"
	}
	var pairs []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if !volatile[k] {
			pairs = append(pairs, k+"="+labels[k])
		}
	}
	return mesh.ScopeKey{Namespace: namespace, Labels: strings.Join(pairs, ","), ServiceAccount: serviceAccount}
}

// LabelsOf returns the labels of a scope. Neither "," nor "=" is in a label's name or value.
func LabelsOf(k mesh.ScopeKey) map[string]string {
	if k.Labels == "" {
		return nil
	}
	out := make(map[string]string)
	for pair := range strings.SplitSeq(k.Labels, ",") {
		name, value, _ := strings.Cut(pair, "=")
		out[name] = value
	}
	return out
}

// wholeNamespace is the scope that pods of a namespace share above the cap.
func wholeNamespace(k mesh.ScopeKey) mesh.ScopeKey { return mesh.ScopeKey{Namespace: k.Namespace} }

// limit gives every wanted scope the one that its pods get: itself while there is room, or
// that of its namespace. Scopes that are open keep their place; the rest come in order.
func limit(wanted map[mesh.ScopeKey]bool, open func(mesh.ScopeKey) bool, most int) (get map[mesh.ScopeKey]mesh.ScopeKey, shared int) {
	keys := slices.SortedFunc(maps.Keys(wanted), func(a, b mesh.ScopeKey) int {
		if x, y := open(a), open(b); x != y {
			if x {
				return -1
			}
			return 1
		}
		return compare(a, b)
	})
	get = make(map[mesh.ScopeKey]mesh.ScopeKey, len(keys))
	for i, k := range keys {
		get[k] = k
		if i >= most {
			get[k] = wholeNamespace(k)
			shared++
		}
	}
	return get, shared
}

func compare(a, b mesh.ScopeKey) int {
	for _, c := range []int{
		strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.ServiceAccount, b.ServiceAccount), strings.Compare(a.Labels, b.Labels),
	} {
		if c != 0 {
			return c
		}
	}
	return 0
}
