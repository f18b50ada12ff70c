// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Programs are the benchmark's own eBPF programs, loaded for one exit device and one destination.
type Programs struct {
	objects PeerObjects
	filters []netlink.Filter
}

// Load brings the programs into the kernel. Redirect sends what goes to destination (IPv4) straight to exit.
func Load(exit int, destination netip.Addr) (*Programs, error) {
	spec, err := specFor(exit, destination)
	if err != nil {
		return nil, err
	}
	p := &Programs{}
	if err := spec.LoadAndAssign(&p.objects, nil); err != nil {
		return nil, fmt.Errorf("load the peers' programs: %w", err)
	}
	return p, nil
}

// LoadRedirect is Load without the programs that need Linux 5.18: all that the result can do is to redirect.
func LoadRedirect(exit int, destination netip.Addr) (*Programs, error) {
	spec, err := specFor(exit, destination)
	if err != nil {
		return nil, err
	}
	var only struct {
		Redirect   *ebpf.Program  `ebpf:"peer_redirect"`
		Redirected *ebpf.Variable `ebpf:"peer_redirected"`
	}
	if err := spec.LoadAndAssign(&only, nil); err != nil {
		return nil, fmt.Errorf("load the redirection: %w", err)
	}
	p := &Programs{}
	p.objects.PeerRedirect, p.objects.PeerRedirected = only.Redirect, only.Redirected
	return p, nil
}

// Redirected is the number of packets that were redirected so far; a GSO packet counts once.
func (p *Programs) Redirected() (n uint64, err error) {
	if err := p.objects.PeerRedirected.Get(&n); err != nil {
		return 0, fmt.Errorf("read the redirection's counter: %w", err)
	}
	return n, nil
}

func specFor(exit int, destination netip.Addr) (*ebpf.CollectionSpec, error) {
	spec, err := LoadPeer()
	if err != nil {
		return nil, fmt.Errorf("read the peers' programs: %w", err)
	}
	// The bytes in the order in which they stand in the packet.
	address := destination.As4()
	err = errors.Join(
		spec.Variables[PeerVarExitIfindex].Set(uint32(exit)),
		spec.Variables[PeerVarExitDestination].Set(address))
	if err != nil {
		return nil, fmt.Errorf("set the peers' constants: %w", err)
	}
	return spec, nil
}

// Close lets go of the programs; those that are attached stay.
func (p *Programs) Close() error { return p.objects.Close() }

// Nothing is a program that does nothing.
func (p *Programs) Nothing() *ebpf.Program { return p.objects.PeerNothing }

// ByName are the programs whose cost under load is of interest.
func (p *Programs) ByName() map[string]*ebpf.Program {
	return map[string]*ebpf.Program{"fifo: tag": p.objects.PeerTag, "fifo: stamp": p.objects.PeerStamp}
}

// AttachFIFO limits the pod behind a host-side device to a rate in bits/s, by a clock at the exit device.
func (p *Programs) AttachFIFO(pod, exit int, bitsPerSecond uint64) error {
	if err := p.objects.PeerFifos.Put(uint32(pod), PeerPeerFifo{RateBps: bitsPerSecond}); err != nil {
		return fmt.Errorf("set the FIFO's rate: %w", err)
	}
	return errors.Join(
		p.attach(p.objects.PeerTag, "peer_tag", pod, netlink.HANDLE_MIN_INGRESS, 1),
		p.attach(p.objects.PeerStamp, "peer_stamp", exit, netlink.HANDLE_MIN_EGRESS, 1))
}

// FIFODrops is the number of packets that the FIFO of a pod dropped; a GSO packet counts once.
func (p *Programs) FIFODrops(pod int) (uint64, error) {
	var fifo PeerPeerFifo
	if err := p.objects.PeerFifos.Lookup(uint32(pod), &fifo); err != nil {
		return 0, fmt.Errorf("read the FIFO: %w", err)
	}
	return fifo.Dropped, nil
}

// AttachRedirect hangs the redirection behind every limiter at the ingress of the pod's host-side device: at priority
// 2, where kubepace and the FIFO use 1, or tcx, which runs before.
func (p *Programs) AttachRedirect(pod int) error {
	return p.attach(p.objects.PeerRedirect, "peer_redirect", pod, netlink.HANDLE_MIN_INGRESS, 2)
}

func (p *Programs) attach(program *ebpf.Program, name string, device int, parent uint32, priority uint16) error {
	err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: device, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	// There already: a clsact, or the "ingress" of the CNI bandwidth plugin, which takes filters as well.
	if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("add clsact to device %d: %w", device, err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: device, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: priority,
		},
		Fd: program.FD(), Name: name, DirectAction: true,
	}
	if err := netlink.FilterAdd(filter); err != nil {
		return fmt.Errorf("attach %s to device %d: %w", name, device, err)
	}
	p.filters = append(p.filters, filter)
	return nil
}

// Detach takes all programs off all devices, and forgets the FIFO's clock. The empty clsact stays: RemoveHooks.
func (p *Programs) Detach(pod int) error {
	var errs []error
	for _, filter := range p.filters {
		errs = append(errs, netlink.FilterDel(filter))
	}
	p.filters = nil
	if p.objects.PeerFifos != nil {
		if err := p.objects.PeerFifos.Delete(uint32(pod)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach the peers' programs: %w", err)
	}
	return nil
}

// RemoveHooks deletes the clsact or ingress qdisc of a device, with all that hangs on it.
func RemoveHooks(device int) error {
	list, err := netlink.QdiscList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: device}})
	if err != nil {
		return fmt.Errorf("list qdiscs of device %d: %w", device, err)
	}
	for _, q := range list {
		if q.Type() != "clsact" && q.Type() != "ingress" {
			continue
		}
		if err := netlink.QdiscDel(q); err != nil {
			return fmt.Errorf("delete %s of device %d: %w", q.Type(), device, err)
		}
	}
	return nil
}

// Drops is the number of packets that the root and inner qdiscs of a device dropped; a GSO packet counts once where
// the qdisc takes it whole.
func Drops(device int) (uint64, error) {
	list, err := netlink.QdiscList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: device}})
	if err != nil {
		return 0, fmt.Errorf("list qdiscs of device %d: %w", device, err)
	}
	var sum uint64
	for _, q := range list {
		stats := q.Attrs().Statistics
		// What clsact and ingress count are the programs' verdicts, which are counted already.
		if stats != nil && stats.Queue != nil && q.Type() != "clsact" && q.Type() != "ingress" {
			sum += uint64(stats.Queue.Drops)
		}
	}
	return sum, nil
}
