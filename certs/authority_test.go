// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"
)

var (
	start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	names = Names{DNS: []string{"kubepace-webhook.kubepace-system.svc"}, IPs: []net.IP{net.ParseIP("127.0.0.1")}}
	days  = func(n int) time.Time { return start.Add(time.Duration(n) * 24 * time.Hour) }
)

// mustIssue makes a first identity.
func mustIssue(t *testing.T, now time.Time, n Names) Identity {
	t.Helper()
	return mustPromote(t, mustStage(t, Identity{}, now, nil), now, n)
}

func mustStage(t *testing.T, id Identity, now time.Time, trusted []byte) Identity {
	t.Helper()
	out, err := id.stage(now, trusted, DefaultValidity)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func mustPromote(t *testing.T, id Identity, now time.Time, n Names) Identity {
	t.Helper()
	out, err := id.promote(now, n, DefaultValidity)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func mustPair(t *testing.T, id Identity) *tls.Certificate {
	t.Helper()
	pair, err := id.Pair()
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
	id := mustIssue(t, start, names)
	pair := mustPair(t, id)
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

func TestNext(t *testing.T) {
	good := mustIssue(t, start, names)
	other := mustIssue(t, start, names)
	staged := mustStage(t, good, days(250), nil)
	with := func(edit func(*Identity)) Identity {
		id := good
		edit(&id)
		return id
	}
	late := func(day int) Identity { // the leaf was renewed on that day
		id, err := good.issue(days(day), names, DefaultValidity)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	tests := []struct {
		name string
		id   Identity
		now  time.Time
		want Names
		step step
	}{
		{"fresh", good, start, names, stepNone},
		{"before two thirds of the leaf's life", good, days(59), names, stepNone},
		{"after them", good, days(61), names, stepIssue},
		{"leaf expired", good, days(91), names, stepIssue},
		{"clock before the certificates", good, days(-1), names, stepStage},
		{"nothing there", Identity{}, start, names, stepStage},
		{"fewer names wanted", good, start, Names{DNS: names.DNS}, stepNone},
		{"another DNS name", good, start, Names{DNS: []string{"x.svc"}}, stepIssue},
		{"another IP", good, start, Names{IPs: []net.IP{net.IPv4(10, 0, 0, 1)}}, stepIssue},
		{"another CA's leaf", with(func(id *Identity) { id.Cert, id.Key = other.Cert, other.Key }), start, names, stepIssue},
		{"another leaf's key", with(func(id *Identity) { id.Key = other.Key }), start, names, stepIssue},
		{"no leaf", with(func(id *Identity) { id.Cert, id.Key = nil, nil }), start, names, stepIssue},
		{"another CA's key", with(func(id *Identity) { id.CAKey = other.CAKey }), start, names, stepStage},
		{"a leaf as CA", with(func(id *Identity) { id.CACerts, id.CAKey = id.Cert, id.Key }), start, names, stepStage},
		{"garbage", Identity{[]byte("x"), []byte("x"), []byte("x"), []byte("x"), []byte("x")}, start, names, stepStage},
		{"two thirds of the CA's life gone", late(240), days(250), names, stepStage},
		{"the leaf's, too: the next CA will issue", late(180), days(250), names, stepStage},
		{"leaf expired by then: do not wait for the next CA", late(150), days(250), names, stepIssue},
		{"staged", staged, days(250), names, stepIssue}, // its leaf has expired on day 90
		{"staged, leaf still good", mustStage(t, late(240), days(250), nil), days(250), names, stepPromote},
		{"staged, then forgotten for a year", mustStage(t, late(240), days(250), nil), days(700), names, stepStage},
		{"promoted", mustPromote(t, staged, days(250), names), days(251), names, stepRetire},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.id.next(tt.now, tt.want); got != tt.step {
				t.Errorf("got %s, want %s", got, tt.step)
			}
		})
	}
}

// Whoever trusts the bundle of one step accepts what is served in the step before, in its own, and in the one after.
func TestMakeBeforeBreak(t *testing.T) {
	now := start
	var history []Identity
	id := mustIssue(t, now, names)
	history = append(history, id)
	for range 2000 { // some 50 years
		now = now.Add(9 * 24 * time.Hour)
		var err error
		switch id.next(now, names) {
		case stepIssue:
			id, err = id.issue(now, names, DefaultValidity)
		case stepStage:
			id, err = id.stage(now, nil, DefaultValidity)
		case stepPromote:
			id, err = id.promote(now, names, DefaultValidity)
		case stepRetire:
			id, err = id.retire(now)
		case stepNone:
		}
		if err != nil {
			t.Fatal(err)
		}
		history = append(history, id)
		for i := len(history) - 2; i < len(history); i++ {
			for j := len(history) - 2; j < len(history); j++ {
				if err := trusted(history[i].CACerts, mustPair(t, history[j]), names.DNS[0], now); err != nil {
					t.Fatalf("at %s, bundle %d, leaf %d: %v", now, i, j, err)
				}
			}
		}
		if n := len(certificates(id.CACerts)); n > 2 {
			t.Fatalf("%d CAs are trusted", n)
		}
	}
	if bytes.Equal(history[0].CAKey, id.CAKey) {
		t.Error("the CA was never replaced")
	}
}

// What callers trust now, from whoever it is, stays trusted until replicas have moved on.
func TestStageKeepsForeignTrust(t *testing.T) {
	foreign := mustIssue(t, start, names)
	id := mustStage(t, Identity{}, start, append([]byte("rubbish\n"), append(foreign.Cert, foreign.CACerts...)...))
	if err := trusted(id.CACerts, mustPair(t, foreign), names.DNS[0], start); err != nil {
		t.Error(err)
	}
	if n := len(certificates(id.CACerts)); n != 2 || id.hurried() {
		t.Errorf("%d CAs, hurried: %v", n, id.hurried())
	}
	if over := mustStage(t, Identity{}, days(400), foreign.CACerts); !over.hurried() {
		t.Error("an expired CA is waited for")
	}
}

func TestTrustBundle(t *testing.T) {
	old, fresh := mustIssue(t, start, names), mustIssue(t, days(1), names)
	all := append(certificates(old.CACerts), certificates(fresh.CACerts)...)
	want := append(append([]byte{}, fresh.CACerts...), old.CACerts...)
	if got := trustBundle(append(all, all...), days(2)); !bytes.Equal(got, want) {
		t.Errorf("got %s", got)
	}
	if got := trustBundle(append(all, certificates(old.Cert)...), days(365)); !bytes.Equal(got, fresh.CACerts) {
		t.Errorf("an expired CA or a leaf is kept: %s", got)
	}
}
