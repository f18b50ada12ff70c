// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/admission/lab"
)

// withoutWebhook points one validating webhook at nothing while f runs, as an outage would.
func withoutWebhook(t *testing.T, name string, f func()) {
	t.Helper()
	c := needCluster(t)
	point := func(url string) {
		t.Helper()
		config := &admissionv1.ValidatingWebhookConfiguration{}
		if err := c.Client.Get(t.Context(), clientKey("kubepace-webhook"), config); err != nil {
			t.Fatal(err)
		}
		for i, w := range config.Webhooks {
			if w.Name != name {
				continue
			}
			patch, err := json.Marshal([]map[string]any{{"op": "replace", "path": fmt.Sprintf("/webhooks/%d/clientConfig/url", i), "value": url}})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Client.Patch(t.Context(), config, client.RawPatch(types.JSONPatchType, patch)); err != nil {
				t.Fatal(err)
			}
			return
		}
		t.Fatalf("no webhook %s", name)
	}
	path := map[string]string{
		"namespaces.settings.kubepace.io":     "/validate/namespaces",
		"limitranges.settings.kubepace.io":    "/validate/limitranges",
		"resourcequotas.settings.kubepace.io": "/validate/resourcequotas",
	}[name]
	point("https://127.0.0.1:1" + path)
	defer point(lab.AsInCluster(c.webhook.URL()) + path)
	f()
}

// tryLabels sets labels of a namespace and returns the warnings.
func tryLabels(t *testing.T, namespace, labels string, subresources ...string) ([]string, error) {
	t.Helper()
	r := shared.as(t, "")
	_, err := r.CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType,
		[]byte(`{"metadata":{"labels":`+labels+`}}`), metav1.PatchOptions{}, subresources...)
	return r.warnings, err
}

// Labels that could not be applied are refused when they are set, by each of the three doors; others are none of ours.
func TestNamespaceSettings(t *testing.T) {
	c := needCluster(t)
	ns := c.namespace(t, bandwidth.LabelMax, "50M")
	for _, door := range []string{"", "status"} {
		var subresources []string
		if door != "" {
			subresources = []string{door}
		}
		_, err := tryLabels(t, ns, `{"`+bandwidth.LabelMax+`":"5OM"}`, subresources...)
		requireRefused(t, err, "metadata.labels[egress.kubepace.io/max]", `"5OM"`, "is not a Kubernetes quantity", `like "10M"`)
	}
	finalize := &corev1.Namespace{}
	if err := c.Client.Get(t.Context(), clientKey(ns), finalize); err != nil {
		t.Fatal(err)
	}
	finalize.Labels[bandwidth.LabelMode] = "dryrun"
	_, err := c.as(t, "").CoreV1().Namespaces().Finalize(t.Context(), finalize, metav1.UpdateOptions{})
	requireRefused(t, err, "metadata.labels[egress.kubepace.io/mode]", `"dryrun"`, `"enforce", "dry-run", "off"`)

	err = c.Client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "team-", Labels: pairs([]string{bandwidth.LabelMin, "20M", bandwidth.LabelMax, "10M", bandwidth.LabelAccount, "yes"}),
	}})
	requireRefused(t, err, `metadata.labels[egress.kubepace.io/min]: Invalid value: "20M": is above the maximum 10M`, `write at most "10M"`,
		`metadata.labels[egress.kubepace.io/account]: Unsupported value: "yes": supported values: "always"`)
	_, err = tryLabels(t, ns, `{"`+bandwidth.LabelDefault+`":"100M"}`)
	requireRefused(t, err, `metadata.labels[egress.kubepace.io/default]: Invalid value: "100M": is above the maximum 50M`, `write at most "50M"`)
	_, err = tryLabels(t, ns, `{"`+bandwidth.LabelMin+`":"20G","`+bandwidth.LabelMax+`":null}`)
	requireRefused(t, err, `"20G": is above the maximum 10G (the cluster's flag --cluster-max)`)

	warnings, err := tryLabels(t, ns, `{"`+bandwidth.LabelMax+`":"20G","egress.kubepace.io/maximum":"1M"}`)
	if joined := strings.Join(warnings, "\n"); err != nil || !strings.Contains(joined, "20G has no effect") || !strings.Contains(joined, "egress.kubepace.io/maximum has no effect") {
		t.Errorf("%v %q", err, warnings)
	}
	warnings, err = tryLabels(t, "kube-public", `{"`+bandwidth.LabelMax+`":"1G"}`)
	if err != nil || len(warnings) != 0 {
		t.Errorf("%v %q", err, warnings)
	}
	warnings, err = tryLabels(t, "kube-system", `{"`+bandwidth.LabelMax+`":"1G"}`)
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], `"kube-system" is exempt`) {
		t.Errorf("%v %q", err, warnings)
	}
	for _, name := range []string{"kube-public", "kube-system"} {
		if _, err := tryLabels(t, name, `{"`+bandwidth.LabelMax+`":null}`); err != nil {
			t.Error(err)
		}
	}
}

// What is already bad can be changed elsewhere and mended, and cannot be made worse.
func TestOldBadLabel(t *testing.T) {
	needCluster(t)
	ns := shared.namespace(t)
	withoutWebhook(t, "namespaces.settings.kubepace.io", func() {
		eventually(t, "the bad label to pass", func() bool {
			_, err := tryLabels(t, ns, `{"`+bandwidth.LabelMax+`":"5OM"}`)
			return err == nil
		})
	})
	tries := 0
	eventually(t, "the check to be back", func() bool {
		tries++ // what slips in is no change the next time
		_, err := tryLabels(t, ns, fmt.Sprintf(`{"%s":"x%d"}`, bandwidth.LabelMode, tries))
		return err != nil
	})
	for _, labels := range []string{`{"team":"a"}`, `{"` + bandwidth.LabelDefault + `":"10M"}`, `{"` + bandwidth.LabelMax + `":null}`} {
		if _, err := tryLabels(t, ns, labels); err != nil {
			t.Errorf("%s: %v", labels, err)
		}
	}
}

// A bad label that slips in never lifts a maximum where a tighter setting can be read, and every author is told.
func TestBadLabelFailsSafe(t *testing.T) {
	needCluster(t)
	ns := shared.namespace(t, bandwidth.LabelDefault, "25M")
	withoutWebhook(t, "namespaces.settings.kubepace.io", func() {
		eventually(t, "the bad label to pass", func() bool {
			_, err := tryLabels(t, ns, `{"`+bandwidth.LabelMax+`":"5OM"}`)
			return err == nil
		})
	})
	var got *corev1.Pod
	var warnings []string
	eventually(t, "the label to be seen", func() (seen bool) {
		var err error
		got, warnings, err = create(t, ns, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "p-", Annotations: pairs([]string{egress, "1G"})}, Spec: pod("").Spec})
		return err == nil && len(warnings) > 0
	})
	requireLimits(t, got, egress, "25M", requested, "1G", source, "capped")
	if joined := strings.Join(warnings, "\n"); !strings.Contains(joined, `namespace "`+ns+`": label egress.kubepace.io/max: "5OM" is not a Kubernetes quantity; `+
		`namespace "`+ns+`"'s default 25M (label egress.kubepace.io/default) is the maximum until it is mended`) {
		t.Errorf("%q", warnings)
	}
}

func limitRange(namespace string, kind corev1.LimitType, field, rate string) *corev1.LimitRange {
	list := corev1.ResourceList{bandwidth.Resource: resource.MustParse(rate)}
	item := corev1.LimitRangeItem{Type: kind}
	switch field {
	case "max":
		item.Max = list
	case "min":
		item.Min = list
	case "default":
		item.Default = list
	}
	return &corev1.LimitRange{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "egress-", Namespace: namespace},
		Spec:       corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{item}},
	}
}

// Kubernetes takes all of these without a word.
func TestLimitRangeSettings(t *testing.T) {
	c := needCluster(t)
	ns := c.namespace(t, bandwidth.LabelMin, "20M")
	const podType, containerType = corev1.LimitTypePod, corev1.LimitTypeContainer
	for _, tt := range []struct {
		kind        corev1.LimitType
		field, rate string
		words       []string
	}{
		{podType, "max", "-1", []string{`spec.limits[0].max[kubepace.io/egress-bandwidth]: Invalid value: "-1": is negative`, `like "10M"`}},
		{podType, "max", "0", []string{`"0": is below the smallest limit`}},
		{podType, "max", "1500m", []string{`"1500m": is below the smallest limit`, `write "1500M"`}},
		{podType, "max", "2P", []string{`"2P": is above the largest limit`}},
		{podType, "max", "10M", []string{`"10M": is below the minimum 20M (namespace "` + ns + `", label egress.kubepace.io/min)`, `write at least "20M"`}},
		{podType, "min", "20G", []string{`spec.limits[0].min`, `is above the maximum 10G (the cluster's flag --cluster-max)`}},
		{containerType, "max", "10M", []string{"belongs to a pod, not to a Container", "{type: Pod, max: {kubepace.io/egress-bandwidth: 10M}}"}},
		{containerType, "default", "10M", []string{"spec.limits[0].default[kubepace.io/egress-bandwidth]", "belongs to a pod"}},
	} {
		requireRefused(t, c.Client.Create(t.Context(), limitRange(ns, tt.kind, tt.field, tt.rate)), tt.words...)
	}
	good := limitRange(ns, podType, "max", "50M")
	if err := c.Client.Create(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	good.Spec.Limits[0].Max[bandwidth.Resource] = resource.MustParse("2P")
	requireRefused(t, c.Client.Update(t.Context(), good), `"2P"`)
	_, err := tryLabels(t, ns, `{"`+bandwidth.LabelMin+`":"60M"}`)
	requireRefused(t, err, `"60M": is above the maximum 50M (LimitRange "`+good.Name+`")`)
	for _, mode := range []string{"dry-run", "off"} {
		_, err = tryLabels(t, ns, `{"`+bandwidth.LabelMode+`":"`+mode+`"}`)
		requireRefused(t, err, "metadata.labels[egress.kubepace.io/mode]", `while LimitRange "`+good.Name+`" names kubepace.io/egress-bandwidth`)
	}
	other := limitRange(c.namespace(t), containerType, "max", "10M")
	other.Spec.Limits[0].Max = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m")}
	if err := c.Client.Create(t.Context(), other); err != nil {
		t.Errorf("not ours: %v", err)
	}
}

// A LimitRange binds every pod of its namespace, also those that admission leaves alone.
func TestLimitRangeWhereNobodyCompletesPods(t *testing.T) {
	c := needCluster(t)
	for _, mode := range []string{"dry-run", "off"} {
		ns := c.namespace(t, bandwidth.LabelMode, mode)
		requireRefused(t, c.Client.Create(t.Context(), limitRange(ns, corev1.LimitTypePod, "max", "10M")),
			`while the namespace's mode is "`+mode+`"`, "kubectl label namespace "+ns+" --overwrite egress.kubepace.io/mode=enforce")
	}
	requireRefused(t, c.Client.Create(t.Context(), limitRange("kube-system", corev1.LimitTypePod, "max", "10M")),
		`in namespace "kube-system", which is exempt`)

	ns := c.namespace(t)
	mustCreate(t, ns, pod("older", egress, "10M"))
	done := mustCreate(t, ns, pod("done"))
	done.Status.Phase = corev1.PodSucceeded
	if err := c.Client.Status().Update(t.Context(), done); err != nil {
		t.Fatal(err)
	}
	requireRefused(t, c.Client.Create(t.Context(), limitRange(ns, corev1.LimitTypePod, "max", "10M")),
		"while 1 running pods do not carry it (older)", "kubectl label namespace "+ns+" egress.kubepace.io/account=always")
	if err := c.Client.Delete(t.Context(), podNow(t, ns, "older"), client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	if err := c.Client.Create(t.Context(), limitRange(ns, corev1.LimitTypePod, "max", "10M")); err != nil {
		t.Error(err)
	}
}

func quota(namespace string, scope corev1.ResourceQuotaScope, key, amount string) *corev1.ResourceQuota {
	q := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "egress-", Namespace: namespace},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourceName(key): resource.MustParse(amount)}},
	}
	if scope != "" {
		q.Spec.Scopes = []corev1.ResourceQuotaScope{scope}
	}
	return q
}

func TestQuotaSettings(t *testing.T) {
	c := needCluster(t)
	ns := c.namespace(t)
	for _, tt := range []struct {
		key, amount string
		scope       corev1.ResourceQuotaScope
		words       []string
	}{
		{"kubepace.io/egress-bandwidth", "1G", "", []string{`spec.hard[kubepace.io/egress-bandwidth]`, `never count it: write requests.kubepace.io/egress-bandwidth: "1G"`}},
		{"limits.kubepace.io/egress-bandwidth", "1G", "", []string{`spec.hard[limits.kubepace.io/egress-bandwidth]`, `write requests.kubepace.io/egress-bandwidth: "1G"`}},
		{bandwidth.QuotaKey, "1500m", "", []string{`"1500m": is not a whole number of bits per second`, `like "10G"`}},
		{bandwidth.QuotaKey, "1G", corev1.ResourceQuotaScopeBestEffort, []string{"spec.scopes", "BestEffort"}},
	} {
		requireRefused(t, c.Client.Create(t.Context(), quota(ns, tt.scope, tt.key, tt.amount)), tt.words...)
	}
	requireRefused(t, c.Client.Create(t.Context(), quota("kube-system", "", bandwidth.QuotaKey, "1G")), `"kube-system" is exempt`)
	good := quota(ns, "", bandwidth.QuotaKey, "1G")
	if err := c.Client.Create(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	good.Spec.Hard["kubepace.io/egress-bandwidth"] = resource.MustParse("1G")
	requireRefused(t, c.Client.Update(t.Context(), good), "never count it")
	r := c.as(t, "")
	if _, err := r.CoreV1().ResourceQuotas(c.namespace(t, bandwidth.LabelMode, "dry-run")).Create(t.Context(), quota("", "", bandwidth.QuotaKey, "1G"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(r.warnings) != 1 || !strings.Contains(r.warnings[0], `counts nothing while the namespace's mode is "dry-run"`) {
		t.Errorf("%q", r.warnings)
	}
}

// None of the checks stops anybody while the webhook is away.
func TestSettingsOutage(t *testing.T) {
	c := needCluster(t)
	ns := c.namespace(t)
	withoutWebhook(t, "limitranges.settings.kubepace.io", func() {
		eventually(t, "a bad limit range to pass", func() bool {
			bad := limitRange(ns, corev1.LimitTypePod, "max", "2P")
			err := c.Client.Create(t.Context(), bad)
			if err == nil {
				_ = c.Client.Delete(t.Context(), bad)
			} else if !apierrors.IsInvalid(err) {
				t.Fatal(err)
			}
			return err == nil
		})
	})
}
