// SPDX-License-Identifier: Apache-2.0

// Package cluster runs a real Kubernetes cluster on one machine: a control plane, and nodes with kubelet, kube-proxy, containerd
// and Flannel, each in namespaces of its own. Use it inside isolate.Run: what it starts ends with process 1.
//
//	this netns: etcd, kube-apiserver, ...      node1: eth0 192.0.2.1, flannel.1, cni0 10.244.x.1, pods
//	br0 192.0.2.254 ───────────────────────────┤
//	                                           node2: eth0 192.0.2.2, flannel.1, cni0 10.244.y.1, pods
package cluster

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kubepace/kubepace/tests/demo/plane"
)

// Addresses are of the range that RFC 5737 keeps for documentation.
var (
	controlPlaneIP = net.IPv4(192, 0, 2, 254)
	hostBits       = net.CIDRMask(24, 32)
)

const (
	bridge  = "br0"
	podCIDR = "10.244.0.0/16"
	// scratch is on a tmpfs that only this mount namespace has.
	scratch = "/run/kubepace-e2e"
)

// Options say where things are.
type Options struct {
	Kube     string // folder with the programs of tests/kube/build.sh
	Programs string // folder with those of tests/kube/node/build.sh
	Images   string // folder of image archives that every node imports
	NodeInit string // tests/e2e/node.sh
	Logs     string // folder for logs
	// Say prints progress.
	Say func(format string, args ...any)
}

// Cluster is a running cluster.
type Cluster struct {
	Client *kubernetes.Clientset // a member of system:masters
	Nodes  []*Node
	// Kubeconfig is the administrator's.
	Kubeconfig string
	opts       Options
	plane      *plane.Plane
}

// Start starts the control plane and as many nodes, named node1 and so on, and waits until all of them are Ready.
func Start(ctx context.Context, opts Options, nodes int) (*Cluster, error) {
	c := &Cluster{opts: opts}
	for _, dir := range []string{scratch, opts.Logs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("prepare folders: %w", err)
		}
	}
	if err := buildBridge(); err != nil {
		return c, err
	}
	if err := c.startPlane(ctx); err != nil {
		return c, err
	}
	opts.Say("kube-apiserver answers")
	for i := 1; i <= nodes; i++ {
		if err := c.startNode(i); err != nil {
			return c, err
		}
	}
	for _, n := range c.Nodes {
		if err := c.AwaitNode(ctx, n); err != nil {
			return c, err
		}
		opts.Say("%s is Ready", n.Name)
	}
	return c, nil
}

// Prepare makes the namespaces that isolate.Run gave fit for the control plane: private /proc and /run. The cgroups stay:
// the nodes' kubelets need them.
func Prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	return nil
}

func buildBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridge
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("add bridge %s: %w", bridge, err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: controlPlaneIP, Mask: hostBits}}); err != nil {
		return fmt.Errorf("add %s to %s: %w", controlPlaneIP, bridge, err)
	}
	for _, name := range []string{"lo", bridge} {
		if err := setUp(name); err != nil {
			return err
		}
	}
	return nil
}

// startPlane starts everything that is not on a node, and writes a kubeconfig for everything that is.
func (c *Cluster) startPlane(ctx context.Context) error {
	var err error
	c.plane, err = plane.Start(ctx, plane.Options{
		Binaries: c.opts.Kube, Dir: scratch, Logs: c.opts.Logs, NodeIP: controlPlaneIP,
		ServerArgs: []string{
			"--bind-address", "0.0.0.0",
			// No kube-proxy here: webhooks are called at their pods' addresses.
			"--enable-aggregator-routing",
			"--kubelet-client-certificate", filepath.Join(scratch, "admin.crt"), "--kubelet-client-key", filepath.Join(scratch, "admin.key"),
			"--kubelet-preferred-address-types", "InternalIP",
		},
	})
	if err != nil {
		return err
	}
	if c.Client, err = kubernetes.NewForConfig(c.plane.Admin); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	server := fmt.Sprintf("https://%s", net.JoinHostPort(controlPlaneIP.String(), "6443"))
	for name, user := range map[string]pkix.Name{
		"operator":                {CommonName: "operator", Organization: []string{"system:masters"}},
		"flannel":                 {CommonName: "flannel", Organization: []string{"system:masters"}},
		"kube-proxy":              {CommonName: "system:kube-proxy"},
		"kube-scheduler":          {CommonName: "system:kube-scheduler"},
		"kube-controller-manager": {CommonName: "system:kube-controller-manager"},
	} {
		if _, err := c.plane.UserKubeconfig(name, server, user); err != nil {
			return err
		}
	}
	c.Kubeconfig = kubeconfig("operator")
	_, err = c.plane.Run("kube-controller-manager", "--kubeconfig", kubeconfig("kube-controller-manager"),
		"--service-account-private-key-file", filepath.Join(scratch, "sa.key"), "--root-ca-file", filepath.Join(scratch, "ca.crt"),
		"--use-service-account-credentials", "--leader-elect=false", "--allocate-node-cidrs", "--cluster-cidr", podCIDR,
		"--cert-dir", filepath.Join(scratch, "controller-manager"))
	if err != nil {
		return err
	}
	scheduler := kubeconfig("kube-scheduler")
	_, err = c.plane.Run("kube-scheduler", "--kubeconfig", scheduler, "--authentication-kubeconfig", scheduler,
		"--authorization-kubeconfig", scheduler, "--leader-elect=false", "--cert-dir", filepath.Join(scratch, "scheduler"))
	return err
}

func kubeconfig(user string) string { return filepath.Join(scratch, user+".kubeconfig") }

// AwaitNode waits until the node is Ready, and makes its pods reachable from here.
func (c *Cluster) AwaitNode(ctx context.Context, n *Node) error {
	var last error
	err := Poll(ctx, 2*time.Minute, func(ctx context.Context) error {
		if last = n.alive(); last != nil {
			return nil // no use in waiting
		}
		node, err := c.Client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !ready(node) {
			return fmt.Errorf("%s is not Ready", n.Name)
		}
		_, n.podCIDR, err = net.ParseCIDR(node.Spec.PodCIDR)
		return err
	})
	if err := errors.Join(err, last); err != nil {
		return fmt.Errorf("start %s: %w (see %s)", n.Name, err, c.opts.Logs)
	}
	if err := netlink.RouteReplace(&netlink.Route{Dst: n.podCIDR, Gw: n.IP}); err != nil {
		return fmt.Errorf("add route to the pods of %s: %w", n.Name, err)
	}
	return nil
}

func ready(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// FreezeAPI stops the API server in the middle of whatever it does: connections stay open, and nobody answers. ThawAPI lets it
// go on.
func (c *Cluster) FreezeAPI() error { return c.plane.APIServer.Signal(syscall.SIGSTOP) }

// ThawAPI ends FreezeAPI.
func (c *Cluster) ThawAPI() error { return c.plane.APIServer.Signal(syscall.SIGCONT) }

// Stop ends the nodes and the control plane.
func (c *Cluster) Stop() {
	for _, n := range c.Nodes {
		n.stop()
	}
	if c.plane != nil {
		c.plane.Stop()
	}
}

// Patience stretches every limit of time: a machine that is emulated takes many times as long.
var Patience = 1.0

// Within is a limit of time, stretched by Patience.
func Within(limit time.Duration) time.Duration { return time.Duration(float64(limit) * Patience) }

// Poll calls try every 200 ms until it returns nil, and gives up after the limit, times Patience, with what it said last.
func Poll(ctx context.Context, limit time.Duration, try func(context.Context) error) error {
	limit = Within(limit)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // the end of time is no news
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up after %v: %w", limit, last)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}
