// SPDX-License-Identifier: Apache-2.0

package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kubepace/kubepace/bandwidth"
)

func TestAmount(t *testing.T) {
	const G = int64(1e9)
	for name, c := range map[string]struct {
		policy     string
		overcommit float64
		links      []Link
		bound      int64
		want       int64
		why        string
	}{
		"unbounded":                {policy: "unbounded", want: Unbounded},
		"unbounded, hostile sum":   {policy: "unbounded", bound: 1 << 62, want: Unbounded, why: "bound"},
		"rate":                     {policy: "10G", bound: 3 * G, want: 10 * G},
		"rate below what is bound": {policy: "1G", bound: 3 * G, want: 3 * G, why: "pods that are bound to the node request 3G"},
		"link":                     {policy: "link", links: []Link{{"eth0", 10 * G}}, want: 10 * G},
		"links, overcommitted":     {policy: "link", overcommit: 1.5, links: []Link{{"eth0", 10 * G}, {"eth1", 10 * G}}, want: 30 * G},
		"link below what is bound": {policy: "link", overcommit: 0.1, links: []Link{{"eth0", 10 * G}}, bound: 2 * G, want: 2 * G, why: "bound"},
		"unknown speed":            {policy: "link", links: []Link{{"eth0", 10 * G}, {"wg0", 0}}, want: Unbounded, why: "the speed of wg0 is not known"},
		"no link":                  {policy: "link", want: Unbounded, why: "no device"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.overcommit == 0 {
				c.overcommit = 1
			}
			p, err := ParsePolicy(c.policy, c.overcommit)
			if err != nil {
				t.Fatal(err)
			}
			amount, why := p.Amount(c.links, c.bound)
			if amount != c.want || !strings.Contains(why, c.why) || (c.why == "") != (why == "") {
				t.Errorf("%d, %q; want %d, %q", amount, why, c.want, c.why)
			}
		})
	}
}

func TestParsePolicyRefuses(t *testing.T) {
	for text, overcommit := range map[string]float64{"": 1, "10 megabits": 1, "0": 1, "-1G": 1, "link": 0, "unbounded": -1} {
		if _, err := ParsePolicy(text, overcommit); err == nil {
			t.Errorf("%q, %v is accepted", text, overcommit)
		}
	}
}

func TestDecide(t *testing.T) {
	now := time.Unix(1000, 0)
	of := func(capacity, allocatable string) *corev1.Node {
		n := &corev1.Node{}
		if capacity != "" {
			n.Status.Capacity = corev1.ResourceList{bandwidth.Resource: resource.MustParse(capacity)}
		}
		if allocatable != "" {
			n.Status.Allocatable = corev1.ResourceList{bandwidth.Resource: resource.MustParse(allocatable)}
		}
		return n
	}
	for name, c := range map[string]struct {
		health Health
		broken time.Duration // for how long
		node   *corev1.Node
		want   action
	}{
		"new node":                  {Healthy, 0, of("", ""), advertise},
		"as it should be":           {Healthy, 0, of("10G", "10G"), leave},
		"another amount":            {Healthy, 0, of("5G", "5G"), advertise},
		"kubelet lags behind":       {Healthy, 0, of("10G", "5G"), advertise},
		"starting, key of before":   {Starting, 0, of("10G", "10G"), leave},
		"starting, new node":        {Starting, 0, of("", ""), leave},
		"broken for a moment":       {Broken, time.Second, of("10G", "10G"), leave},
		"broken":                    {Broken, brokenFor, of("10G", "10G"), withdraw},
		"broken, offered only":      {Broken, brokenFor, of("", "10G"), withdraw},
		"broken, withdrawn already": {Broken, time.Hour, of("", ""), leave},
		"node not seen":             {Healthy, 0, nil, leave},
	} {
		if got := decide(c.health, now.Add(-c.broken), now, c.node, 10e9); got != c.want {
			t.Errorf("%s: %v; want %v", name, got, c.want)
		}
	}
}

func TestSpeedOf(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		content string
		want    int64
		bad     bool
	}{
		"eth0": {content: "10000\n", want: 10e9}, "virtual": {content: "-1\n"}, "absurd": {content: "4294967295\n"}, "text": {content: "fast\n", bad: true},
	} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "speed"), []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := speedOf(dir, name)
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%s: %d, %v; want %d", name, got, err, c.want)
		}
	}
	for _, name := range []string{"missing", "lo"} { // the kernel itself does not know the loopback's
		if got, err := speedOf(sysfs, name); got != 0 || err != nil {
			t.Errorf("%s: %d, %v; want 0", name, got, err)
		}
	}
}
