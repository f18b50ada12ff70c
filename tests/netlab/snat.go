// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// ErrNoSNAT says that neither nft nor iptables could set source NAT up here.
var ErrNoSNAT = errors.New("needs nft or iptables, and a kernel with NAT")

// enableSNAT rewrites the source of what leaves by the uplink to the node's own address.
func (t *Topology) enableSNAT() error {
	nft := "table ip netlab { chain post { type nat hook postrouting priority 100; oifname " + Uplink + " masquerade; }; }"
	attempts := [][]string{
		{"nft", nft},
		{"iptables", "-w", "-t", "nat", "-A", "POSTROUTING", "-o", Uplink, "-j", "MASQUERADE"},
	}
	var errs []error
	for _, attempt := range attempts {
		// A child process starts in the namespace of the thread that forks it.
		err := t.Node.Do(func() error {
			out, err := exec.Command(attempt[0], attempt[1:]...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %w: %s", attempt[0], err, strings.TrimSpace(string(out)))
			}
			return nil
		})
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("%w: %w", ErrNoSNAT, errors.Join(errs...))
}
