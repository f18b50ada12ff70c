// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"errors"
	"fmt"
	"testing"

	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
)

func TestCodeOf(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want Code
	}{
		"host network":  {device.ErrHostNetwork, CodeHostNetwork},
		"macvlan only":  {&device.NoHostVethError{Interfaces: []string{"eth0 (macvlan)"}}, CodeNoHostDevice},
		"not yet there": {&device.NoHostVethError{}, CodeDeviceNotFound},
		"no namespace":  {&device.NotFoundError{}, CodeDeviceNotFound},
		"two of them":   {&device.AmbiguousError{}, CodeAmbiguousAddress},
		"old kernel":    {fmt.Errorf("open datapath: %w", &datapath.LacksError{What: "bpf(2)", Err: errors.New("x")}), CodeKernelLacks},
		"anything else": {errors.New("no memory"), CodeFailed},
	} {
		if got := codeOf(c.err); got != c.want {
			t.Errorf("%s: %s; want %s", name, got, c.want)
		}
	}
}
