// SPDX-License-Identifier: Apache-2.0

// Package certs keeps a webhook's TLS identity without help from outside: a CA of its own and a serving certificate in
// a Secret, trusted by way of the webhook configurations' caBundle, and replaced without a restart and without a call
// lost. authority.go issues and rotation.go says what is due, both pure but for randomness.
//
// One leader runs the Keeper (keeper.go): it alone writes the Secret (store.go) and the caBundle (inject.go). Every
// replica runs a Server (server.go): it serves what the Secret holds and says so in a Lease of its own (replicas.go).
//
// A new CA is made before the old one is broken with:
//
//  1. stage: the next CA goes into ca.crt and so into every caBundle, beside the current one.
//  2. promote: once that is there for Options.Propagation, the next CA issues the new serving certificate. API servers
//     do not acknowledge what they have read of a configuration, so time has to do.
//  3. retire: once every replica's Lease names the new certificate, the old CA leaves the caBundle. A replica whose
//     Lease lapsed is gone; where nobody reports, the old CA stays until it expires.
//
// So callers trust a certificate before anybody serves it and until nobody does. Files (files.go) is the alternative:
// somebody else keeps certificates, in files.
package certs
