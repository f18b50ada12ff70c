// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"errors"
	"fmt"
	"strings"

	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/qdisc"
)

// DecideMode says how this node keeps limits, and why in words for people: pacing where the kernel can stamp departure
// times and fq holds packets on every device by which they leave, policing otherwise. err is what finding those
// devices failed with, if it did.
func DecideMode(features datapath.Features, devices qdisc.Result, err error) (datapath.Mode, string) {
	var missing *qdisc.MissingError
	switch {
	case !features.Stamp:
		return datapath.ModePolicing, fmt.Sprintf("kernel %s cannot keep departure times (needs Linux 5.18)", features.Kernel)
	case errors.As(devices.Fq, &missing):
		return datapath.ModePolicing, fmt.Sprintf("kernel %s has no fq: %v", features.Kernel, missing)
	case err != nil:
		return datapath.ModePolicing, err.Error()
	case len(devices.Exits) == 0:
		return datapath.ModePolicing, "no device by which packets leave was found; --exit-devices names them"
	}
	var without []string
	for _, d := range devices.Exits {
		if !d.Paced {
			without = append(without, d.Name+": "+d.Reason)
		}
	}
	if len(without) > 0 {
		return datapath.ModePolicing, "no fq on " + strings.Join(without, "; ")
	}
	return datapath.ModePacing, "EDT with fq"
}
