// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/kubepace/kubepace/tests/demo/isolate"
	"github.com/kubepace/kubepace/tests/e2e/cluster"
)

// Folders that run.sh fills.
const (
	envKube     = "KUBEPACE_E2E_KUBE"     // tests/kube/build.sh
	envPrograms = "KUBEPACE_E2E_PROGRAMS" // tests/kube/node/build.sh
	envEnforcer = "KUBEPACE_E2E_ENFORCER" // kubepace-enforcer, for what is done on a node itself
	envOut      = "KUBEPACE_E2E_OUT"      // images/, logs/, and what the tests write
	envPatience = "KUBEPACE_E2E_PATIENCE" // a factor for every limit of time; empty: 1
	envCount    = "KUBEPACE_E2E_COUNT"    // how often repeatable steps run; empty: 1
)

// repeats is envCount.
var repeats = 1

var began = time.Now()

// say prints a step with the time since the start, at once: a whole run takes minutes.
func say(format string, args ...any) {
	fmt.Printf("[%5.1f s] %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if missing() != "" {
		return m.Run() // the tests say what is missing
	}
	if !isolate.Inside() {
		status, err := isolate.Run()
		err = errors.Join(err, removeCgroups())
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return max(status, 1)
		}
		return status
	}
	if text := os.Getenv(envPatience); text != "" {
		var err error
		if cluster.Patience, err = strconv.ParseFloat(text, 64); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: %s: %v\n", envPatience, err)
			return 1
		}
	}
	if text := os.Getenv(envCount); text != "" {
		var err error
		if repeats, err = strconv.Atoi(text); err != nil || repeats < 1 {
			fmt.Fprintf(os.Stderr, "e2e: %s=%q: want a number of times\n", envCount, text)
			return 1
		}
	}
	if err := cluster.Prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return m.Run()
}

// removeCgroups allows for processes that are killed but not gone yet.
func removeCgroups() error {
	return cluster.Poll(context.Background(), 10*time.Second, func(context.Context) error { return cluster.RemoveCgroups() })
}

// missing says what these tests lack, if anything.
func missing() string {
	for _, name := range []string{envKube, envPrograms, envEnforcer, envOut} {
		if os.Getenv(name) == "" {
			return name + " is not set: run `make e2e`"
		}
	}
	if os.Geteuid() != 0 {
		return "needs root, for network namespaces and eBPF"
	}
	for _, program := range []string{"runc", "iperf3", "iptables", "nsenter", "tc"} {
		if _, err := exec.LookPath(program); err != nil {
			return err.Error()
		}
	}
	return ""
}

// start starts the cluster, or skips the test where that is impossible; in CI nothing is.
func start(t *testing.T) (context.Context, *cluster.Cluster) {
	t.Helper()
	if what := missing(); what != "" {
		if os.Getenv("CI") == "true" {
			t.Fatalf("missing: %s", what)
		}
		t.Skipf("missing: %s", what)
	}
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGTERM, os.Interrupt)
	t.Cleanup(stop)
	out := os.Getenv(envOut)
	init, err := filepath.Abs("node.sh")
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Start(ctx, cluster.Options{
		Kube: os.Getenv(envKube), Programs: os.Getenv(envPrograms),
		Images: filepath.Join(out, "images"), Logs: filepath.Join(out, "logs"), NodeInit: init, Say: say,
	}, 2)
	if c != nil {
		t.Cleanup(c.Stop)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ctx, c
}
