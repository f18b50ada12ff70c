// SPDX-License-Identifier: Apache-2.0

// Package certs keeps a webhook's TLS identity without help from outside: a CA of its own and a serving certificate,
// kept in a Secret that all replicas share, injected into webhook configurations as caBundle and served without a
// restart when they are renewed.
//
// authority.go issues, pure but for randomness; store.go agrees with other replicas through the Secret; inject.go
// patches the caBundle; keeper.go runs all of it and serves.
package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"
)

// Names are what the serving certificate must be valid for.
type Names struct {
	DNS []string
	IPs []net.IP
}

// Validity says how long certificates live. Each is renewed when less than a third of its life is left.
type Validity struct {
	CA   time.Duration
	Leaf time.Duration
}

// DefaultValidity is a year for the CA and 90 days for the serving certificate.
var DefaultValidity = Validity{CA: 365 * 24 * time.Hour, Leaf: 90 * 24 * time.Hour}

// backdate forgives clocks that go slow.
const backdate = 5 * time.Minute

// Identity is a CA and a serving certificate, in PEM.
type Identity struct {
	CACerts []byte // the current CA first, then older ones that are still valid
	CAKey   []byte // of the current CA
	Cert    []byte
	Key     []byte
}

// Reasons to renew, wrapped by what Check returns.
var (
	errUnusable = errors.New("unusable")
	errExpiring = errors.New("expiring")
	errNames    = errors.New("lacks a name")
)

// authority is an Identity's CA, parsed.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Check returns the serving pair if the identity can be used at the time now, for these names, for long enough. The
// error is what makes Renew necessary.
func (id Identity) Check(now time.Time, names Names) (*tls.Certificate, error) {
	ca, err := id.authority()
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(id.Cert, id.Key)
	if err != nil {
		return nil, fmt.Errorf("serving certificate: %w: %w", errUnusable, err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	// The time is checked below, with its own reason.
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: pair.Leaf.NotBefore}); err != nil {
		return nil, fmt.Errorf("serving certificate: %w: %w", errUnusable, err)
	}
	if err := missing(pair.Leaf, names); err != nil {
		return nil, err
	}
	for _, c := range []*x509.Certificate{ca.cert, pair.Leaf} {
		if expiring(c, now) {
			return nil, fmt.Errorf("certificate %q: %w at %s", c.Subject.CommonName, errExpiring, c.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	return &pair, nil
}

// Renew issues a serving certificate. It keeps the CA if that outlives the new certificate's renewal; otherwise
// it makes a new one and keeps the old one in CACerts until it expires, so that both are trusted meanwhile.
func (id Identity) Renew(now time.Time, names Names, v Validity) (Identity, error) {
	out := id
	ca, err := id.authority()
	if err != nil || expiring(ca.cert, now) {
		if ca, err = newAuthority(now, v.CA); err != nil {
			return Identity{}, err
		}
		if out.CAKey, err = encodeKey(ca.key); err != nil {
			return Identity{}, err
		}
		out.CACerts = append(encodeCert(ca.cert.Raw), stillValid(id.CACerts, now)...)
	}
	if out.Cert, out.Key, err = ca.issue(now, names, v.Leaf); err != nil {
		return Identity{}, err
	}
	return out, nil
}

// authority parses the current CA and its key, which must belong together.
func (id Identity) authority() (*authority, error) {
	pair, err := tls.X509KeyPair(id.CACerts, id.CAKey)
	if err != nil {
		return nil, fmt.Errorf("CA: %w: %w", errUnusable, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("CA: %w: not an ECDSA CA", errUnusable)
	}
	return &authority{cert: pair.Leaf, key: key}, nil
}

func newAuthority(now time.Time, validity time.Duration) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "kubepace-webhook-ca"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(validity),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IsCA:     true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("create CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("parse CA certificate: %w", err)
	}
	return &authority{cert: cert, key: key}, nil
}

// issue makes a serving certificate, as PEM with its key.
func (a *authority) issue(now time.Time, names Names, validity time.Duration) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate serving key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "kubepace-webhook"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(validity),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: names.DNS, IPAddresses: names.IPs, BasicConstraintsValid: true,
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("create serving certificate: %w", err)
	}
	key, err = encodeKey(private)
	return encodeCert(raw), key, err
}

// expiring is true for the last third of a certificate's life, and before its life.
func expiring(c *x509.Certificate, now time.Time) bool {
	return now.Before(c.NotBefore) || now.After(c.NotAfter.Add(-c.NotAfter.Sub(c.NotBefore)/3))
}

// missing wants the names to be among the certificate's, not to be all of them: replicas of two versions would
// otherwise undo each other's work during a rollout.
func missing(c *x509.Certificate, names Names) error {
	for _, name := range names.DNS {
		if !slices.Contains(c.DNSNames, name) {
			return fmt.Errorf("serving certificate: %w: %s", errNames, name)
		}
	}
	for _, ip := range names.IPs {
		if !slices.ContainsFunc(c.IPAddresses, ip.Equal) {
			return fmt.Errorf("serving certificate: %w: %s", errNames, ip)
		}
	}
	return nil
}

// stillValid keeps the CA certificates that are not over, and nothing that is none.
func stillValid(certs []byte, now time.Time) []byte {
	var out bytes.Buffer
	for block, rest := pem.Decode(certs); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && c.IsCA && now.Before(c.NotAfter) {
			out.Write(encodeCert(block.Bytes))
		}
	}
	return out.Bytes()
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

func encodeCert(raw []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), nil
}
