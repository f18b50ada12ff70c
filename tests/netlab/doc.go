// SPDX-License-Identifier: Apache-2.0

// Package netlab builds small networks out of network namespaces, inside the test process: a node with pods behind
// veths, and a second host. Nothing is executed to enter a namespace: sockets are opened by goroutines of the test
// itself (see Namespace.Do), so senders, receivers and probes are ordinary Go code. Package traffic has them.
//
// It needs root. Where that is missing tests call RequireRoot, which skips, or fails where CI=true is set.
package netlab

import "os"

// TB is the part of testing.TB that netlab needs; the demo brings its own.
type TB interface {
	Helper()
	Cleanup(func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Skip skips the test with the reason, but fails it where CI=true is set: there a skipped test is a lost test.
func Skip(t TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("would skip, but CI=true: "+format, args...)
	}
	t.Skipf(format, args...)
}

// RequireRoot skips the test, or fails it in CI, unless it runs as root.
func RequireRoot(t TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "needs root to make network namespaces")
	}
}
