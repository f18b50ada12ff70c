// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"testing"
	"time"
)

var (
	start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	names = Names{DNS: []string{"kubepace-webhook.kubepace-system.svc"}, IPs: []net.IP{net.ParseIP("127.0.0.1")}}
	days  = func(n int) time.Time { return start.Add(time.Duration(n) * 24 * time.Hour) }
)

func mustRenew(t *testing.T, id Identity, now time.Time, n Names) Identity {
	t.Helper()
	out, err := id.Renew(now, n, DefaultValidity)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func mustCheck(t *testing.T, id Identity, now time.Time, n Names) *tls.Certificate {
	t.Helper()
	pair, err := id.Check(now, n)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// trusted reports whether a caller that holds this caBundle accepts the certificate under the name.
func trusted(bundle []byte, pair *tls.Certificate, name string, now time.Time) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	_, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: now})
	return err
}

func TestIssue(t *testing.T) {
	id := mustRenew(t, Identity{}, start, names)
	pair := mustCheck(t, id, start, names)
	for _, name := range []string{names.DNS[0], "127.0.0.1"} {
		if err := trusted(id.CACerts, pair, name, start); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := trusted(id.CACerts, pair, "other.svc", start); err == nil {
		t.Error("valid for a name that nobody asked for")
	}
	if pair.Leaf.IsCA || pair.Leaf.PublicKeyAlgorithm != x509.ECDSA {
		t.Errorf("leaf: CA %v, %v", pair.Leaf.IsCA, pair.Leaf.PublicKeyAlgorithm)
	}
}

func TestCheck(t *testing.T) {
	good := mustRenew(t, Identity{}, start, names)
	other := mustRenew(t, Identity{}, start, names)
	tests := []struct {
		name string
		id   Identity
		now  time.Time
		want Names
		err  error
	}{
		{"fresh", good, start, names, nil},
		{"with two thirds of its life gone", good, days(61), names, errExpiring},
		{"before", good, days(59), names, nil},
		{"clock before the certificate", good, days(-1), names, errExpiring},
		{"nothing there", Identity{}, start, names, errUnusable},
		{"fewer names wanted", good, start, Names{DNS: names.DNS}, nil},
		{"another DNS name", good, start, Names{DNS: []string{"x.svc"}}, errNames},
		{"another IP", good, start, Names{IPs: []net.IP{net.IPv4(10, 0, 0, 1)}}, errNames},
		{"another CA's leaf", Identity{good.CACerts, good.CAKey, other.Cert, other.Key}, start, names, errUnusable},
		{"another CA's key", Identity{good.CACerts, other.CAKey, good.Cert, good.Key}, start, names, errUnusable},
		{"another leaf's key", Identity{good.CACerts, good.CAKey, good.Cert, other.Key}, start, names, errUnusable},
		{"a leaf as CA", Identity{good.Cert, good.Key, good.Cert, good.Key}, start, names, errUnusable},
		{"garbage", Identity{[]byte("x"), []byte("x"), []byte("x"), []byte("x")}, start, names, errUnusable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pair, err := tt.id.Check(tt.now, tt.want)
			if !errors.Is(err, tt.err) || (err == nil) != (pair != nil) {
				t.Errorf("got %v, want %v", err, tt.err)
			}
		})
	}
}

// A new leaf comes from the same CA; a new CA keeps the old one trusted until it is over.
func TestRenew(t *testing.T) {
	first := mustRenew(t, Identity{}, start, names)
	second := mustRenew(t, first, days(61), names)
	if !bytes.Equal(first.CACerts, second.CACerts) || bytes.Equal(first.Cert, second.Cert) {
		t.Error("renewing the leaf changed the CA, or not the leaf")
	}
	third := mustRenew(t, second, days(300), names)
	if bytes.Equal(second.CAKey, third.CAKey) {
		t.Fatal("a CA in the last third of its life was kept")
	}
	old, fresh := mustCheck(t, second, days(62), names), mustCheck(t, third, days(300), names)
	for name, pair := range map[string]*tls.Certificate{"old": old, "new": fresh} {
		if err := trusted(third.CACerts, pair, names.DNS[0], pair.Leaf.NotAfter.Add(-time.Hour)); err != nil {
			t.Errorf("%s leaf under the new bundle: %v", name, err)
		}
	}
	fourth := mustRenew(t, third, days(600), names)
	if got := bytes.Count(fourth.CACerts, []byte("BEGIN")); got != 2 {
		t.Errorf("%d CAs in the bundle, want the new one and the one before", got)
	}
}

func TestStillValidDropsRubbish(t *testing.T) {
	id := mustRenew(t, Identity{}, start, names)
	mixed := append(append([]byte("rubbish\n"), id.Cert...), id.CACerts...)
	if got := stillValid(mixed, start); !bytes.Equal(got, id.CACerts) {
		t.Errorf("kept %s", got)
	}
	if got := stillValid(mixed, days(400)); len(got) != 0 {
		t.Errorf("kept an expired CA: %s", got)
	}
}
