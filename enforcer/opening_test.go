// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
)

func TestNodeThatCannotEnforceSaysSo(t *testing.T) {
	w := newWorld(t)
	tries := 0
	opening := &Opening{Open: func() (*datapath.Datapath, error) {
		tries++
		return nil, &datapath.LacksError{Kernel: "4.4", What: "bpf(2)", Err: errors.New("create map: function not implemented")}
	}}
	left := datapath.State{Limit: datapath.Limit{Pod: datapath.Pod{UID: "uid-left"}, Rate: 5 * bandwidth.Megabit}}
	opening.Left = func() ([]datapath.State, error) { return []datapath.State{left}, nil }
	w.opts.Datapath = opening
	w.pod("a", "10M", "10.0.0.11")
	w.pod("host", "10M", "").HostNetwork = true
	w.pod("free", "", "10.0.0.12")
	w.pod("left", "10M", "10.0.0.13")
	w.pass(Resync)
	w.wantReason("left", false, "lacks bpf(2)", "the limit of 5M that an earlier agent set stays in the kernel")
	w.wantCodes(map[string]Code{"a": CodeKernelLacks, "host": CodeHostNetwork})
	w.wantReason("a", false, "kernel 4.4 lacks bpf(2)")
	if err := w.Readiness(); err == nil || !strings.Contains(err.Error(), "no limit can be set on this node") {
		t.Errorf("readiness %v; want the reason", err)
	}
	if w.exits.syncs != 0 {
		t.Error("qdiscs were changed on a node that cannot enforce")
	}
	if len(w.told) != 3 || w.Status().Mode != "none" {
		t.Errorf("told %q, mode %s; want all limited pods, none", w.told, w.Status().Mode)
	}
	w.pass(Resync)
	if tries != 2 || len(w.told) != 3 {
		t.Errorf("%d tries, told %q; want it tried again, and nobody told again", tries, w.told)
	}
	w.opts.Datapath = w.kernel // opened at last
	w.pass(Resync)
	w.wantLimit("a", "10M", datapath.ModePacing)
	w.wantCodes(map[string]Code{"a": CodePacing, "host": CodeHostNetwork})
	if err := w.Readiness(); err != nil {
		t.Errorf("readiness %v; want ready", err)
	}
	w.source.snapshot.Pods[0].Rate = 0
	w.pass(PodsChanged)
	if last := w.told[len(w.told)-1]; last != "a released" {
		t.Errorf("told %q; want a released", w.told)
	}
}

// TestKernelThatLacksTheHook: the program loads, and no device takes it.
func TestKernelThatLacksTheHook(t *testing.T) {
	w := newWorld(t)
	w.pod("a", "10M", "10.0.0.11")
	w.kernel.setErr = fmt.Errorf("pod default/a: %w", &datapath.LacksError{Kernel: "5.10", What: "sch_ingress", Err: errors.New("add clsact: no such file or directory")})
	w.pass(Resync)
	w.wantCodes(map[string]Code{"a": CodeKernelLacks})
	if err := w.Readiness(); err == nil || !strings.Contains(err.Error(), "lacks sch_ingress") {
		t.Errorf("readiness %v; want the reason", err)
	}
	w.kernel.setErr = nil // the module was loaded
	w.pass(Resync)
	if err := w.Readiness(); err != nil {
		t.Errorf("readiness %v; want ready", err)
	}
}
