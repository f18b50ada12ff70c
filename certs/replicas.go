// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// AnnotationServing holds, on a replica's Lease, the serial number of the certificate that it serves: its
// acknowledgement of a rotation. Empty: none yet.
const AnnotationServing = "kubepace.io/serving-certificate"

// replicaLabels tell replicas' Leases from the leader's and others'.
var replicaLabels = client.MatchingLabels{"app.kubernetes.io/name": "kubepace-webhook", "app.kubernetes.io/component": "replica"}

// presence is a replica's own Lease.
type presence struct {
	client   client.Client
	key      client.ObjectKey
	duration time.Duration // the Lease lapses so long after its last renewal
	clock    Clock
}

// report renews the Lease, with the serial of what is served.
func (p *presence) report(ctx context.Context, serial string) error {
	holder, seconds, now := p.key.Name, int32(max(1, p.duration/time.Second)), metav1.NewMicroTime(p.clock())
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.key.Name, Namespace: p.key.Namespace, Labels: replicaLabels, Annotations: map[string]string{AnnotationServing: serial},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &now},
	}
	patch, err := json.Marshal(lease)
	if err != nil {
		return fmt.Errorf("encode lease %s: %w", p.key, err)
	}
	err = p.client.Patch(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: p.key.Name, Namespace: p.key.Namespace}},
		client.RawPatch(types.MergePatchType, patch))
	if apierrors.IsNotFound(err) {
		err = p.client.Create(ctx, lease)
	}
	if err != nil {
		return fmt.Errorf("renew lease %s: %w", p.key, err)
	}
	return nil
}

// leave ends the Lease, so that nobody waits for this replica.
func (p *presence) leave(ctx context.Context) error {
	err := p.client.Delete(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: p.key.Name, Namespace: p.key.Namespace}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete lease %s: %w", p.key, err)
	}
	return nil
}

// register is the leader's view of all replicas.
type register struct {
	client    client.Client
	namespace string
	clock     Clock
	seen      map[types.UID]sighting
}

// sighting is when a version of a Lease was first seen here: whether it lapsed is told by one clock, not by two.
type sighting struct {
	version string
	at      time.Time
}

// waiting lists the replicas that do not serve the certificate, and how many there are at all. Lapsed Leases are
// deleted; a replica that was only cut off makes itself a new one.
func (r *register) waiting(ctx context.Context, serial string) (names []string, total int, err error) {
	leases := &coordinationv1.LeaseList{}
	if err := r.client.List(ctx, leases, client.InNamespace(r.namespace), replicaLabels); err != nil {
		return nil, 0, fmt.Errorf("list leases of replicas: %w", err)
	}
	seen := map[types.UID]sighting{}
	for i := range leases.Items {
		l := &leases.Items[i]
		s, known := r.seen[l.UID]
		if !known || s.version != l.ResourceVersion {
			s = sighting{l.ResourceVersion, r.clock()}
		}
		if d := l.Spec.LeaseDurationSeconds; d != nil && r.clock().Sub(s.at) > time.Duration(*d)*time.Second {
			err := r.client.Delete(ctx, l, client.Preconditions{UID: &l.UID, ResourceVersion: &l.ResourceVersion})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return nil, 0, fmt.Errorf("delete lapsed lease %s: %w", client.ObjectKeyFromObject(l), err)
			}
			if !apierrors.IsConflict(err) {
				continue
			}
		}
		seen[l.UID] = s
		total++
		if l.Annotations[AnnotationServing] != serial {
			names = append(names, l.Name)
		}
	}
	r.seen = seen
	slices.Sort(names)
	return names, total, nil
}
