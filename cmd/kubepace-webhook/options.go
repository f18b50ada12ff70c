// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap/zapcore"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/certs"
	"github.com/kubepace/kubepace/webhook/policy"
)

// options are the command line; defaultOptions sets what may be left out, parse validates.
type options struct {
	ListenAddress  string
	Port           int
	HealthAddress  string
	MetricsAddress string
	DrainDelay     time.Duration

	Namespace               string
	ServiceName             string
	SecretName              string
	MutatingConfiguration   string
	ValidatingConfiguration string
	ExtraDNSNames           []string
	ExtraIPs                []net.IP

	CertDir       string
	Validity      certs.Validity
	CAPropagation time.Duration
	ReplicaName   string
	LeaseDuration time.Duration

	ClusterDefault string
	ClusterMin     string
	ClusterMax     string

	RestampRate float64
	AgentCheck  time.Duration

	LogLevel string

	cluster policy.Cluster // from the Cluster texts
	level   zapcore.Level  // from LogLevel
}

func defaultOptions() *options {
	return &options{
		Port: 9443, HealthAddress: ":8081", MetricsAddress: ":8080", DrainDelay: 5 * time.Second,
		Namespace: "kubepace-system", ServiceName: "kubepace-webhook", SecretName: "kubepace-webhook-tls",
		MutatingConfiguration: "kubepace-webhook", ValidatingConfiguration: "kubepace-webhook",
		Validity: certs.DefaultValidity, CAPropagation: 10 * time.Second, ReplicaName: hostname(), LeaseDuration: 15 * time.Second,
		RestampRate: 50, AgentCheck: 15 * time.Second, LogLevel: "info",
	}
}

// hostname is a pod's own name.
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return strings.ToLower(name)
}

const usage = `kubepace-webhook answers kube-apiserver's admission reviews: it writes every pod's egress limit into the
annotation kubernetes.io/egress-bandwidth, within the bounds of the cluster (flags below) and of the namespace (labels
egress.kubepace.io/default, min, max, over-max, mode). One replica leads: it issues the TLS certificates of all, keeps
them in a Secret and injects the CA into the webhook configurations, unless --cert-dir names certificates from elsewhere.

A rate is in bits per second, as a Kubernetes quantity between 1k and 1P: 10M, 1500k, 2G.

Usage: kubepace-webhook [flags]

`

func (o *options) flags() *pflag.FlagSet {
	fs := pflag.NewFlagSet("kubepace-webhook", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.StringVar(&o.ClusterDefault, "cluster-default", o.ClusterDefault, "`rate` for pods that ask for none, in every namespace (default: unlimited)")
	fs.StringVar(&o.ClusterMin, "cluster-min", o.ClusterMin, "smallest `rate` that a pod may ask for (default: none)")
	fs.StringVar(&o.ClusterMax, "cluster-max", o.ClusterMax, "largest `rate` that a pod may get (default: none)")
	fs.StringVar(&o.ListenAddress, "listen-address", o.ListenAddress, "`host` or IP to serve admission on (default: all)")
	fs.IntVar(&o.Port, "port", o.Port, "TCP port to serve admission on, by TLS 1.3")
	fs.StringVar(&o.HealthAddress, "health-address", o.HealthAddress, "`host:port` for /healthz and /readyz; 0 serves none")
	fs.StringVar(&o.MetricsAddress, "metrics-address", o.MetricsAddress, "`host:port` for /metrics; 0 serves none")
	fs.DurationVar(&o.DrainDelay, "drain-delay", o.DrainDelay, "how long to go on answering after SIGTERM, while API servers learn that this replica goes")
	fs.StringVar(&o.Namespace, "namespace", o.Namespace, "`namespace` of the Service and the Secret")
	fs.StringVar(&o.ServiceName, "service-name", o.ServiceName, "Service that API servers call; its names go into the certificate")
	fs.StringVar(&o.SecretName, "secret-name", o.SecretName, "Secret that keeps CA and certificate; created when missing")
	fs.StringVar(&o.MutatingConfiguration, "mutating-webhook-configuration", o.MutatingConfiguration, "`name` of the MutatingWebhookConfiguration that gets the caBundle")
	fs.StringVar(&o.ValidatingConfiguration, "validating-webhook-configuration", o.ValidatingConfiguration, "`name` of the ValidatingWebhookConfiguration that gets the caBundle")
	fs.StringSliceVar(&o.ExtraDNSNames, "extra-dns-names", o.ExtraDNSNames, "more DNS `names` for the certificate, comma-separated")
	fs.IPSliceVar(&o.ExtraIPs, "extra-ips", o.ExtraIPs, "IP `addresses` for the certificate, comma-separated, such as 127.0.0.1 for a webhook outside the cluster")
	fs.StringVar(&o.CertDir, "cert-dir", o.CertDir, "`folder` of tls.crt and tls.key that somebody else, such as cert-manager, keeps; no certificate is issued or injected then")
	fs.DurationVar(&o.Validity.CA, "ca-validity", o.Validity.CA, "how long a CA is valid; it is replaced when a third of that is left")
	fs.DurationVar(&o.Validity.Leaf, "certificate-validity", o.Validity.Leaf, "how long a certificate is valid; it is replaced when a third of that is left")
	fs.DurationVar(&o.CAPropagation, "ca-propagation", o.CAPropagation, "how long API servers are given to learn of a new CA before it is used")
	fs.StringVar(&o.ReplicaName, "replica-name", o.ReplicaName, "`name` of this replica's Lease, unlike every other's (default: the host name)")
	fs.DurationVar(&o.LeaseDuration, "lease-duration", o.LeaseDuration, "how long the leader's Lease, and each replica's, outlives its last renewal")
	fs.Float64Var(&o.RestampRate, "restamp-rate", o.RestampRate, "how many running `pods` per second get another limit, at most, after a policy changed")
	fs.DurationVar(&o.AgentCheck, "agent-check", o.AgentCheck, "how often to look for nodes whose agent's Lease has run out, which then lose the resource that they advertise")
	fs.StringVar(&o.LogLevel, "log-level", o.LogLevel, "error, warn, info, debug, or a number for more than debug (2, 3, ...)")
	fs.Lookup("extra-ips").DefValue = ""    // help would show an empty pair of brackets
	fs.Lookup("replica-name").DefValue = "" // help would show this machine's
	// controller-runtime registers --kubeconfig there.
	fs.AddGoFlagSet(flag.CommandLine)
	return fs
}

// parse reads and validates the command line. pflag.ErrHelp means that help was asked for and given.
func (o *options) parse(args []string, stdout io.Writer) error {
	fs := o.flags()
	fs.SetOutput(io.Discard)
	fs.Usage = func() { fmt.Fprintf(stdout, "%sFlags:\n%s", usage, fs.FlagUsagesWrapped(120)) }
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return o.validate()
}

// validate reports everything that is wrong, joined, and fills the parsed fields.
func (o *options) validate() error {
	var errs []error
	for _, r := range []struct {
		flag, text string
		into       *bandwidth.Rate
	}{
		{policy.FlagDefault, o.ClusterDefault, &o.cluster.Default},
		{policy.FlagMin, o.ClusterMin, &o.cluster.Min},
		{policy.FlagMax, o.ClusterMax, &o.cluster.Max},
	} {
		if r.text == "" {
			continue
		}
		rate, err := bandwidth.Parse(r.text)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.flag, err))
		}
		*r.into = rate
	}
	errs = append(errs, o.cluster.Validate())
	if o.Port < 1 || o.Port > 65535 {
		errs = append(errs, fmt.Errorf("--port %d is outside 1 and 65535", o.Port))
	}
	if o.DrainDelay < 0 {
		errs = append(errs, fmt.Errorf("--drain-delay %s is negative", o.DrainDelay))
	}
	if o.RestampRate < 1 || o.RestampRate > 10000 {
		errs = append(errs, fmt.Errorf("--restamp-rate %v is outside 1 and 10000", o.RestampRate))
	}
	if o.AgentCheck < time.Second {
		errs = append(errs, fmt.Errorf("--agent-check %s is below 1s", o.AgentCheck))
	}
	errs = append(errs, o.validateRotation())
	errs = append(errs, checkNames("--namespace", validation.IsDNS1123Label, o.Namespace),
		checkNames("--service-name", validation.IsDNS1035Label, o.ServiceName),
		checkNames("--secret-name", validation.IsDNS1123Subdomain, o.SecretName),
		checkNames("--mutating-webhook-configuration", validation.IsDNS1123Subdomain, o.MutatingConfiguration),
		checkNames("--validating-webhook-configuration", validation.IsDNS1123Subdomain, o.ValidatingConfiguration),
		checkNames("--replica-name", validation.IsDNS1123Subdomain, o.ReplicaName),
		checkNames("--extra-dns-names", validation.IsDNS1123Subdomain, o.ExtraDNSNames...))
	var err error
	if o.level, err = parseLevel(o.LogLevel); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// validateRotation wants every certificate to be replaced before it is over, with a new CA known in time.
func (o *options) validateRotation() error {
	var errs []error
	for _, v := range []struct {
		flag  string
		value time.Duration
	}{{"--ca-validity", o.Validity.CA}, {"--certificate-validity", o.Validity.Leaf}} {
		if v.value < 6*o.CAPropagation || v.value < 6*time.Second {
			errs = append(errs, fmt.Errorf("%s %s is below 6 times --ca-propagation %s, or 6s", v.flag, v.value, o.CAPropagation))
		}
	}
	if o.CAPropagation < 0 {
		errs = append(errs, fmt.Errorf("--ca-propagation %s is negative", o.CAPropagation))
	}
	if o.LeaseDuration < 3*time.Second {
		errs = append(errs, fmt.Errorf("--lease-duration %s is below 3s", o.LeaseDuration))
	}
	return errors.Join(errs...)
}

func checkNames(flagName string, check func(string) []string, values ...string) error {
	var errs []error
	for _, v := range values {
		for _, problem := range check(v) {
			errs = append(errs, fmt.Errorf("%s %q: %s", flagName, v, problem))
		}
	}
	return errors.Join(errs...)
}

// parseLevel maps names and logr's numbers to zap, where more verbose is more negative.
func parseLevel(text string) (zapcore.Level, error) {
	switch text {
	case "error":
		return zapcore.ErrorLevel, nil
	case "warn":
		return zapcore.WarnLevel, nil
	case "info":
		return zapcore.InfoLevel, nil
	case "debug":
		return zapcore.DebugLevel, nil
	}
	if n, err := strconv.ParseUint(text, 10, 7); err == nil {
		return zapcore.Level(-int8(n)), nil // 7 bits fit
	}
	return 0, fmt.Errorf("--log-level %q is none of error, warn, info, debug or a number", text)
}
