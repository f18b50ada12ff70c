// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/tests/netlab"
)

// world is a network namespace that plays the node: a bridge, a way out, and pods that come and go, as the CNI plugin
// bridge makes them.
type world struct {
	*netlab.Namespace
	outside *netlab.Namespace
	bridge  netlink.Link
	dir     string // of all that the agent is told to use
}

// pod is a network namespace with a veth to the node.
type pod struct {
	*netlab.Namespace
	name   string
	addr   netip.Addr
	device string // host-side
	index  int
}

func newWorld() (w *world, err error) {
	w = &world{}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if w.dir, err = os.MkdirTemp("", "kubepace-bench-"); err != nil {
		return w, err
	}
	for _, folder := range []string{w.netns(), w.manifests(), w.results(), filepath.Dir(w.bpffs())} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return w, err
		}
	}
	if err := unix.Mount("bpf", filepath.Dir(w.bpffs()), "bpf", 0, "mode=0700"); err != nil {
		return w, fmt.Errorf("mount bpffs: %w", err)
	}
	if w.Namespace, err = netlab.NewNamespace("node"); err != nil {
		return w, err
	}
	if w.outside, err = netlab.NewNamespace("outside"); err != nil {
		return w, err
	}
	return w, w.wire()
}

func (w *world) netns() string     { return filepath.Join(w.dir, "netns") }
func (w *world) results() string   { return filepath.Join(w.dir, "cni", "results") }
func (w *world) manifests() string { return filepath.Join(w.dir, "pods") }
func (w *world) bpffs() string     { return filepath.Join(w.dir, "bpf", "kubepace") }
func (w *world) runDir() string    { return filepath.Join(w.dir, "run") }

// wire makes the bridge and the way out.
func (w *world) wire() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "cni0"
	attrs.HardwareAddr = net.HardwareAddr{0x0a, 0x58, 10, 244, 0, 1}
	if err := w.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	var err error
	if w.bridge, err = w.Link("cni0"); err != nil {
		return err
	}
	if err := w.address(w.Namespace, "cni0", "10.244.0.1/16"); err != nil {
		return err
	}
	if _, err := w.veth("uplink", w.outside); err != nil {
		return err
	}
	gateway := net.IPv4(192, 0, 2, 1)
	up, err := w.Link("uplink")
	if err != nil {
		return err
	}
	return errors.Join(
		w.address(w.outside, "eth0", "192.0.2.1/24"), w.address(w.Namespace, "uplink", "192.0.2.2/24"),
		w.Netlink().RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: gateway}))
}

// veth connects the node with eth0 in another namespace and returns the node's end.
func (w *world) veth(name string, to *netlab.Namespace) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	err := w.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(to.Handle())})
	if err != nil {
		return nil, fmt.Errorf("add veth %s: %w", name, err)
	}
	return w.Link(name)
}

func (w *world) address(in *netlab.Namespace, device, prefix string) error {
	link, err := in.Link(device)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	addr.Flags = unix.IFA_F_NODAD
	if err := in.Netlink().AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", prefix, device, err)
	}
	return in.Up(device)
}

// addPod does what container runtime and CNI plugin do for pod number i: namespace, its file, veth, address, bridge.
func (w *world) addPod(i int) (_ *pod, err error) {
	p := &pod{name: podName(i), addr: podAddr(i), device: fmt.Sprintf("veth%08x", i)}
	if p.Namespace, err = netlab.NewNamespace(p.name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if _, err := p.Pin(w.netns()); err != nil {
		return nil, err
	}
	link, err := w.veth(p.device, p.Namespace)
	if err != nil {
		return nil, err
	}
	p.index = link.Attrs().Index
	if err := w.address(p.Namespace, "eth0", p.addr.String()+"/16"); err != nil {
		return nil, err
	}
	if err := w.Netlink().LinkSetMaster(link, w.bridge); err != nil {
		return nil, fmt.Errorf("add %s to the bridge: %w", p.device, err)
	}
	return p, w.Up(p.device)
}

func podName(i int) string { return fmt.Sprintf("pod-%04d", i) }

// podAddr leaves out the bridge's own address.
func podAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 244, byte(1 + i/200), byte(10 + i%200)})
}

// Close ends everything of the node but the pods.
func (w *world) Close() error {
	var errs []error
	for _, n := range []*netlab.Namespace{w.outside, w.Namespace} {
		if n != nil {
			errs = append(errs, n.Close())
		}
	}
	if w.dir != "" {
		if err := unix.Unmount(filepath.Dir(w.bpffs()), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount bpffs: %w", err))
		}
		errs = append(errs, os.RemoveAll(w.dir))
	}
	return errors.Join(errs...)
}

// manifest puts a pod's manifest into the folder, whole or not at all.
func (w *world) manifest(p *pod) error {
	text := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: bench
  annotations: {kubernetes.io/egress-bandwidth: 10M}
spec: {containers: [{name: main, image: none}]}
status: {phase: Running, podIP: %s}
`, p.name, p.addr)
	file := filepath.Join(w.manifests(), p.name+".yaml")
	if err := os.WriteFile(file+".tmp", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".tmp", file)
}

// result is the file that libcni writes at the end of CNI ADD; written in place, as libcni does.
func (w *world) result(p *pod, uid string) error {
	text := fmt.Sprintf(`{"kind":"cniCacheV1","containerId":%[1]q,"config":"e30=","ifName":"eth0","networkName":"bench","netns":"/var/run/netns/%[2]s",
"cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE",%[3]q],["K8S_POD_NAME",%[2]q],["K8S_POD_INFRA_CONTAINER_ID",%[1]q],["K8S_POD_UID",%[4]q]],
"capabilityArgs":{},"result":{"cniVersion":"1.0.0","dns":{},"interfaces":[{"name":"cni0"},{"name":%[5]q},{"name":"eth0","sandbox":"/var/run/netns/%[2]s"}],
"ips":[{"address":"%[6]s/16","gateway":"10.244.0.1","interface":2}]}}`, "sandbox-"+p.name, p.name, benchNamespace, uid, p.device, p.addr)
	return os.WriteFile(w.resultFile(p), []byte(text), 0o600)
}

func (w *world) resultFile(p *pod) string {
	return filepath.Join(w.results(), "bench-sandbox-"+p.name+"-eth0")
}
