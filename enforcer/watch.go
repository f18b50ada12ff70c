// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"context"
	"os"

	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/internal/rtnl"
	"github.com/kubepace/kubepace/enforcer/internal/rundir"
)

// WatchNode pokes the loop at each change of the node's devices, routes, qdiscs and filters, until ctx ends.
func (e *Enforcer) WatchNode(ctx context.Context, f *device.Finder) error {
	everything := DevicesChanged | RoutesChanged | QdiscsChanged
	return f.WatchNode(ctx, func() { e.Poke(everything) }, func(c rtnl.Change) {
		switch c {
		case rtnl.ChangeLink:
			e.Poke(DevicesChanged)
		case rtnl.ChangeRoute:
			e.Poke(RoutesChanged)
		case rtnl.ChangeTC:
			e.Poke(QdiscsChanged)
		case rtnl.ChangeLost, rtnl.ChangeWhole:
			e.Poke(everything)
		}
	})
}

// ErrLocked means that another agent, or a cleanup, works with this run folder.
var ErrLocked = rundir.ErrLocked

// Lock takes the run folder for an agent, until the file is closed or the process ends. Its error wraps ErrLocked
// where another holds it.
func Lock(runDir string) (*os.File, error) { return rundir.Lock(runDir) }
