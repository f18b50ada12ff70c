// SPDX-License-Identifier: Apache-2.0

// Package enforcer makes the kernel keep the limits of this node's pods. One loop compares what is wanted (pods, their
// devices, the mode that the node allows) with what the kernel holds, and changes the difference. It is driven by
// levels, not by events: every pass compares all pods, an event only makes it come sooner; what the event cannot have
// changed is taken from memory, and a resync takes nothing from there. What is in the kernel when the agent starts is
// adopted, and what has no pod any more is removed once the source of pods is complete; an agent that stops leaves every
// limit in force.
package enforcer

import (
	"errors"
	"time"

	"github.com/go-logr/logr"

	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/pods"
	"github.com/kubepace/kubepace/enforcer/qdisc"
	"github.com/kubepace/kubepace/enforcer/rivals"
)

// Datapath is what the enforcer needs of the kernel state of pods.
type Datapath interface {
	// Set and Remove are called for several pods at once.
	Set(limit datapath.Limit) error
	Remove(uid string) error
	States() ([]datapath.State, error)
	// Known is what was set: States without counters and names of devices, and without a look at the kernel's maps and at
	// hooks that were found as they should be.
	Known() ([]datapath.State, error)
	Features() datapath.Features
	// Disturbed reports, cheaply, whether somebody took our program off a device or went before it.
	Disturbed() bool
	// Repairs are what Set put right since the last call.
	Repairs() []datapath.Repair
	// Early returns what attaches to a device that a pod may turn out to have, or nil; Expect prepares for so many pods whose
	// devices are to come. They are called beside the loop.
	Early(ifindex int) (attach func())
	Expect(pods int) error
}

var _ Datapath = (*datapath.Datapath)(nil)

// Qdiscs is what the enforcer needs of the devices where packets leave.
type Qdiscs interface {
	Sync(podVeths []int) (qdisc.Result, error)
}

var _ Qdiscs = (*qdisc.Manager)(nil)

// Scan is one round of look-ups of pods' devices.
type Scan interface {
	// Find and Whole are called for several pods at once.
	Find(q device.Query) (device.Found, error)
	Current(links []device.Link) bool
	// Whole reports, cheaply, whether a pod that is Current has the interfaces that it had.
	Whole(found device.Found) bool
	Close()
}

var _ Scan = (*device.Scan)(nil)

// Observer is told of each pod whose verdict changed, once per change: events, the pod's condition. It is called from
// the loop and must be quick.
type Observer interface {
	Changed(pod pods.Pod, v Verdict)
	// Released tells of a pod that had a verdict and wants no limit any more.
	Released(pod pods.Pod)
}

// Options for New. What is not marked optional is needed.
type Options struct {
	Source   pods.Source
	Datapath Datapath
	Qdiscs   Qdiscs
	// Scan starts a round of look-ups; anew: nothing is to be taken from an earlier one.
	Scan func(anew bool) (Scan, error)
	// Veths says that Qdiscs puts fq on devices that lead to pods, so that unlimited pods' devices are looked for as
	// well. Optional.
	Veths    bool
	Observer Observer // optional
	// Rivals finds other limiters; optional. OtherLimiters is what to do about them; rivals.StandDown if empty.
	Rivals        Rivals
	OtherLimiters rivals.Policy
	// Problems are what went wrong before, and keeps nobody from enforcing; they are shown in the status. Optional.
	Problems []error
	// Passed is told how long each pass took. Optional.
	Passed func(took time.Duration)
	// Compared is called after each full comparison. Optional.
	Compared func()
	Log      logr.Logger
	// StatusFile is written where something changed, at most four times a second. Optional.
	StatusFile string
	Identity   Identity
	Resync     time.Duration // full comparison; DefaultResync if zero
}

const (
	// DefaultResync finds what no event told of. With 250 pods it takes a twentieth of a second.
	DefaultResync = 3 * time.Minute
	// beatEvery is how often a loop that has nothing to do says that it turns.
	beatEvery = 30 * time.Second
	// lookInside is how many resyncs pass until a pod whose devices on the node are what they were is asked for its own
	// interfaces: a question for each pod, which may have to wait for others' changes of the network. All that it finds
	// is an interface that came to a pod later and leads elsewhere than to this node.
	lookInside = 3
	// settle gathers events that come together, such as those of one CNI ADD, into one pass.
	settle = 10 * time.Millisecond
	// syncAtLeast is how long the loop may put off a look at the devices where packets leave: after the last one, and
	// for pods that start.
	syncAtLeast = 500 * time.Millisecond
	// manyVeths is how many devices of pods make a look at all of them, or at those where packets leave, take so long that no
	// pod is to wait for it: the one asks for the filters of each, the other lists all qdiscs of the node.
	manyVeths = 8
	// writeAtMost is how often the status file is written, which with 250 pods takes as long as all else in a pass.
	writeAtMost = 250 * time.Millisecond
	// minRetry and maxRetry bound the wait before a pod whose device is missing is looked for again without an event.
	minRetry = 50 * time.Millisecond
	maxRetry = 15 * time.Second
	// failedRetry is the wait after a pass that could not even look.
	failedRetry = time.Second
	// grace is how long a pod may be without its device before anybody is told: a pod that starts is no fault.
	grace = 10 * time.Second
)

func (o *Options) validate() error {
	var errs []error
	missing := func(is bool, name string) {
		if is {
			errs = append(errs, errors.New("enforcer: Options."+name+" is missing"))
		}
	}
	missing(o.Source == nil, "Source")
	missing(o.Datapath == nil, "Datapath")
	missing(o.Qdiscs == nil, "Qdiscs")
	missing(o.Scan == nil, "Scan")
	if o.OtherLimiters != "" && !o.OtherLimiters.Valid() {
		errs = append(errs, errors.New("enforcer: Options.OtherLimiters is unknown"))
	}
	if o.Resync < 0 {
		errs = append(errs, errors.New("enforcer: Options.Resync is negative"))
	}
	return errors.Join(errs...)
}

// New returns an enforcer that does nothing until Run.
func New(opts Options) (*Enforcer, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if opts.Resync == 0 {
		opts.Resync = DefaultResync
	}
	return &Enforcer{
		opts:    opts,
		wake:    make(chan struct{}, 1),
		pods:    map[string]*podState{},
		rivals:  map[int]rivals.Rival{},
		repairs: map[datapath.Cause]uint64{},
		touched: map[int]bool{},
		status:  Status{Identity: opts.Identity},
		now:     time.Now,
		ready:   ErrStarting,
		beat:    beatEvery,
	}, nil
}
