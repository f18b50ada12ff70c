// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/go-logr/logr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/condition"
	"github.com/kubepace/kubepace/enforcer/node"
	"github.com/kubepace/kubepace/enforcer/pods"
)

// cluster is what the agent tells the API server: events and a condition on pods, and what the node advertises.
type cluster struct {
	*events
	clients    *kubernetes.Clientset
	conditions *condition.Writer // from tasks on
	options    node.Options
}

var _ enforcer.Observer = (*cluster)(nil)

func newCluster(ctx context.Context, o *options, config *rest.Config) (*cluster, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = 50, 100 // each writer has a bound of its own below it
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("configure client of the API server: %w", err)
	}
	c := &cluster{events: newEvents(ctx, clients.CoreV1(), o.NodeName), clients: clients}
	c.options = node.Options{Config: config, Node: o.NodeName, Namespace: o.Namespace, Policy: o.advertise, Events: c.recorder}
	return c, nil
}

// Changed implements enforcer.Observer.
func (c *cluster) Changed(pod pods.Pod, v enforcer.Verdict) {
	c.events.Changed(pod, v)
	c.conditions.Changed(pod, v)
}

// Released implements enforcer.Observer.
func (c *cluster) Released(pod pods.Pod) {
	c.events.Released(pod)
	c.conditions.Released(pod)
}

// tasks are those that write, by name. The loop must not run before.
func (c *cluster) tasks(source pods.Source, e *enforcer.Enforcer, log logr.Logger) (map[string]func(context.Context) error, error) {
	c.conditions = condition.New(condition.ByAPI(c.clients.CoreV1()), source, log.WithName("condition"))
	tasks := map[string]func(context.Context) error{"conditions": c.conditions.Run}
	if c.options.Policy.Off() {
		return tasks, nil
	}
	c.options.Agent, c.options.Source, c.options.Log = e, source, log.WithName("node")
	a, err := node.New(c.options)
	if err != nil {
		return nil, err
	}
	tasks["advertise"] = a.Run
	return tasks, nil
}
