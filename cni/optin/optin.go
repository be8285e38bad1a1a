// SPDX-License-Identifier: Apache-2.0

// Package optin decides whether a pod is enrolled, from its annotations and from the last-known set of opted-in namespaces that the helper keeps on disk.
//
// Invariant: a pod that did not opt in never fails because of us. Only an annotation of the pod's own can make a decision an error; a namespace set that
// is missing or broken counts as empty, with a warning. What keeps a pod out of the mesh (Policies) never makes it fail.
package optin

import (
	"fmt"
	"strings"
)

// Annotations that are read.
const (
	// AnnotationEnroll on a pod is "true" or "false".
	AnnotationEnroll = "kmesh.net/enroll"
	// AnnotationOnUnready on a pod is "pass": start it ungoverned when the mesh is not ready; or "wait", which is also what holds without it,
	// unless the plugin's configuration says otherwise.
	AnnotationOnUnready = "kmesh.net/on-unready"
	// Marks of another mesh's data plane on a pod.
	annotationSidecar = "sidecar.istio.io/status"
	annotationAmbient = "ambient.istio.io/redirection"
)

// AnnotationsRead are all that Decide looks at.
var AnnotationsRead = []string{AnnotationEnroll, AnnotationOnUnready, annotationSidecar, annotationAmbient}

// Mode is what a namespace says of its pods.
type Mode string

// The modes. A namespace without one is not in the set.
const (
	// Enroll: pods are enrolled unless they say "false" (label istio.io/dataplane-mode: kmesh).
	Enroll Mode = "enroll"
	// Required: pods are enrolled even if they say "false" (label kmesh.net/enroll: required).
	Required Mode = "required"
)

// Labels of a namespace that are read, by the helper: the plugin is told of no labels.
const (
	// LabelMode with the value "kmesh" opts a namespace in.
	LabelMode = "istio.io/dataplane-mode"
	// LabelEnroll with the value "required" does so whatever its pods say.
	LabelEnroll = "kmesh.net/enroll"
)

// ModeOf reads a namespace's labels; "" is no mode. With an error, the label that has a value which means nothing is left out of account.
func ModeOf(labels map[string]string) (Mode, error) {
	var err error
	mode := Mode("")
	if labels[LabelMode] == "kmesh" { // any other value is another mesh's
		mode = Enroll
	}
	switch value, said := labels[LabelEnroll]; {
	case !said:
	case value == string(Required):
		mode = Required
	default:
		err = fmt.Errorf("label %s has value %q: set it to %q, or remove it and set %s to \"kmesh\"", LabelEnroll, value, Required, LabelMode)
	}
	return mode, err
}

// controlPlane are namespaces whose pods are never enrolled, whatever the set says: the mesh must not need itself to start.
var controlPlane = map[string]bool{"kube-system": true, "istio-system": true, "kmesh-system": true}

// Decision is the answer, with the reason in words.
type Decision struct {
	Enroll          bool
	PassWhenUnready bool
	Reason          string
	// Policies keep a pod out that would be enrolled: they are not enforced.
	Policies []string
}

// AnnotationError is a value that cannot be obeyed.
type AnnotationError struct {
	Annotation, Value, Remedy string
}

func (e *AnnotationError) Error() string {
	value := e.Value
	if len(value) > 40 {
		value = value[:40] + "..."
	}
	return fmt.Sprintf("pod annotation %s has value %q: %s", e.Annotation, value, e.Remedy)
}

// Decide answers for a pod of the namespace with these annotations. The order is: what may not be enrolled; a namespace that requires it; the pod's own
// word; the namespace's; no. Whom that enrols, a policy that is not enforced may keep out (Set.Policies).
func Decide(namespace string, annotations map[string]string, set Set) (Decision, error) {
	for _, a := range []string{annotationSidecar, annotationAmbient} {
		if _, ok := annotations[a]; ok {
			return Decision{Reason: "another data plane governs the pod: annotation " + a}, nil
		}
	}
	if controlPlane[namespace] || set.isControlPlane(namespace) {
		return Decision{Reason: "namespace " + namespace + " is the control plane's"}, nil
	}
	d := Decision{}
	mode := set.Namespaces[namespace]
	value, said := annotations[AnnotationEnroll]
	switch {
	case said && value != "true" && value != "false":
		return Decision{}, &AnnotationError{AnnotationEnroll, value, `set it to "true" or "false", or remove it`}
	case mode == Required:
		d = Decision{Enroll: true, Reason: "namespace " + namespace + " requires it"}
	case value == "true":
		d = Decision{Enroll: true, Reason: "pod annotation " + AnnotationEnroll}
	case value == "false":
		return Decision{Reason: "pod annotation " + AnnotationEnroll}, nil
	case mode == Enroll:
		d = Decision{Enroll: true, Reason: "namespace " + namespace + " opted in"}
	default:
		return Decision{Reason: "neither pod nor namespace opted in"}, nil
	}
	if names, why := set.Policies.About(namespace); len(names) > 0 {
		return Decision{Reason: why, Policies: names}, nil
	}
	switch value, said := annotations[AnnotationOnUnready]; {
	case !said, value == "wait":
	case value == "pass":
		d.PassWhenUnready = true
	default:
		return Decision{}, &AnnotationError{AnnotationOnUnready, value, `set it to "pass" or "wait", or remove it`}
	}
	return d, nil
}

// Unenforced is why a pod is kept out of the mesh by policies, in words.
func Unenforced(policies []string) string {
	return "policies that Kmesh does not enforce select it: " + strings.Join(policies, ", ")
}
