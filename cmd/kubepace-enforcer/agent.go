// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/cni"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/metrics"
	"github.com/kubepace/kubepace/enforcer/pods"
	"github.com/kubepace/kubepace/enforcer/qdisc"
	"github.com/kubepace/kubepace/enforcer/rivals"
	"github.com/kubepace/kubepace/enforcer/sysctl"
)

// runAgent keeps limits until ctx ends, and leaves them in force.
func runAgent(ctx context.Context, o *options, _, _ io.Writer) error {
	spareMemory()
	log, flush := setupLogging(o.level)
	defer flush()
	log.Info("starting", "version", version(), "node", o.NodeName, "bpffs", o.BPFFS)
	lock, err := enforcer.Lock(o.RunDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	in, err := openInput(ctx, o, log)
	if err != nil {
		return err
	}
	defer in.close()
	k, err := openKernel(o, log)
	if err != nil {
		return err
	}
	defer k.close()
	in.addLocal(o, log, k.finder)
	if err := serveAgent(ctx, o, log, in, k); err != nil {
		return err
	}
	log.Info("stopped; every limit stays in force")
	return nil
}

// input is where pods come from and where news of them go.
type input struct {
	source   pods.Source
	name     string
	observer enforcer.Observer // may be nil
	cluster  *cluster          // nil for a folder
	close    func()
}

func openInput(ctx context.Context, o *options, log logr.Logger) (input, error) {
	if o.PodManifests != "" {
		source, err := pods.NewFolder(o.PodManifests, log.WithName("pods"))
		return input{source: source, name: "folder " + o.PodManifests, close: func() {}}, err
	}
	config, err := clientConfig(o.Kubeconfig)
	if err != nil {
		return input{}, err
	}
	source, err := pods.NewAPIServer(config, o.NodeName, log.WithName("pods"))
	if err != nil {
		return input{}, err
	}
	c, err := newCluster(ctx, o, config)
	if err != nil {
		return input{}, err
	}
	return input{source: source, name: "API server", observer: c, cluster: c, close: c.close}, nil
}

// addLocal lets the node's own CNI results speak: of where pods are, and beside an API server of pods that it has not
// told of. A folder of manifests is the administrator's whole word.
func (in *input) addLocal(o *options, log logr.Logger, finder *device.Finder) {
	if o.CNICacheDir == "" {
		return
	}
	results := cni.New(o.CNICacheDir, o.NetnsDir, log.WithName("cni"))
	finder.Believe(results)
	alive := finder.IsNamespace
	if o.PodManifests != "" {
		alive = nil
	}
	in.source = pods.NewLocal(in.source, results, alive)
}

func clientConfig(kubeconfig string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("configure client of the API server: %w", err)
	}
	config.UserAgent = rest.DefaultKubernetesUserAgent() + " " + version()
	return config, nil
}

// setSysctls sets what was asked for, and takes back what is asked for no more. What fails is in the status: limits do
// not depend on it.
func setSysctls(o *options, log logr.Logger) []error {
	settings := sysctl.New(o.RunDir, o.ProcSys)
	if o.BBR {
		if err := settings.Set(sysctl.CongestionControl, sysctl.BBR); err != nil {
			return []error{fmt.Errorf("--bbr: %w", err)}
		}
		return nil
	}
	restored, err := settings.Restore()
	for _, c := range restored {
		log.Info("sysctl restored", "name", c.Name, "value", c.Before)
	}
	if err != nil {
		return []error{err}
	}
	return nil
}

// kernel is what the agent holds open of the kernel.
type kernel struct {
	datapath *enforcer.Opening
	qdiscs   *qdisc.Manager
	finder   *device.Finder
	rivals   *rivals.Scanner
}

func openKernel(o *options, log logr.Logger) (*kernel, error) {
	k := &kernel{}
	var err error
	if k.finder, err = device.NewFinder(o.NetnsDir); err != nil {
		return nil, err
	}
	options := qdisc.Options{RunDir: o.RunDir, Exits: o.ExitDevices, Veths: o.PodFq, Log: log.WithName("qdisc")}
	if k.qdiscs, err = qdisc.New(options); err != nil {
		k.close()
		return nil, err
	}
	// Cilium pins its maps in the same bpffs, beside our folder.
	if k.rivals, err = rivals.New(filepath.Dir(o.BPFFS)); err != nil {
		k.close()
		return nil, err
	}
	// Opened by the loop's first pass: where that fails, the agent stays, says so, and tries again.
	k.datapath = &enforcer.Opening{
		Open: func() (*datapath.Datapath, error) {
			return datapath.Open(datapath.Options{BPFFS: o.BPFFS, Log: log.WithName("datapath")})
		},
		Left: func() ([]datapath.State, error) { return datapath.Read(o.BPFFS) },
	}
	return k, nil
}

func (k *kernel) close() {
	k.finder.Close()
	if k.qdiscs != nil {
		k.qdiscs.Close()
	}
	if k.rivals != nil {
		k.rivals.Close()
	}
	if k.datapath != nil {
		_ = k.datapath.Close() // only file descriptors
	}
}

// serveAgent runs the loop and what feeds it; the first that fails ends all.
func serveAgent(ctx context.Context, o *options, log logr.Logger, in input, k *kernel) error {
	var e *enforcer.Enforcer
	figures := metrics.New(metrics.Options{
		States: k.datapath.States, Status: func() enforcer.Status { return e.Status() },
		Repairs: func() map[datapath.Cause]uint64 { return e.Repairs() }, Version: version(), Node: o.NodeName, Pods: o.MetricsPods,
	})
	var err error
	e, err = enforcer.New(enforcer.Options{
		Source: in.source, Datapath: k.datapath, Qdiscs: k.qdiscs, Observer: in.observer, Veths: o.PodFq, Resync: o.Resync,
		Problems: setSysctls(o, log),
		Rivals:   k.rivals, OtherLimiters: rivals.Policy(o.OtherLimiters),
		Scan:       func(anew bool) (enforcer.Scan, error) { return k.finder.Scan(anew) },
		Passed:     figures.Passed,
		Compared:   debug.FreeOSMemory, // lists of everything are garbage now; Go would collect it every two minutes as well, and keep the memory
		Log:        log,
		StatusFile: enforcer.StatusPath(o.RunDir),
		Identity:   enforcer.Identity{Version: version(), Node: o.NodeName, Source: in.name, Started: time.Now().UTC().Truncate(time.Second)},
	})
	if err != nil {
		return err
	}
	var tasks map[string]func(context.Context) error
	if in.cluster != nil {
		if tasks, err = in.cluster.tasks(in.source, e, log); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	run := func(name string, task func(context.Context) error) {
		group.Go(func() error {
			if err := task(ctx); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	for name, task := range tasks {
		run(name, task)
	}
	run("pods", in.source.Run)
	run("loop", e.Run)
	run("watch devices", func(ctx context.Context) error { return e.WatchNode(ctx, k.finder) })
	run("watch hooks", e.WatchHooks)
	run("watch network namespaces", func(ctx context.Context) error {
		return k.finder.WatchNetns(ctx, func() { e.Poke(enforcer.DevicesChanged) })
	})
	run("health", func(ctx context.Context) error { return serveHealth(ctx, o.HealthAddress, e) })
	run("metrics", func(ctx context.Context) error { return serveMetrics(ctx, o.MetricsAddress, figures) })
	return group.Wait()
}
