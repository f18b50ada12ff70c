// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/qdisc"
	"github.com/kubepace/kubepace/enforcer/report"
	"github.com/kubepace/kubepace/enforcer/sysctl"
)

func runList(ctx context.Context, o *options, stdout, stderr io.Writer) error {
	list, err := report.ListPods(ctx, report.Kernel(o.BPFFS, o.RunDir), o.Interval)
	if err != nil {
		return err
	}
	if o.Output == "json" {
		return list.WriteJSON(stdout)
	}
	if !list.AgentRunning {
		fmt.Fprintln(stderr, "No agent is running. Limits that are in the kernel stay in force.")
	}
	return list.WriteText(stdout)
}

func runStatus(_ context.Context, o *options, stdout, _ io.Writer) error {
	status, err := report.Inspect(report.Kernel(o.BPFFS, o.RunDir), report.LocalNode(), o.BPFFS, o.ExitDevices)
	if err != nil {
		return err
	}
	if o.Output == "json" {
		return status.WriteJSON(stdout)
	}
	return status.WriteText(stdout)
}

// runCleanup takes all steps, whichever of them fails.
func runCleanup(_ context.Context, o *options, stdout, _ io.Writer) error {
	log, flush := setupLogging(o.level)
	defer flush()
	lock, err := enforcer.Lock(o.RunDir)
	if errors.Is(err, enforcer.ErrLocked) {
		return fmt.Errorf("stop the agent first, it would set everything again: %w", err)
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	var errs []error
	// The program goes first: without fq nothing would hold the packets that it still stamps.
	if err := datapath.Cleanup(o.BPFFS); err != nil {
		errs = append(errs, fmt.Errorf("remove limits: %w", err))
	}
	errs = append(errs, restoreQdiscs(qdisc.Options{RunDir: o.RunDir, Log: log.WithName("qdisc")}))
	if _, err := sysctl.New(o.RunDir, o.ProcSys).Restore(); err != nil {
		errs = append(errs, err)
	}
	for _, path := range []string{enforcer.StatusPath(o.RunDir), lock.Name()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove status: %w", err))
		}
	}
	// Ours alone, and only where nothing else is in it.
	_ = os.Remove(o.RunDir)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "Every limit is removed; qdiscs and sysctls are what they were.")
	return nil
}

func restoreQdiscs(options qdisc.Options) error {
	m, err := qdisc.New(options)
	if err != nil {
		return err
	}
	defer m.Close()
	return m.Restore()
}

func runVersion(_ context.Context, _ *options, stdout, _ io.Writer) error {
	_, err := fmt.Fprintf(stdout, "kubepace-enforcer %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// version is what the Go tool stamped into the binary.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}
