// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"fmt"
	"strings"

	"gomodules.xyz/jsonpatch/v2"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

const annotationsPath = "/metadata/annotations"

var pointer = strings.NewReplacer("~", "~0", "/", "~1")

// patchFor builds the smallest JSON patch that makes the changes in an object with these annotations. It names
// our own keys and nothing else; where the map is missing it creates it.
func patchFor(annotations map[string]string, changes []policy.Change) []jsonpatch.JsonPatchOperation {
	if len(changes) == 0 {
		return nil
	}
	if annotations == nil {
		added := map[string]string{}
		for _, c := range changes {
			if !c.Remove {
				added[c.Key] = c.Value
			}
		}
		return []jsonpatch.JsonPatchOperation{jsonpatch.NewOperation("add", annotationsPath, added)}
	}
	ops := make([]jsonpatch.JsonPatchOperation, 0, len(changes))
	for _, c := range changes {
		path := annotationsPath + "/" + pointer.Replace(c.Key)
		_, exists := annotations[c.Key]
		switch {
		case c.Remove:
			ops = append(ops, jsonpatch.NewOperation("remove", path, nil))
		case exists:
			ops = append(ops, jsonpatch.NewOperation("replace", path, c.Value))
		default:
			ops = append(ops, jsonpatch.NewOperation("add", path, c.Value))
		}
	}
	return ops
}

// patchContainers sets our resource of containers, or takes it away. It makes the maps that are missing, and names no
// other key.
func patchContainers(o *object, changes []policy.ContainerChange) []jsonpatch.JsonPatchOperation {
	var ops []jsonpatch.JsonPatchOperation
	for _, c := range changes {
		list, name := o.Spec.Containers, "containers"
		if c.Init {
			list, name = o.Spec.InitContainers, "initContainers"
		}
		path := fmt.Sprintf("/spec/%s/%d/resources", name, c.Index)
		res := list[c.Index].Resources
		if res == nil {
			amounts := map[string]string{bandwidth.Resource: c.Rate.String()}
			ops = append(ops, jsonpatch.NewOperation("add", path, map[string]any{"requests": amounts, "limits": amounts}))
			continue
		}
		ops = append(ops, patchAmount(path+"/requests", res.Requests, c)...)
		ops = append(ops, patchAmount(path+"/limits", res.Limits, c)...)
	}
	return ops
}

// patchAmount is for one of a container's two maps.
func patchAmount(path string, a *amounts, c policy.ContainerChange) []jsonpatch.JsonPatchOperation {
	text := c.Rate.String()
	at := path + "/" + pointer.Replace(bandwidth.Resource)
	switch {
	case c.Rate == 0 && (a == nil || a.Egress == nil):
		return nil
	case c.Rate == 0:
		return []jsonpatch.JsonPatchOperation{jsonpatch.NewOperation("remove", at, nil)}
	case a == nil:
		return []jsonpatch.JsonPatchOperation{jsonpatch.NewOperation("add", path, map[string]string{bandwidth.Resource: text})}
	case a.Egress == nil:
		return []jsonpatch.JsonPatchOperation{jsonpatch.NewOperation("add", at, text)}
	default:
		return []jsonpatch.JsonPatchOperation{jsonpatch.NewOperation("replace", at, text)}
	}
}
