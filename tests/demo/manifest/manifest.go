// SPDX-License-Identifier: Apache-2.0

// Package manifest applies the project's real manifests to a cluster that has no nodes to run them: the webhooks are
// called at an address of this machine, and the programs' arguments are handed out to whoever runs them instead.
package manifest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

// Load reads every object of a YAML file, such as kubectl kustomize prints, in an order in which they can be created.
func Load(path string) ([]*unstructured.Unstructured, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	objects, err := decode(content)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %s: %w", path, err)
	}
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { return rank(a) - rank(b) })
	return objects, nil
}

func decode(content []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		switch {
		case errors.Is(err, io.EOF):
			return objects, nil
		case err != nil:
			return nil, err
		case len(object.Object) == 0: // a comment between two separators
			continue
		case object.GetKind() == "" || object.GetName() == "":
			return nil, errors.New("an object without kind or name")
		}
		objects = append(objects, object)
	}
}

// rank puts what others refer to first, and the webhooks last: nothing answers them yet.
func rank(object *unstructured.Unstructured) int {
	switch kind := object.GetKind(); {
	case kind == "Namespace":
		return 0
	case kind == "ServiceAccount":
		return 1
	case strings.HasSuffix(kind, "WebhookConfiguration"):
		return 3
	}
	return 2
}

// PointWebhooks rewrites every clientConfig.service of the webhook configurations to a URL below base, the way a
// webhook outside the cluster is called. Everything else of them stays what it is.
func PointWebhooks(objects []*unstructured.Unstructured, base string) error {
	for _, object := range objects {
		if !strings.HasSuffix(object.GetKind(), "WebhookConfiguration") {
			continue
		}
		hooks, _, err := unstructured.NestedSlice(object.Object, "webhooks")
		if err != nil {
			return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
		for _, hook := range hooks {
			if err := pointWebhook(hook, base); err != nil {
				return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
			}
		}
		if err := unstructured.SetNestedSlice(object.Object, hooks, "webhooks"); err != nil {
			return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return nil
}

func pointWebhook(hook any, base string) error {
	fields, ok := hook.(map[string]any)
	if !ok {
		return fmt.Errorf("a webhook is a %T", hook)
	}
	path, found, err := unstructured.NestedString(fields, "clientConfig", "service", "path")
	if err != nil || !found {
		return fmt.Errorf("webhook %v: no clientConfig.service.path: %w", fields["name"], err)
	}
	address, err := url.JoinPath(base, path)
	if err != nil {
		return fmt.Errorf("webhook %v: %w", fields["name"], err)
	}
	unstructured.RemoveNestedField(fields, "clientConfig", "service")
	return unstructured.SetNestedField(fields, address, "clientConfig", "url")
}

// Apply creates the objects.
func Apply(ctx context.Context, config *rest.Config, objects []*unstructured.Unstructured) error {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	discoverer, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	groups, err := restmapper.GetAPIGroupResources(discoverer)
	if err != nil {
		return fmt.Errorf("ask for the API's kinds: %w", err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	for _, object := range objects {
		kind := object.GroupVersionKind()
		mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
		resource := dynamic.ResourceInterface(client.Resource(mapping.Resource))
		if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
			resource = client.Resource(mapping.Resource).Namespace(object.GetNamespace())
		}
		// Strict, so that a field that the API does not know is an error here too.
		if _, err := resource.Create(ctx, object, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}); err != nil {
			return fmt.Errorf("create %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return nil
}

// Program is what a Deployment or DaemonSet would run.
type Program struct {
	Namespace      string
	ServiceAccount string
	Args           []string
}

// ErrNoProgram means that no manifest runs the container.
var ErrNoProgram = errors.New("no Deployment or DaemonSet runs it")

// FindProgram returns what the manifests run as the container, with $(NAME) in its arguments replaced from env.
func FindProgram(objects []*unstructured.Unstructured, container string, env map[string]string) (Program, error) {
	for _, object := range objects {
		if kind := object.GetKind(); kind != "Deployment" && kind != "DaemonSet" {
			continue
		}
		containers, _, err := unstructured.NestedSlice(object.Object, "spec", "template", "spec", "containers")
		if err != nil {
			return Program{}, fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
		for _, c := range containers {
			fields, ok := c.(map[string]any)
			if !ok || fields["name"] != container {
				continue
			}
			args, _, err := unstructured.NestedStringSlice(fields, "args")
			if err != nil {
				return Program{}, fmt.Errorf("container %s: %w", container, err)
			}
			account, _, err := unstructured.NestedString(object.Object, "spec", "template", "spec", "serviceAccountName")
			if err != nil {
				return Program{}, fmt.Errorf("container %s: %w", container, err)
			}
			return Program{Namespace: object.GetNamespace(), ServiceAccount: account, Args: expand(args, env)}, nil
		}
	}
	return Program{}, fmt.Errorf("container %s: %w", container, ErrNoProgram)
}

func expand(args []string, env map[string]string) []string {
	expanded := make([]string, 0, len(args))
	for _, arg := range args {
		for name, value := range env {
			arg = strings.ReplaceAll(arg, "$("+name+")", value)
		}
		expanded = append(expanded, arg)
	}
	return expanded
}
