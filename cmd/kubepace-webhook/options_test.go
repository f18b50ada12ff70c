// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"
	"go.uber.org/zap/zapcore"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParse(t *testing.T) {
	o := defaultOptions()
	err := o.parse([]string{
		"--cluster-default=1e7", "--cluster-max", "1G", "--extra-ips=127.0.0.1,::1", "--extra-dns-names=a.example",
		"--log-level=2", "--kubeconfig=/dev/null",
	}, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if want := (policy.Cluster{Default: 10 * bandwidth.Megabit, Max: bandwidth.Gigabit}); o.cluster != want {
		t.Errorf("cluster %+v, want %+v", o.cluster, want)
	}
	if len(o.ExtraIPs) != 2 || len(o.ExtraDNSNames) != 1 || o.level != zapcore.Level(-2) {
		t.Errorf("%+v", o)
	}
}

// Everything that is wrong is reported at once.
func TestParseReportsAll(t *testing.T) {
	err := defaultOptions().parse([]string{
		"--cluster-default=10m", "--cluster-min=2G", "--cluster-max=1G", "--port=0", "--namespace=A_b", "--log-level=loud",
		"--drain-delay=-1s", "--extra-dns-names=*",
	}, &bytes.Buffer{})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`--cluster-default: "10m" is below`, "--cluster-min 2G is above --cluster-max 1G", "--port 0", `--namespace "A_b"`,
		`--log-level "loud"`, "--drain-delay -1s", `--extra-dns-names "*"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in\n%v", want, err)
		}
	}
}

func TestUsage(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run([]string{"--help"}, &stdout, &stderr); code != 0 || stderr.Len() != 0 {
		t.Errorf("exit code %d, %s", code, &stderr)
	}
	for _, want := range []string{"--kubeconfig", "--cluster-max rate", "egress.kubepace.io/default", "127.0.0.1"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("help lacks %q", want)
		}
	}
	stdout.Reset()
	for _, args := range [][]string{{"--nonsense"}, {"argument"}, {"--port=99999"}} {
		if code := run(args, &stdout, &stderr); code != 2 || stdout.Len() != 0 {
			t.Errorf("%v: exit code %d, %s", args, code, &stdout)
		}
	}
	if err := defaultOptions().parse([]string{"-h"}, &stdout); !errors.Is(err, pflag.ErrHelp) {
		t.Error(err)
	}
}

// The context outlives the signal by the delay; the flag does not wait.
func TestDrain(t *testing.T) {
	stop, signal := context.WithCancel(t.Context())
	began := make(chan time.Time, 1)
	ctx, draining := drain(stop, 50*time.Millisecond, func() { began <- time.Now() })
	if draining.Load() || ctx.Err() != nil {
		t.Error("drains before the signal")
	}
	signal()
	start := <-began
	if !draining.Load() {
		t.Error("still ready while draining")
	}
	<-ctx.Done()
	if d := time.Since(start); d < 50*time.Millisecond {
		t.Errorf("stopped after %s", d)
	}
}
