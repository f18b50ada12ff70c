// SPDX-License-Identifier: Apache-2.0

// Package rivals tells whether somebody else on the node limits what a pod sends: Cilium's bandwidth manager, Calico's
// QoS controls, the CNI bandwidth plugin, or a policer. Judge decides from facts alone; Scanner gathers them and
// changes nothing.
package rivals

import (
	"fmt"
	"strings"
)

// Policy is what to do where another limiter is found.
type Policy string

const (
	// StandDown leaves the pod to the other limiter, and says so: two limiters in a row need more than either, and the
	// other one was there by somebody's decision.
	StandDown Policy = "stand-down"
	// TakeOver limits the pod as well, before the other limiter, which stays as it is. The smaller limit wins.
	TakeOver Policy = "take-over"
)

// Valid reports whether p is one of the policies.
func (p Policy) Valid() bool { return p == StandDown || p == TakeOver }

// Facts are what is known of one device that leads to a pod, and of the node where it matters.
type Facts struct {
	Device string
	// Redirect is where filters at the device's ingress send what the pod sends; nil where they do not.
	Redirect *Redirect
	// Policer describes a filter at the device's ingress that drops what is over a rate; "" for none.
	Policer string
	// Programs are the names of the eBPF programs at the device's ingress.
	Programs []string
	Cilium   Cilium
}

// Redirect is the target of a redirecting filter.
type Redirect struct {
	Device string // name
	Type   string // "ifb"
	Qdisc  string // kind of its root qdisc
}

// Cilium is what Cilium's bandwidth manager left on the node.
type Cilium struct {
	Throttle bool // its map of limits is pinned: it is switched on
	AtExit   bool // its program hangs where packets leave, which is where it keeps limits
	// Limited: its map holds a limit for the pod behind the device. Unknown where the maps could not be read.
	Limited, Unknown bool
}

// Rival is another limiter that is in charge of a device.
type Rival struct {
	Who    string // for people, such as "the CNI bandwidth plugin"
	How    string // what was seen
	Device string
	// Redirects: it takes packets to another device, where departure times are lost. What is limited before it can be
	// policed only.
	Redirects bool
}

// String is a reason as people read it.
func (r Rival) String() string {
	return fmt.Sprintf("%s limits what the pod sends (%s)", r.Who, r.How)
}

// The names by which limiters are known.
const (
	bandwidthPluginPrefix = "bwp"            // plugins/meta/bandwidth: bwp and a hash
	calicoPrefix          = "bwcali"         // felix: bwcali and a hash
	ciliumFromContainer   = "from_container" // cil_from_container; before 1.12 from-container, in the kernel from_container
)

// shapers are the qdiscs that hold back what is over a rate.
var shapers = map[string]bool{"tbf": true, "htb": true, "hfsc": true, "cake": true}

// Judge decides who is in charge of a device, if anybody is.
func Judge(f Facts) (Rival, bool) {
	switch {
	case f.Redirect != nil && shapers[f.Redirect.Qdisc]:
		return Rival{
			Who: shaperName(f.Redirect.Device), Device: f.Device, Redirects: true,
			How: fmt.Sprintf("%s on %s, to which %s redirects", f.Redirect.Qdisc, f.Redirect.Device, f.Device),
		}, true
	case f.Policer != "":
		return Rival{Who: "a policer", Device: f.Device, How: fmt.Sprintf("%s at the ingress of %s", f.Policer, f.Device)}, true
	case f.Cilium.inCharge(f.Programs):
		return Rival{
			Who: "Cilium's bandwidth manager", Device: f.Device,
			How: fmt.Sprintf("cilium_throttle holds its limit, and %s has Cilium's program", f.Device),
		}, true
	}
	return Rival{}, false
}

func shaperName(device string) string {
	switch {
	case strings.HasPrefix(device, calicoPrefix):
		return "Calico's QoS"
	case strings.HasPrefix(device, bandwidthPluginPrefix):
		return "the CNI bandwidth plugin"
	}
	return "somebody"
}

// inCharge: a pinned map alone does not limit anybody. Where Cilium is chained behind another CNI it may have taken the
// annotation and hold nothing (cilium/cilium#46431), so its program must be at both ends.
func (c Cilium) inCharge(programs []string) bool {
	if !c.Throttle || !c.AtExit || (!c.Limited && !c.Unknown) {
		return false
	}
	for _, name := range programs {
		if isCiliums(name) {
			return true
		}
	}
	return false
}

func isCiliums(program string) bool {
	return strings.Contains(strings.ReplaceAll(program, "-", "_"), ciliumFromContainer)
}
