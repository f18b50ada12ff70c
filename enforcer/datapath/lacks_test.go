// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestExplain(t *testing.T) {
	var lacks *LacksError
	if err := explain(unix.ENOSYS); !errors.As(err, &lacks) || !strings.Contains(err.Error(), "lacks bpf(2) (CONFIG_BPF_SYSCALL)") || !errors.Is(err, unix.ENOSYS) {
		t.Errorf("%v; want what is lacking, and the cause", err)
	}
	// Being refused is not lacking, nor is a failure on a kernel that has everything.
	requireRoot(t)
	for _, err := range []error{unix.EPERM, unix.ENOMEM, ebpf.ErrMapIncompatible} {
		if got := explain(err); !errors.Is(got, err) || errors.As(got, &lacks) {
			t.Errorf("%v became %v; want it unchanged", err, got)
		}
	}
}

// TestUnknownKind: what the kernel answers to a kind of qdisc that it does not know, and to a device that it does not.
func TestUnknownKind(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		add := func(ifindex int) error {
			return netlink.QdiscAdd(&netlink.GenericQdisc{QdiscType: "kubepace_none", QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
			}})
		}
		var lacks *LacksError
		if err := lacksKind(add(1), "it"); !errors.As(err, &lacks) {
			t.Errorf("unknown kind: %v; want a LacksError", err)
		}
		if err := lacksKind(add(4711), "it"); err == nil || errors.As(err, &lacks) {
			t.Errorf("unknown device: %v; want another error", err)
		}
	})
}
