// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kmesh/cni/optin"
	"kmesh/helper/pods/plan"
)

// Annotations by which the kubelet tells the UID that a static pod has on its node.
const (
	annotationHash   = "kubernetes.io/config.hash"
	annotationMirror = "kubernetes.io/config.mirror"
)

// trimPod leaves of a pod what podOf reads.
func trimPod(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	out := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion,
		DeletionTimestamp: p.DeletionTimestamp,
	}}
	for _, name := range append([]string{annotationHash, annotationMirror}, optin.AnnotationsRead...) {
		if value, ok := p.Annotations[name]; ok {
			if out.Annotations == nil {
				out.Annotations = make(map[string]string)
			}
			out.Annotations[name] = value
		}
	}
	out.Labels = p.Labels
	out.Spec.NodeName, out.Spec.HostNetwork, out.Spec.ServiceAccountName = p.Spec.NodeName, p.Spec.HostNetwork, p.Spec.ServiceAccountName
	out.Status.Phase, out.Status.PodIPs = p.Status.Phase, p.Status.PodIPs
	return out, nil
}

// trimNamespace leaves of a namespace its name and our labels.
func trimNamespace(o any) (any, error) {
	m, ok := o.(metav1.Object)
	if !ok {
		return o, nil // of a deletion that was missed
	}
	out := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: m.GetName(), ResourceVersion: m.GetResourceVersion()}}
	for _, name := range []string{optin.LabelMode, optin.LabelEnroll} {
		if value, ok := m.GetLabels()[name]; ok {
			if out.Labels == nil {
				out.Labels = make(map[string]string)
			}
			out.Labels[name] = value
		}
	}
	return out, nil
}

// same says whether a change is none for us.
func same(old, now any) bool {
	a, ok1 := old.(metav1.Object)
	b, ok2 := now.(metav1.Object)
	if !ok1 || !ok2 {
		return false
	}
	if p, ok := old.(*corev1.Pod); ok {
		q, ok := now.(*corev1.Pod)
		return ok && fmt.Sprint(podOf(p)) == fmt.Sprint(podOf(q))
	}
	return fmt.Sprint(a.GetLabels()) == fmt.Sprint(b.GetLabels())
}

// podOf is a pod as plan wants it.
func podOf(p *corev1.Pod) plan.Pod {
	out := plan.Pod{
		UID: string(p.UID), APIUID: string(p.UID), Namespace: p.Namespace, Name: p.Name,
		Annotations: p.Annotations, HostNetwork: p.Spec.HostNetwork, Labels: p.Labels, ServiceAccount: p.Spec.ServiceAccountName,
		Ending: p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}
	for _, name := range []string{annotationMirror, annotationHash} {
		if hash := p.Annotations[name]; hash != "" && p.Annotations[annotationMirror] != "" {
			out.UID = hash
		}
	}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out.Addrs = append(out.Addrs, a.Unmap())
		}
	}
	return out
}
