// SPDX-License-Identifier: Apache-2.0

package e2e

import "testing"

func TestCluster(t *testing.T) {
	ctx, c := start(t)
	t.Run("nodes", func(t *testing.T) {
		out, err := c.Kubectl(ctx, "get", "nodes", "-o", "wide")
		t.Log(out, err)
	})
}
