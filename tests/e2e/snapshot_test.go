// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kubepace/kubepace/tests/e2e/cluster"
)

// snapshot is what a node's kernel holds that kubepace could have changed: the command that shows it, and its output.
type snapshot map[string]string

// commands show the same twice where nothing changed: no counters, no ages.
var commands = []string{
	"tc qdisc show",
	// Filters of both directions, on every device.
	"for d in /sys/class/net/*; do tc filter show dev ${d##*/} ingress; tc filter show dev ${d##*/} egress; done",
	"ip -o link show | sed 's/ state .*//'",
	"ip rule show; ip route show table all | sort",
	"find /sys/fs/bpf -mindepth 1 | sort",
	"find /run/kubepace -mindepth 1 2>/dev/null | sort",
	"sysctl -a 2>/dev/null | grep -E '^(net\\.|kernel\\.unprivileged_bpf)' | grep -vE 'nf_conntrack_count|stat_refresh|random' | sort",
}

func (s *suite) snapshots(ctx context.Context) (map[string]snapshot, error) {
	all := map[string]snapshot{}
	for _, node := range s.Nodes {
		all[node.Name] = snapshot{}
		for _, command := range commands {
			out, err := node.Output(ctx, "sh", "-c", command)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", node.Name, err)
			}
			all[node.Name][command] = out
		}
	}
	return all, nil
}

// settled waits until nothing changes any more: a bridge that lost its last pod says so a second later.
func (s *suite) settled(ctx context.Context, t *testing.T) map[string]snapshot {
	t.Helper()
	var former, now map[string]snapshot
	err := cluster.Poll(ctx, time.Minute, func(ctx context.Context) (err error) {
		if former, err = s.snapshots(ctx); err != nil {
			return err
		}
		time.Sleep(2 * time.Second)
		if now, err = s.snapshots(ctx); err != nil {
			return err
		}
		if diff := differences(former, now); diff != "" {
			return fmt.Errorf("the nodes change by themselves:\n%s", diff)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// differences between what the nodes were and what they are, empty where there is none.
func differences(before, after map[string]snapshot) string {
	var all strings.Builder
	for node, commands := range before {
		for command, was := range commands {
			if diff := cmp.Diff(strings.Split(was, "\n"), strings.Split(after[node][command], "\n")); diff != "" {
				fmt.Fprintf(&all, "%s: %s (-before +after):\n%s", node, command, diff)
			}
		}
	}
	return all.String()
}
