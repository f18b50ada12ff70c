// SPDX-License-Identifier: Apache-2.0

package totals

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/admission/lab"
)

// TestSidecarInFront: somebody else's webhook puts a container before the one that carries the count, with an amount of
// its own or without, or an init container that goes on running: the pod is counted once, with its limit.
func TestSidecarInFront(t *testing.T) {
	s := needService(t)
	const amount = `"resources":{"requests":{"kubepace.io/egress-bandwidth":"7M"},"limits":{"kubepace.io/egress-bandwidth":"7M"}}`
	for name, patch := range map[string]string{
		"plain":          `{"op":"add","path":"/spec/containers/0","value":{"name":"proxy","image":"i"}}`,
		"with an amount": `{"op":"add","path":"/spec/containers/0","value":{"name":"proxy","image":"i",` + amount + `}}`,
		"init":           `{"op":"add","path":"/spec/initContainers","value":[{"name":"proxy","image":"i","restartPolicy":"Always",` + amount + `}]}`,
		"amount raised":  `{"op":"add","path":"/spec/containers/0/resources","value":{"requests":{"kubepace.io/egress-bandwidth":"20M"},"limits":{"kubepace.io/egress-bandwidth":"20M"}}}`,
		"amount taken":   `{"op":"remove","path":"/spec/containers/0/resources"}`,
	} {
		t.Run(name, func(t *testing.T) {
			ns := s.namespace(t)
			q := s.quota(t, ns, "30M")
			stop, err := lab.Late{Namespace: ns, Patch: patch}.Start(t.Context(), s.Client)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(stop)
			p := &corev1.Pod{}
			eventually(t, "the other webhook", func() bool {
				p = pod(ns, "dry", egress, "10M")
				return s.Client.Create(t.Context(), p, client.DryRunAll) == nil && p.Annotations[lab.LateMark] != ""
			})
			if got := s.used(t, q); got != "0" {
				t.Errorf("dry runs count: %s", got)
			}
			p = pod(ns, "p", egress, "10M")
			if err := s.Client.Create(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			if p.Annotations[egress] != "10M" || p.Annotations[lab.LateMark] == "" {
				t.Errorf("annotations %v", p.Annotations)
			}
			requireOneCount(t, p, "10M")
			eventually(t, "the quota to count 10M", func() bool { return s.used(t, q) == "10M" })
		})
	}
}

// requireOneCount wants one container to carry the resource, with this request and limit.
func requireOneCount(t *testing.T, p *corev1.Pod, want string) {
	t.Helper()
	carriers := 0
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			request, carries := list[i].Resources.Requests[bandwidth.Resource]
			limit, limited := list[i].Resources.Limits[bandwidth.Resource]
			if !carries && !limited {
				continue
			}
			carriers++
			if request.String() != want || limit.String() != want {
				t.Errorf("container %s carries %s, limit %s, want %s", list[i].Name, request.String(), limit.String(), want)
			}
		}
	}
	if carriers != 1 {
		t.Errorf("%d containers carry the resource", carriers)
	}
}
