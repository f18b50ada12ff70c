// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"

	"github.com/kubepace/kubepace/tests/demo/isolate"
	"github.com/kubepace/kubepace/tests/demo/node"
	"github.com/kubepace/kubepace/tests/demo/plane"
	"github.com/kubepace/kubepace/tests/demo/result"
	"github.com/kubepace/kubepace/tests/process"
)

const (
	nodeName = "demo-node"
	// scratch is on the private /run: it goes with the mount namespace.
	scratch = "/run/kubepace-demo"
)

// demo is one run.
type demo struct {
	options
	began  time.Time
	logs   string
	node   *node.Node
	plane  *plane.Plane
	client *kubernetes.Clientset
	pods   []*pod

	enforcer *process.Process
}

func newDemo(o options) *demo {
	return &demo{options: o, began: time.Now(), logs: filepath.Join(o.out, "demo-logs"), pods: newPods()}
}

// say prints a step with the time since the start.
func (d *demo) say(format string, args ...any) {
	fmt.Printf("[%5.1f s] %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) run(ctx context.Context) error {
	if err := isolate.Prepare(); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(d.logs), os.MkdirAll(d.logs, 0o755), os.MkdirAll(scratch, 0o700)); err != nil {
		return fmt.Errorf("prepare folders: %w", err)
	}
	// For iperf3's files too, and whatever else the programs leave behind.
	if err := os.Setenv("TMPDIR", scratch); err != nil {
		return fmt.Errorf("set TMPDIR: %w", err)
	}
	for _, step := range []func(context.Context) error{
		d.buildNode, d.startControlPlane, d.installKubepace, d.createPods, d.awaitEnforcement, d.sendTraffic, d.showStatus,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return d.conclude()
}

func (d *demo) buildNode(context.Context) error {
	var err error
	if d.node, err = node.Build(); err != nil {
		return fmt.Errorf("build node: %w", err)
	}
	d.say("a node in a network namespace of its own: bridge, forwarding, and a link to another host (kernel %s)", kernelRelease())
	return nil
}

func (d *demo) startControlPlane(ctx context.Context) error {
	d.say("starting etcd and kube-apiserver on loopback ...")
	stop := d.heartbeat("kube-apiserver")
	defer stop()
	var err error
	d.plane, err = plane.Start(ctx, plane.Options{Binaries: d.kube, Dir: scratch, Logs: d.logs, NodeIP: node.IP})
	if err != nil {
		return err
	}
	if d.client, err = kubernetes.NewForConfig(d.plane.Admin); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	version, err := d.client.Discovery().ServerVersion()
	if err != nil {
		return fmt.Errorf("ask for the version: %w", err)
	}
	d.say("kube-apiserver %s answers", version.GitVersion)
	return nil
}

// heartbeat prints a line every 15 s until stop is called: on an emulated processor, starting takes minutes.
func (d *demo) heartbeat(what string) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(15 * time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				d.say("  ... still waiting for %s", what)
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}

// conclude writes and prints what was seen, and judges it.
func (d *demo) conclude() error {
	report := d.report()
	fmt.Println()
	if err := report.WriteTable(os.Stdout); err != nil {
		return err
	}
	fmt.Printf("\nPAYLOAD is what iperf3's server received over its %v, WIRE the same in whole frames (x %d/%d): the limit counts frames.\n",
		d.traffic, result.FrameBytes, result.PayloadBytes)
	if err := errors.Join(d.writeFile("demo.json", report.WriteJSON), d.writeFile("demo.svg", d.chart(report).Write)); err != nil {
		return err
	}
	if err := report.Check(); err != nil {
		return err
	}
	fmt.Println()
	d.say("PASSED: every pod kept its limit (%s), and what is no rate was refused", report.Mode)
	return nil
}

func (d *demo) writeFile(name string, write func(io.Writer) error) error {
	var content bytes.Buffer
	if err := write(&content); err != nil {
		return err
	}
	path := filepath.Join(d.out, name)
	if err := os.WriteFile(path, content.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	fmt.Printf("wrote %s\n", path)
	return nil
}

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}
