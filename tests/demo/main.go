// SPDX-License-Identifier: Apache-2.0

// Demo shows the whole of kubepace at work on one machine: a real kube-apiserver asks the real webhook, and the real
// enforcer makes this kernel keep what was admitted, while pods send TCP to another host. It runs in namespaces of
// its own, needs root, prints what it sees, and fails where a limit was not kept.
//
// usage: demo [flags], usually by `make demo`
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kubepace/kubepace/tests/demo/isolate"
)

func main() { os.Exit(run()) }

// options are the command line.
type options struct {
	kube      string        // folder with etcd and kube-apiserver
	bin       string        // folder with kubepace-webhook and kubepace-enforcer
	manifests string        // file of the manifests to install
	out       string        // folder for demo.json, demo.svg and logs
	traffic   time.Duration // how long each pod sends
	limit     time.Duration // for the whole run
	cc        string        // TCP congestion control of the pods
}

func parseFlags() (options, error) {
	var o options
	flag.StringVar(&o.kube, "kube", "", "folder with etcd and kube-apiserver (tests/kube/build.sh prints it)")
	flag.StringVar(&o.bin, "bin", "bin", "folder with kubepace-webhook and kubepace-enforcer")
	flag.StringVar(&o.manifests, "manifests", "build/manifests.yaml", "file of the manifests to install, as kubectl kustomize prints them")
	flag.StringVar(&o.out, "out", "build", "folder for demo.json, demo.svg and demo-logs/")
	flag.DurationVar(&o.traffic, "traffic", 10*time.Second, "how long each pod sends")
	flag.DurationVar(&o.limit, "limit", 5*time.Minute, "give up after this time")
	flag.StringVar(&o.cc, "congestion-control", "cubic", "TCP congestion control of the pods, where the kernel has it")
	flag.Parse()
	return o, o.complete()
}

// complete makes the paths absolute and says everything that is missing at once.
func (o *options) complete() error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("needs root, for network namespaces and eBPF: try sudo"))
	}
	for _, path := range []*string{&o.kube, &o.bin, &o.manifests, &o.out} {
		abs, err := filepath.Abs(*path)
		errs = append(errs, err)
		*path = abs
	}
	for _, need := range []string{
		filepath.Join(o.kube, "etcd"), filepath.Join(o.kube, "kube-apiserver"),
		filepath.Join(o.bin, "kubepace-webhook"), filepath.Join(o.bin, "kubepace-enforcer"), o.manifests,
	} {
		if _, err := os.Stat(need); err != nil {
			errs = append(errs, fmt.Errorf("missing: %w", err))
		}
	}
	if _, err := exec.LookPath("iperf3"); err != nil {
		errs = append(errs, fmt.Errorf("missing: %w", err))
	}
	return errors.Join(errs...)
}

func run() int {
	o, err := parseFlags()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		return 2
	}
	if !isolate.Inside() {
		status, err := isolate.Run()
		if err != nil {
			fmt.Fprintf(os.Stderr, "demo: %v\n", err)
			return 1
		}
		return status
	}
	signalled, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(signalled, o.limit, fmt.Errorf("not done after %v", o.limit))
	defer cancel()
	err = newDemo(o).run(ctx)
	switch {
	case err == nil:
		return 0
	case signalled.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo: interrupted; everything that it made is gone with it")
		return 130
	}
	fmt.Fprintf(os.Stderr, "\nFAILED: %v\n(logs: %s)\n", err, filepath.Join(o.out, "demo-logs"))
	return 1
}
