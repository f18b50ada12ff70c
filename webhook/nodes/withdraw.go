// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/kubepace/kubepace/bandwidth"
)

// FieldManager stands in managedFields where we have taken the resource from a node.
const FieldManager = "kubepace-withdraw"

// eventWithdrawn is the reason of the event on the node.
const eventWithdrawn = "EgressBandwidthWithdrawn"

const (
	// every is how often the Leases are looked at: of a thousand agents they are half a megabyte.
	every = 15 * time.Second
	// patience is how long one look, with all that comes of it, may take.
	patience = 30 * time.Second
)

// Options are what the job works with.
type Options struct {
	Client    client.Client // reads from the API server itself
	Namespace string        // of the Leases
	Events    typedcorev1.EventsGetter
	Log       logr.Logger
	Every     time.Duration // between looks; 15 s if zero
}

// Withdrawal looks at the Leases of the agents while this replica leads.
type Withdrawal struct {
	o        Options
	ledger   ledger
	recorder record.EventRecorder
}

// Add puts the job into a manager, for its leader.
func Add(mgr manager.Manager, o Options) error {
	if o.Every == 0 {
		o.Every = every
	}
	if err := mgr.Add(&Withdrawal{o: o}); err != nil {
		return fmt.Errorf("add withdrawal from nodes: %w", err)
	}
	return nil
}

// Start implements manager.Runnable.
func (w *Withdrawal) Start(ctx context.Context) error {
	broadcaster := record.NewBroadcaster(record.WithContext(context.WithoutCancel(ctx)))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: w.o.Events.Events("")})
	w.recorder = broadcaster.NewRecorder(w.o.Client.Scheme(), corev1.EventSource{Component: FieldManager})
	ticker := time.NewTicker(w.o.Every)
	defer ticker.Stop()
	for {
		if err := w.look(ctx, time.Now()); err != nil && ctx.Err() == nil {
			w.o.Log.Error(err, "agents' leases not looked at, trying again")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (w *Withdrawal) look(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var leases coordinationv1.LeaseList
	if err := w.o.Client.List(ctx, &leases, client.InNamespace(w.o.Namespace)); err != nil {
		w.ledger.reset()
		return fmt.Errorf("list leases: %w", err)
	}
	for _, lease := range w.ledger.expired(leases.Items, now) {
		if err := w.withdraw(ctx, lease); err != nil {
			return err
		}
	}
	return nil
}

// withdraw takes the resource from the node, then the Lease away. An agent that comes back meanwhile keeps its Lease, and
// advertises again as soon as it sees what became of its node.
func (w *Withdrawal) withdraw(ctx context.Context, lease *coordinationv1.Lease) error {
	name := nodeOf(lease)
	node := &corev1.Node{}
	err := w.o.Client.Get(ctx, client.ObjectKey{Name: name}, node)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("get node %s: %w", name, err)
	}
	_, has := node.Status.Capacity[bandwidth.Resource]
	_, offers := node.Status.Allocatable[bandwidth.Resource]
	if err == nil && (has || offers) {
		if err := w.take(ctx, node); err != nil {
			return err
		}
	}
	gone := client.Preconditions{UID: &lease.UID, ResourceVersion: &lease.ResourceVersion}
	if err := w.o.Client.Delete(ctx, lease, gone); client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete lease %s: %w", lease.Name, err)
	}
	return nil
}

func (w *Withdrawal) take(ctx context.Context, node *corev1.Node) error {
	none := map[string]any{bandwidth.Resource: nil}
	data, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": node.UID},
		"status":   map[string]any{"capacity": none, "allocatable": none},
	})
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	err = w.o.Client.Status().Patch(ctx, node.DeepCopy(), client.RawPatch(types.MergePatchType, data), client.FieldOwner(FieldManager))
	if err != nil {
		return fmt.Errorf("take %s from node %s: %w", bandwidth.Resource, node.Name, err)
	}
	message := "the agent's lease has run out: node advertises " + bandwidth.Resource + " no more, so that pods which need it go elsewhere; those that are bound to it stay, with their limits"
	w.o.Log.Info("withdrawn from a node whose agent is gone", "node", node.Name)
	// The kubelet names its node so, and "kubectl describe node" looks for that.
	w.recorder.Event(&corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: types.UID(node.Name)},
		corev1.EventTypeWarning, eventWithdrawn, message)
	return nil
}
