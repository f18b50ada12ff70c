// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
)

// workloads are one of each kind, with this limit in the template.
func workloads(namespace, limit string) map[string]client.Object {
	app := map[string]string{"app": "web"}
	meta := metav1.ObjectMeta{Name: "web", Namespace: namespace}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: app, Annotations: pairs([]string{egress, limit})}, Spec: pod("").Spec}
	selector := &metav1.LabelSelector{MatchLabels: app}
	job := batchv1.JobSpec{Template: *template.DeepCopy()}
	job.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	return map[string]client.Object{
		"Deployment":            &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Selector: selector, Template: template}},
		"StatefulSet":           &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Selector: selector, Template: template}},
		"DaemonSet":             &appsv1.DaemonSet{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{Selector: selector, Template: template}},
		"ReplicaSet":            &appsv1.ReplicaSet{ObjectMeta: meta, Spec: appsv1.ReplicaSetSpec{Selector: selector, Template: template}},
		"Job":                   &batchv1.Job{ObjectMeta: meta, Spec: job},
		"CronJob":               &batchv1.CronJob{ObjectMeta: meta, Spec: batchv1.CronJobSpec{Schedule: "0 0 * * *", JobTemplate: batchv1.JobTemplateSpec{Spec: job}}},
		"ReplicationController": &corev1.ReplicationController{ObjectMeta: meta, Spec: corev1.ReplicationControllerSpec{Selector: app, Template: &template}},
	}
}

var workloadPaths = map[string]string{
	"Deployment": "/apis/apps/v1/namespaces/NS/deployments", "StatefulSet": "/apis/apps/v1/namespaces/NS/statefulsets",
	"DaemonSet": "/apis/apps/v1/namespaces/NS/daemonsets", "ReplicaSet": "/apis/apps/v1/namespaces/NS/replicasets",
	"Job": "/apis/batch/v1/namespaces/NS/jobs", "CronJob": "/apis/batch/v1/namespaces/NS/cronjobs",
	"ReplicationController": "/api/v1/namespaces/NS/replicationcontrollers",
}

// Whoever applies a workload whose pods would be capped or refused reads it at once, and is never stopped.
func TestWorkloadWarnings(t *testing.T) {
	c := needCluster(t)
	capping := c.namespace(t, bandwidth.LabelMax, "50M")
	denying := c.namespace(t, bandwidth.LabelMax, "50M", bandwidth.LabelOverMax, "deny")
	for kind, path := range workloadPaths {
		t.Run(kind, func(t *testing.T) {
			post := func(namespace, limit string) []string {
				t.Helper()
				r := c.as(t, "")
				body, err := json.Marshal(workloads(namespace, limit)[kind])
				if err != nil {
					t.Fatal(err)
				}
				if err := r.CoreV1().RESTClient().Post().AbsPath(strings.Replace(path, "NS", namespace, 1)).Body(body).
					SetHeader("Content-Type", "application/json").Do(t.Context()).Error(); err != nil {
					t.Fatal(err)
				}
				return r.warnings
			}
			want := []string{"pods of this " + kind + `: egress limit 1G is above namespace "` + capping + `"'s maximum 50M (label egress.kubepace.io/max): admitted with 50M`}
			if diff := cmp.Diff(want, post(capping, "1G")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			template := "spec.template"
			if kind == "CronJob" {
				template = "spec.jobTemplate.spec.template"
			}
			want = []string{"pods of this " + kind + " will be refused: " + template + `.metadata.annotations[kubernetes.io/egress-bandwidth]: Invalid value: "1G": is above namespace "` +
				denying + `"'s maximum 50M (label egress.kubepace.io/max); write at most "50M"`}
			if diff := cmp.Diff(want, post(denying, "1G")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// A call is made where the template's limit changed, and for nothing else: not for a scale, a status, another field, or a
// workload that a controller made.
func TestWorkloadCalls(t *testing.T) {
	c := needCluster(t)
	ns := c.namespace(t, bandwidth.LabelMax, "50M")
	r := c.as(t, "")
	deployments := r.AppsV1().Deployments(ns)
	if _, err := deployments.Create(t.Context(), workloads(ns, "1G")["Deployment"].(*appsv1.Deployment), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	patch := func(body string, subresources ...string) []string {
		t.Helper()
		r.warnings = nil
		if _, err := deployments.Patch(t.Context(), "web", types.MergePatchType, []byte(body), metav1.PatchOptions{}, subresources...); err != nil {
			t.Fatal(err)
		}
		return r.warnings
	}
	for _, body := range []string{`{"spec":{"replicas":3}}`, `{"metadata":{"labels":{"a":"b"}}}`, `{"spec":{"template":{"metadata":{"annotations":{"restartedAt":"now"}}}}}`} {
		if got := patch(body); len(got) != 0 {
			t.Errorf("%s: %q", body, got)
		}
	}
	if got := patch(`{"status":{"replicas":3}}`, "status"); len(got) != 0 {
		t.Errorf("status: %q", got)
	}
	if got := patch(`{"spec":{"template":{"metadata":{"annotations":{"` + egress + `":"2G"}}}}}`); len(got) != 1 || !strings.Contains(got[0], "2G") {
		t.Errorf("%q", got)
	}
	r.warnings = nil
	yes := true
	owned := workloads(ns, "1G")["ReplicaSet"].(*appsv1.ReplicaSet)
	owned.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment", Name: "web", UID: "u", Controller: &yes}}
	if _, err := r.AppsV1().ReplicaSets(ns).Create(t.Context(), owned, metav1.CreateOptions{}); err != nil || len(r.warnings) != 0 {
		t.Errorf("%v %q", err, r.warnings)
	}
}

// The exempt namespaces are the same in all files: selectors list them, conditions of policies list them in quotes.
func TestExemptNamespacesAlike(t *testing.T) {
	lists := regexp.MustCompile(`\['?kube-system'?,[^]]*\]`)
	var first string
	for name, want := range map[string]int{"mutating": 1, "validating": 1, "warnings": 1, "policies": 5} {
		content, err := os.ReadFile("../../manifests/base/webhook/" + name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		found := lists.FindAllString(string(content), -1)
		if len(found) != want {
			t.Errorf("%s.yaml: %d lists of exempt namespaces, want %d", name, len(found), want)
		}
		for _, text := range found {
			text = strings.ReplaceAll(text, "'", "")
			if first == "" {
				first = text
			}
			if text != first {
				t.Errorf("%s.yaml: %s\nelsewhere: %s", name, text, first)
			}
		}
	}
}
