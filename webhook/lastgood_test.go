// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

func labelled(most string) *metav1.PartialObjectMetadata {
	ns := NamespaceMetadata()
	ns.Name = "team"
	if most != "" {
		ns.Labels = map[string]string{bandwidth.LabelMax: most, bandwidth.LabelDefault: "10M"}
	}
	return ns
}

func ranged(most string) *corev1.LimitRange {
	lr := limitRange("ours", corev1.LimitTypePod, bandwidth.Resource)
	lr.Spec.Limits[0].Max[bandwidth.Resource] = resource.MustParse(most)
	return &lr
}

// TestLastGood: only what is unreadable now is remembered, as it was when it could be read last.
func TestLastGood(t *testing.T) {
	texts := func(text string) map[string]string {
		if text == "" {
			return nil
		}
		return map[string]string{bandwidth.LabelMax: text}
	}
	g := &LastGood{texts: map[string]map[settingKey]string{}}
	for _, step := range []struct {
		name          string
		old, now      any
		label, ranges string // what is remembered then
	}{
		{"readable", labelled("50M"), labelled("40M"), "", ""},
		{"became unreadable", labelled("40M"), labelled("4OM"), "40M", ""},
		{"still is", labelled("4OM"), labelled("forty"), "40M", ""},
		{"so does a limit range", ranged("30M"), ranged("2P"), "40M", "30M"},
		{"and is changed otherwise", ranged("2P"), ranged("3P"), "40M", "30M"},
		{"label mended", labelled("forty"), labelled("60M"), "", "30M"},
		{"unreadable again", labelled("60M"), labelled("x"), "60M", "30M"},
		{"taken away", labelled("x"), labelled(""), "", "30M"},
		{"limit range gone", toolscache.DeletedFinalStateUnknown{Obj: ranged("3P")}, nil, "", ""},
		{"unreadable before the namespace goes", labelled("60M"), labelled("x"), "60M", ""},
		{"namespace gone", labelled("x"), nil, "", ""},
	} {
		g.changed(step.old, step.now)
		ns := policy.Namespace{Name: "team", Ranges: []policy.Range{{Name: "ours", Type: "Pod", Max: "?"}, {Name: "other", Type: "Pod"}}}
		g.recall(&ns)
		if diff := cmp.Diff(texts(step.label), ns.LastGood); diff != "" {
			t.Errorf("%s: labels (-want +got)\n%s", step.name, diff)
		}
		if got := ns.Ranges[0].LastGoodMax; got != step.ranges || ns.Ranges[1].LastGoodMax != "" {
			t.Errorf("%s: limit ranges %+v, want %q", step.name, ns.Ranges, step.ranges)
		}
	}
	if len(g.texts) != 0 {
		t.Errorf("kept %v", g.texts)
	}
	var none *LastGood
	none.recall(&policy.Namespace{})
}
