// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench-node: "+format+"\n", args...)
}

// measure does the parts that are wanted.
func measure(ctx context.Context, p plan, command []string, wanted func(part string) bool) (*Result, error) {
	binary, err := filepath.Abs(command[0])
	if err != nil {
		return nil, err
	}
	command = append([]string{binary}, command[1:]...)
	began := time.Now()
	r := &Result{Plan: p, Kernel: kernel(), CPUs: runtime.NumCPU(), Started: began.UTC().Format(time.RFC3339), Load: load()}
	if wanted(partFolder) {
		if err := r.folder(ctx, command); err != nil {
			return nil, fmt.Errorf("pods from a folder: %w", err)
		}
	}
	if wanted(partAPI) || wanted(partChurn) {
		if err := r.api(ctx, command, wanted(partChurn)); err != nil {
			return nil, fmt.Errorf("pods from the API server: %w", err)
		}
	}
	if wanted(partCluster) {
		if err := r.cluster(ctx); err != nil {
			return nil, fmt.Errorf("many nodes: %w", err)
		}
	}
	r.Seconds = time.Since(began).Seconds()
	return r, nil
}

// nodeName is the node in the API server that the world plays.
const nodeName = "bench-node"

// api is a node of a cluster.
func (r *Result) api(ctx context.Context, command []string, churn bool) (err error) {
	say("%d pods from kube-apiserver ...", r.Plan.Pods)
	plane, err := startPlane(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.stop()) }()
	if err := plane.createNode(ctx, nodeName); err != nil {
		return err
	}
	return onNode(r.Plan.Pods, func(w *world, pods []*pod) (err error) {
		err = many(ctx, len(pods), 8, func(i int) error {
			bound, err := plane.bindPod(ctx, pods[i].name, nodeName)
			if err != nil {
				return err
			}
			return errors.Join(w.result(pods[i], string(bound.UID)), plane.report(ctx, bound, pods[i].addr.String()))
		})
		if err != nil {
			return err
		}
		kubeconfig := filepath.Join(w.dir, "kubeconfig")
		door, err := openDoor(w, plane, kubeconfig)
		if door != nil {
			defer door.close()
		}
		if err != nil {
			return err
		}
		a := &agent{w: w, command: command, source: []string{"--kubeconfig=" + kubeconfig, "--node-name=" + nodeName}}
		defer func() { err = errors.Join(err, a.stop(syscall.SIGTERM)) }()
		s, err := steady(ctx, a, r.Plan, "API server")
		if err != nil {
			return err
		}
		r.Steady = append(r.Steady, s)
		if !churn {
			return nil
		}
		return errors.Join(r.burst(ctx, a, plane, len(pods)), r.churn(ctx, a, plane, len(pods)))
	})
}

// folder is a node without a cluster.
func (r *Result) folder(ctx context.Context, command []string) (err error) {
	say("%d pods from a folder ...", r.Plan.Pods)
	return onNode(r.Plan.Pods, func(w *world, pods []*pod) error {
		for _, p := range pods {
			if err := w.manifest(p); err != nil {
				return err
			}
		}
		a := &agent{w: w, command: command, source: []string{"--pod-manifests=" + w.manifests()}}
		p := r.Plan
		p.Idle = p.FolderIdle
		s, err := steady(ctx, a, p, "folder")
		if err == nil {
			r.Steady = append(r.Steady, s)
		}
		return errors.Join(err, a.stop(syscall.SIGTERM))
	})
}

// onNode runs do on a node with so many pods, and takes all of it away.
func onNode(n int, do func(w *world, pods []*pod) error) (err error) {
	w, err := newWorld()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	pods := make([]*pod, 0, n)
	defer func() {
		for _, p := range pods {
			err = errors.Join(err, p.Close())
		}
	}()
	for i := range n {
		p, err := w.addPod(i)
		if err != nil {
			return err
		}
		pods = append(pods, p)
	}
	return do(w, pods)
}

// load is the machine's: on a busy one every figure here is worse.
func load() float64 {
	var mean float64
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(text), &mean)
	}
	return mean
}

func kernel() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return strings.TrimRight(string(name.Release[:]), "\x00")
}
