// SPDX-License-Identifier: Apache-2.0

// Command node measures what the node agent costs, by its own binary: memory, idle processor time and restarts with
// 250 limited pods (real network namespaces, pods from a folder and from a real kube-apiserver), a churn of ten pods a
// second with everything that could leak counted before and after, and what a thousand nodes ask of one API server.
// It writes node.json, a picture, and a section of the documentation.
//
// Needs root. KUBEBUILDER_ASSETS names kube-apiserver and etcd: `make bench-node` builds them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
)

func main() { os.Exit(run(os.Args[1:])) }

// parts are what can be measured by itself.
var parts = []string{partFolder, partAPI, partChurn, partCluster}

const (
	partFolder  = "folder"
	partAPI     = "api"
	partChurn   = "churn"
	partCluster = "cluster"
)

func run(args []string) int {
	fs := pflag.NewFlagSet("node", pflag.ContinueOnError)
	quick := fs.Bool("quick", false, "shorter, and a smaller cluster")
	binary := fs.String("binary", "bin/kubepace-enforcer", "`file` of the agent")
	out := fs.String("out", "build/bench", "`folder` for node.json and node.svg")
	docs := fs.String("docs", "docs/benchmarks-node.md", "`file` that gets the tables; empty for none")
	only := fs.StringSlice("only", parts, "`parts` to measure; what node.json has of the others is kept")
	extra := fs.StringArray("agent-flag", nil, "`flag` for the agent besides those that it gets; as often as wanted")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return 0
		}
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	ctrl.SetLogger(logr.Discard())
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	p := full
	if *quick {
		p = brief
	}
	result, err := measure(ctx, p, append([]string{*binary}, *extra...), func(part string) bool { return slices.Contains(*only, part) })
	if err == nil && len(*only) < len(parts) {
		err = result.keep(filepath.Join(*out, "node.json"))
	}
	if err == nil {
		err = write(result, *out, *docs)
	}
	if err == nil {
		fmt.Print(result.markdown())
		err = result.leaked()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench-node: %v\n", err)
		return 1
	}
	return 0
}

func write(r *Result, out, docs string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	if err := os.WriteFile(filepath.Join(out, "node.json"), append(raw, '\n'), 0o600); err != nil {
		return err
	}
	if docs == "" {
		return nil
	}
	return replaceSection(docs, r.markdown())
}
