// SPDX-License-Identifier: Apache-2.0

package rivals

import (
	"encoding/binary"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/kubepace/kubepace/enforcer/internal/rtnl"
)

// DefaultBPFFS is where Cilium mounts, or finds, its bpffs.
const DefaultBPFFS = "/sys/fs/bpf"

// Cilium's pinned maps. cilium_throttle is there while the bandwidth manager is switched on: Cilium's agent deletes it
// where it is not.
const (
	ciliumFolder   = "tc/globals"
	ciliumThrottle = "cilium_throttle" // endpoint's number, 8 bytes, to its limit: 8 bytes of bytes per second first
	ciliumLXC      = "cilium_lxc"      // address to endpoint: ifindex in bytes 0-3, its number in bytes 6-7
	ciliumToNetdev = "to_netdev"       // cil_to_netdev; before 1.12 to-netdev
)

// cilium reads the maps of Cilium's bandwidth manager. Their layout is Cilium's own affair: where it is not the one
// that is known since 1.9, the answer is "unknown".
type cilium struct {
	throttle *ebpf.Map
	lxc      *ebpf.Map
	pinned   bool
	numbers  map[int]uint16 // endpoint's number by ifindex
	known    bool           // numbers were read
}

func openCilium(bpffs string) *cilium {
	c := &cilium{}
	read := &ebpf.LoadPinOptions{ReadOnly: true}
	var err error
	if c.throttle, err = ebpf.LoadPinnedMap(filepath.Join(bpffs, ciliumFolder, ciliumThrottle), read); err != nil {
		return c
	}
	c.pinned = true
	if c.lxc, err = ebpf.LoadPinnedMap(filepath.Join(bpffs, ciliumFolder, ciliumLXC), read); err != nil {
		return c
	}
	c.numbers, c.known = readEndpoints(c.lxc)
	return c
}

// Close lets go of the maps.
func (c *cilium) Close() {
	c.throttle.Close()
	c.lxc.Close()
}

func (c *cilium) on() bool { return c.pinned }

func (c *cilium) facts(index int, atExit bool) Cilium {
	f := Cilium{Throttle: true, AtExit: atExit, Unknown: true}
	if !c.known || c.throttle.KeySize() != 8 || c.throttle.ValueSize() < 8 {
		return f
	}
	f.Unknown = false
	number, ok := c.numbers[index]
	if !ok {
		return f
	}
	// 1.18 split the 8 bytes into number and direction; that of egress is 0.
	key := make([]byte, 8)
	binary.NativeEndian.PutUint32(key, uint32(number))
	value := make([]byte, c.throttle.ValueSize())
	if err := c.throttle.Lookup(key, &value); err != nil {
		return f
	}
	f.Limited = binary.NativeEndian.Uint64(value) > 0
	return f
}

func readEndpoints(m *ebpf.Map) (map[int]uint16, bool) {
	if m.KeySize() > 64 || m.ValueSize() < 8 || m.ValueSize() > 256 {
		return nil, false
	}
	numbers := map[int]uint16{}
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	it := m.Iterate()
	for it.Next(&key, &value) {
		if index := int(binary.NativeEndian.Uint32(value)); index != 0 {
			numbers[index] = binary.NativeEndian.Uint16(value[6:])
		}
	}
	return numbers, it.Err() == nil
}

// hasCiliumExit reports whether Cilium's program hangs where a device sends.
func hasCiliumExit(conn *rtnl.Conn, index int) bool {
	names := programs(index, ebpf.AttachTCXEgress)
	list, err := rtnl.Dump(func() ([]netlink.Filter, error) {
		return conn.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, netlink.HANDLE_MIN_EGRESS)
	})
	if err == nil {
		for _, f := range list {
			if b, ok := f.(*netlink.BpfFilter); ok {
				names = append(names, b.Name)
			}
		}
	}
	for _, name := range names {
		if strings.Contains(strings.ReplaceAll(name, "-", "_"), ciliumToNetdev) {
			return true
		}
	}
	return false
}
