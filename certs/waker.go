// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"context"
	"fmt"
	"time"

	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// waker ends a loop's sleep; it holds at most one pending wake-up.
type waker chan struct{}

func newWaker() waker { return make(waker, 1) }

func (w waker) notify() {
	select {
	case w <- struct{}{}:
	default:
	}
}

// wait returns after the time, at a notification, or when the context ends.
func (w waker) wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-w:
	case <-timer.C:
	}
}

// watch notifies of every event of the kinds until the context ends; nil informers are left out.
func (w waker) watch(ctx context.Context, informers cache.Informers, kinds ...client.Object) error {
	if informers == nil {
		return nil
	}
	for _, o := range kinds {
		informer, err := informers.GetInformer(ctx, o)
		if err != nil {
			return fmt.Errorf("watch %T: %w", o, err)
		}
		handle, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { w.notify() },
			UpdateFunc: func(any, any) { w.notify() },
			DeleteFunc: func(any) { w.notify() },
		})
		if err != nil {
			return fmt.Errorf("watch %T: %w", o, err)
		}
		context.AfterFunc(ctx, func() { _ = informer.RemoveEventHandler(handle) })
	}
	return nil
}
