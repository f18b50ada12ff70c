// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoFQ says that this kernel has no fq qdisc: nothing there can be paced.
var ErrNoFQ = errors.New("needs the fq qdisc (CONFIG_NET_SCH_FQ), which this kernel lacks")

// EnableFQ makes fq the root qdisc of a device; on a device with several queues, mq with an fq for each. Other roots
// are replaced. The error wraps ErrNoFQ where the kernel has none.
func (n *Namespace) EnableFQ(device string) error {
	link, err := n.Link(device)
	if err != nil {
		return err
	}
	index, queues := link.Attrs().Index, link.Attrs().NumTxQueues
	if queues <= 1 {
		return n.replaceFQ(index, device, netlink.HANDLE_ROOT)
	}
	mq := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		QdiscType:  "mq",
	}
	if err := n.links.QdiscReplace(mq); err != nil {
		return fmt.Errorf("set mq on %s in %s: %w", device, n.Name, err)
	}
	for queue := 1; queue <= queues; queue++ {
		if err := n.replaceFQ(index, device, netlink.MakeHandle(1, uint16(queue))); err != nil {
			return err
		}
	}
	return nil
}

func (n *Namespace) replaceFQ(index int, device string, parent uint32) error {
	fq := &netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Parent: parent}, QdiscType: "fq"}
	err := n.links.QdiscReplace(fq)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("set fq on %s in %s: %w: %w", device, n.Name, ErrNoFQ, err)
	}
	if err != nil {
		return fmt.Errorf("set fq on %s in %s: %w", device, n.Name, err)
	}
	return nil
}

// EnableFQ makes fq the root of the devices by which the pods' packets leave the node: the uplink, and, with
// ToPods, each pod's host-side veth.
func (t *Topology) EnableFQ(toPods bool) error {
	if err := t.Node.EnableFQ(Uplink); err != nil {
		return err
	}
	if !toPods {
		return nil
	}
	for _, pod := range t.Pods {
		if err := t.Node.EnableFQ(pod.HostDevice); err != nil {
			return err
		}
	}
	return nil
}
