// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// Files serves tls.crt and tls.key of a folder, such as a mounted Secret that cert-manager keeps, and follows them when
// they are replaced. Rotation and the caBundle are their keeper's business.
type Files struct {
	watcher *certwatcher.CertWatcher
}

var (
	_ Source                         = (*Files)(nil)
	_ manager.Runnable               = (*Files)(nil)
	_ manager.LeaderElectionRunnable = (*Files)(nil)
)

// NewFiles reads the folder for the first time.
func NewFiles(dir string, m *Metrics) (*Files, error) {
	watcher, err := certwatcher.New(filepath.Join(dir, corev1.TLSCertKey), filepath.Join(dir, corev1.TLSPrivateKeyKey))
	if err != nil {
		return nil, fmt.Errorf("read certificate in %s: %w", dir, err)
	}
	watcher.RegisterCallback(func(c tls.Certificate) { m.loaded(c.Leaf) })
	return &Files{watcher}, nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (f *Files) NeedLeaderElection() bool { return false }

// Start implements manager.Runnable; it returns when the context ends.
func (f *Files) Start(ctx context.Context) error { return f.watcher.Start(ctx) }

// Configure implements Source.
func (f *Files) Configure(c *tls.Config) { configure(c, f.watcher.GetCertificate) }

// Ready implements Source.
func (f *Files) Ready(*http.Request) error {
	c, err := f.watcher.GetCertificate(nil)
	if err != nil {
		return err
	}
	return ready(c, time.Now())
}
