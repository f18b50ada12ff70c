// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubepace/kubepace/webhook/policy"
)

// fakePolicies resolves what fakeNamespaces hold.
type fakePolicies struct{}

func (fakePolicies) Of(ctx context.Context, name string) (policy.Policy, error) {
	ns, err := namespaces.Settings(ctx, name)
	return policy.Resolve(policy.Cluster{}, ns), err
}

// workloadWith writes a workload with these template annotations.
func workloadWith(kind, annotations, spec string) string {
	template := `"template":{"metadata":{"annotations":` + annotations + `},"spec":{` + spec + `}}`
	if kind == "CronJob" {
		template = `"jobTemplate":{"spec":{` + template + `}}`
	}
	return `{"kind":"` + kind + `","metadata":{"name":"web"},"spec":{` + template + `}}`
}

func TestWorkloads(t *testing.T) {
	const (
		tooMuch = `{"kubernetes.io/egress-bandwidth":"1G"}`
		words   = `{"kubernetes.io/egress-bandwidth":"10 megabits"}`
		capped  = `: egress limit 1G is above namespace "team"'s maximum 50M (label egress.kubepace.io/max): admitted with 50M`
	)
	tests := []struct {
		name, namespace, kind, object, old string
		want                               []string
	}{
		{"fine", "team", "Deployment", workloadWith("Deployment", `{"kubernetes.io/egress-bandwidth":"10M"}`, ""), "", nil},
		{"nothing asked", "team", "Deployment", workloadWith("Deployment", `null`, ""), "", nil},
		{"no template", "team", "ReplicationController", `{"spec":{"template":null}}`, "", nil},
		{"capped", "team", "Deployment", workloadWith("Deployment", tooMuch, ""), "", []string{"pods of this Deployment" + capped}},
		{"capped, cron", "team", "CronJob", workloadWith("CronJob", tooMuch, ""), "", []string{"pods of this CronJob" + capped}},
		{
			"refused", "deny", "StatefulSet", workloadWith("StatefulSet", tooMuch, ""), "",
			[]string{`pods of this StatefulSet will be refused: spec.template.metadata.annotations[kubernetes.io/egress-bandwidth]: Invalid value: "1G": ` +
				`is above namespace "deny"'s maximum 50M (label egress.kubepace.io/max); write at most "50M"`},
		},
		{
			"refused, cron", "team", "CronJob", workloadWith("CronJob", words, ""), "",
			[]string{`pods of this CronJob will be refused: spec.jobTemplate.spec.template.metadata.annotations[kubernetes.io/egress-bandwidth]: Invalid value: "10 megabits": ` +
				`is not a Kubernetes quantity (did you mean "10M"?); write bits per second like "10M"`},
		},
		{
			"dry-run", "dry", "Job", workloadWith("Job", tooMuch, ""), "",
			[]string{`pods of this Job: egress dry-run, nothing changed: egress limit 1G is above namespace "dry"'s maximum 50M (label egress.kubepace.io/max): admitted with 50M`},
		},
		{"off", "off", "Job", workloadWith("Job", words, ""), "", nil},
		{
			"host network", "team", "DaemonSet", workloadWith("DaemonSet", tooMuch, `"hostNetwork":true`), "",
			[]string{`pods of this DaemonSet: egress limit "1G" cannot be enforced: hostNetwork pods send from the node's own device`},
		},
		{"no news", "team", "Deployment", workloadWith("Deployment", tooMuch, ""), workloadWith("Deployment", tooMuch, ""), nil},
		{"news", "team", "Deployment", workloadWith("Deployment", tooMuch, ""), workloadWith("Deployment", words, ""), []string{"pods of this Deployment" + capped}},
		{
			"news: host network", "team", "DaemonSet", workloadWith("DaemonSet", tooMuch, `"hostNetwork":true`), workloadWith("DaemonSet", tooMuch, ""),
			[]string{`pods of this DaemonSet: egress limit "1G" cannot be enforced: hostNetwork pods send from the node's own device`},
		},
	}
	h := newEndpoint(PathWarnWorkloads, (&Workloads{Policies: fakePolicies{}}).Warn, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			operation := "CREATE"
			if tt.old != "" {
				operation = "UPDATE"
			}
			body := strings.Replace(review(operation, tt.namespace, tt.object, tt.old), `"uid"`, `"kind":{"kind":"`+tt.kind+`"},"uid"`, 1)
			w := post(h, body)
			var out struct {
				Response struct {
					Allowed  bool
					Warnings []string
					Patch    json.RawMessage
				}
			}
			if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || w.Code != http.StatusOK {
				t.Fatal(w.Code, err, w.Body)
			}
			if !out.Response.Allowed || out.Response.Patch != nil {
				t.Errorf("refused or changed: %s", w.Body)
			}
			if diff := cmp.Diff(tt.want, out.Response.Warnings); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// A request that changes only the mark brings back what the author asked for; one that changes nothing is none of ours.
func TestMark(t *testing.T) {
	mutate := newMux(nil)[PathMutatePods]
	with := func(limit, mark string) string {
		return pod(fmt.Sprintf(`{"kubernetes.io/egress-bandwidth":%q,"egress.kubepace.io/requested":"40M","egress.kubepace.io/source":"capped","egress.kubepace.io/policy":%q}`, limit, mark))
	}
	if got := response(t, post(mutate, review("UPDATE", "team", with("20M", "a"), with("20M", "a")))); got != ok {
		t.Error(got)
	}
	got := response(t, post(mutate, review("UPDATE", "team", with("20M", "b"), with("20M", "a"))))
	for _, want := range []string{`"path":"/metadata/annotations/kubernetes.io~1egress-bandwidth","value":"40M"`, `"op":"remove","path":"/metadata/annotations/egress.kubepace.io~1requested"`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	// The author's new word wins over the mark.
	got = response(t, post(mutate, review("UPDATE", "team", with("30M", "b"), with("20M", "a"))))
	if !strings.Contains(got, `"source"`) && strings.Contains(got, `"40M"`) {
		t.Error(got)
	}
}
