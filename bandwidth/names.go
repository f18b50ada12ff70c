// SPDX-License-Identifier: Apache-2.0

package bandwidth

// Annotations of a pod.
const (
	// AnnotationEgress is the pod's egress limit in bits/s, as a Kubernetes quantity. It is the upstream key: the
	// CNI bandwidth plugin, Cilium and Calico read it too.
	AnnotationEgress = "kubernetes.io/egress-bandwidth"
	// AnnotationRequested is what the author wrote, kept whenever admission changed it.
	AnnotationRequested = "egress.kubepace.io/requested"
	// AnnotationSource says why the limit is what it is: one of the Source constants.
	AnnotationSource = "egress.kubepace.io/source"
	// AnnotationPolicy marks the policy under which a running pod's limit was last decided anew. Only the re-stamping
	// controller writes it; its change makes admission decide within that same request, so that authors keep the
	// ownership of their own annotation.
	AnnotationPolicy = "egress.kubepace.io/policy"
	// AnnotationNetns is a path of the pod's network namespace, such as "/var/run/netns/web". It is honoured only in
	// pod manifests that the node's administrator put into a folder, never in pods from the API server: there the
	// author of a pod could point at a neighbour.
	AnnotationNetns = "egress.kubepace.io/netns"
)

// Labels of a namespace.
const (
	// LabelDefault is the limit for pods that ask for none.
	LabelDefault = "egress.kubepace.io/default"
	// LabelMin and LabelMax bound the limit of one pod.
	LabelMin = "egress.kubepace.io/min"
	LabelMax = "egress.kubepace.io/max"
	// LabelOverMax is what happens to a pod that asks for more than the maximum: OverMaxCap or OverMaxDeny.
	LabelOverMax = "egress.kubepace.io/over-max"
	// LabelAccount says when pods carry Resource, so that quotas can count them: AccountAlways, or absent for "where a
	// quota or LimitRange names it".
	LabelAccount = "egress.kubepace.io/account"
	// LabelMode is ModeEnforce, ModeDryRun or ModeOff.
	LabelMode = "egress.kubepace.io/mode"
)

// Values of LabelOverMax. Absent means OverMaxCap.
const (
	OverMaxCap  = "cap"
	OverMaxDeny = "deny"
)

// AccountAlways is the only value of LabelAccount.
const AccountAlways = "always"

// Values of LabelMode. Absent means ModeEnforce.
const (
	ModeEnforce = "enforce"
	// ModeDryRun warns and changes nothing.
	ModeDryRun = "dry-run"
	ModeOff    = "off"
)

// Values of AnnotationSource.
const (
	// SourcePod: the author's own value, at most rewritten to the canonical text.
	SourcePod = "pod"
	// SourceNamespaceDefault: the pod asked for none and got the namespace's default.
	SourceNamespaceDefault = "namespace-default"
	// SourceClusterDefault: the pod asked for none and got the cluster's default.
	SourceClusterDefault = "cluster-default"
	// SourceCapped: the pod asked for more than the maximum and got the maximum.
	SourceCapped = "capped"
)

const (
	// Resource is the extended resource that LimitRanges and ResourceQuotas name.
	Resource = "kubepace.io/egress-bandwidth"
	// QuotaKey is the key of a ResourceQuota's spec.hard that holds a namespace's total. Kubernetes counts under no
	// other one: Resource itself and "limits." before it are shown and never counted.
	QuotaKey = "requests." + Resource
	// Domain ends the group of every key that is ours; Prefix begins those of labels and most annotations.
	Domain = "kubepace.io/"
	Prefix = "egress." + Domain
	// SystemNamespace is where kubepace runs, unless it is told another.
	SystemNamespace = "kubepace-system"
	// LeasePrefix, before a node's name, is the name of the Lease in kubepace's namespace that the node's agent renews
	// while the node keeps limits. When it runs out, the webhook's leader takes Resource from the node.
	LeasePrefix = "kubepace-enforcer-"
	// ConditionEnforced is the pod condition that says whether the node keeps the limit.
	ConditionEnforced = "kubepace.io/EgressEnforced"
)
