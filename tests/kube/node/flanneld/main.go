// SPDX-License-Identifier: Apache-2.0

// Command flanneld is Flannel's own daemon with the subnet manager, backends and traffic rules that most clusters use:
// Kubernetes' nodes, VXLAN or host-gw, iptables. Upstream's main also imports a cloud provider's SDK that the Go module proxy does
// not serve and a backend that needs a C compiler; everything below is what it calls, in its order.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw" // registers itself
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"  // registers itself
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr/iptables"
)

// resyncSeconds is how often the iptables rules are checked: flanneld's default.
const resyncSeconds = 5

type options struct {
	kubeconfig string
	network    string // file with the network's configuration
	subnet     string // file that tells the CNI configuration this node's subnet
	device     string // between the nodes
}

func main() {
	var o options
	flag.StringVar(&o.kubeconfig, "kubeconfig-file", "", "`file` with the API server and credentials")
	flag.StringVar(&o.network, "net-config-path", "/etc/kube-flannel/net-conf.json", "`file` with the network's configuration")
	flag.StringVar(&o.subnet, "subnet-file", "/run/flannel/subnet.env", "`file` to write this node's subnet to")
	flag.StringVar(&o.device, "iface", "eth0", "`device` between the nodes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "flanneld:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	manager, err := kube.NewSubnetManager(ctx, "", o.kubeconfig, "flannel.alpha.coreos.com", o.network, true)
	if err != nil {
		return fmt.Errorf("make subnet manager: %w", err)
	}
	config, err := manager.GetNetworkConfig(ctx)
	if err != nil {
		return fmt.Errorf("read network configuration: %w", err)
	}
	var tasks sync.WaitGroup
	defer tasks.Wait()
	network, err := join(ctx, &tasks, manager, config, o.device)
	if err != nil {
		return err
	}
	if err := addRules(ctx, config, network); err != nil {
		return err
	}
	if err := manager.HandleSubnetFile(o.subnet, config, true, network.Lease().Subnet, network.Lease().IPv6Subnet, network.MTU()); err != nil {
		return fmt.Errorf("write %s: %w", o.subnet, err)
	}
	tasks.Go(func() { network.Run(ctx) })
	if err := manager.CompleteLease(ctx, network.Lease(), &tasks); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("keep the lease: %w", err)
	}
	<-ctx.Done()
	return nil
}

// join makes this node a member of the network.
func join(ctx context.Context, tasks *sync.WaitGroup, manager subnet.Manager, config *subnet.Config, device string) (backend.Network, error) {
	stack, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return nil, fmt.Errorf("address families: %w", err)
	}
	external, err := ipmatch.LookupExtIface(device, "", "", stack, ipmatch.PublicIPOpts{})
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", device, err)
	}
	kind, err := backend.NewManager(ctx, manager, external).GetBackend(config.BackendType)
	if err != nil {
		return nil, fmt.Errorf("backend %s: %w", config.BackendType, err)
	}
	network, err := kind.RegisterNetwork(ctx, tasks, config)
	if err != nil {
		return nil, fmt.Errorf("register network: %w", err)
	}
	return network, nil
}

// addRules masquerades what leaves the pods' network and lets the rest through, and keeps it so.
func addRules(ctx context.Context, config *subnet.Config, network backend.Network) error {
	rules := &iptables.IPTablesManager{}
	if err := rules.Init(ctx); err != nil {
		return fmt.Errorf("iptables: %w", err)
	}
	// No earlier subnet: every node here is new.
	if err := rules.SetupAndEnsureMasqRules(ctx, config.Network, ip.IP4Net{}, ip.IP4Net{},
		config.IPv6Network, ip.IP6Net{}, ip.IP6Net{}, network.Lease(), resyncSeconds, false); err != nil {
		return fmt.Errorf("masquerading: %w", err)
	}
	rules.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, resyncSeconds)
	return nil
}
