// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Keys of the Secret; tls.crt and tls.key are those of every kubernetes.io/tls Secret.
const (
	keyCACerts   = "ca.crt"
	keyCAKey     = "ca.key"
	keyNextCAKey = "next-ca.key"
)

// store keeps the identity in a Secret. What was not read in the version that is written over is never lost: a leader
// that does not know yet that it is none fails by resourceVersion.
type store struct {
	client client.Client // must read from the API server, not from a cache: see above
	key    client.ObjectKey
}

// read returns an empty Secret, without a resourceVersion, where there is none.
func (s *store) read(ctx context.Context) (*corev1.Secret, Identity, error) {
	secret := &corev1.Secret{}
	err := s.client.Get(ctx, s.key, secret)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, Identity{}, fmt.Errorf("read secret %s: %w", s.key, err)
	}
	if err != nil {
		secret = &corev1.Secret{}
	}
	return secret, Identity{
		CACerts: secret.Data[keyCACerts], CAKey: secret.Data[keyCAKey], NextCAKey: secret.Data[keyNextCAKey],
		Cert: secret.Data[corev1.TLSCertKey], Key: secret.Data[corev1.TLSPrivateKeyKey],
	}, nil
}

// write creates the Secret or updates exactly the version that was read, which it replaces by the one written.
func (s *store) write(ctx context.Context, secret *corev1.Secret, id Identity) error {
	data := map[string][]byte{
		// The API server wants both of these in a Secret of this type, be they empty.
		corev1.TLSCertKey: append([]byte{}, id.Cert...), corev1.TLSPrivateKeyKey: append([]byte{}, id.Key...),
	}
	for key, value := range map[string][]byte{keyCACerts: id.CACerts, keyCAKey: id.CAKey, keyNextCAKey: id.NextCAKey} {
		if len(value) > 0 {
			data[key] = value
		}
	}
	secret.Data = data
	if secret.ResourceVersion != "" {
		if err := s.client.Update(ctx, secret); err != nil {
			return fmt.Errorf("update secret %s: %w", s.key, err)
		}
		return nil
	}
	secret.ObjectMeta = metav1.ObjectMeta{
		Name: s.key.Name, Namespace: s.key.Namespace, Labels: map[string]string{"app.kubernetes.io/part-of": "kubepace"},
	}
	secret.Type = corev1.SecretTypeTLS
	if err := s.client.Create(ctx, secret); err != nil {
		return fmt.Errorf("create secret %s: %w", s.key, err)
	}
	return nil
}
