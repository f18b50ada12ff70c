// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// Settings checks what policy teams set: our labels of a Namespace, and the entries of LimitRanges and ResourceQuotas
// that name our resource. Kubernetes itself accepts nearly all that could go wrong there without a word.
//
// Only what a request sets anew is judged: an object that is already bad can be changed elsewhere, and mended step by
// step. What slips in all the same (an outage, a changed flag) policy.Resolve replaces by the tightest setting that it
// can read, and reports.
type Settings struct {
	// Cluster is the administrator's policy, already validated.
	Cluster policy.Cluster
	// Live reads from the API server: such requests are rare, and a stale answer would let two halves of a
	// contradiction in one after the other.
	Live client.Reader
	// Governed tells which namespaces admission leaves alone.
	Governed Governed
}

// Paths of the endpoints; the webhook configurations in manifests/ name them.
const (
	PathValidateNamespaces  = "/validate/namespaces"
	PathValidateLimitRanges = "/validate/limitranges"
	PathValidateQuotas      = "/validate/resourcequotas"
	PathWarnWorkloads       = "/warn/workloads"
)

// RegisterSettings puts the endpoints of what policy teams set, and of workloads, on the server.
func RegisterSettings(server Server, s *Settings, w *Workloads, metrics *Metrics) {
	for path, handler := range map[string]http.Handler{
		PathValidateNamespaces:  newEndpoint(PathValidateNamespaces, s.Namespace, metrics),
		PathValidateLimitRanges: newEndpoint(PathValidateLimitRanges, s.LimitRange, metrics),
		PathValidateQuotas:      newEndpoint(PathValidateQuotas, s.Quota, metrics),
		PathWarnWorkloads:       newEndpoint(PathWarnWorkloads, w.Warn, metrics),
	} {
		server.Register(path, handler)
	}
}

// findings is what a check found.
type findings struct {
	violations field.ErrorList
	warnings   []string
}

func (f *findings) refuse(e *field.Error) { f.violations = append(f.violations, e) }

func (f *findings) warn(format string, args ...any) {
	f.warnings = append(f.warnings, fmt.Sprintf(format, args...))
}

func (f *findings) respond(name, kind string) admission.Response {
	r := untouched()
	if len(f.violations) > 0 {
		r = refused(name, kind, f.violations)
	}
	r.Warnings = f.warnings
	return r
}

// settingsOf are a request's objects; what is created was empty before.
func settingsOf[T any](req *request[T]) (now, before *T, err error) {
	if now, before, err = req.objects(); before == nil {
		before = new(T)
	}
	return now, before, err
}

// labels are the namespace's as they are now. A namespace that is gone has none.
func (s *Settings) labels(ctx context.Context, namespace string) (map[string]string, error) {
	ns := NamespaceMetadata()
	if err := s.Live.Get(ctx, client.ObjectKey{Name: namespace}, ns); client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("read namespace %q: %w", namespace, err)
	}
	return ns.Labels, nil
}

// limitRanges are the namespace's that name our resource for pods, except one.
func (s *Settings) limitRanges(ctx context.Context, namespace, except string) ([]corev1.LimitRange, error) {
	list := &corev1.LimitRangeList{}
	if err := s.Live.List(ctx, list, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("list limit ranges of %q: %w", namespace, err)
	}
	var out []corev1.LimitRange
	for i := range list.Items {
		if list.Items[i].Name != except && bindsPods(&list.Items[i]) {
			out = append(out, list.Items[i])
		}
	}
	return out, nil
}

// bindsPods reports whether every pod of the namespace must carry our resource because of this object.
func bindsPods(lr *corev1.LimitRange) bool {
	for _, e := range limitEntries(lr) {
		if e.item.Type == corev1.LimitTypePod {
			return true
		}
	}
	return false
}

// mode is the namespace's, as policy reads it.
func modeOf(labels map[string]string) string {
	switch m := labels[bandwidth.LabelMode]; m {
	case bandwidth.ModeDryRun, bandwidth.ModeOff:
		return m
	default:
		return bandwidth.ModeEnforce
	}
}

// Namespace checks a Namespace's labels, whichever subresource they come through.
func (s *Settings) Namespace(ctx context.Context, req *request[metav1.PartialObjectMetadata]) (admission.Response, error) {
	now, before, err := settingsOf(req)
	if err != nil {
		return admission.Response{}, err
	}
	changed := changedLabels(now.Labels, before.Labels)
	if len(changed) == 0 || now.DeletionTimestamp != nil {
		return untouched(), nil
	}
	f := &findings{}
	own := checkLabels(f, now.Name, now.Labels, changed)
	ranges, err := s.limitRanges(ctx, now.Name, "")
	if err != nil {
		return admission.Response{}, err
	}
	others := rates(flagRates(s.Cluster), rangeRates(ranges))
	contradictions(f, own, others)
	if m := modeOf(now.Labels); changed[bandwidth.LabelMode] && m != bandwidth.ModeEnforce && len(ranges) > 0 {
		f.refuse(field.Forbidden(labelPath(bandwidth.LabelMode), fmt.Sprintf(
			"%q is not possible while LimitRange %q names %s: Kubernetes itself would go on refusing pods that do not carry the resource; delete that entry first",
			m, ranges[0].Name, bandwidth.Resource)))
	}
	governed, err := s.Governed.Namespace(ctx, now.Name, now.Labels)
	if err != nil {
		return admission.Response{}, err
	}
	if !governed {
		f.warn("namespace %q is exempt from egress limits: labels %s* have no effect in it", now.Name, bandwidth.Prefix)
	}
	return f.respond(req.Name, "Namespace"), nil
}

// LimitRange checks the entries that name our resource.
func (s *Settings) LimitRange(ctx context.Context, req *request[corev1.LimitRange]) (admission.Response, error) {
	now, before, err := settingsOf(req)
	if err != nil {
		return admission.Response{}, err
	}
	fresh := newEntries(limitEntries(now), limitEntries(before))
	if !anyFresh(fresh) || now.DeletionTimestamp != nil {
		return untouched(), nil
	}
	f := &findings{}
	own := checkEntries(f, req.Name, fresh)
	labels, err := s.labels(ctx, req.Namespace)
	if err != nil {
		return admission.Response{}, err
	}
	ranges, err := s.limitRanges(ctx, req.Namespace, now.Name)
	if err != nil {
		return admission.Response{}, err
	}
	contradictions(f, own, rates(flagRates(s.Cluster), labelRates(req.Namespace, labels, nil), rangeRates(ranges)))
	if err := s.checkBinding(ctx, f, req.Namespace, labels, now, bindsPods(before) || len(ranges) > 0); err != nil {
		return admission.Response{}, err
	}
	return f.respond(req.Name, "LimitRange"), nil
}

// checkBinding refuses a LimitRange where the API server would hold it against pods that admission does not complete.
func (s *Settings) checkBinding(ctx context.Context, f *findings, namespace string, labels map[string]string, lr *corev1.LimitRange, already bool) error {
	if !bindsPods(lr) {
		return nil
	}
	const why = "Kubernetes would refuse every pod that does not carry the resource, and nobody puts it there"
	at := field.NewPath("spec", "limits")
	governed, err := s.Governed.Namespace(ctx, namespace, labels)
	if err != nil {
		return err
	}
	if !governed {
		f.refuse(field.Forbidden(at, fmt.Sprintf("names %s in namespace %q, which is exempt from egress limits: %s", bandwidth.Resource, namespace, why)))
		return nil
	}
	if m := modeOf(labels); m != bandwidth.ModeEnforce {
		f.refuse(field.Forbidden(at, fmt.Sprintf("names %s while the namespace's mode is %q: %s; set it to %q first: kubectl label namespace %s --overwrite %s=%s",
			bandwidth.Resource, m, why, bandwidth.ModeEnforce, namespace, bandwidth.LabelMode, bandwidth.ModeEnforce)))
		return nil
	}
	if already {
		return nil
	}
	lacking, err := s.uncounted(ctx, namespace)
	if err != nil || len(lacking) == 0 {
		return err
	}
	f.refuse(field.Forbidden(at, fmt.Sprintf(
		"names %s while %d running pods do not carry it (%s): Kubernetes would refuse changes of them; first have pods counted (kubectl label namespace %s %s=%s), then recreate these",
		bandwidth.Resource, len(lacking), listed(lacking, 3), namespace, bandwidth.LabelAccount, bandwidth.AccountAlways)))
	return nil
}

// uncounted lists the namespace's running pods that do not carry our resource.
func (s *Settings) uncounted(ctx context.Context, namespace string) ([]string, error) {
	var out []string
	list := &corev1.PodList{}
	for {
		if err := s.Live.List(ctx, list, client.InNamespace(namespace), client.Limit(500), client.Continue(list.Continue)); err != nil {
			return nil, fmt.Errorf("list pods of %q: %w", namespace, err)
		}
		for i := range list.Items {
			p := &list.Items[i]
			over := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.DeletionTimestamp != nil
			if !over && !carriesResource(&p.Spec) {
				out = append(out, p.Name)
			}
		}
		if list.Continue == "" {
			return out, nil
		}
	}
}

func carriesResource(spec *corev1.PodSpec) bool {
	for i := range spec.Containers {
		if _, ok := spec.Containers[i].Resources.Limits[bandwidth.Resource]; ok {
			return true
		}
	}
	return false
}

// Quota checks the keys of a ResourceQuota that are meant for us.
func (s *Settings) Quota(ctx context.Context, req *request[corev1.ResourceQuota]) (admission.Response, error) {
	now, before, err := settingsOf(req)
	if err != nil {
		return admission.Response{}, err
	}
	f := &findings{}
	if !checkQuota(f, now, before) || now.DeletionTimestamp != nil {
		return untouched(), nil
	}
	labels, err := s.labels(ctx, req.Namespace)
	if err != nil {
		return admission.Response{}, err
	}
	governed, err := s.Governed.Namespace(ctx, req.Namespace, labels)
	if err != nil {
		return admission.Response{}, err
	}
	if m := modeOf(labels); !governed {
		f.refuse(field.Forbidden(hardPath.Key(bandwidth.QuotaKey), fmt.Sprintf(
			"namespace %q is exempt from egress limits: its pods would never be counted", req.Namespace)))
	} else if m != bandwidth.ModeEnforce {
		f.warn("%s counts nothing while the namespace's mode is %q (label %s)", hardPath.Key(bandwidth.QuotaKey), m, bandwidth.LabelMode)
	}
	return f.respond(req.Name, "ResourceQuota"), nil
}

// listed joins the first few of many names.
func listed(names []string, most int) string {
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return strings.Join(names[:most], ", ") + ", …"
}
