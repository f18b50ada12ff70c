// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
)

func (d *demo) installKubepace(ctx context.Context) error  { return nil }
func (d *demo) awaitEnforcement(ctx context.Context) error { return nil }
func (d *demo) showList(ctx context.Context) error         { return nil }
func (d *demo) showStatus(ctx context.Context) error       { return nil }
