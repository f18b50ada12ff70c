// SPDX-License-Identifier: Apache-2.0

package device

import (
	"maps"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// links are the node's devices: as they were listed, and since then as the kernel's notices tell. To list them for each
// pod that starts, on a node full of pods, takes the kernel's lock of all network configuration again and again, which
// those who make the pods' networks hold.
//
// Its methods may be called from any goroutine; get by one at a time.
type links struct {
	mu      sync.Mutex
	devices map[int]Link // by ifindex; nil: to be listed
	watched bool         // notices come
	listing bool
	news    []func(map[int]Link) // notices that came while devices were listed
	lost    bool                 // some were lost meanwhile
}

// get returns a copy. Devices are listed where notices would not have told of all changes, and where asked for anew.
func (l *links) get(anew bool, list func() ([]netlink.Link, error)) (map[int]Link, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.devices != nil && l.watched && !anew {
		return maps.Clone(l.devices), nil
	}
	l.listing, l.lost = true, false
	l.mu.Unlock()
	listed, err := list()
	l.mu.Lock()
	news := l.news
	l.listing, l.news = false, nil
	if err != nil {
		l.devices = nil
		return nil, err
	}
	devices := make(map[int]Link, len(listed))
	for _, d := range listed {
		devices[d.Attrs().Index] = newLink(d)
	}
	// What a notice tells may be older than the list; one that is newer than both follows it then.
	for _, change := range news {
		change(devices)
	}
	if l.devices = devices; l.lost {
		l.devices = nil
	}
	return maps.Clone(devices), nil
}

// watch says whether notices come from now on.
func (l *links) watch(on bool) {
	l.lose()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watched = on
}

// lose says that notices were lost.
func (l *links) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.devices, l.lost = nil, true
}

// note takes a notice of the kernel. came: the device leads to another namespace, and was not
// known to while others were.
func (l *links) note(message syscall.NetlinkMessage) (device Link, came bool) {
	if len(message.Data) < unix.SizeofIfInfomsg {
		return Link{}, false
	}
	// A bridge tells of its ports in the same words, and a port that leaves it is not deleted.
	info := nl.DeserializeIfInfomsg(message.Data)
	if info.Family != unix.AF_UNSPEC {
		return Link{}, false
	}
	index := int(info.Index)
	if message.Header.Type == unix.RTM_DELLINK {
		l.change(func(devices map[int]Link) { delete(devices, index) })
		return Link{}, false
	}
	told, err := netlink.LinkDeserialize(nil, message.Data)
	if err != nil {
		l.lose()
		return Link{}, false
	}
	if told.Attrs().Name == "" { // a wireless device's events have nothing else
		return Link{}, false
	}
	device = newLink(told)
	return device, l.put(device)
}

// put notes what a device is now; true as by note.
func (l *links) put(device Link) (came bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.devices != nil && isPair(device, device.PeerN) {
		before, ok := l.devices[device.Index]
		came = !ok || before.Peer != device.Peer || before.PeerN != device.PeerN
	}
	l.changed(func(devices map[int]Link) { devices[device.Index] = device })
	return came
}

func (l *links) change(change func(map[int]Link)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed(change)
}

// changed is change with mu held.
func (l *links) changed(change func(map[int]Link)) {
	if l.listing {
		l.news = append(l.news, change)
	}
	if l.devices != nil {
		change(l.devices)
	}
}
