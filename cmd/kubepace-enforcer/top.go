// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/term"

	"github.com/kubepace/kubepace/enforcer/report"
)

// runTop draws in place on a terminal, and writes frames one below the other everywhere else.
func runTop(ctx context.Context, o *options, stdout, _ io.Writer) (err error) {
	source := report.Kernel(o.BPFFS, o.RunDir)
	top := report.TopOptions{Interval: o.Interval, Once: o.Once}
	out, isFile := stdout.(*os.File)
	onTerminal := isFile && term.IsTerminal(int(out.Fd())) && os.Getenv("TERM") != "dumb"
	screen := screenFor(onTerminal, os.Getenv)
	if o.Output == "json" || o.Once || !onTerminal {
		if onTerminal {
			if screen.Width, _, err = term.GetSize(int(out.Fd())); err != nil {
				screen.Width = 0
			}
		}
		return report.Top(ctx, source, &report.Lines{Out: stdout, JSON: o.Output == "json", Screen: screen}, top)
	}
	terminal, err := report.OpenTerminal(os.Stdin, out, screen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, terminal.Close()) }()
	top.Early = true
	return report.Top(ctx, source, terminal, top)
}

// screenFor reads the customs of terminals: whether colours are wanted, the locale's characters, and COLUMNS where there is no window.
func screenFor(onTerminal bool, env func(string) string) report.Screen {
	var s report.Screen
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if locale := env(name); locale != "" {
			s.Blocks = onTerminal && strings.Contains(strings.ReplaceAll(strings.ToUpper(locale), "-", ""), "UTF8")
			break
		}
	}
	s.Colour = onTerminal && env("NO_COLOR") == ""
	if width, err := strconv.Atoi(env("COLUMNS")); err == nil && width > 0 && !onTerminal {
		s.Width = width
	}
	return s
}
