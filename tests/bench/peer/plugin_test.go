// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBurstSmall(t *testing.T) {
	for rate, want := range map[uint64]uint64{1e6: 524288, 10e6: 524288, 100e6: 2e6, 1e9: 20e6} {
		if got := BurstSmall(rate); got != want {
			t.Errorf("BurstSmall(%d) = %d bits, want %d", rate, got, want)
		}
	}
}

func TestPluginConfig(t *testing.T) {
	p := Plugin{NetnsPath: "/run/netns/pod0", HostDevice: "veth1"}
	text, err := p.config(10e6, BurstContainerd)
	if err != nil {
		t.Fatal(err)
	}
	var got any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"cniVersion": "1.0.0", "name": "bench", "type": "bandwidth",
		"runtimeConfig": map[string]any{"bandwidth": map[string]any{"egressRate": 1e7, "egressBurst": 4294967295.0}},
		"prevResult": map[string]any{"cniVersion": "1.0.0", "interfaces": []any{
			map[string]any{"name": "veth1"},
			map[string]any{"name": "eth0", "sandbox": "/run/netns/pod0"},
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}
