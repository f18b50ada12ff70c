// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kubepace/kubepace/enforcer/report"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func parse(t *testing.T, args ...string) (*options, error) {
	t.Helper()
	c, rest, err := choose(args)
	if err != nil {
		return nil, err
	}
	o := defaultOptions()
	return o, o.parse(c, rest, &bytes.Buffer{})
}

func TestParse(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	o, err := parse(t, "--node-name=node1", "--exit-devices=eth0,eth1", "--resync=5s", "--health-address=:8080", "--log-level=debug")
	if err != nil || o.NodeName != "node1" || len(o.ExitDevices) != 2 || o.Resync != 5*time.Second || !o.PodFq || o.BPFFS != "/sys/fs/bpf/kubepace" {
		t.Errorf("options %+v, %v", o, err)
	}
	if o, err := parse(t, "list", "-o", "json", "--interval=0"); err != nil || o.Output != "json" || o.Interval != 0 {
		t.Errorf("options %+v, %v", o, err)
	}
	if o, err := parse(t, "--node-name=n", "--advertise=off"); err != nil || !o.advertise.Off() || o.Namespace != "kubepace-system" {
		t.Errorf("options %+v, %v", o, err)
	}
	if o, err := parse(t, "top", "--once", "--interval=100ms"); err != nil || !o.Once || o.Interval != 100*time.Millisecond {
		t.Errorf("options %+v, %v", o, err)
	}
	t.Setenv("NODE_NAME", "node2")
	if o, err := parse(t); err != nil || o.NodeName != "node2" {
		t.Errorf("options %+v, %v; want the node from the environment", o, err)
	}
	if _, err := parse(t, "run", "--pod-manifests=/pods"); err != nil {
		t.Errorf("folder with NODE_NAME set: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	for _, test := range []struct {
		args string
		want []string
	}{
		{"", []string{"no source of pods", "--node-name", "--pod-manifests"}},
		{"--pod-manifests=/x --kubeconfig=/y", []string{"--pod-manifests and --kubeconfig"}},
		{"--node-name=n --advertise=fast --namespace=Kube_Pace", []string{`--advertise "fast"`, "neither unbounded, link, off nor a rate", "--namespace"}},
		{"--node-name=n --advertise=link --overcommit=0", []string{"overcommit 0 is not above 0"}},
		{"--node-name=" + strings.Repeat("n", 240), []string{"too long for the name of a Lease"}},
		{"--node-name=Node_1 --resync=1ms --netns-dir=x --cni-cache-dir=x --bpffs=y --run-dir=z --health-address=8080 --metrics-address=x --exit-devices=averyveryverylongname --other-limiters=fight --proc-sys=x --log-level=loud",
			[]string{"--node-name", "--resync", "--netns-dir", "--cni-cache-dir", "--bpffs", "--run-dir", "--health-address", "--metrics-address", "--exit-devices", "--other-limiters", "--proc-sys", "--log-level"}},
		{"list -o yaml --interval=-1s", []string{"--output", "--interval"}},
		{"status -o yaml", []string{"--output"}},
		{"--node-name=x --metrics-pods=-1", []string{"--metrics-pods"}},
		{"top -o yaml --interval=0", []string{"--output", "--interval"}},
		{"list extra", []string{`unexpected argument "extra"`}},
		{"list --node-name=x", []string{"unknown flag"}},
		{"lst", []string{`unknown command "lst"`}},
	} {
		_, err := parse(t, strings.Fields(test.args)...)
		for _, want := range test.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: error %v lacks %q", test.args, err, want)
			}
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	for args, want := range map[string]string{
		"--help":         "Commands:",
		"help":           "Commands:",
		"run --help":     "--pod-manifests folder",
		"list --help":    "--interval",
		"top --help":     "--once",
		"status --help":  "--exit-devices names",
		"cleanup --help": "--run-dir folder",
		"version":        "kubepace-enforcer ",
	} {
		var out, errOut bytes.Buffer
		if code := run(strings.Fields(args), &out, &errOut); code != 0 || !strings.Contains(out.String(), want) || errOut.Len() > 0 {
			t.Errorf("%q: exit code %d, output %q, errors %q; want 0 with %q", args, code, out.String(), errOut.String(), want)
		}
	}
	var out, errOut bytes.Buffer
	if code := run([]string{"lst"}, &out, &errOut); code != 2 || !strings.Contains(errOut.String(), "see kubepace-enforcer --help") {
		t.Errorf("exit code %d, errors %q; want 2 with a hint", code, errOut.String())
	}
}

func TestScreenFor(t *testing.T) {
	for _, test := range []struct {
		onTerminal bool
		env        string
		want       report.Screen
	}{
		{true, "LANG=en_US.UTF-8", report.Screen{Colour: true, Blocks: true}},
		{true, "LANG=de_DE.utf8 NO_COLOR=1 COLUMNS=20", report.Screen{Blocks: true}},
		{true, "LC_ALL=C LANG=en_US.UTF-8", report.Screen{Colour: true}},
		{true, "", report.Screen{Colour: true}},
		{false, "LANG=en_US.UTF-8 COLUMNS=100", report.Screen{Width: 100}},
		{false, "COLUMNS=-3", report.Screen{}},
	} {
		env := map[string]string{}
		for _, pair := range strings.Fields(test.env) {
			name, value, _ := strings.Cut(pair, "=")
			env[name] = value
		}
		if got := screenFor(test.onTerminal, func(name string) string { return env[name] }); got != test.want {
			t.Errorf("terminal %v, environment %q: %+v; want %+v", test.onTerminal, test.env, got, test.want)
		}
	}
}
