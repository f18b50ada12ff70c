// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const manifests = `
# a comment alone
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: pace}
webhooks:
- name: pods.example.com
  failurePolicy: Ignore
  clientConfig:
    service: {name: hook, namespace: pace, path: /mutate}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent, namespace: pace}
spec:
  template:
    spec:
      serviceAccountName: agent-account
      containers:
      - name: other
      - name: agent
        args: ["--node=$(NODE_NAME)", "-v"]
---
apiVersion: v1
kind: Namespace
metadata: {name: pace}
`

func load(t *testing.T, content string) ([]*unstructured.Unstructured, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path)
}

func mustLoad(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	objects, err := load(t, manifests)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestLoad(t *testing.T) {
	var kinds []string
	for _, object := range mustLoad(t) {
		kinds = append(kinds, object.GetKind())
	}
	if diff := cmp.Diff([]string{"Namespace", "DaemonSet", "MutatingWebhookConfiguration"}, kinds); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	for _, broken := range []string{"kind: [", "kind: Namespace", "metadata: {name: x}"} {
		if _, err := load(t, broken); err == nil || !strings.Contains(err.Error(), "all.yaml") {
			t.Errorf("Load(%q): %v; want an error that names the file", broken, err)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load of no folder: %v", err)
	}
}

func TestPointWebhooks(t *testing.T) {
	objects := mustLoad(t)
	if err := PointWebhooks(objects, "https://127.0.0.1:9443"); err != nil {
		t.Fatal(err)
	}
	want := []any{map[string]any{
		"name": "pods.example.com", "failurePolicy": "Ignore",
		"clientConfig": map[string]any{"url": "https://127.0.0.1:9443/mutate"},
	}}
	if diff := cmp.Diff(want, objects[2].Object["webhooks"]); diff != "" {
		t.Errorf("webhooks (-want +got):\n%s", diff)
	}
	if err := PointWebhooks(objects, "https://127.0.0.1:9443"); err == nil {
		t.Error("a webhook without a service passed")
	}
}

func TestFindProgram(t *testing.T) {
	got, err := FindProgram(mustLoad(t), "agent", map[string]string{"NODE_NAME": "node1"})
	if err != nil {
		t.Fatal(err)
	}
	want := Program{Namespace: "pace", ServiceAccount: "agent-account", Args: []string{"--node=node1", "-v"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("program (-want +got):\n%s", diff)
	}
	if _, err := FindProgram(mustLoad(t), "absent", nil); !errors.Is(err, ErrNoProgram) {
		t.Errorf("FindProgram(absent): %v, want ErrNoProgram", err)
	}
}
