// SPDX-License-Identifier: Apache-2.0

// Package pods tells the enforcer which pods run on this node and what limit each asks for: from the API server, or
// from a folder of Pod manifests where there is no cluster.
package pods

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/cni"
	"github.com/kubepace/kubepace/enforcer/datapath"
)

// Origin is where a pod was found.
type Origin string

const (
	OriginAPI       Origin = "api"
	OriginManifests Origin = "manifests"
	// OriginCNI pods are known to the node only: the API server is away, or does not know them (any more).
	OriginCNI Origin = "cni"
)

// Pod is what the enforcer needs to know of a pod, whatever it came from.
type Pod struct {
	// Pod is who it is on this node. Its UID is the runtime's: of a static pod the hash of its manifest, not the UID of
	// its mirror at the API server; see Object.
	datapath.Pod
	// Object is the UID at the API server where it is another.
	Object string
	// StaticUID is what a mirror pod claims to be the UID of its static pod. Hostile: anybody may write it.
	StaticUID string
	// Rate is the limit; zero means none, unless Err is set.
	Rate bandwidth.Rate
	// Err says why the pod's limit cannot be read. The last good limit stays in force.
	Err error
	// IPs are the pod's addresses, as far as they are known.
	IPs []netip.Addr
	// Netns is a path of the pod's network namespace, or empty. Never set for pods from the API server.
	Netns string
	// Sandboxes are what the CNI result cache says of the pod, the newest first.
	Sandboxes   []cni.Sandbox
	HostNetwork bool
	// Terminating pods were asked to end; their network may go before they do.
	Terminating bool
	Phase       corev1.PodPhase
	Origin      Origin
	// Condition is ours, as the API server has it; nil where there is none.
	Condition *corev1.PodCondition
	// Requested is what the scheduler counts of our resource for this pod, in bits/s.
	Requested int64
}

// ObjectUID is the pod's UID at the API server.
func (p Pod) ObjectUID() string {
	if p.Object != "" {
		return p.Object
	}
	return p.UID
}

// Finished reports whether the pod's containers have ended for good; such a pod sends nothing, and its addresses may
// already belong to another.
func (p Pod) Finished() bool { return p.Phase == corev1.PodSucceeded || p.Phase == corev1.PodFailed }

// Limited reports whether the pod wants a limit, readable or not.
func (p Pod) Limited() bool { return !p.Finished() && (p.Rate != 0 || p.Err != nil) }

// Snapshot is all that a source knows at one moment.
type Snapshot struct {
	// Pods are sorted by namespace, name and UID, unlimited ones included.
	Pods []Pod
	// Complete means that a pod which is not in Pods is gone. While it is false (before the first sync, or with a
	// manifest that was never readable) no limit may be taken away for a missing pod.
	Complete bool
	// Problems are faults of the source that belong to no single pod, such as an unreadable manifest.
	Problems []error
}

// Source is a supply of this node's pods. Snapshot may be called from any goroutine.
type Source interface {
	// Run watches until ctx ends; it returns nil then.
	Run(ctx context.Context) error
	Snapshot() Snapshot
	// Changes receives a value after the snapshot changed; changes that nobody has read yet are merged.
	Changes() <-chan struct{}
}

// signal is a channel that merges unread notices into one.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) notify() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// FieldError names the field of a pod that is wrong.
type FieldError struct {
	Field string
	Err   error
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }
func (e *FieldError) Unwrap() error { return e.Err }

// uidPattern holds UIDs to what fits the kernel's maps and is safe to print.
var uidPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// annotationStaticUID is where the kubelet writes a static pod's UID, which is the hash of its manifest.
const annotationStaticUID = "kubernetes.io/config.hash"

// fromObject reads a pod. Whatever its annotations and status hold is hostile; a *FieldError is returned for a pod
// that cannot be used at all, and put into Pod.Err for a limit that cannot be read.
func fromObject(pod *corev1.Pod, origin Origin) (Pod, error) {
	p := Pod{
		Pod:         datapath.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)},
		HostNetwork: pod.Spec.HostNetwork,
		Terminating: pod.DeletionTimestamp != nil,
		Phase:       pod.Status.Phase,
		Origin:      origin,
		Condition:   condition(pod),
		Requested:   requested(pod),
	}
	if !uidPattern.MatchString(p.UID) {
		return Pod{}, &FieldError{"metadata.uid", fmt.Errorf("%q is not a usable UID", clip(p.UID))}
	}
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror && origin == OriginAPI {
		if hash := pod.Annotations[annotationStaticUID]; uidPattern.MatchString(hash) {
			p.StaticUID = hash
		}
	}
	if err := p.readIPs(pod); err != nil {
		return Pod{}, err
	}
	if text, ok := pod.Annotations[bandwidth.AnnotationEgress]; ok {
		rate, err := bandwidth.Parse(text)
		if err != nil {
			err = &FieldError{"metadata.annotations[" + bandwidth.AnnotationEgress + "]", err}
		}
		p.Rate, p.Err = rate, err
	}
	// In a cluster the author of a pod could point at a neighbour's namespace.
	if path, ok := pod.Annotations[bandwidth.AnnotationNetns]; ok && origin == OriginManifests {
		if !filepath.IsAbs(path) {
			return Pod{}, &FieldError{"metadata.annotations[" + bandwidth.AnnotationNetns + "]",
				fmt.Errorf("%q is not an absolute path", clip(path))}
		}
		p.Netns = filepath.Clean(path)
	}
	return p, nil
}

// readIPs merges status.podIPs and status.podIP.
func (p *Pod) readIPs(pod *corev1.Pod) error {
	add := func(field, text string) error {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return &FieldError{field, fmt.Errorf("%q is not an IP address", clip(text))}
		}
		ip = ip.Unmap().WithZone("")
		for _, known := range p.IPs {
			if known == ip {
				return nil
			}
		}
		p.IPs = append(p.IPs, ip)
		return nil
	}
	for i, entry := range pod.Status.PodIPs {
		if err := add(fmt.Sprintf("status.podIPs[%d].ip", i), entry.IP); err != nil {
			return err
		}
	}
	if pod.Status.PodIP == "" {
		return nil
	}
	return add("status.podIP", pod.Status.PodIP)
}

// clip keeps hostile text from filling the log.
func clip(text string) string {
	if len(text) > 64 {
		return text[:64] + "…"
	}
	return text
}

func compare(a, b Pod) int { return a.Pod.Compare(b.Pod) }
