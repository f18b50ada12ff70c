// SPDX-License-Identifier: Apache-2.0

// Command admission measures what admission costs: pod creates through a real kube-apiserver with nothing, with webhooks that
// do nothing, with CEL policies that default and cap, and with kubepace, in rounds that take turns; the handlers alone; and the webhook's
// memory in a large cluster. It writes admission.json and admission.svg, and a section of the documentation.
//
// KUBEBUILDER_ASSETS names kube-apiserver, etcd and kubectl: `make bench-admission` builds them.
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
	"syscall"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if len(args) == 3 && args[0] == answerCommand {
		fmt.Fprintln(os.Stderr, answer(args[1], args[2]))
		return 1
	}
	fs := pflag.NewFlagSet("admission", pflag.ContinueOnError)
	quick := fs.Bool("quick", false, "fewer and shorter rounds")
	out := fs.String("out", "build/bench", "`folder` for admission.json and admission.svg")
	docs := fs.String("docs", "docs/benchmarks-admission.md", "`file` that gets the tables; empty for none")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return 0
		}
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	ctrl.SetLogger(klog.Background())
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	p := full
	if *quick {
		p = brief
	}
	result, err := measure(ctx, p)
	if err == nil {
		err = write(result, *out, *docs)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench-admission: %v\n", err)
		return 1
	}
	fmt.Print(result.markdown())
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
	if err := os.WriteFile(filepath.Join(out, "admission.json"), append(raw, '\n'), 0o600); err != nil {
		return err
	}
	if err := draw(r, filepath.Join(out, "admission.svg")); err != nil {
		return err
	}
	if docs == "" {
		return nil
	}
	pictures := filepath.Join(filepath.Dir(docs), "benchmarks")
	if err := os.MkdirAll(pictures, 0o755); err != nil {
		return err
	}
	return errors.Join(draw(r, filepath.Join(pictures, "admission.svg")), replaceSection(docs, r.markdown()))
}

func draw(r *Result, file string) error {
	svg, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := errors.Join(r.picture().Write(svg), svg.Close()); err != nil {
		return fmt.Errorf("draw %s: %w", file, err)
	}
	return nil
}
