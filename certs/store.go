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
	keyCACert = "ca.crt"
	keyCAKey  = "ca.key"
)

// attempts bound the races that a replica may lose against others before it gives up until the next round.
const attempts = 5

// store keeps the identity in a Secret. Replicas race by create and by resourceVersion; whoever loses reads again.
type store struct {
	client client.Client // must read from the API server, not from a cache: a loser would read what it lost against
	key    client.ObjectKey
}

// identity returns the Secret's identity, renewed first where usable says that it must be.
func (s *store) identity(ctx context.Context, usable func(Identity) error, renew func(Identity) (Identity, error)) (Identity, error) {
	var last error
	for range attempts {
		secret, err := s.read(ctx)
		if err != nil {
			return Identity{}, err
		}
		id := identityOf(secret)
		if usable(id) == nil {
			return id, nil
		}
		if id, err = renew(id); err != nil {
			return Identity{}, err
		}
		if last = s.write(ctx, secret, id); last == nil {
			return id, nil
		}
		if !apierrors.IsAlreadyExists(last) && !apierrors.IsConflict(last) {
			return Identity{}, last
		}
	}
	return Identity{}, fmt.Errorf("lost %d races: %w", attempts, last)
}

// read returns an empty Secret, without a resourceVersion, where there is none.
func (s *store) read(ctx context.Context) (*corev1.Secret, error) {
	secret := &corev1.Secret{}
	err := s.client.Get(ctx, s.key, secret)
	if apierrors.IsNotFound(err) {
		return &corev1.Secret{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w", s.key, err)
	}
	return secret, nil
}

// write creates the Secret or updates exactly the version that was read.
func (s *store) write(ctx context.Context, read *corev1.Secret, id Identity) error {
	data := map[string][]byte{
		keyCACert: id.CACerts, keyCAKey: id.CAKey, corev1.TLSCertKey: id.Cert, corev1.TLSPrivateKeyKey: id.Key,
	}
	if read.ResourceVersion == "" {
		err := s.client.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: s.key.Name, Namespace: s.key.Namespace},
			Type:       corev1.SecretTypeTLS,
			Data:       data,
		})
		if err != nil {
			return fmt.Errorf("create secret %s: %w", s.key, err)
		}
		return nil
	}
	secret := read.DeepCopy()
	secret.Data = data
	if err := s.client.Update(ctx, secret); err != nil {
		return fmt.Errorf("update secret %s: %w", s.key, err)
	}
	return nil
}

func identityOf(secret *corev1.Secret) Identity {
	return Identity{
		CACerts: secret.Data[keyCACert], CAKey: secret.Data[keyCAKey],
		Cert: secret.Data[corev1.TLSCertKey], Key: secret.Data[corev1.TLSPrivateKeyKey],
	}
}
