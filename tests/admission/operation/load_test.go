// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubepace/kubepace/bandwidth"
)

// load is clients that create pods one after the other.
type load struct {
	created atomic.Int64
	cancel  context.CancelFunc
	clients sync.WaitGroup

	mu     sync.Mutex
	losses []string
}

// startLoad creates pods until finish; each must be admitted and capped.
func (s *service) startLoad(t *testing.T, clients int) *load {
	t.Helper()
	namespace := s.namespace(t)
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{cancel: cancel}
	t.Cleanup(l.stop)
	for range clients {
		l.clients.Go(func() {
			for ctx.Err() == nil {
				l.create(ctx, s, namespace)
			}
		})
	}
	return l
}

func (l *load) create(ctx context.Context, s *service, namespace string) {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "p-", Namespace: namespace, Annotations: map[string]string{bandwidth.AnnotationEgress: "1G"},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	began := time.Now()
	err := s.Client.Create(ctx, p)
	if err == nil && p.Annotations[bandwidth.AnnotationEgress] != "50M" {
		err = fmt.Errorf("pod %s was admitted with %v", p.Name, p.Annotations)
	}
	if err == nil {
		l.created.Add(1)
		return
	}
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.losses = append(l.losses, fmt.Sprintf("%s, after %s: %v", began.Format("15:04:05.000"), time.Since(began).Round(time.Millisecond), err))
}

func (l *load) stop() {
	l.cancel()
	l.clients.Wait()
}

// more waits until the clients have created some pods since now: admission is not merely quiet.
func (l *load) more(t *testing.T, what string) {
	t.Helper()
	from := l.created.Load()
	eventually(t, "creates "+what, func() bool { return l.created.Load() >= from+20 || l.lost() > 0 })
}

func (l *load) lost() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.losses)
}

// finish wants not one call lost.
func (l *load) finish(t *testing.T) {
	t.Helper()
	l.stop()
	t.Logf("%d pods", l.created.Load())
	for i, loss := range l.losses {
		if i == 5 {
			break
		}
		t.Error(loss)
	}
	if n := len(l.losses); n > 0 {
		t.Errorf("%d of %d creates were lost\n%s", n, int64(n)+l.created.Load(), shared.logs())
	}
}
