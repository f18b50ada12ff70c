// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"cmp"
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

// Validity says how long certificates live. Each is replaced when a third of its life is left.
type Validity struct {
	CA   time.Duration
	Leaf time.Duration
}

// DefaultValidity is a year for the CA and 90 days for the serving certificate.
var DefaultValidity = Validity{CA: 365 * 24 * time.Hour, Leaf: 90 * 24 * time.Hour}

// backdate forgives clocks that go slow.
const backdate = 5 * time.Minute

// Identity is what all replicas share, in PEM.
type Identity struct {
	CACerts   []byte // every CA that callers are to trust, newest first: the caBundle
	CAKey     []byte // of the CA that issued Cert
	NextCAKey []byte // of the CA that will issue the next Cert; empty unless one is being introduced
	Cert      []byte // what replicas serve
	Key       []byte
}

// What is wrong with a certificate.
var (
	errUnusable = errors.New("unusable")
	errNames    = errors.New("lacks a name")
)

// authority is an Identity's CA, parsed.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Pair is what a replica serves: the certificate with its key.
func (id Identity) Pair() (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(id.Cert, id.Key)
	if err != nil {
		return nil, fmt.Errorf("serving certificate: %w: %w", errUnusable, err)
	}
	return &pair, nil
}

// leaf returns the serving certificate if the CA issued it.
func (id Identity) leaf(ca *authority) (*x509.Certificate, error) {
	pair, err := id.Pair()
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	// Whether it is over is asked elsewhere.
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: pair.Leaf.NotBefore}); err != nil {
		return nil, fmt.Errorf("serving certificate: %w: %w", errUnusable, err)
	}
	return pair.Leaf, nil
}

// authority finds the CA that the key belongs to.
func (id Identity) authority(key []byte) (*authority, error) {
	err := errors.New("no certificate")
	for _, c := range certificates(id.CACerts) {
		var pair tls.Certificate
		if pair, err = tls.X509KeyPair(encodeCert(c.Raw), key); err != nil {
			continue
		}
		private, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
		if !ok || !c.IsCA {
			return nil, fmt.Errorf("CA: %w: not an ECDSA CA", errUnusable)
		}
		return &authority{cert: c, key: private}, nil
	}
	return nil, fmt.Errorf("CA: %w: %w", errUnusable, err)
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

// within is true during a certificate's life.
func within(c *x509.Certificate, now time.Time) bool {
	return !now.Before(c.NotBefore) && now.Before(c.NotAfter)
}

// expiring is true for the last third of a certificate's life and outside of it.
func expiring(c *x509.Certificate, now time.Time) bool {
	return !within(c, now) || now.After(expiringFrom(c))
}

func expiringFrom(c *x509.Certificate) time.Time {
	life := c.NotAfter.Sub(c.NotBefore) - backdate
	return c.NotAfter.Add(-life / 3)
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

// certificates decodes what is one, and skips what is none.
func certificates(bundle []byte) []*x509.Certificate {
	var out []*x509.Certificate
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, c)
		}
	}
	return out
}

// trustBundle encodes the CAs that are not over: each once, newest first, so that one set has one text.
func trustBundle(certs []*x509.Certificate, now time.Time) []byte {
	certs = slices.DeleteFunc(slices.Clone(certs), func(c *x509.Certificate) bool { return !c.IsCA || !now.Before(c.NotAfter) })
	slices.SortFunc(certs, func(a, b *x509.Certificate) int {
		return cmp.Or(b.NotBefore.Compare(a.NotBefore), bytes.Compare(a.Raw, b.Raw))
	})
	certs = slices.CompactFunc(certs, (*x509.Certificate).Equal)
	var out bytes.Buffer
	for _, c := range certs {
		out.Write(encodeCert(c.Raw))
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
