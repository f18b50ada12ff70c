// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap/zapcore"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/cni"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/metrics"
	"github.com/kubepace/kubepace/enforcer/node"
	"github.com/kubepace/kubepace/enforcer/rivals"
	"github.com/kubepace/kubepace/enforcer/sysctl"
)

// options are the command lines of all commands; defaultOptions sets what may be left out, parse validates.
type options struct {
	NodeName     string
	Kubeconfig   string
	PodManifests string
	Namespace    string
	Advertise    string
	Overcommit   float64

	BPFFS       string
	RunDir      string
	NetnsDir    string
	CNICacheDir string
	ExitDevices []string
	PodFq       bool
	Resync      time.Duration

	OtherLimiters string
	BBR           bool
	ProcSys       string

	HealthAddress  string
	MetricsAddress string
	MetricsPods    int
	LogLevel       string

	Output   string
	Interval time.Duration
	Once     bool

	level     zapcore.Level // from LogLevel
	advertise node.Policy   // from Advertise and Overcommit
}

func defaultOptions() *options {
	return &options{
		NodeName: os.Getenv("NODE_NAME"), Namespace: bandwidth.SystemNamespace, Advertise: "unbounded", Overcommit: 1,
		BPFFS: datapath.DefaultBPFFS, RunDir: enforcer.DefaultRunDir, NetnsDir: device.DefaultNetnsDir,
		CNICacheDir: cni.DefaultDir, OtherLimiters: string(rivals.StandDown), ProcSys: sysctl.DefaultRoot,
		PodFq: true, Resync: enforcer.DefaultResync, HealthAddress: "0", MetricsAddress: "0", LogLevel: "info",
		MetricsPods: metrics.DefaultPods,
		Output:      "table", Interval: time.Second,
	}
}

func runFlags(o *options, fs *pflag.FlagSet) {
	fs.StringVar(&o.NodeName, "node-name", o.NodeName, "`name` of this node; its pods are watched at the API server (default: environment NODE_NAME)")
	fs.StringVar(&o.Kubeconfig, "kubeconfig", o.Kubeconfig, "`file` that tells where the API server is (default: the pod's service account)")
	fs.StringVar(&o.PodManifests, "pod-manifests", o.PodManifests, "`folder` of Pod manifests (YAML, JSON) to take the pods from, in place of an API server; watched")
	fs.StringVar(&o.Advertise, "advertise", o.Advertise, "how `much` of "+bandwidth.Resource+" the node advertises to the scheduler: unbounded, a rate such as 10G, link (the speed of the exit devices) or off (not touched)")
	fs.Float64Var(&o.Overcommit, "overcommit", o.Overcommit, "with --advertise=link, times this `factor`")
	fs.StringVar(&o.Namespace, "namespace", o.Namespace, "`namespace` of the agent's Lease")
	commonFlags(o, fs)
	fs.StringVar(&o.NetnsDir, "netns-dir", o.NetnsDir, "`folder` where the pods' network namespaces are mounted")
	fs.StringVar(&o.CNICacheDir, "cni-cache-dir", o.CNICacheDir, "`folder` where the container runtime keeps the results of CNI ADD: they tell a pod's network before its first container starts; empty to find pods by their addresses only")
	exitFlag(o, fs)
	fs.BoolVar(&o.PodFq, "pod-fq", o.PodFq, "set fq on the devices that lead to pods as well, so that traffic between pods of one node is paced; where the kernel has fq")
	fs.StringVar(&o.OtherLimiters, "other-limiters", o.OtherLimiters, "`what` to do where Cilium's bandwidth manager, Calico's QoS or the CNI bandwidth plugin limit a pod: stand-down (leave it to them, and say so) or take-over (limit it as well, and leave theirs as it is)")
	fs.BoolVar(&o.BBR, "bbr", o.BBR, "set the sysctl net.ipv4.tcp_congestion_control to bbr, for pods that start from now on; cleanup restores what was there")
	procFlag(o, fs)
	fs.DurationVar(&o.Resync, "resync", o.Resync, "how often everything is compared (interfaces inside pods: every third time) with the kernel, events or not")
	fs.StringVar(&o.HealthAddress, "health-address", o.HealthAddress, "`host:port` for /healthz and /readyz; 0 serves none")
	fs.StringVar(&o.MetricsAddress, "metrics-address", o.MetricsAddress, "`host:port` for /metrics; 0 serves none")
	fs.IntVar(&o.MetricsPods, "metrics-pods", o.MetricsPods, "how many pods have metrics under their own names; the others are summed under (other), 0 sums all")
	logFlag(o, fs)
}

func listFlags(o *options, fs *pflag.FlagSet) {
	commonFlags(o, fs)
	outputFlag(o, fs)
	fs.DurationVar(&o.Interval, "interval", o.Interval, "time between the two readings that RATE NOW comes from; 0 reads once")
}

func topFlags(o *options, fs *pflag.FlagSet) {
	commonFlags(o, fs)
	fs.StringVarP(&o.Output, "output", "o", o.Output, "`format`: table, or json for one object a line")
	fs.DurationVar(&o.Interval, "interval", o.Interval, "time from one frame to the next, at least 100ms")
	fs.BoolVar(&o.Once, "once", o.Once, "one frame, after one interval")
}

func statusFlags(o *options, fs *pflag.FlagSet) {
	commonFlags(o, fs)
	exitFlag(o, fs)
	outputFlag(o, fs)
}

func cleanupFlags(o *options, fs *pflag.FlagSet) {
	commonFlags(o, fs)
	procFlag(o, fs)
	logFlag(o, fs)
}

func commonFlags(o *options, fs *pflag.FlagSet) {
	fs.StringVar(&o.BPFFS, "bpffs", o.BPFFS, "`folder`, in a bpffs, that holds the kernel state")
	fs.StringVar(&o.RunDir, "run-dir", o.RunDir, "`folder` for the agent's status and the record of former qdiscs")
}

func procFlag(o *options, fs *pflag.FlagSet) {
	fs.StringVar(&o.ProcSys, "proc-sys", o.ProcSys, "`folder` of the kernel's settings; in a container /proc/sys is read-only")
}

func exitFlag(o *options, fs *pflag.FlagSet) {
	fs.StringSliceVar(&o.ExitDevices, "exit-devices", o.ExitDevices, "`names` of the devices where packets leave, comma-separated (default: found by routes)")
}

func outputFlag(o *options, fs *pflag.FlagSet) {
	fs.StringVarP(&o.Output, "output", "o", o.Output, "`format`: table or json")
}

func logFlag(o *options, fs *pflag.FlagSet) {
	fs.StringVar(&o.LogLevel, "log-level", o.LogLevel, "`level`: error, warn, info or debug")
}

// parse reads and validates one command's line. pflag.ErrHelp means that help was asked for and given.
func (o *options) parse(c command, args []string, stdout io.Writer) error {
	fs := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetOutput(io.Discard)
	if c.flags != nil {
		c.flags(o, fs)
	}
	fs.Usage = func() {
		fmt.Fprintf(stdout, "kubepace-enforcer %s: %s\n\nUsage: kubepace-enforcer %s [flags]\n", c.name, c.summary, c.name)
		if fs.HasFlags() {
			fmt.Fprintf(stdout, "\nFlags:\n%s", fs.FlagUsagesWrapped(120))
		}
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if c.check == nil {
		return nil
	}
	return c.check(o)
}

// The validators report everything that is wrong, joined.

func (o *options) validateRun() error {
	errs := []error{o.validateCommon()}
	switch {
	case o.PodManifests != "" && o.Kubeconfig != "":
		errs = append(errs, errors.New("--pod-manifests and --kubeconfig: pods come from one source, a folder or an API server"))
	case o.PodManifests == "" && o.NodeName == "":
		errs = append(errs, errors.New("no source of pods: give --node-name (or the environment NODE_NAME) for an API server, or --pod-manifests for a folder"))
	}
	if o.NodeName != "" {
		for _, problem := range validation.IsDNS1123Subdomain(o.NodeName) {
			errs = append(errs, fmt.Errorf("--node-name %q: %s", o.NodeName, problem))
		}
	}
	if o.CNICacheDir != "" {
		errs = append(errs, absolute("--cni-cache-dir", o.CNICacheDir))
	}
	errs = append(errs, o.validateAdvertise())
	errs = append(errs, absolute("--netns-dir", o.NetnsDir), checkDevices(o.ExitDevices),
		checkAddress("--health-address", o.HealthAddress), checkAddress("--metrics-address", o.MetricsAddress))
	errs = append(errs, absolute("--proc-sys", o.ProcSys))
	if !rivals.Policy(o.OtherLimiters).Valid() {
		errs = append(errs, fmt.Errorf("--other-limiters %q is neither %s nor %s", o.OtherLimiters, rivals.StandDown, rivals.TakeOver))
	}
	if o.MetricsPods < 0 {
		errs = append(errs, fmt.Errorf("--metrics-pods %d is negative", o.MetricsPods))
	}
	if o.Resync < time.Second {
		errs = append(errs, fmt.Errorf("--resync %s is below 1s", o.Resync))
	}
	return errors.Join(errs...)
}

func (o *options) validateAdvertise() error {
	var errs []error
	for _, problem := range validation.IsDNS1123Label(o.Namespace) {
		errs = append(errs, fmt.Errorf("--namespace %q: %s", o.Namespace, problem))
	}
	var err error
	if o.advertise, err = node.ParsePolicy(o.Advertise, o.Overcommit); err != nil {
		errs = append(errs, fmt.Errorf("--advertise %q, --overcommit: %w", o.Advertise, err))
	}
	if longest := validation.DNS1123SubdomainMaxLength - len(bandwidth.LeasePrefix); len(o.NodeName) > longest && !o.advertise.Off() {
		errs = append(errs, fmt.Errorf("--node-name is longer than %d, too long for the name of a Lease: use --advertise=off", longest))
	}
	return errors.Join(errs...)
}

func (o *options) validateList() error {
	errs := []error{o.validateCommon(), o.checkOutput()}
	if o.Interval < 0 {
		errs = append(errs, fmt.Errorf("--interval %s is negative", o.Interval))
	}
	return errors.Join(errs...)
}

func (o *options) validateTop() error {
	errs := []error{o.validateCommon(), o.checkOutput()}
	if o.Interval < 100*time.Millisecond {
		errs = append(errs, fmt.Errorf("--interval %s is below 100ms", o.Interval))
	}
	return errors.Join(errs...)
}

func (o *options) validateStatus() error {
	return errors.Join(o.validateCommon(), o.checkOutput(), checkDevices(o.ExitDevices))
}

func (o *options) validateCommon() error {
	var err error
	if o.level, err = zapcore.ParseLevel(o.LogLevel); err != nil {
		err = fmt.Errorf("--log-level %q is not error, warn, info or debug", o.LogLevel)
	}
	return errors.Join(absolute("--bpffs", o.BPFFS), absolute("--run-dir", o.RunDir), err)
}

func (o *options) checkOutput() error {
	if o.Output != "table" && o.Output != "json" {
		return fmt.Errorf("--output %q is neither table nor json", o.Output)
	}
	return nil
}

func absolute(flag, path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%s %q is not an absolute path", flag, path)
	}
	return nil
}

func checkDevices(names []string) error {
	const longest = 15 // IFNAMSIZ less the final zero
	for _, name := range names {
		if name == "" || len(name) > longest {
			return fmt.Errorf("--exit-devices %q is not the name of a device", name)
		}
	}
	return nil
}

func checkAddress(flag, address string) error {
	if address == "0" {
		return nil
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("%s %q is neither host:port nor 0: %w", flag, address, err)
	}
	return nil
}
