// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestDumpRepeatsInterrupted(t *testing.T) {
	calls := 0
	got, err := Dump(func() ([]int, error) {
		if calls++; calls < 3 {
			return []int{1}, fmt.Errorf("list: %w", netlink.ErrDumpInterrupted)
		}
		return []int{1, 2}, nil
	})
	if err != nil || len(got) != 2 || calls != 3 {
		t.Errorf("Dump = %v, %v after %d calls; want [1 2] after 3", got, err, calls)
	}
}

func TestDumpGivesUp(t *testing.T) {
	got, err := Dump(func() ([]int, error) { return []int{1}, netlink.ErrDumpInterrupted })
	if !errors.Is(err, netlink.ErrDumpInterrupted) || got != nil {
		t.Errorf("Dump = %v, %v; want no list and the interruption", got, err)
	}
}

func TestDumpPassesErrorsOn(t *testing.T) {
	want, calls := errors.New("no"), 0
	if _, err := Dump(func() ([]int, error) { calls++; return nil, want }); !errors.Is(err, want) || calls != 1 {
		t.Errorf("Dump: %v after %d calls; want %v after 1", err, calls, want)
	}
}
