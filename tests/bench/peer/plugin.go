// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"
)

// BurstContainerd is the burst, in bits, that containerd asks of the bandwidth plugin for every pod with a limit
// (its CRI plugin passes math.MaxUint32); CRI-O asks for eight times as much.
const BurstContainerd uint64 = math.MaxUint32

// BurstSmall is a burst, in bits, as one would choose for short queues: 20 ms of the rate, but at least one GSO
// packet of 64 KiB.
func BurstSmall(bitsPerSecond uint64) uint64 { return max(bitsPerSecond/50, 64<<13) }

// Plugin is the CNI bandwidth plugin, to be run for one pod.
type Plugin struct {
	Path       string // of the binary
	NetnsPath  string // of the pod
	HostDevice string // the pod's host-side veth
}

const (
	networkName = "bench"
	containerID = "kubepace-bench"
)

// bandwidthEntry is the capability's argument; rates in bits/s, bursts in bits.
type bandwidthEntry struct {
	EgressRate  uint64 `json:"egressRate"`
	EgressBurst uint64 `json:"egressBurst"`
}

type pluginInterface struct {
	Name    string `json:"name"`
	Sandbox string `json:"sandbox,omitempty"`
}

// config is what a container runtime writes to the standard input of a chained plugin.
func (p Plugin) config(bitsPerSecond, burst uint64) ([]byte, error) {
	type previous struct {
		CNIVersion string            `json:"cniVersion"`
		Interfaces []pluginInterface `json:"interfaces"`
	}
	type runtimeConfig struct {
		Bandwidth bandwidthEntry `json:"bandwidth"`
	}
	return json.Marshal(struct {
		CNIVersion    string        `json:"cniVersion"`
		Name          string        `json:"name"`
		Type          string        `json:"type"`
		RuntimeConfig runtimeConfig `json:"runtimeConfig"`
		PrevResult    previous      `json:"prevResult"`
	}{
		"1.0.0", networkName, "bandwidth", runtimeConfig{bandwidthEntry{bitsPerSecond, burst}},
		previous{"1.0.0", []pluginInterface{{Name: p.HostDevice}, {Name: "eth0", Sandbox: p.NetnsPath}}},
	})
}

// Add runs CNI ADD with a rate in bits/s and a burst in bits, and returns the device on which the plugin shapes.
func (p Plugin) Add(bitsPerSecond, burst uint64) (ifb netlink.Link, err error) {
	out, err := p.run("ADD", bitsPerSecond, burst)
	if err != nil {
		return nil, err
	}
	var result struct{ Interfaces []pluginInterface }
	if err := json.Unmarshal(out, &result); err != nil {
		return nil, fmt.Errorf("read the bandwidth plugin's result %q: %w", out, err)
	}
	if len(result.Interfaces) == 0 {
		return nil, fmt.Errorf("the bandwidth plugin's result has no interface: %s", out)
	}
	name := result.Interfaces[len(result.Interfaces)-1].Name
	if ifb, err = netlink.LinkByName(name); err != nil {
		return nil, fmt.Errorf("find the bandwidth plugin's device %s: %w", name, err)
	}
	return ifb, nil
}

// Del runs CNI DEL. The plugin leaves the ingress qdisc to the end of the pod's veth: RemoveHooks.
func (p Plugin) Del() error {
	_, err := p.run("DEL", 0, 0)
	return err
}

// run executes the plugin in the calling thread's network namespace.
func (p Plugin) run(command string, bitsPerSecond, burst uint64) ([]byte, error) {
	config, err := p.config(bitsPerSecond, burst)
	if err != nil {
		return nil, fmt.Errorf("configure the bandwidth plugin: %w", err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(p.Path)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+containerID, "CNI_NETNS="+p.NetnsPath,
		"CNI_IFNAME=eth0", "CNI_PATH=/")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(config), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("bandwidth plugin %s: %w: %s %s", command, err, stderr.String(), stdout.String())
	}
	return stdout.Bytes(), nil
}

// Shown is the token bucket on a device as `tc` prints it: what the kernel really does, rate and burst included.
func Shown(device string) (string, error) {
	out, err := exec.Command("tc", "qdisc", "show", "dev", device).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("tc qdisc show dev %s: %w: %s", device, err, exit.Stderr)
	}
	if err != nil {
		return "", fmt.Errorf("tc qdisc show dev %s: %w", device, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(first), nil
}
