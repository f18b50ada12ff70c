// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"io"
	"os"
	"testing"

	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
)

// Tests are the tests of a package that share one cluster.
type Tests struct {
	missing string
}

// Run starts the cluster with a folder of its own, runs the tests and stops it; stop is called even where start failed
// on its way. Where something is missing (a text from Lacking), nothing is started, and Need deals with it. It returns
// the exit status for TestMain.
func (s *Tests) Run(m *testing.M, missing string, start func(dir string) error, stop func()) int {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	ctrl.SetLogger(klog.Background())
	if s.missing = missing; missing != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "kubepace-admission-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	defer stop()
	if err := start(dir); err != nil {
		fmt.Fprintf(os.Stderr, "start the cluster: %v\n", err)
		return 1
	}
	return m.Run()
}

// Need skips a test where there is no cluster; in CI that is a failure.
func (s *Tests) Need(t testing.TB) {
	t.Helper()
	switch {
	case s.missing == "":
	case os.Getenv("CI") == "true":
		t.Fatal(s.missing)
	default:
		t.Skip(s.missing)
	}
}
