// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubepace/kubepace/bandwidth"
)

const (
	egress    = bandwidth.AnnotationEgress
	requested = bandwidth.AnnotationRequested
	source    = bandwidth.AnnotationSource
	fieldName = "metadata.annotations[kubernetes.io/egress-bandwidth]"
)

// limits are the annotations of a pod that the webhook owns.
func limits(p *corev1.Pod) map[string]string {
	out := maps.Clone(p.Annotations)
	maps.DeleteFunc(out, func(key, _ string) bool { return key != egress && key != requested && key != source })
	if len(out) == 0 {
		return nil
	}
	return out
}

// create makes a pod and returns it with the warnings that its author sees.
func create(t *testing.T, namespace string, p *corev1.Pod) (*corev1.Pod, []string, error) {
	t.Helper()
	c := shared.as(t, "")
	out, err := c.CoreV1().Pods(namespace).Create(t.Context(), p, metav1.CreateOptions{FieldValidation: "Strict"})
	return out, c.warnings, err
}

func mustCreate(t *testing.T, namespace string, p *corev1.Pod) *corev1.Pod {
	t.Helper()
	out, _, err := create(t, namespace, p)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func requireLimits(t *testing.T, p *corev1.Pod, want ...string) {
	t.Helper()
	expected := pairs(want)
	if len(want) == 0 {
		expected = nil
	}
	if diff := cmp.Diff(expected, limits(p)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func requireRefused(t *testing.T, err error, words ...string) {
	t.Helper()
	if !apierrors.IsInvalid(err) {
		t.Fatalf("want a refusal, got %v", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("no %q in: %v", w, err)
		}
	}
}

func TestAdmitted(t *testing.T) {
	needCluster(t)
	const capWarning = `egress limit 1G is above namespace "NS"'s maximum 50M (label egress.kubepace.io/max): admitted with 50M`
	tests := []struct {
		name     string
		labels   []string
		pod      *corev1.Pod
		want     []string
		warnings []string
	}{
		{"nothing asked, nothing set in the namespace", nil, pod("p"), []string{egress, "10G", source, "cluster-default"}, nil},
		{"kept", nil, pod("p", egress, "10M"), []string{egress, "10M", source, "pod"}, nil},
		{"10000k", nil, pod("p", egress, "10000k"), []string{egress, "10M", requested, "10000k", source, "pod"}, nil},
		{"1e7", nil, pod("p", egress, "1e7"), []string{egress, "10M", requested, "1e7", source, "pod"}, nil},
		{"0.01G", nil, pod("p", egress, "0.01G"), []string{egress, "10M", requested, "0.01G", source, "pod"}, nil},
		{"1Ki", nil, pod("p", egress, "1Ki"), []string{egress, "1024", requested, "1Ki", source, "pod"}, nil},
		{
			"default", []string{bandwidth.LabelDefault, "25M"}, pod("p"),
			[]string{egress, "25M", source, "namespace-default"}, nil,
		},
		{
			"default beside other annotations", []string{bandwidth.LabelDefault, "25M"}, pod("p", "example.com/other", "1"),
			[]string{egress, "25M", source, "namespace-default"}, nil,
		},
		{
			"capped", []string{bandwidth.LabelMax, "50M"}, pod("p", egress, "1G"),
			[]string{egress, "50M", requested, "1G", source, "capped"}, []string{capWarning},
		},
		{
			"capped at the cluster's maximum", nil, pod("p", egress, "1T"),
			[]string{egress, "10G", requested, "1T", source, "capped"},
			[]string{`egress limit 1T is above the cluster's maximum 10G (flag --cluster-max): admitted with 10G`},
		},
		{
			"dry-run", []string{bandwidth.LabelMax, "50M", bandwidth.LabelMode, "dry-run"}, pod("p", egress, "1G"),
			[]string{egress, "1G"}, []string{"egress dry-run, nothing changed: " + capWarning},
		},
		{
			"dry-run, not a rate", []string{bandwidth.LabelMode, "dry-run"}, pod("p", egress, "10 megabits"),
			[]string{egress, "10 megabits"},
			[]string{"egress dry-run, nothing changed: would be refused: " + fieldName +
				`: Invalid value: "10 megabits": is not a Kubernetes quantity (did you mean "10M"?); write bits per second like "10M"`},
		},
		{"off", []string{bandwidth.LabelMax, "50M", bandwidth.LabelMode, "off"}, pod("p", egress, "1G"), []string{egress, "1G"}, nil},
		{
			"host network", []string{bandwidth.LabelMax, "50M"}, onHost(pod("p", egress, "1G")), []string{egress, "1G"},
			[]string{`egress limit "1G" cannot be enforced: hostNetwork pods send from the node's own device`},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ns := shared.namespace(t, tt.labels...)
			got, warnings, err := create(t, ns, tt.pod)
			if err != nil {
				t.Fatal(err)
			}
			requireLimits(t, got, tt.want...)
			var want []string
			for _, w := range tt.warnings {
				want = append(want, strings.ReplaceAll(w, "NS", ns))
			}
			if diff := cmp.Diff(want, warnings); diff != "" {
				t.Errorf("warnings (-want +got)\n%s", diff)
			}
			for key, value := range tt.pod.Annotations {
				if key != egress && got.Annotations[key] != value {
					t.Errorf("annotation %s became %q", key, got.Annotations[key])
				}
			}
		})
	}
}

func onHost(p *corev1.Pod) *corev1.Pod {
	p.Spec.HostNetwork = true
	return p
}

func TestRefused(t *testing.T) {
	needCluster(t)
	tests := []struct {
		name   string
		labels []string
		ask    string
		words  []string
	}{
		{"not a rate", nil, "10 megabits", []string{fieldName, `"10 megabits"`, `write bits per second like "10M"`}},
		{"millibits", nil, "10m", []string{fieldName, `"10m"`, `write "10M"`}},
		{"negative", nil, "-1M", []string{fieldName, `"-1M"`, `like "10M"`}},
		{"empty", nil, "", []string{fieldName, `""`, `like "10M"`}},
		{
			"over-max deny", []string{bandwidth.LabelMax, "50M", bandwidth.LabelOverMax, "deny"}, "1T",
			[]string{
				fieldName, `"1T": is above namespace "`, `maximum 50M (label egress.kubepace.io/max); write at most "50M"`,
				"the cluster's maximum 10G (flag --cluster-max)",
			},
		},
		{
			"below the minimum", []string{bandwidth.LabelMin, "20M"}, "1M",
			[]string{fieldName, `minimum 20M (label egress.kubepace.io/min); write at least "20M"`},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := create(t, shared.namespace(t, tt.labels...), pod("p", egress, tt.ask))
			requireRefused(t, err, tt.words...)
		})
	}
}

// What people see who type kubectl apply.
func TestKubectl(t *testing.T) {
	c := needCluster(t)
	ns := c.namespace(t, bandwidth.LabelMax, "50M")
	apply := func(limit string) (string, error) {
		cmd := exec.Command(c.Kubectl, "--kubeconfig="+c.admin, "--namespace="+ns, "apply", "-f", "-")
		// Another home, so that kubectl caches nothing in the developer's.
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
		cmd.Stdin = strings.NewReader(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","annotations":{"` + egress +
			`":"` + limit + `"}},"spec":{"containers":[{"name":"c","image":"i"}]}}`)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := apply("1G")
	want := `Warning: egress limit 1G is above namespace "` + ns + `"'s maximum 50M (label egress.kubepace.io/max): admitted with 50M`
	if err != nil || !strings.Contains(out, want) || !strings.Contains(out, "pod/web created") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = apply("10 megabits")
	for _, want := range []string{fieldName, `Invalid value: "10 megabits"`, `like "10M"`} {
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%v, no %q in: %s", err, want, out)
		}
	}
}

// A dry-run request gets the verdict and leaves nothing behind.
func TestDryRunRequest(t *testing.T) {
	needCluster(t)
	ns := shared.namespace(t, bandwidth.LabelMax, "50M")
	c := shared.as(t, "")
	got, err := c.CoreV1().Pods(ns).Create(t.Context(), pod("p", egress, "1G"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		t.Fatal(err)
	}
	requireLimits(t, got, egress, "50M", requested, "1G", source, "capped")
	if _, err := c.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a pod is left: %v", err)
	}
}

// The audit log says what was decided, under the webhook's name.
func TestAudit(t *testing.T) {
	needCluster(t)
	ns := shared.namespace(t, bandwidth.LabelMax, "50M")
	mustCreate(t, ns, pod("p", egress, "1G"))
	eventually(t, "the audit log", func() bool {
		content, err := os.ReadFile(shared.audit)
		if err != nil {
			return false
		}
		for line := range bytes.Lines(content) {
			if bytes.Contains(line, []byte(`"namespace":"`+ns+`"`)) &&
				bytes.Contains(line, []byte(`"pods.mutate.kubepace.io/limit":"50M"`)) &&
				bytes.Contains(line, []byte(`"pods.validate.kubepace.io/reason":"capped"`)) {
				return true
			}
		}
		return false
	})
}
