// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"net/http"

	"github.com/kubepace/kubepace/webhook/policy"
)

// Paths of the endpoints; the webhook configurations in manifests/ name them.
const (
	PathMutatePods       = "/mutate/pods"
	PathMutateBindings   = "/mutate/bindings"
	PathValidatePods     = "/validate/pods"
	PathValidateBindings = "/validate/bindings"
)

// Server is where endpoints are registered; controller-runtime's webhook.Server is one.
type Server interface {
	Register(path string, handler http.Handler)
}

// Options say what admission decides with.
type Options struct {
	Cluster    policy.Cluster
	Namespaces Namespaces
	Metrics    *Metrics // may be nil
}

// Register puts every endpoint on the server.
func Register(server Server, o Options) {
	pods := &Pods{Cluster: o.Cluster, Namespaces: o.Namespaces, Metrics: o.Metrics}
	bindings := &Bindings{Namespaces: o.Namespaces}
	for path, judge := range map[string]verdictFunc[object]{
		PathMutatePods:       pods.Mutate,
		PathMutateBindings:   bindings.Mutate,
		PathValidatePods:     pods.Validate,
		PathValidateBindings: bindings.Validate,
	} {
		server.Register(path, newEndpoint(path, judge, o.Metrics))
	}
}
