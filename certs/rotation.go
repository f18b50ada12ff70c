// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"crypto/x509"
	"errors"
	"time"
)

// step is what a rotation has to do next.
type step int

const (
	stepNone    step = iota
	stepIssue        // a serving certificate, by the current CA
	stepStage        // a next CA, trusted but unused
	stepPromote      // the next CA becomes the current one
	stepRetire       // CAs that issued nothing that is served any more
)

func (s step) String() string {
	return [...]string{"none", "issue", "stage", "promote", "retire"}[s]
}

// next says what is due. Steps that must wait for others (promote, retire) are named as soon as they are the next ones;
// when they may be taken is the Keeper's business.
func (id Identity) next(now time.Time, names Names) step {
	ca, err := id.authority(id.CAKey)
	usable := err == nil && within(ca.cert, now)
	if usable {
		leaf, err := id.leaf(ca)
		if err != nil || !within(leaf, now) || missing(leaf, names) != nil || expiring(leaf, now) && !expiring(ca.cert, now) {
			return stepIssue
		}
	}
	if id.staged(now) {
		return stepPromote
	}
	if !usable || expiring(ca.cert, now) {
		return stepStage
	}
	if len(certificates(id.CACerts)) > 1 {
		return stepRetire
	}
	return stepNone
}

// nextAt is when time alone makes another step due.
func (id Identity) nextAt() time.Time {
	var at time.Time
	for _, c := range append(certificates(id.CACerts), certificates(id.Cert)...) {
		if t := expiringFrom(c); at.IsZero() || t.Before(at) {
			at = t
		}
	}
	return at
}

// staged reports whether a next CA waits that can still be used.
func (id Identity) staged(now time.Time) bool {
	next, err := id.authority(id.NextCAKey)
	return err == nil && !expiring(next.cert, now)
}

// issue replaces the serving certificate.
func (id Identity) issue(now time.Time, names Names, v Validity) (Identity, error) {
	ca, err := id.authority(id.CAKey)
	if err != nil {
		return Identity{}, err
	}
	id.Cert, id.Key, err = ca.issue(now, names, v.Leaf)
	return id, err
}

// stage makes the next CA and trusts it beside all others that are still valid: ours, and those that callers trust now
// wherever they come from. A deleted Secret, or an identity that somebody else kept until now, thus loses no call.
func (id Identity) stage(now time.Time, trusted []byte, v Validity) (Identity, error) {
	next, err := newAuthority(now, v.CA)
	if err != nil {
		return Identity{}, err
	}
	if id.NextCAKey, err = encodeKey(next.key); err != nil {
		return Identity{}, err
	}
	all := append(certificates(id.CACerts), certificates(trusted)...)
	id.CACerts = trustBundle(append(all, next.cert), now)
	return id, nil
}

// hurried is true where a staged CA has no other beside it that callers could trust: waiting would help nobody.
func (id Identity) hurried() bool { return len(certificates(id.CACerts)) == 1 }

// promote makes the next CA the current one. What callers trust stays as it is.
func (id Identity) promote(now time.Time, names Names, v Validity) (Identity, error) {
	if !id.staged(now) {
		return Identity{}, errors.New("no CA is staged")
	}
	id.CAKey, id.NextCAKey = id.NextCAKey, nil
	return id.issue(now, names, v)
}

// retire ends the trust in all CAs but the current one.
func (id Identity) retire(now time.Time) (Identity, error) {
	ca, err := id.authority(id.CAKey)
	if err != nil {
		return Identity{}, err
	}
	id.CACerts = trustBundle([]*x509.Certificate{ca.cert}, now)
	return id, nil
}

// serial names a serving certificate in Leases and logs.
func serial(c *x509.Certificate) string { return c.SerialNumber.Text(16) }
