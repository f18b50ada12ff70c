// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/pods"
)

// Reasons of the events on the node.
const (
	eventAdvertised = "EgressBandwidthAdvertised"
	eventWithdrawn  = "EgressBandwidthWithdrawn"
)

const (
	// DefaultLease is how long a Lease outlives its last renewal: as long as an agent may take to be replaced by
	// another without anybody noticing.
	DefaultLease = time.Minute
	// every is how often everything is compared; a change of the node comes sooner.
	every = 5 * time.Second
	// settle gathers changes of the node.
	settle = 500 * time.Millisecond
	// patience is how long one request may take.
	patience = 10 * time.Second
	sysfs    = "/sys/class/net"
)

// Agent is what the advertiser wants to know of the agent: an *enforcer.Enforcer.
type Agent interface {
	Alive() bool
	Readiness() error
	Status() enforcer.Status // for the devices by which packets leave
}

var _ Agent = (*enforcer.Enforcer)(nil)

// Options for New. What is not marked optional is needed.
type Options struct {
	Config    *rest.Config
	Node      string
	Namespace string        // of the Lease
	Policy    Policy        // not Off
	Lease     time.Duration // DefaultLease if zero
	Agent     Agent
	Source    pods.Source          // of what is bound to the node
	Events    record.EventRecorder // optional
	Log       logr.Logger
}

// Advertiser keeps what the node advertises, and its Lease.
type Advertiser struct {
	opts  Options
	api   api
	cache cache.Cache
	wake  chan struct{}

	broken  time.Time // since when; zero while it is not
	renewed time.Time
	said    string // the latest note on the amount, logged once
	failed  bool   // the latest step
}

// New prepares an advertiser. It talks to the API server only once Run is called.
func New(o Options) (*Advertiser, error) {
	if o.Policy.Off() {
		return nil, errors.New("node: a policy of off leaves nothing to advertise")
	}
	if o.Lease == 0 {
		o.Lease = DefaultLease
	}
	clients, err := kubernetes.NewForConfig(o.Config)
	if err != nil {
		return nil, fmt.Errorf("configure client of the node: %w", err)
	}
	c, err := newCache(o.Config, o.Node)
	if err != nil {
		return nil, err
	}
	return &Advertiser{
		opts: o, cache: c, wake: make(chan struct{}, 1),
		api: api{clients: clients, node: o.Node, space: o.Namespace, lease: o.Lease},
	}, nil
}

// Run compares and renews until ctx ends. It withdraws nothing then: an agent that is replaced by another must not make
// its node's pods wait, and for one that does not come back the Lease runs out.
func (a *Advertiser) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return a.watch(ctx, func() {
			select {
			case a.wake <- struct{}{}:
			default:
			}
		})
	})
	group.Go(func() error {
		for {
			if err := a.step(ctx, time.Now()); ctx.Err() == nil {
				a.log(err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-a.wake:
				select { // not more often, whatever others do to the node
				case <-ctx.Done():
				case <-time.After(settle):
				}
			case <-time.After(min(every, a.opts.Lease/3)):
			}
		}
	})
	return group.Wait()
}

// log tells of the first failure in a row, and of its end.
func (a *Advertiser) log(err error) {
	switch {
	case err != nil && !a.failed:
		a.opts.Log.Error(err, "node not told, trying again")
	case err == nil && a.failed:
		a.opts.Log.Info("node told again")
	}
	a.failed = err != nil
}

// step renews the Lease where that is due, then brings what the node advertises to what it should be.
func (a *Advertiser) step(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	health, reason := healthOf(a.opts.Agent)
	if health != Broken {
		a.broken = time.Time{}
	} else if a.broken.IsZero() {
		a.broken = now
	}
	if health == Healthy && now.Sub(a.renewed) >= a.opts.Lease/3 {
		if err := a.api.renew(ctx); err != nil {
			return err
		}
		a.renewed = now
	}
	n := a.current(ctx)
	amount, known := a.amount()
	if !known && health == Healthy {
		return nil
	}
	switch decide(health, a.broken, now, n, amount) {
	case advertise:
		if err := a.api.set(ctx, n.UID, &amount); err != nil {
			return err
		}
		a.tell(corev1.EventTypeNormal, eventAdvertised, fmt.Sprintf("node advertises %s of %s", bits(amount), bandwidth.Resource))
	case withdraw:
		if err := a.api.set(ctx, n.UID, nil); err != nil {
			return err
		}
		a.tell(corev1.EventTypeWarning, eventWithdrawn,
			fmt.Sprintf("node advertises %s no more, so that pods which need it go elsewhere: %s", bandwidth.Resource, reason))
	case leave:
	}
	return nil
}

// amount is what the node should advertise. It is not known before all of the node's pods are.
func (a *Advertiser) amount() (int64, bool) {
	if a.opts.Policy.kind == kindUnbounded {
		return Unbounded, true // whatever is bound
	}
	snapshot := a.opts.Source.Snapshot()
	if !snapshot.Complete {
		return 0, false
	}
	var bound int64
	for _, pod := range snapshot.Pods {
		if !pod.Finished() {
			bound = min(bound+min(pod.Requested, Unbounded), Unbounded)
		}
	}
	amount, why := a.opts.Policy.Amount(a.links(), bound)
	if why != a.said {
		a.said = why
		if why != "" {
			a.opts.Log.Info("advertising another amount than asked for", "amount", bits(amount), "reason", why)
		}
	}
	return amount, true
}

func (a *Advertiser) links() []Link {
	if a.opts.Policy.kind != kindLink {
		return nil
	}
	var links []Link
	for _, d := range a.opts.Agent.Status().Exits {
		speed, err := speedOf(sysfs, d.Name)
		if err != nil {
			a.opts.Log.V(1).Info("speed not read", "device", d.Name, "reason", err.Error())
		}
		links = append(links, Link{Name: d.Name, Speed: speed})
	}
	return links
}

// tell logs, and puts an event on the node.
func (a *Advertiser) tell(kind, reason, message string) {
	a.opts.Log.Info(message, "node", a.opts.Node)
	if a.opts.Events != nil {
		a.opts.Events.Event(Reference(a.opts.Node), kind, reason, message)
	}
}

// Reference is the node as its kubelet names it in events: "kubectl describe node" looks for those.
func Reference(name string) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name, UID: types.UID(name)}
}

func bits(amount int64) string { return resource.NewQuantity(amount, resource.DecimalSI).String() }
