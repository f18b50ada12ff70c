// SPDX-License-Identifier: Apache-2.0

// Package cnilab puts the real agent beside the real CNI plugins, run by the real libcni as container runtimes do: a
// network namespace plays the node, others are the pods' sandboxes.
package cnilab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	types "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apitypes "k8s.io/apimachinery/pkg/types"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/tests/netlab"
)

// NodeName is the node's name at the API server.
const NodeName = "node1"

// Options of a Node.
type Options struct {
	Dir      string // for everything; the caller removes it
	Plugins  string // folder of the CNI plugins; see tests/bench/cni/build.sh
	Enforcer string // kubepace-enforcer's binary
}

// Node is a network namespace with the folders that a node has.
type Node struct {
	*netlab.Namespace
	NetnsDir, BPFFS, RunDir string

	opts    Options
	bpf     string // mount point
	runtime *libcni.CNIConfig
}

// NewNode makes one; the caller closes it.
func NewNode(o Options) (*Node, error) {
	n := NodeOn(nil, o)
	for _, dir := range []string{n.NetnsDir, n.bpf} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	var err error
	if n.Namespace, err = netlab.NewNamespace("node"); err != nil {
		return nil, err
	}
	if err := unix.Mount("bpf", n.bpf, "bpf", 0, "mode=0700"); err != nil {
		return nil, errors.Join(fmt.Errorf("mount bpffs: %w", err), n.Namespace.Close())
	}
	return n, nil
}

// NodeOn is a node that its caller made, and closes: folders as NewNode's, a file system for BPF mounted in Dir/bpf.
func NodeOn(ns *netlab.Namespace, o Options) *Node {
	bpf := filepath.Join(o.Dir, "bpf")
	return &Node{
		Namespace: ns, NetnsDir: filepath.Join(o.Dir, "netns"), RunDir: filepath.Join(o.Dir, "run"), BPFFS: filepath.Join(bpf, "kubepace"), bpf: bpf,
		opts: o, runtime: libcni.NewCNIConfigWithCacheDir([]string{o.Plugins}, filepath.Join(o.Dir, "cni"), nil),
	}
}

// Close ends the node. Its pods and agents are to be ended before.
func (n *Node) Close() error {
	return errors.Join(unix.Unmount(n.bpf, unix.MNT_DETACH), n.Namespace.Close())
}

// ResultsDir is where libcni keeps its results.
func (n *Node) ResultsDir() string { return filepath.Join(n.opts.Dir, "cni", "results") }

// States is what the kernel holds.
func (n *Node) States() (map[string]datapath.State, error) {
	states := map[string]datapath.State{}
	err := n.Do(func() error {
		list, err := datapath.Read(n.BPFFS)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		for _, s := range list {
			states[s.Pod.UID] = s
		}
		return err
	})
	return states, err
}

// Network is a CNI configuration list.
type Network struct {
	list *libcni.NetworkConfigList
}

// NewNetwork reads a configuration list; DATA in it stands for a folder of the node's.
func (n *Node) NewNetwork(conflist string) (*Network, error) {
	list, err := libcni.NetworkConfFromBytes([]byte(os.Expand(conflist, func(string) string { return filepath.Join(n.opts.Dir, "ipam") })))
	if err != nil {
		return nil, fmt.Errorf("read configuration of a network: %w", err)
	}
	return &Network{list}, nil
}

// Pod is a sandbox on the node.
type Pod struct {
	*netlab.Namespace
	Object *corev1.Pod // as it is at the API server; Status is empty
	Netns  string
	node   *Node
	added  []attachment
}

type attachment struct {
	network *Network
	conf    *libcni.RuntimeConf
}

// NewPod makes a sandbox without any network. An empty limit means none.
func (n *Node) NewPod(name, limit string) (*Pod, error) {
	ns, err := netlab.NewNamespace("cni-" + name)
	if err != nil {
		return nil, err
	}
	p := &Pod{Namespace: ns, node: n, Object: &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "lab", Name: name, UID: apitypes.UID("uid-" + name)},
		Spec:       corev1.PodSpec{NodeName: NodeName, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodPending},
	}}
	if limit != "" {
		p.Object.Annotations = map[string]string{bandwidth.AnnotationEgress: limit}
	}
	if p.Netns, err = ns.Pin(n.NetnsDir); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return p, nil
}

// UID is the pod's.
func (p *Pod) UID() string { return string(p.Object.UID) }

// AddAll runs CNI ADD as containerd does for a pod that starts: of loopback and of its network at the same time.
func (p *Pod) AddAll(ctx context.Context, network *Network) ([]netip.Addr, error) {
	loopback, err := p.node.NewNetwork(loopbackNetwork)
	if err != nil {
		return nil, err
	}
	var adds errgroup.Group
	var lo, eth0 added
	adds.Go(func() (err error) { lo, err = p.addTo(ctx, loopback, "lo"); return err })
	adds.Go(func() (err error) { eth0, err = p.addTo(ctx, network, "eth0"); return err })
	err = adds.Wait()
	for _, a := range []added{lo, eth0} {
		if a.network != nil {
			p.added = append(p.added, a.attachment)
		}
	}
	return eth0.addrs, err
}

// loopbackNetwork is containerd's.
const loopbackNetwork = `{"cniVersion":"0.3.1","name":"cni-loopback","plugins":[{"type":"loopback"}]}`

// Add runs CNI ADD as containerd does for one network, and returns the pod's addresses.
func (p *Pod) Add(ctx context.Context, network *Network, ifName string) ([]netip.Addr, error) {
	a, err := p.addTo(ctx, network, ifName)
	if err != nil {
		return nil, err
	}
	p.added = append(p.added, a.attachment)
	return a.addrs, nil
}

type added struct {
	attachment
	addrs []netip.Addr
}

func (p *Pod) addTo(ctx context.Context, network *Network, ifName string) (added, error) {
	sandbox := "sandbox" + p.Object.Name
	conf := &libcni.RuntimeConf{
		ContainerID: sandbox, NetNS: p.Netns, IfName: ifName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.Object.Namespace}, {"K8S_POD_NAME", p.Object.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", sandbox}, {"K8S_POD_UID", p.UID()},
		},
	}
	if text, ok := p.Object.Annotations[bandwidth.AnnotationEgress]; ok {
		if rate, err := bandwidth.Parse(text); err == nil {
			conf.CapabilityArgs = map[string]any{"bandwidth": map[string]any{"egressRate": rate.BitsPerSecond(), "egressBurst": 1<<31 - 1}}
		}
	}
	var addrs []netip.Addr
	err := p.node.Do(func() error {
		generic, err := p.node.runtime.AddNetworkList(ctx, network.list, conf)
		if err != nil {
			return err
		}
		result, err := types.NewResultFromResult(generic)
		if err != nil {
			return err
		}
		for _, ip := range result.IPs {
			addr, _ := netip.AddrFromSlice(ip.Address.IP)
			addrs = append(addrs, addr.Unmap())
		}
		return nil
	})
	if err != nil {
		return added{}, fmt.Errorf("CNI ADD of %s to %s: %w", ifName, p.Object.Name, err)
	}
	return added{attachment{network, conf}, addrs}, nil
}

// Close runs CNI DEL and ends the sandbox.
func (p *Pod) Close() error {
	var errs []error
	for _, a := range p.added {
		err := p.node.Do(func() error { return p.node.runtime.DelNetworkList(context.Background(), a.network.list, a.conf) })
		if err != nil {
			errs = append(errs, fmt.Errorf("CNI DEL of %s from %s: %w", a.conf.IfName, p.Object.Name, err))
		}
	}
	p.added = nil
	return errors.Join(append(errs, p.Namespace.Close())...)
}
