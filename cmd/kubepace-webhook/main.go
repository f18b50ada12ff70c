// SPDX-License-Identifier: Apache-2.0

// Command kubepace-webhook decides pods' egress limits at admission.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run returns the exit code: 0 done, 1 failed, 2 wrong usage.
func run(args []string, stdout, stderr io.Writer) int {
	o := defaultOptions()
	err := o.parse(args, stdout)
	if errors.Is(err, pflag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "kubepace-webhook: %v\nsee kubepace-webhook --help\n", err)
		return 2
	}
	log, flush := setupLogging(o.level)
	defer flush()
	rest, err := config.GetConfig()
	if err != nil {
		log.Error(err, "no configuration for the API server")
		return 1
	}
	stop := ctrl.SetupSignalHandler()
	ctx, draining := drain(stop, o.DrainDelay, func() {
		log.Info("draining", "delay", o.DrainDelay.String())
	})
	if err := serve(ctx, stop, rest, o, log, draining); err != nil {
		log.Error(err, "webhook failed")
		return 1
	}
	log.Info("stopped")
	return 0
}
