// SPDX-License-Identifier: Apache-2.0

// Command kubepace-enforcer makes the kernel of a node keep its pods' egress limits.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// command is one of the program's verbs.
type command struct {
	name    string
	summary string
	// flags are those that the command has; all of them are fields of options.
	flags func(o *options, fs *pflag.FlagSet)
	check func(o *options) error // may be nil
	run   func(ctx context.Context, o *options, stdout, stderr io.Writer) error
}

var commands = []command{
	{"run", "the agent: keeps the limits of this node's pods (the default)", runFlags, (*options).validateRun, runAgent},
	{"list", "the limited pods: limit, mode, rate now, what was delayed and dropped", listFlags, (*options).validateList, runList},
	{"top", "the same live: rate against limit, backlog, what is dropped and marked each second; q ends it", topFlags, (*options).validateTop, runTop},
	{"status", "this node: mode and why, exit devices, kernel features, agent", statusFlags, (*options).validateStatus, runStatus},
	{"cleanup", "remove every limit and restore the qdiscs, once the agent is stopped", cleanupFlags, (*options).validateCommon, runCleanup},
	{"version", "the version of this program", nil, nil, runVersion},
}

const about = `kubepace-enforcer makes the kernel keep the egress limits (annotation kubernetes.io/egress-bandwidth) of the pods on
this node. The limits are kernel state: they stay in force while the agent is down, and "list", "top" and "status"
see them then. Needs root, or the capabilities BPF, NET_ADMIN, PERFMON and SYS_ADMIN.

Usage: kubepace-enforcer [command] [flags]

Commands:
`

// run returns the exit code: 0 done, 1 failed, 2 wrong usage.
func run(args []string, stdout, stderr io.Writer) int {
	c, rest, err := choose(args)
	if err == nil && c.name == "" {
		help(stdout)
		return 0
	}
	o := defaultOptions()
	if err == nil {
		err = o.parse(c, rest, stdout)
	}
	if errors.Is(err, pflag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "kubepace-enforcer: %v\nsee kubepace-enforcer --help\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := c.run(ctx, o, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "kubepace-enforcer %s: %v\n", c.name, err)
		return 1
	}
	return 0
}

// choose finds the command. Without one it is "run"; the command without a name stands for help.
func choose(args []string) (command, []string, error) {
	if len(args) == 0 {
		return commands[0], nil, nil
	}
	switch first := args[0]; {
	case first == "help" || first == "--help" || first == "-h":
		return command{}, nil, nil
	case strings.HasPrefix(first, "-"):
		return commands[0], args, nil
	}
	for _, c := range commands {
		if c.name == args[0] {
			return c, args[1:], nil
		}
	}
	return command{}, nil, fmt.Errorf("unknown command %q", args[0])
}

func help(w io.Writer) {
	fmt.Fprint(w, about)
	for _, c := range commands {
		fmt.Fprintf(w, "  %-8s %s\n", c.name, c.summary)
	}
	fmt.Fprint(w, "\nkubepace-enforcer <command> --help shows a command's flags.\n")
}
