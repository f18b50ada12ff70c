// SPDX-License-Identifier: Apache-2.0

package restamp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// errUnanswered is a request that went past the webhook, or met a replica that has not heard of the new policy yet.
var errUnanswered = errors.New("the webhook did not decide anew")

// reconciler works on one pod or namespace at a time.
type reconciler struct {
	cache     client.Reader
	client    client.Client
	policies  Policies
	governed  Governed
	namespace client.Object
	events    record.EventRecorder
	limiter   flowcontrol.RateLimiter
	metrics   *Metrics
	state     *state
	queue     queue
}

var _ reconcile.TypedReconciler[key] = (*reconciler)(nil)

// Reconcile implements reconcile.TypedReconciler.
func (r *reconciler) Reconcile(ctx context.Context, k key) (reconcile.Result, error) {
	p, ok, err := r.policyOf(ctx, k.Namespace)
	if err != nil || !ok {
		return reconcile.Result{}, err
	}
	if k.Pod == "" {
		return reconcile.Result{}, r.namespaceChanged(ctx, k.Namespace, p)
	}
	pod := &corev1.Pod{}
	err = r.cache.Get(ctx, client.ObjectKey{Namespace: k.Namespace, Name: k.Pod}, pod)
	if apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil
	} else if err != nil {
		return reconcile.Result{}, fmt.Errorf("read pod %s/%s: %w", k.Namespace, k.Pod, err)
	}
	err = r.podChanged(ctx, k, p, pod)
	if errors.Is(err, errUnanswered) || apierrors.IsForbidden(err) {
		// Expected in an outage, and no news for the log at each attempt.
		log.FromContext(ctx).V(1).Info("will try again", "pod", k.Pod, "namespace", k.Namespace, "cause", err.Error())
		return reconcile.Result{RequeueAfter: r.state.again(k)}, nil
	}
	return reconcile.Result{}, err
}

// policyOf is not ok where the namespace is none of our business: gone, or never seen by admission.
func (r *reconciler) policyOf(ctx context.Context, name string) (p policy.Policy, ok bool, err error) {
	ns := r.namespace.DeepCopyObject().(client.Object)
	err = r.cache.Get(ctx, client.ObjectKey{Name: name}, ns)
	if apierrors.IsNotFound(err) || err == nil && ns.GetDeletionTimestamp() != nil {
		r.state.forgetNamespace(name)
		r.metrics.uncounted(name, uncounted{})
		r.metrics.policyProblems(name, 0)
		return p, false, nil
	} else if err != nil {
		return p, false, fmt.Errorf("read namespace %q: %w", name, err)
	}
	if ok, err = r.governed.Namespace(ctx, name, ns.GetLabels()); err != nil || !ok {
		return p, false, err
	}
	p, err = r.policies.Of(ctx, name)
	return p, err == nil, err
}

// namespaceChanged plans the work that a new policy brings, and tells what was done and what is wrong.
func (r *reconciler) namespaceChanged(ctx context.Context, name string, p policy.Policy) error {
	if text := r.state.take(name); text != "" {
		r.events.Eventf(namespaceRef(name), corev1.EventTypeNormal, reasonNsStamped, "running pods: %s (%s)", text, describePolicy(p))
	}
	if err := r.reportUncounted(ctx, name, p); err != nil {
		return err
	}
	changed, known, problems := r.state.observe(name, p)
	r.metrics.policyProblems(name, len(p.Problems))
	for _, problem := range problems {
		r.events.Event(namespaceRef(name), corev1.EventTypeWarning, reasonNsProblem, problem)
	}
	if !changed {
		return nil
	}
	pods := &corev1.PodList{}
	if err := r.cache.List(ctx, pods, client.InNamespace(name), client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list pods of %q: %w", name, err)
	}
	plan, touched := tally{}, 0
	for i := range pods.Items {
		v := judge(p, policyPod(&pods.Items[i]))
		if v.action == settled {
			continue
		}
		touched++
		plan[string(v.action)]++
		r.queue.Add(key{name, pods.Items[i].Name})
	}
	switch {
	case touched > 0:
		r.events.Eventf(namespaceRef(name), corev1.EventTypeNormal, reasonNsPolicy, "%s; of %d running pods %v", describePolicy(p), len(pods.Items), plan)
	case known:
		r.events.Eventf(namespaceRef(name), corev1.EventTypeNormal, reasonNsPolicy, "%s; no running pod is concerned", describePolicy(p))
	}
	return nil
}

// podChanged brings one pod to its policy.
func (r *reconciler) podChanged(ctx context.Context, k key, p policy.Policy, pod *corev1.Pod) error {
	if pod.DeletionTimestamp != nil {
		return nil
	}
	v := judge(p, policyPod(pod))
	switch v.action {
	case settled:
		r.state.forgetPod(k)
		return nil
	case stamp:
		return r.stamp(ctx, k, p, pod, v)
	case refused:
		r.leave(k, p, pod, v, corev1.EventTypeWarning, reasonPodRefused,
			fmt.Sprintf("would not be admitted today and keeps its egress limit (%s): %v", orNone(v.from), v.decision.Violations.ToAggregate()))
	case held:
		r.leave(k, p, pod, v, corev1.EventTypeWarning, reasonPodHeld,
			fmt.Sprintf("keeps its egress limit (%s): %s", orNone(v.from), strings.Join(p.Problems, "; ")))
	case recreate:
		r.leave(k, p, pod, v, corev1.EventTypeNormal, reasonPodRecreate, describeRecreate(v.decision))
	}
	return nil
}

// leave tells once why a pod keeps what it has.
func (r *reconciler) leave(k key, p policy.Policy, pod *corev1.Pod, v verdict, eventType, reason, text string) {
	if !r.state.tell(k, telling{pod.UID, v.action, digest(p)}) {
		return
	}
	r.metrics.count(string(v.action))
	r.events.Event(podRef(pod), eventType, reason, text)
	r.counted(k.Namespace, string(v.action))
}

// counted notes an outcome for the namespace's next event.
func (r *reconciler) counted(namespace, outcome string) {
	if r.state.count(namespace, outcome) {
		r.queue.AddAfter(key{Namespace: namespace}, gather)
	}
}

// stamp marks the pod, and looks at what the webhook made of that. A pod that bears today's mark already was marked in
// vain: it is tried without writing until the webhook answers.
func (r *reconciler) stamp(ctx context.Context, k key, p policy.Policy, pod *corev1.Pod, v verdict) error {
	mark := nextMark(digest(p), pod.Annotations[bandwidth.AnnotationPolicy])
	if mark != digest(p) {
		if got, err := r.mark(ctx, pod, mark, client.DryRunAll); err != nil || judge(p, policyPod(got)).action == stamp {
			return r.unmarked(k, p, pod, v, err)
		}
	}
	got, err := r.mark(ctx, pod, mark)
	if err != nil || judge(p, policyPod(got)).action == stamp {
		return r.unmarked(k, p, pod, v, err)
	}
	to := got.Annotations[bandwidth.AnnotationEgress]
	what := outcome(v.from, to)
	r.metrics.count(what)
	r.events.Event(podRef(pod), corev1.EventTypeNormal, reasonPodChanged, describeChange(p, v.from, to, v.decision))
	r.counted(k.Namespace, what)
	return nil
}

// mark is the one write of this package. The status subresource takes annotations as well, and the right to patch it
// cannot change what a pod runs.
func (r *reconciler) mark(ctx context.Context, pod *corev1.Pod, mark string, options ...client.SubResourcePatchOption) (*corev1.Pod, error) {
	if err := r.limiter.Wait(ctx); err != nil {
		return nil, fmt.Errorf("wait for a turn: %w", err)
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": pod.UID, "annotations": map[string]string{bandwidth.AnnotationPolicy: mark},
	}})
	if err != nil {
		return nil, fmt.Errorf("encode patch: %w", err)
	}
	got := &corev1.Pod{}
	got.Namespace, got.Name = pod.Namespace, pod.Name
	options = append(options, client.FieldOwner(FieldManager))
	if err := r.client.Status().Patch(ctx, got, client.RawPatch(types.MergePatchType, body), options...); err != nil {
		return nil, fmt.Errorf("patch pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return got, nil
}

// unmarked sorts out why a pod has not got its limit.
func (r *reconciler) unmarked(k key, p policy.Policy, pod *corev1.Pod, v verdict, err error) error {
	switch {
	case err == nil:
		r.metrics.count("unanswered")
		return errUnanswered
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil // gone, or replaced by a pod that admission saw
	case apierrors.IsInvalid(err), apierrors.IsForbidden(err):
		// Some admission, ours or another, does not want the change, or we may not ask for it. The pod keeps what it has.
		v.action = refused
		r.leave(k, p, pod, v, corev1.EventTypeWarning, reasonPodRefused, fmt.Sprintf("keeps its egress limit (%s): %v", orNone(v.from), err))
		if apierrors.IsInvalid(err) {
			return nil // until the policy or the pod changes
		}
		return err
	default:
		return err
	}
}

// policyPod gives what the policy judges.
func policyPod(pod *corev1.Pod) policy.Pod {
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	rate, err := bandwidth.Parse(pod.Annotations[bandwidth.AnnotationEgress])
	if err != nil {
		rate = 0
	}
	return policy.Pod{
		Annotations: pod.Annotations, HostNetwork: pod.Spec.HostNetwork, Mirror: mirror, Standing: &policy.Standing{Limit: rate},
		Containers: policyContainers(pod.Spec.Containers), InitContainers: policyContainers(pod.Spec.InitContainers),
	}
}

func policyContainers(list []corev1.Container) []policy.Container {
	out := make([]policy.Container, len(list))
	for i := range list {
		c := &list[i]
		out[i].Sidecar = c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		if q, ok := c.Resources.Requests[bandwidth.Resource]; ok {
			out[i].Amount = policy.Amount{Request: q.String(), Limit: q.String()}
		}
	}
	return out
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}
