// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// said renders findings: one line for each refusal, then the warnings.
func said(f *findings) []string {
	var out []string
	for _, v := range f.violations {
		out = append(out, v.Error())
	}
	for _, w := range f.warnings {
		out = append(out, "warning: "+w)
	}
	return out
}

func TestCheckLabels(t *testing.T) {
	const (
		def, least, most = bandwidth.LabelDefault, bandwidth.LabelMin, bandwidth.LabelMax
		example          = `; write bits per second like "10M"`
	)
	limitRange := func(kind, text string) corev1.LimitRange {
		lr := corev1.LimitRange{}
		lr.Name = "bounds"
		item := corev1.LimitRangeItem{Type: corev1.LimitTypePod}
		list := corev1.ResourceList{bandwidth.Resource: resource.MustParse(text)}
		if kind == "max" {
			item.Max = list
		} else {
			item.Min = list
		}
		lr.Spec.Limits = []corev1.LimitRangeItem{item}
		return lr
	}
	tests := []struct {
		name        string
		now, before map[string]string
		cluster     policy.Cluster
		ranges      []corev1.LimitRange
		want        []string
	}{
		{name: "all good", now: map[string]string{def: "10M", least: "1M", most: "50M", bandwidth.LabelMode: "dry-run", bandwidth.LabelOverMax: "deny", bandwidth.LabelAccount: "always"}},
		{name: "equal is fine", now: map[string]string{def: "10M", least: "10M", most: "10M"}, cluster: policy.Cluster{Min: 10e6, Max: 10e6}},
		{
			name: "every label is judged", now: map[string]string{def: "10m", least: "-1M", most: "5OM"},
			want: []string{
				`metadata.labels[egress.kubepace.io/default]: Invalid value: "10m": is below the smallest limit, 1k (1000 bits per second) ("m" means thousandths of a bit; for megabits write "10M")` + example,
				`metadata.labels[egress.kubepace.io/max]: Invalid value: "5OM": is not a Kubernetes quantity` + example,
				`metadata.labels[egress.kubepace.io/min]: Invalid value: "-1M": is negative` + example,
			},
		},
		{
			name: "values of few", now: map[string]string{bandwidth.LabelMode: "dryrun", bandwidth.LabelOverMax: "refuse", bandwidth.LabelAccount: "yes"},
			want: []string{
				`metadata.labels[egress.kubepace.io/account]: Unsupported value: "yes": supported values: "always"`,
				`metadata.labels[egress.kubepace.io/mode]: Unsupported value: "dryrun": supported values: "enforce", "dry-run", "off"`,
				`metadata.labels[egress.kubepace.io/over-max]: Unsupported value: "refuse": supported values: "cap", "deny"`,
			},
		},
		{
			name: "misspelt key", now: map[string]string{"egress.kubepace.io/maximum": "50M"},
			want: []string{"warning: label egress.kubepace.io/maximum has no effect: known are egress.kubepace.io/account, egress.kubepace.io/default, " +
				"egress.kubepace.io/max, egress.kubepace.io/min, egress.kubepace.io/mode, egress.kubepace.io/over-max"},
		},
		{
			name: "min above max, both new: both are told", now: map[string]string{least: "20M", most: "10M"},
			want: []string{
				`metadata.labels[egress.kubepace.io/max]: Invalid value: "10M": is below the minimum 20M (namespace "team-a", label egress.kubepace.io/min); write at least "20M"`,
				`metadata.labels[egress.kubepace.io/min]: Invalid value: "20M": is above the maximum 10M (namespace "team-a", label egress.kubepace.io/max); write at most "10M"`,
			},
		},
		{
			name: "min above an old max: the new one is told", now: map[string]string{least: "20M", most: "10M"}, before: map[string]string{most: "10M"},
			want: []string{`metadata.labels[egress.kubepace.io/min]: Invalid value: "20M": is above the maximum 10M (namespace "team-a", label egress.kubepace.io/max); write at most "10M"`},
		},
		{name: "an old contradiction passes", now: map[string]string{least: "20M", most: "10M", bandwidth.LabelMode: "off"}, before: map[string]string{least: "20M", most: "10M"}},
		{name: "an old bad value passes", now: map[string]string{most: "5OM", def: "10M"}, before: map[string]string{most: "5OM"}},
		{name: "mended", now: map[string]string{most: "50M"}, before: map[string]string{most: "5OM"}},
		{name: "taken away", now: map[string]string{"x": "y"}, before: map[string]string{most: "5OM", "x": "y"}},
		{
			name: "default outside", now: map[string]string{def: "100M", most: "50M"}, before: map[string]string{most: "50M"},
			want: []string{`metadata.labels[egress.kubepace.io/default]: Invalid value: "100M": is above the maximum 50M (namespace "team-a", label egress.kubepace.io/max); write at most "50M"`},
		},
		{
			name: "max below an old default", now: map[string]string{def: "100M", most: "50M"}, before: map[string]string{def: "100M"},
			want: []string{`metadata.labels[egress.kubepace.io/max]: Invalid value: "50M": is below the default 100M (namespace "team-a", label egress.kubepace.io/default); write at least "100M"`},
		},
		{
			name: "against the cluster", now: map[string]string{def: "20G", least: "20G", most: "20G"}, cluster: policy.Cluster{Max: 10e9},
			want: []string{
				`metadata.labels[egress.kubepace.io/default]: Invalid value: "20G": is above the maximum 10G (the cluster's flag --cluster-max); write at most "10G"`,
				`metadata.labels[egress.kubepace.io/min]: Invalid value: "20G": is above the maximum 10G (the cluster's flag --cluster-max); write at most "10G"`,
				`warning: metadata.labels[egress.kubepace.io/max]: 20G has no effect, the maximum 10G (the cluster's flag --cluster-max) is tighter`,
			},
		},
		{
			name: "against limit ranges", now: map[string]string{def: "20M", most: "1M"}, ranges: []corev1.LimitRange{limitRange("max", "10M"), limitRange("min", "2M")},
			want: []string{
				`metadata.labels[egress.kubepace.io/default]: Invalid value: "20M": is above the maximum 1M (namespace "team-a", label egress.kubepace.io/max); write at most "1M"`,
				`metadata.labels[egress.kubepace.io/default]: Invalid value: "20M": is above the maximum 10M (LimitRange "bounds"); write at most "10M"`,
				`metadata.labels[egress.kubepace.io/max]: Invalid value: "1M": is below the default 20M (namespace "team-a", label egress.kubepace.io/default); write at least "20M"`,
				`metadata.labels[egress.kubepace.io/max]: Invalid value: "1M": is below the minimum 2M (LimitRange "bounds"); write at least "2M"`,
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := &findings{}
			own := checkLabels(f, "team-a", tt.now, changedLabels(tt.now, tt.before))
			contradictions(f, own, rates(flagRates(tt.cluster), rangeRates(tt.ranges)))
			if diff := cmp.Diff(tt.want, said(f)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// entry makes a LimitRange with one item.
func entry(kind corev1.LimitType, where, text string) *corev1.LimitRange {
	list := corev1.ResourceList{bandwidth.Resource: resource.MustParse(text), corev1.ResourceCPU: resource.MustParse("1")}
	item := corev1.LimitRangeItem{Type: kind}
	switch where {
	case "max":
		item.Max = list
	case "min":
		item.Min = list
	case "default":
		item.Default = list
	case "defaultRequest":
		item.DefaultRequest = list
	case "ratio":
		item.MaxLimitRequestRatio = list
	}
	lr := &corev1.LimitRange{}
	lr.Name = "bounds"
	lr.Spec.Limits = []corev1.LimitRangeItem{{Type: corev1.LimitTypePod}, item}
	return lr
}

func TestCheckEntries(t *testing.T) {
	const example = `; write bits per second like "10M"`
	tests := []struct {
		name        string
		now, before *corev1.LimitRange
		want        []string
	}{
		{name: "good", now: entry(corev1.LimitTypePod, "max", "50M")},
		{name: "not ours", now: &corev1.LimitRange{}},
		{
			name: "-1", now: entry(corev1.LimitTypePod, "max", "-1"),
			want: []string{`spec.limits[1].max[kubepace.io/egress-bandwidth]: Invalid value: "-1": is negative` + example},
		},
		{
			name: "0", now: entry(corev1.LimitTypePod, "max", "0"),
			want: []string{`spec.limits[1].max[kubepace.io/egress-bandwidth]: Invalid value: "0": is below the smallest limit, 1k (1000 bits per second)` + example},
		},
		{
			name: "1500m", now: entry(corev1.LimitTypePod, "min", "1500m"),
			want: []string{`spec.limits[1].min[kubepace.io/egress-bandwidth]: Invalid value: "1500m": is below the smallest limit, 1k (1000 bits per second) ("m" means thousandths of a bit; for megabits write "1500M")` + example},
		},
		{
			name: "2P", now: entry(corev1.LimitTypePod, "max", "2P"),
			want: []string{`spec.limits[1].max[kubepace.io/egress-bandwidth]: Invalid value: "2P": is above the largest limit, 1P (10^15 bits per second)` + example},
		},
		{
			name: "container", now: entry(corev1.LimitTypeContainer, "default", "5M"),
			want: []string{`spec.limits[1].default[kubepace.io/egress-bandwidth]: Forbidden: an egress limit belongs to a pod, not to a Container: write {type: Pod, max: {kubepace.io/egress-bandwidth: 10M}}`},
		},
		{
			name: "volume", now: entry(corev1.LimitTypePersistentVolumeClaim, "max", "5M"),
			want: []string{`spec.limits[1].max[kubepace.io/egress-bandwidth]: Forbidden: an egress limit belongs to a pod, not to a PersistentVolumeClaim: write {type: Pod, max: {kubepace.io/egress-bandwidth: 10M}}`},
		},
		{
			name: "ratio", now: entry(corev1.LimitTypePod, "ratio", "2"),
			want: []string{`spec.limits[1].maxLimitRequestRatio[kubepace.io/egress-bandwidth]: Forbidden: has no meaning for an egress limit: write max or min; a default is namespace label egress.kubepace.io/default`},
		},
		{name: "bad for long", now: entry(corev1.LimitTypePod, "max", "2P"), before: entry(corev1.LimitTypePod, "max", "2P")},
		{
			name: "the same value at another place", now: entry(corev1.LimitTypePod, "min", "2P"), before: entry(corev1.LimitTypePod, "max", "2P"),
			want: []string{`spec.limits[1].min[kubepace.io/egress-bandwidth]: Invalid value: "2P": is above the largest limit, 1P (10^15 bits per second)` + example},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.before == nil {
				tt.before = &corev1.LimitRange{}
			}
			f := &findings{}
			checkEntries(f, "bounds", newEntries(limitEntries(tt.now), limitEntries(tt.before)))
			if diff := cmp.Diff(tt.want, said(f)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestCheckQuota(t *testing.T) {
	quota := func(scope corev1.ResourceQuotaScope, pairs ...string) *corev1.ResourceQuota {
		q := &corev1.ResourceQuota{}
		q.Spec.Hard = corev1.ResourceList{}
		for i := 0; i < len(pairs); i += 2 {
			q.Spec.Hard[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
		}
		if scope != "" {
			q.Spec.Scopes = []corev1.ResourceQuotaScope{scope}
		}
		return q
	}
	const right = "requests.kubepace.io/egress-bandwidth"
	shown := func(key, text string) string {
		return `spec.hard[` + key + `]: Forbidden: Kubernetes would show this key and never count it: write ` + right + `: "` + text + `"`
	}
	scope := "spec.scopes: Forbidden: Kubernetes counts nothing but pods in scope BestEffort: leave " + right + " to a quota without it"
	tests := []struct {
		name        string
		now, before *corev1.ResourceQuota
		relevant    bool
		want        []string
	}{
		{name: "good", now: quota("", right, "1G", "pods", "10"), relevant: true},
		{name: "zero", now: quota("", right, "0"), relevant: true},
		{name: "more than one pod may have", now: quota("", right, "110P"), relevant: true},
		{name: "not ours", now: quota("BestEffort", "pods", "10")},
		{name: "without requests.", now: quota("", "kubepace.io/egress-bandwidth", "1G"), relevant: true, want: []string{shown("kubepace.io/egress-bandwidth", "1G")}},
		{name: "limits.", now: quota("", "limits.kubepace.io/egress-bandwidth", "1G"), relevant: true, want: []string{shown("limits.kubepace.io/egress-bandwidth", "1G")}},
		{name: "label's key", now: quota("", "egress.kubepace.io/max", "1G"), relevant: true, want: []string{shown("egress.kubepace.io/max", "1G")}},
		{
			name: "1500m", now: quota("", right, "1500m"), relevant: true,
			want: []string{`spec.hard[` + right + `]: Invalid value: "1500m": is not a whole number of bits per second; write bits per second like "10G"`},
		},
		{name: "scope", now: quota("BestEffort", right, "1G"), relevant: true, want: []string{scope}},
		{name: "other scope", now: quota("NotTerminating", right, "1G"), relevant: true},
		{name: "bad for long", now: quota("BestEffort", right, "1500m", "limits.kubepace.io/egress-bandwidth", "1G", "pods", "2"),
			before: quota("BestEffort", right, "1500m", "limits.kubepace.io/egress-bandwidth", "1G", "pods", "1")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.before == nil {
				tt.before = &corev1.ResourceQuota{}
			}
			f := &findings{}
			if got := checkQuota(f, tt.now, tt.before); got != tt.relevant {
				t.Errorf("relevant: %v", got)
			}
			if diff := cmp.Diff(tt.want, said(f)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if joined := strings.Join(said(f), "\n"); len(joined) > 1000 {
				t.Errorf("%d characters: %s", len(joined), joined)
			}
		})
	}
}
