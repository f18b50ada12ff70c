// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/tests/admission/lab"
)

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench-admission: "+format+"\n", args...)
}

// measure does all of it.
func measure(ctx context.Context, p plan) (_ *Result, err error) {
	if lacking := lab.Lacking(); lacking != "" {
		return nil, fmt.Errorf("%s", lacking)
	}
	began := time.Now()
	r := &Result{Plan: p, Kernel: kernel(), CPUs: runtime.NumCPU(), Started: began.UTC().Format(time.RFC3339)}
	say("the handlers alone ...")
	if r.Handlers, err = benchHandlers(ctx, p.BenchTime); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "kubepace-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	say("kube-apiserver and etcd ...")
	cluster, err := lab.Start(dir)
	if cluster != nil {
		defer func() { _ = cluster.Stop() }()
	}
	if err != nil {
		return nil, err
	}
	webhook, err := cluster.NewReplica("bench", "--drain-delay=0s")
	if err != nil {
		return nil, err
	}
	defer func() { _ = webhook.Stop() }()
	nothing, err := newFloor(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, nothing.stop()) }()
	s, err := newSwitch(ctx, cluster, webhook, nothing)
	if err != nil {
		return nil, err
	}
	if r.Memory, err = memory(ctx, s, p); err != nil {
		return nil, err
	}
	if r.Series, err = rounds(ctx, s, p); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, webhook.Log())
	}
	r.Seconds = time.Since(began).Seconds()
	return r, nil
}

func kernel() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return strings.TrimRight(string(name.Release[:]), "\x00")
}
