// SPDX-License-Identifier: Apache-2.0

package condition

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
)

// FieldManager owns our condition in managedFields, and nothing else.
const FieldManager = "kubepace-enforcer"

// ByAPI patches conditions at the API server.
func ByAPI(client typedcorev1.PodsGetter) Patch {
	return func(ctx context.Context, pod datapath.Pod, to *corev1.PodCondition) error {
		data, err := patchOf(pod.UID, to)
		if err != nil {
			return err
		}
		_, err = client.Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, data,
			metav1.PatchOptions{FieldManager: FieldManager}, "status")
		if isAnothers(err) {
			return apierrors.NewConflict(corev1.Resource("pods"), pod.Name, err)
		}
		if err != nil {
			return fmt.Errorf("patch condition: %w", err)
		}
		return nil
	}
}

// isAnothers: the name is another pod's by now. The API server takes that for an attempt to change the UID.
func isAnothers(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return false
	}
	return slices.ContainsFunc(status.Status().Details.Causes, func(c metav1.StatusCause) bool { return c.Field == "metadata.uid" })
}

// patchOf holds our condition and nothing else: conditions of a pod are merged by their type. With the UID in it, another
// pod of the same name refuses it.
func patchOf(uid string, to *corev1.PodCondition) ([]byte, error) {
	var condition any = map[string]string{"$patch": "delete", "type": bandwidth.ConditionEnforced}
	if to != nil {
		condition = to
	}
	data, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": uid},
		"status":   map[string]any{"conditions": []any{condition}},
	})
	if err != nil {
		return nil, fmt.Errorf("encode condition: %w", err)
	}
	return data, nil
}
