// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/kubepace/kubepace/tests/admission/lab"
)

// TestRights: by the manifests' RBAC the webhook may do what it does, and nothing beside it.
func TestRights(t *testing.T) {
	s := needService(t)
	const ours, admission = lab.SystemNamespace, "admissionregistration.k8s.io"
	type right = authorizationv1.ResourceAttributes
	allowed := []right{
		{Verb: "watch", Resource: "namespaces"}, {Verb: "watch", Resource: "pods"}, {Verb: "patch", Resource: "pods", Subresource: "status", Namespace: "team"},
		{Verb: "watch", Resource: "limitranges"}, {Verb: "watch", Resource: "resourcequotas"}, {Verb: "create", Resource: "events", Namespace: "team"},
		{Verb: "patch", Group: admission, Resource: "mutatingwebhookconfigurations", Name: lab.Configuration},
		{Verb: "patch", Group: admission, Resource: "validatingwebhookconfigurations", Name: lab.Configuration},
		{Verb: "update", Resource: "secrets", Namespace: ours, Name: "kubepace-webhook-tls"}, {Verb: "create", Resource: "secrets", Namespace: ours},
		{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: ours},
		{Verb: "get", Resource: "nodes", Name: "n"}, {Verb: "patch", Resource: "nodes", Subresource: "status", Name: "n"}, // of those whose agent is gone
	}
	refused := []right{
		{Verb: "get", Resource: "secrets", Namespace: ours, Name: "another"}, {Verb: "list", Resource: "secrets", Namespace: ours}, {Verb: "get", Resource: "secrets", Namespace: "team", Name: "kubepace-webhook-tls"},
		{Verb: "create", Resource: "secrets", Namespace: "team"}, {Verb: "delete", Resource: "secrets", Namespace: ours, Name: "kubepace-webhook-tls"},
		{Verb: "create", Resource: "pods", Namespace: "team"}, {Verb: "patch", Resource: "pods", Namespace: "team"}, {Verb: "update", Resource: "pods", Namespace: "team"}, {Verb: "delete", Resource: "pods", Namespace: "team"},
		{Verb: "update", Resource: "pods", Subresource: "status", Namespace: "team"}, {Verb: "create", Resource: "pods", Subresource: "exec", Namespace: "team"}, {Verb: "create", Resource: "pods", Subresource: "binding", Namespace: "team"},
		{Verb: "patch", Resource: "namespaces", Name: "team"}, {Verb: "patch", Resource: "limitranges", Namespace: "team"}, {Verb: "patch", Resource: "resourcequotas", Namespace: "team"},
		{Verb: "get", Resource: "configmaps", Namespace: ours}, {Verb: "list", Resource: "nodes"}, {Verb: "patch", Resource: "nodes", Name: "n"}, {Verb: "delete", Resource: "nodes", Name: "n"}, {Verb: "impersonate", Resource: "users"}, {Verb: "create", Resource: "serviceaccounts", Subresource: "token", Namespace: ours},
		{Verb: "patch", Group: admission, Resource: "mutatingwebhookconfigurations", Name: "another"}, {Verb: "delete", Group: admission, Resource: "mutatingwebhookconfigurations", Name: lab.Configuration},
		{Verb: "patch", Group: admission, Resource: "validatingadmissionpolicies", Name: "kubepace-totals"}, {Verb: "create", Group: admission, Resource: "validatingwebhookconfigurations"},
		{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: "kube-system"}, {Verb: "patch", Group: "rbac.authorization.k8s.io", Resource: "clusterroles", Name: "kubepace-webhook"},
		{Verb: "list", Group: "apps", Resource: "deployments"},
	}
	for want, list := range map[bool][]right{true: allowed, false: refused} {
		for _, r := range list {
			review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
				User: lab.ServiceAccount, Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + ours, "system:authenticated"}, ResourceAttributes: &r,
			}}
			if err := s.Client.Create(t.Context(), review); err != nil {
				t.Fatal(err)
			}
			if review.Status.Allowed != want {
				t.Errorf("%s %s/%s in %q, name %q: allowed %v, want %v", r.Verb, r.Resource, r.Subresource, r.Namespace, r.Name, review.Status.Allowed, want)
			}
		}
	}
}
