// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"strings"

	"gomodules.xyz/jsonpatch/v2"

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
