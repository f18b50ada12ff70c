// SPDX-License-Identifier: Apache-2.0

// Command bench compares kubepace's datapath with no limit, with a single FIFO per pod and with the CNI bandwidth
// plugin, on the same topology, one after the other. tests/bench/run.sh runs it in a virtual machine.
//
//	bench run  --plugin PATH [--quick] [KEY=LIST ...]   measure; needs root and fq, see plan.choose for the keys
//	bench cost                                          cost per packet on this kernel; needs root
//	bench show [--docs FILE] [--strict]                 figures, tables and verdicts from the results
//
// All of them take --out FOLDER, where the results are.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/tests/bench/cost"
	"github.com/kubepace/kubepace/tests/bench/report"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// errNotMet is for --strict.
var errNotMet = errors.New("not every claim was met")

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	commands := map[string]func(context.Context, []string, io.Writer, io.Writer) error{
		"run": runCommand, "cost": costCommand, "show": showCommand,
	}
	command := commands[""]
	if len(args) > 0 {
		command = commands[args[0]]
	}
	if command == nil {
		fmt.Fprintln(stderr, "usage: bench run|cost|show [--help]")
		return 2
	}
	err := command(ctx, args[1:], stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

func runCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("bench run", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("out", "build/bench", "folder for the results")
	plugin := flags.String("plugin", "", "the CNI bandwidth plugin's binary")
	quick := flags.Bool("quick", false, "the telling cases only")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if _, err := os.Stat(*plugin); err != nil {
		return fmt.Errorf("--plugin: %w", err)
	}
	p := fullPlan()
	if *quick {
		p = quickPlan()
	}
	p, err := p.choose(flags.Args())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", *out, err)
	}
	b := &bench{plan: p, plugin: *plugin, out: *out, stdout: stdout}
	return b.all(ctx)
}

func costCommand(_ context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("bench cost", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("out", "build/bench", "folder for the results")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "kubepace-cost")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer os.RemoveAll(dir)
	costs, err := cost.Measure(dir, func(format string, args ...any) { fmt.Fprintf(stdout, format+"\n", args...) })
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", *out, err)
	}
	return save(filepath.Join(*out, hereFile), costs)
}

func showCommand(_ context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("bench show", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("out", "build/bench", "folder of the results")
	docs := flags.String("docs", "", "Markdown file whose marked sections are written anew")
	strict := flags.Bool("strict", false, "fail unless every claim is met")
	if err := flags.Parse(args); err != nil {
		return err
	}
	r, err := report.Load(filepath.Join(*out, casesFile), filepath.Join(*out, runFile),
		filepath.Join(*out, costFile), filepath.Join(*out, hereFile))
	if err != nil {
		return err
	}
	if err := r.WriteFigures(*out); err != nil {
		return err
	}
	if *docs != "" {
		if err := r.UpdateDocs(*docs); err != nil {
			return err
		}
	}
	if met := r.PrintVerdicts(stdout); !met && *strict {
		return errNotMet
	}
	return nil
}
